"""Tests of EGNN alone: its counts, a stored energy, degenerate graphs, learning."""

from __future__ import annotations

from contextlib import nullcontext

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from gnnscale.architectures.egnn import EGNNConfig
from gnnscale.atoms.graph import AtomGraphs, edge_vectors
from gnnscale.models.egnn_paper import PaperLayer
from gnnscale.models.layers import Layout, Pattern, sparse_product
from gnnscale.models.potential import Potential, find_hidden_matrices, predict
from gnnscale.models.registry import build
from tests.benchmarks.plain import HydraLayer
from tests.support.structures import CUTOFF, Sample, make_batch, make_crystal, make_molecule

FORMS = [(form, forces) for form in ("edge", "deferred") for forces in ("direct", "gradient")]
every_form = pytest.mark.parametrize("form, forces", FORMS)
the_paper_too = pytest.mark.parametrize("form, forces", [*FORMS, ("paper", "direct")])


def mixture(seed: int = 0, dtype: torch.dtype = torch.float64) -> AtomGraphs:
    rng = np.random.default_rng(seed)
    return make_batch(
        [make_molecule(rng, 8), make_crystal(rng, 4), make_molecule(rng, 1), make_molecule(rng, 6)], dtype=dtype
    )


def egnn(form: str, forces: str, seed: int = 0, **fields) -> Potential:
    torch.manual_seed(seed)
    config = EGNNConfig(**{"width": 16, "depth": 2, "cutoff": CUTOFF} | fields, form=form, forces=forces)
    return build(config, sources=2, average_degree=12.0)


def objective(potential: Potential, graphs: AtomGraphs, energy: torch.Tensor, forces: torch.Tensor) -> torch.Tensor:
    out = potential(graphs)
    return (out.energy - energy).abs().mean() + (out.forces - forces).abs().mean()


STORED = {  # eV and the norm of forces, of `fixed_graphs` and the weights of this test; they change when the model does
    ("edge", "direct"): (1.5512893793, 7.6541028327),
    ("edge", "gradient"): (1.5512893793, 1.8100105736),
    ("deferred", "direct"): (1.5588421497, 10.0813202920),
    ("deferred", "gradient"): (1.5588421497, 1.6310584412),
    ("paper", "direct"): (-219.5033044724, 95.7861355147),
}


@the_paper_too
def test_stored_energy(form, forces):
    """Catches what symmetry cannot, such as receivers and senders swapped. Weights are sines of n^2: no seed needed."""
    potential = egnn(form, forces).double()
    for k, parameter in enumerate(potential.parameters()):
        values = torch.sin(torch.arange(parameter.numel(), dtype=torch.float64).square() * 0.37 + k)
        parameter.data = values.view(parameter.shape) * (2 / max(1, parameter.shape[-1])) ** 0.5
    graphs = fixed_graphs()
    with torch.no_grad():
        got = predict(potential, graphs)
    energy, norm = STORED[form, forces]
    assert float(got.energy.sum()) == pytest.approx(energy, abs=1e-9)
    assert float(got.forces.norm()) == pytest.approx(norm, abs=1e-9)


def fixed_graphs() -> AtomGraphs:
    water = np.array([[0.0, 0.0, 0.119], [0.0, 0.763, -0.477], [0.1, -0.763, -0.477]])
    salt = np.array([[2.0, 0.1, 0.0], [0.3, 2.2, 0.0], [0.0, 0.4, 2.5]])
    return make_batch(
        [
            Sample(np.array([8, 1, 1]), water, np.zeros((3, 3)), np.zeros(3, bool)),
            Sample(np.array([11, 17]), np.array([[0.0, 0.0, 0.0], [1.1, 1.2, 1.3]]), salt, np.ones(3, bool), source=1),
        ]
    )


@the_paper_too
@pytest.mark.parametrize("width, depth, radial", [(1, 1, 1), (7, 2, 8), (64, 3, 5), (15000, 3, 8)])
def test_parameters_are_counted_exactly(form, forces, width, depth, radial):
    config = EGNNConfig(width=width, depth=depth, radial=radial, form=form, forces=forces)
    with torch.device("meta"):
        potential = build(config, sources=3, average_degree=10.0)
    total = sum(parameter.numel() for parameter in potential.parameters())
    embeddings = sum(m.weight.numel() for m in potential.modules() if isinstance(m, torch.nn.Embedding))
    assert (config.parameters(3), config.body_parameters()) == (total, total - embeddings)


@the_paper_too
def test_every_parameter_learns(form, forces):
    potential, graphs = egnn(form, forces).double(), mixture()
    if form != "paper":
        torch.nn.init.normal_(potential.backbone.readout.weight)
    out = potential(graphs)
    (out.energy.square().sum() + out.forces.square().sum()).backward()
    assert [name for name, p in potential.named_parameters() if p.grad is None or not p.grad.any()] == []


