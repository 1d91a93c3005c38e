"""Over-smoothing: both measures by their definitions, by symmetry, and by what the networks say themselves."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gnnscale.atoms.graph import AtomGraphs, edge_vectors
from gnnscale.contract.results import LayerFeatures
from gnnscale.inference.oversmoothing import (
    collect_layer_features,
    cosine_distances,
    directions,
    dirichlet_energies,
    measure_features,
)
from gnnscale.models.layers import linear_by_source
from tests.gnnscale.models.test_physics import CONFIGS, lively
from tests.support.structures import (
    generators,
    make_batch,
    make_crystal,
    make_molecule,
    make_orthogonal,
    molecules,
    structures,
)

every_form = pytest.mark.parametrize("name", [*CONFIGS, "paper"])
ours = pytest.mark.parametrize("name", CONFIGS)
FEW = settings(max_examples=8)  # of each of six networks


def graph(rng: np.random.Generator, *sizes: int) -> AtomGraphs:
    """Molecules of so many atoms, with the edges of a crystal thrown in: it has edges to its own images."""
    return make_batch([*(make_molecule(rng, n) for n in sizes), make_crystal(rng, 3)], cutoff=3.0)


def set_to(h: torch.Tensor, graphs: AtomGraphs) -> tuple[torch.Tensor, torch.Tensor]:
    return cosine_distances(directions(h), graphs), dirichlet_energies(h, graphs)


def equal(one: tuple[LayerFeatures, ...], other: tuple[LayerFeatures, ...], tolerance: float = 1e-9) -> None:
    assert len(one) == len(other)
    for a, b in zip(one, other):
        for field in LayerFeatures.model_fields:
            assert getattr(a, field) == pytest.approx(getattr(b, field), rel=tolerance, abs=1e-12, nan_ok=True), field


def test_by_the_definitions():
    """Every pair and every edge, one after the other; and as quotients of the graph's Laplacian."""
    rng = np.random.default_rng(3)
    graphs = graph(rng, 5, 1, 8)
    h = torch.from_numpy(rng.normal(size=(17, 6)) + 1)
    distance, energy = set_to(h, graphs)
    for b in range(4):
        atoms = [k for k in range(17) if graphs.structure[k] == b]
        cosine = torch.nn.functional.cosine_similarity(h[:, None], h[None], dim=2)
        pairs = [1 - cosine[x, y] for x in atoms for y in atoms if x != y]
        assert float(distance[b]) == pytest.approx(np.mean(pairs) if pairs else math.nan, nan_ok=True)
        laplacian, degree = np.zeros((17, 17)), np.zeros((17, 17))
        for i, j in zip(graphs.receivers.tolist(), graphs.senders.tolist()):
            if i in atoms:
                laplacian[i, i] += 1  # an edge to an image of itself takes this away again
                laplacian[i, j] -= 1
                degree[i, i] += 1
        bottom = np.trace(h.T.numpy() @ degree @ h.numpy())
        quotient = np.trace(h.T.numpy() @ laplacian @ h.numpy()) / bottom if bottom else math.nan
        assert float(energy[b]) == pytest.approx(quotient, nan_ok=True)
    assert distance[1].isnan() and energy[1].isnan()  # a single atom has neither pair nor edge


def test_known_values():
    """Constants give exactly 0, whatever their bits; random features 1; angles what they are; zeros are alike."""
    rng = np.random.default_rng(0)
    graphs = graph(rng, 8, 8, 8)
    same = torch.from_numpy(rng.normal(size=(1, 7))).expand(27, 7)
    for h in (same, 1e-30 * same, 1e30 * same, 0 * same):
        distance, energy = set_to(h, graphs)
        assert distance.tolist() == [0.0] * 4 and energy.tolist() == [0.0] * 4
    pair = AtomGraphs(*make_batch([make_molecule(rng, 2)]))._replace(
        receivers=torch.tensor([0, 1]), senders=torch.tensor([1, 0])
    )
    for other, distance, energy in (
        ([0.5, 0.75**0.5], 0.5, 0.5),
        ([0.0, 1.0], 1.0, 1.0),
        ([-1.0, 0.0], 2.0, 2.0),
        ([3.0, 0.0], 0.0, 0.4),
        ([0.0, 0.0], 0.5, 1.0),
    ):
        found = set_to(torch.tensor([[1.0, 0.0], other], dtype=torch.float64), pair)
        assert [float(x) for x in found] == pytest.approx([distance, energy], abs=1e-15)
    large = graph(rng, *[8] * 60)
    unrelated = torch.from_numpy(rng.normal(size=(len(large.numbers), 64)))
    distance, _ = set_to(unrelated, large)
    assert float(distance.mean()) == pytest.approx(1, abs=0.01)
    molecules = large._replace(
        receivers=large.receivers[large.structure[large.receivers] < 60],
        senders=large.senders[large.structure[large.receivers] < 60],
    )
    assert float(dirichlet_energies(unrelated, molecules)[:60].nanmean()) == pytest.approx(1, abs=0.03)


