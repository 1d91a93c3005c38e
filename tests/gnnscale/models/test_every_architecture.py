"""Every architecture in the registry: exact counts, layers, names and widths, on which plans, stages and reports rely."""

from __future__ import annotations

from contextlib import nullcontext

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from gnnscale.architectures.base import Architecture
from gnnscale.architectures.registry import ARCHITECTURES, complete_options, default_model
from gnnscale.atoms.graph import AtomGraphs
from gnnscale.contract.settings import TrainSettings
from gnnscale.inference.oversmoothing import collect_layer_features
from gnnscale.models.potential import find_hidden_matrices
from gnnscale.models.registry import build
from tests.support.architectures import small_variants
from tests.support.structures import make_batch, make_crystal, make_molecule

VARIANTS = small_variants()
every_variant = pytest.mark.parametrize("config", VARIANTS.values(), ids=list(VARIANTS))
every_kind = pytest.mark.parametrize("kind", ARCHITECTURES)


class Everything(nullcontext):
    """Stands for the flop counter's tracker of modules, which cannot be used with autograd.grad."""

    parents = {"Global"}


def mixture() -> AtomGraphs:
    rng = np.random.default_rng(0)
    return make_batch([make_molecule(rng, 8), make_crystal(rng, 4), make_molecule(rng, 1)], dtype=torch.float64)


@every_variant
def test_parameters_are_counted_exactly(config: Architecture):
    for sources in (1, 3):
        potential = build(config, sources, average_degree=10.0)
        assert config.parameters(sources) == sum(p.numel() for p in potential.parameters())
    one = build(config, 1, average_degree=10.0)
    embeddings = sum(m.weight.numel() for m in one.modules() if isinstance(m, torch.nn.Embedding))
    assert config.body_parameters() == config.parameters(1) - embeddings


@every_variant
def test_flops_are_counted_exactly(config: Architecture):
    potential, graphs = build(config, 2, 10.0).double(), mixture()
    counter = FlopCounterMode(display=False)
    counter.mod_tracker = Everything()
    with counter:
        out = potential(graphs)
        (out.energy.square().sum() + out.forces.square().sum()).backward()
    assert counter.get_total_flops() == config.flops(len(graphs.numbers), len(graphs.receivers))


@every_variant
def test_the_features_of_atoms_are_seen_before_and_after_each_layer(config: Architecture):
    found = collect_layer_features(build(config, 2, 10.0).double(), mixture())
    assert len(found) == config.depth + 1
    assert {len(h) for h in found} == {len(mixture().numbers)} and {h.shape[1] for h in found[1:]} == {config.width}


@every_variant
def test_matrices_that_learn_at_a_scaled_rate_sum_over_the_width(config: Architecture):
    """But for what is joined to the width: a few more columns in matrices that see several things at once."""
    fan_in = [matrix.shape[1] for matrix in find_hidden_matrices(build(config, 2, 10.0))]
    assert fan_in and all(config.rate_width <= columns <= 3 * config.rate_width for columns in fan_in)


@every_variant
def test_memory_grows_with_everything(config: Architecture):
    assert 0 < config.activation_bytes(10, 100) < config.activation_bytes(20, 200)
    assert config.activation_bytes(10, 100) < config.with_width(2 * config.width).activation_bytes(10, 100)
    if config.can_chunk_edges:
        assert config.activation_bytes(10, 10_000, edge_chunk=100) < config.activation_bytes(10, 10_000)


@every_kind
def test_widths_are_multiples_of_their_step_and_ascend(kind: str):
    config = ARCHITECTURES[kind]()
    widths = [each.width for each in config.at_all_widths()]
    assert widths == sorted(set(widths)) and not any(width % config.WIDTH_STEP for width in widths)
    assert widths[0] <= 16 and widths[-1] > 100_000
    for target in (1e3, 1e6, 1e9):
        best = config.for_parameters(target)
        others = [best.with_width(best.width + k * config.WIDTH_STEP) for k in (-1, 1)]
        apart = [abs(each.body_parameters() - target) for each in (best, *others) if each.width > 0]
        assert apart[0] == min(apart) and best.width % config.WIDTH_STEP == 0


@every_kind
def test_options_are_read_back_as_what_they_were(kind: str):
    settings = TrainSettings(model=ARCHITECTURES[kind](width=16))
    assert TrainSettings.model_validate_json(settings.model_dump_json()) == settings
    assert TrainSettings.model_validate({"model": {"width": 16}}).model == default_model().with_width(16)


def test_options_of_another_kind_are_left_out_and_unknown_ones_reported():
    assert complete_options({"width": 8, "widht": 9})["widht"] == 9
    assert complete_options({"kind": "none", "width": 8}) == {"kind": "none", "width": 8}
    assert complete_options("egnn") == "egnn"