class Everything(nullcontext):
    """Stands for the flop counter's tracker of modules, which cannot be used with autograd.grad."""

    parents = {"Global"}


@the_paper_too
def test_flops_are_counted_exactly(form, forces):
    config = EGNNConfig(width=48, depth=3, cutoff=CUTOFF, form=form, forces=forces)
    potential, graphs = build(config, 2, 10.0).double(), mixture()
    counter = FlopCounterMode(display=False)
    counter.mod_tracker = Everything()
    with counter:
        out = potential(graphs)
        (out.energy.square().sum() + out.forces.square().sum()).backward()
    expected = config.flops(len(graphs.numbers), len(graphs.receivers))
    assert counter.get_total_flops() == expected


@pytest.mark.parametrize("forces", ["direct", "gradient"])
@pytest.mark.parametrize("chunk", [None, 4])
def test_heads_of_sources_that_are_alike_are_one_head(forces, chunk):
    config = EGNNConfig(width=16, depth=2, cutoff=CUTOFF, forces=forces)
    torch.manual_seed(0)
    one = build(config, 3, 10.0, chunk).double()
    several = build(config.model_copy(update={"source_heads": True}), 3, 10.0, chunk).double()
    torch.nn.init.normal_(one.backbone.readout.weight)
    state = one.state_dict()
    state["backbone.readout.weight"] = state["backbone.readout.weight"].repeat(3, 1)
    several.load_state_dict(state)
    outs = [m(mixture()) for m in (one, several)]
    torch.testing.assert_close(outs[1].energy, outs[0].energy, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(outs[1].forces, outs[0].forces, rtol=1e-12, atol=1e-12)
    for out in outs:
        (out.energy.square().sum() + out.forces.square().sum()).backward()
    split = several.backbone.readout.weight.grad.view(3, -1)
    assert torch.count_nonzero(split.abs().sum(1)) == len(mixture().source.unique()), (
        "each learns from its source alone"
    )
    torch.testing.assert_close(split.sum(0), one.backbone.readout.weight.grad.view(-1), rtol=1e-9, atol=1e-12)
    counted = config.model_copy(update={"source_heads": True}).parameters(3)
    assert counted == sum(p.numel() for p in several.parameters())


def test_the_paper_has_17_squares_of_its_width_in_three_layers_and_direct_forces():
    config = EGNNConfig(form="paper", width=15000)
    assert config.body_parameters() == pytest.approx((17 + 2) * 15000**2, rel=1e-3)  # two heads of one square each
    with pytest.raises(ValueError, match="direct"):
        EGNNConfig(form="paper", forces="gradient")


@pytest.mark.parametrize("moves", [True, False])
def test_the_paper_s_layer_is_that_of_hydragnn(moves):
    """Theirs concatenates before the first matrix, ours multiplies before the gather."""
    torch.manual_seed(0)
    graphs, layer = mixture(), PaperLayer(16, 16, moves).double()
    h, vectors = torch.randn(len(graphs.numbers), 16).double(), edge_vectors(graphs)
    inputs = (h, vectors, vectors.norm(dim=1, keepdim=True), graphs.receivers, graphs.senders)
    for got, expected in zip(layer(*inputs), HydraLayer(layer).double()(*inputs), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("target", [1, 1e3, 1e5, 2e9])
@pytest.mark.parametrize("depth, form, forces", [(3, "edge", "direct"), (6, "deferred", "gradient")])
def test_the_nearest_width(target, depth, form, forces):
    best = EGNNConfig(depth=depth, form=form, forces=forces).for_parameters(target)
    assert (best.depth, best.form, best.forces) == (depth, form, forces)
    gaps = [
        abs(best.model_copy(update={"width": width}).body_parameters() - target)
        for width in (max(1, best.width - 1), best.width, best.width + 1)
    ]
    assert gaps[1] == min(gaps)


def test_hidden_matrices_are_those_whose_fan_in_grows():
    shapes = [{p: m.shape for p, m in egnn("edge", "direct", width=w).named_parameters()} for w in (64, 128)]
    grows = {p for p in shapes[0] if len(shapes[0][p]) == 2 and shapes[0][p][1] != shapes[1][p][1]}
    grows -= {"backbone.element.weight", "backbone.source.weight"}  # fan-in of a table is the one row that is read
    potential = egnn("edge", "direct")
    hidden = {id(p) for p in find_hidden_matrices(potential)}
    assert {name for name, p in potential.named_parameters() if id(p) in hidden} == grows


@every_form
def test_no_edges_at_all(form, forces):
    alone = Sample(np.array([8]), np.zeros((1, 3)), np.zeros((3, 3)), np.zeros(3, bool))
    potential = egnn(form, forces)
    out = potential(make_batch([alone, alone._replace(source=1)], dtype=torch.float32))
    (out.energy.sum() + out.forces.sum()).backward()
    assert not out.forces.any() and not out.energy.isnan().any()


@every_form
def test_begins_at_the_references(form, forces):
    out = egnn(form, forces)(mixture(dtype=torch.float32))
    assert not out.energy.any() and not out.forces.any()


def test_totals_keep_their_digits_through_casts():
    potential = egnn("edge", "direct")
    references = torch.full((2, 119), -12345.678901234567, dtype=torch.float64)
    potential.set_normalisation(references, 1.0, 1.0)
    graphs = mixture(dtype=torch.float32)
    energy = predict(potential.bfloat16().float(), graphs).energy
    expected = -12345.678901234567 * torch.tensor([8.0, 4.0, 1.0, 6.0], dtype=torch.float64)
    torch.testing.assert_close(energy, expected, rtol=0, atol=1e-9)
    with pytest.raises(ValueError, match="expected"):
        potential.set_normalisation(references[:1], 1.0, 1.0)


def test_stress_is_only_for_gradient_forces_and_volumes():
    with pytest.raises(ValueError, match="gradient"):
        predict(egnn("edge", "direct"), mixture(dtype=torch.float32), stress=True)
    stress = predict(egnn("edge", "gradient"), mixture(dtype=torch.float32), stress=True).stress
    assert stress.isnan().all(dim=(1, 2)).tolist() == [True, False, True, True]


def test_sparse_products_and_their_derivatives():
    generator = torch.Generator().manual_seed(0)
    rows, columns = torch.tensor([0, 0, 2, 2, 2, 3]), torch.tensor([1, 2, 0, 0, 3, 2])  # row 1 and column 4 are empty
    order = torch.argsort(columns, stable=True)
    matrix = Layout(rows, columns, torch.tensor([0, 2, 2, 5]), torch.argsort(order))
    pattern = Pattern(matrix, Layout(columns[order], rows[order], torch.tensor([0, 2, 3, 5, 6]), order))
    values = torch.randn(6, generator=generator, dtype=torch.float64)
    x = torch.randn(5, 3, generator=generator, dtype=torch.float64)

    def multiply(x, values):
        return sparse_product(pattern, values, x)

    dense = torch.zeros(4, 5, dtype=torch.float64).index_put((rows, columns), values, accumulate=True)
    ones = torch.zeros(4, 5, dtype=torch.float64).index_put((rows, columns), torch.ones(6).double(), accumulate=True)
    torch.testing.assert_close(multiply(x, values), dense @ x)
    torch.testing.assert_close(multiply(x, None), ones @ x)
    inputs = (x.requires_grad_(), values.requires_grad_())
    assert torch.autograd.gradcheck(multiply, inputs) and torch.autograd.gradgradcheck(multiply, inputs)
    assert torch.autograd.gradgradcheck(lambda x: multiply(x, None), inputs[:1])


@every_form
def test_float32_and_bfloat16_stay_near_float64(form, forces):
    potential = egnn(form, forces)
    torch.nn.init.normal_(potential.backbone.readout.weight, std=0.25)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = potential(mixture(dtype=torch.float32))
    single, double = potential(mixture(dtype=torch.float32)), potential.double()(mixture())
    for field in ("energy", "forces"):
        exact = getattr(double, field)
        assert (getattr(single, field) - exact).norm() < 1e-5 * exact.norm()
        assert (getattr(half, field) - exact).norm() < 0.1 * exact.norm()


@pytest.mark.slow
@every_form
def test_overfits_four_structures_of_two_sources(form, forces):
    """The last two have the same atoms, and labels that contradict each other, from two sources."""
    rng = np.random.default_rng(3)
    third = make_molecule(rng, 6)._replace(source=0)
    graphs = make_batch(
        [make_molecule(rng, 8), make_crystal(rng, 3), third, third._replace(source=1)], dtype=torch.float32
    )
    teacher = egnn(form, forces, seed=1)
    torch.nn.init.normal_(teacher.backbone.readout.weight, std=0.3)
    torch.nn.init.normal_(teacher.backbone.source.weight)
    with torch.no_grad():
        labels = teacher(graphs)
    assert abs(labels.energy[2] - labels.energy[3]) > 0.05
    potential = egnn(form, forces, seed=2)
    optimiser = torch.optim.Adam(potential.parameters(), lr=1e-2)
    losses = []
    for step in range(150):
        for group in optimiser.param_groups:
            group["lr"] = 1e-2 * (1 - step / 150)
        optimiser.zero_grad()
        loss = objective(potential, graphs, labels.energy, labels.forces)
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[1] < losses[0]  # one step of Adam
    assert losses[-1] < 0.1 * losses[0]