def test_neither_knows_the_scale():
    rng = np.random.default_rng(1)
    graphs, h = graph(rng, 6, 7), torch.from_numpy(rng.normal(size=(16, 5)))
    for factor in (1e-8, -3.0, 1e9):
        torch.testing.assert_close(set_to(factor * h, graphs), set_to(h, graphs), equal_nan=True)


@every_form
@FEW
@given(st.lists(structures, min_size=2, max_size=4))
def test_a_batch_equals_its_structures(name, samples):
    together, one_by_one = [make_batch(samples)], (make_batch([sample]) for sample in samples)
    equal(measure_features(lively(name), together), measure_features(lively(name), one_by_one))


@every_form
@FEW
@given(molecules, structures, generators)
def test_permutation(name, one, other, rng):
    order = rng.permutation(len(one.numbers))
    changed = one._replace(numbers=one.numbers[order], positions=one.positions[order])
    before, after = (
        measure_features(lively(name), [make_batch(samples)]) for samples in ([one, other], [other, changed])
    )
    equal(before, after, 1e-8)


@ours
@FEW
@given(structures, generators)
def test_rigid_motion(name, sample, rng):
    q, shift = make_orthogonal(rng), rng.normal(size=3)
    moved = sample._replace(positions=sample.positions @ q.T + shift, cell=sample.cell @ q.T)
    equal(
        measure_features(lively(name), [make_batch([sample])]),
        measure_features(lively(name), [make_batch([moved])]),
        1e-7,
    )


@every_form
def test_a_place_for_every_layer_and_nothing_left_behind(name):
    """Before the first layer elements and sources alone, or Z, x, y, z; the last is what the heads read."""
    rng = np.random.default_rng(2)
    potential, graphs = lively(name), graph(rng, 4, 6)
    before = potential(graphs)
    found, net = collect_layer_features(potential, graphs), potential.backbone
    assert len(found) == len(net.layers) + 1 and not any(h.requires_grad for h in found)
    if name == "paper":
        assert torch.equal(found[0], torch.cat((graphs.numbers[:, None].double(), graphs.positions), dim=1))
        assert torch.equal(net.energy(found[-1])[:, 0].detach(), net(graphs, edge_vectors(graphs))[0].detach())
    else:
        assert torch.equal(found[0], net.element(graphs.numbers) + net.source(graphs.source[graphs.structure]))
        x = torch.nn.functional.silu(
            net.hidden(torch.nn.functional.rms_norm(found[-1], found[-1].shape[-1:], eps=1e-6))
        )
        source = graphs.source[graphs.structure]
        out = net.readout(x) if net.heads == 1 else linear_by_source(x, net.readout.weight, source, net.heads)
        torch.testing.assert_close(out[:, 0], net(graphs, edge_vectors(graphs))[0])
    assert all(not module._forward_hooks and not module._forward_pre_hooks for module in net.modules())
    assert torch.equal(potential(graphs).energy, before.energy)


def test_a_network_that_averages_is_seen_to_smooth():
    """Each layer replaces an atom by the mean of its neighbourhood: both measures fall to 0."""

    class Average(torch.nn.Module):
        def forward(self, h, graphs):
            near = h.index_add(0, graphs.receivers, h[graphs.senders])
            return near / (1 + torch.bincount(graphs.receivers, minlength=len(h)))[:, None], None

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.backbone = torch.nn.Module()
            self.backbone.layers = torch.nn.ModuleList(Average() for _ in range(12))

        def forward(self, graphs):
            h = torch.from_numpy(np.random.default_rng(0).normal(size=(len(graphs.numbers), 16)))
            for layer in self.backbone.layers:
                h, _ = layer(h, graphs)

    rng = np.random.default_rng(5)
    found = measure_features(Net(), [make_batch([make_molecule(rng, 8), make_molecule(rng, 7)], cutoff=4.0)])
    for field in ("distance", "dirichlet"):
        fall = [getattr(layer, field) for layer in found]
        assert fall[0] > 0.5 and all(b < a for a, b in itertools.pairwise(fall)) and fall[-1] < 1e-3
    assert found[-1].sample_distance > 0.1  # two molecules apart do not become the same


def test_an_overflown_network_says_so():
    potential = lively("egnn-deferred-direct")
    graphs = graph(np.random.default_rng(0), 5)
    with torch.no_grad():
        kept = potential.backbone.layers[1].update.weight.clone()
        potential.backbone.layers[1].update.weight.fill_(math.nan)
    try:
        found = measure_features(potential, [graphs])
    finally:
        potential.backbone.layers[1].update.weight.data = kept
    assert 0 <= found[1].distance <= 2 and math.isnan(found[2].distance) and math.isnan(found[2].sample_distance)
