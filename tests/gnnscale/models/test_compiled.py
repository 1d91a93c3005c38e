"""The compiled network gives the numbers of PyTorch: energies, forces, stress, gradients and penalties, of every network."""

import itertools

import numpy as np
import pytest
import torch

from gnnscale.atoms.graph import AtomGraphs, Properties
from gnnscale.contract.settings import OptimSettings
from gnnscale.models.compiled import Compiled, Scales, compile_network
from gnnscale.models.registry import build
from gnnscale.native.library import open_library, reason_not_available
from gnnscale.train.loss import part_weights, sum_penalties
from gnnscale.train.normalisation import Normalisation
from tests.support.architectures import make_config
from tests.support.structures import CUTOFF, Sample, make_batch, make_crystal, make_molecule

pytestmark = pytest.mark.skipif(open_library(torch.float64) is None, reason=reason_not_available())
SOURCES = 3
KINDS = {"deferred": {"form": "deferred"}, "edge": {"form": "edge"}, "moments": {"kind": "moments"}}
NETWORKS = [
    pytest.param(KINDS[kind] | {"forces": forces} | other, id=f"{kind}-{forces}-{'-'.join(map(str, other.values()))}")
    for kind, forces in itertools.product(KINDS, ("direct", "gradient"))
    for other in (
        {"width": 8, "depth": 1, "radial": 8},
        {"width": 20, "depth": 3, "radial": 5},
        {"width": 64, "depth": 2, "radial": 8},
        {"width": 24, "depth": 2, "radial": 6, "source_heads": True},
    )
]
every_network = pytest.mark.parametrize("options", NETWORKS)
ENOUGH = {torch.float64: 1e-12, torch.float32: 8e-6}  # PyTorch's own float32 is a third as far from its float64
PRECISIONS = [pytest.param(dtype, id=str(dtype).removeprefix("torch.")) for dtype in ENOUGH]
every_precision = pytest.mark.parametrize("dtype", PRECISIONS)


def network(options: dict, dtype: torch.dtype = torch.float64):
    """Return a network whose weights are all away from zero, so that every one of them counts."""
    torch.manual_seed(0)
    potential = build(make_config({"cutoff": CUTOFF} | options), SOURCES, 12.0)
    for p in potential.parameters():
        p.data += 0.1 * torch.randn_like(p)
    references = torch.randn(SOURCES, 119, dtype=torch.float64)
    potential.set_normalisation(references, 1.7, 0.6)
    return potential.to(dtype)


def mixture(dtype: torch.dtype = torch.float64, seed: int = 0) -> AtomGraphs:
    rng = np.random.default_rng(seed)
    samples = [make_molecule(rng, 8), make_crystal(rng, 4), make_molecule(rng, 1), make_molecule(rng, 6)]
    samples += [make_crystal(rng, 2), make_molecule(rng, 2)]
    return make_batch([s._replace(source=k % SOURCES) for k, s in enumerate(samples)], dtype=dtype)


def labels_for(graphs: AtomGraphs, dtype: torch.dtype = torch.float64) -> Properties:
    """Return random labels, some of each kind missing."""
    random = torch.Generator().manual_seed(1)
    energy = torch.randn(len(graphs.cell), generator=random, dtype=torch.float64) * 20
    forces = torch.randn(graphs.positions.shape, generator=random, dtype=torch.float64)
    stress = torch.randn(graphs.cell.shape, generator=random, dtype=torch.float64)
    energy[2], forces[5], forces[3, 1], stress[4] = torch.nan, torch.nan, torch.nan, torch.nan
    return Properties(energy, forces.to(dtype), stress.to(dtype))


def compiled(potential, dtype: torch.dtype = torch.float64, threads: int = 1) -> tuple[Compiled, torch.Tensor]:
    found = compile_network(potential, dtype, threads)
    assert isinstance(found, Compiled), found
    return found, found.packing.pack(dict(potential.named_parameters()), dtype)


def factor_of(potential) -> float:
    return float(potential.energy_scale / potential.force_scale)


def assert_near(found: torch.Tensor, expected: torch.Tensor, enough: float, name: str = "") -> None:
    """Compare with what is largest in the array, as single numbers may cancel."""
    error = (found.double() - expected.double()).abs().max() if expected.numel() else torch.zeros(())
    assert error <= enough * expected.double().abs().max().clamp(min=1e-30), (name, float(error))


@every_network
@every_precision
def test_energies_forces_and_stress(options, dtype):
    potential, graphs = network(options), mixture()
    with_stress = options["forces"] == "gradient"
    with torch.no_grad():
        expected = potential(graphs, with_stress)
    network_, flat = compiled(potential, dtype)
    found = network_.evaluate(flat, mixture(dtype), factor_of(potential), with_stress)
    for name, a, b in zip(found._fields, found, expected, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            assert_near(a, b, ENOUGH[dtype], name)


@every_network
@every_precision
def test_gradients_of_a_smooth_loss(instruction_set, options, dtype):
    """The loss is a random linear function, which is as general as any: a loss enters by its derivatives."""
    potential, graphs, random = network(options), mixture(), torch.Generator().manual_seed(2)
    with_stress = options["forces"] == "gradient"

    def draw(*shape):
        return torch.randn(shape, generator=random, dtype=torch.float64)

    by_energy, by_forces = draw(len(graphs.cell)), draw(*graphs.positions.shape)
    by_virial = draw(*graphs.cell.shape) if with_stress else None
    out = potential(graphs, with_stress)
    loss = (out.energy * by_energy).sum() + (out.forces * by_forces).sum()
    if by_virial is not None:
        loss = loss + (out.virial * by_virial).sum()
    loss.backward()
    network_, flat = compiled(potential, dtype)
    gradient = network_.differentiate(
        flat, mixture(dtype), factor_of(potential), by_energy[graphs.structure], by_forces, by_virial
    )
    assert_same_gradient(network_, gradient, potential, 1e-11 if dtype == torch.float64 else 2e-5)


@every_network
def test_gradients_are_finite_differences(options):
    """Without PyTorch: forces are slopes of the energy, and the gradient is that of energies and forces together."""
    potential, graphs = network(options), mixture()
    network_, flat = compiled(potential, torch.float64)
    random, factor, step = torch.Generator().manual_seed(3), factor_of(potential), 1e-5
    moved = torch.randn(graphs.positions.shape, generator=random, dtype=torch.float64)
    by_energy, by_forces = torch.randn(len(graphs.cell), generator=random, dtype=torch.float64), torch.randn_like(moved)
    changed = network_.packing.pack(
        {n: torch.randn(p.shape, generator=random).double() for n, p in potential.named_parameters()}, torch.float64
    )

    def evaluate(parameters, shift=0.0):
        return network_.evaluate(parameters, graphs._replace(positions=graphs.positions + shift * moved), factor)

    def loss(parameters):
        found = evaluate(parameters)
        return float((found.energy * by_energy).sum() + (found.forces * by_forces).sum())

    gradient = network_.differentiate(flat, graphs, factor, by_energy[graphs.structure], by_forces)
    slope = (loss(flat + step * changed) - loss(flat - step * changed)) / (2 * step)
    assert slope == pytest.approx(float(gradient @ changed), rel=1e-6)
    if potential.gradient:
        work = float((evaluate(flat, step).energy - evaluate(flat, -step).energy).sum()) / (2 * step)
        assert work == pytest.approx(-float((evaluate(flat).forces * moved).sum()) / factor, rel=1e-6)


def assert_same_gradient(network_: Compiled, flat: torch.Tensor, potential, enough: float) -> None:
    parameters = dict(potential.named_parameters())
    norm = torch.nn.utils.get_total_norm([p.grad for p in parameters.values()])
    for name, found in network_.packing.unpack(flat):
        assert parameters[name].grad.any(), name
        assert_near(
            found, parameters[name].grad, enough + 0.1 * enough * float(norm / parameters[name].grad.abs().max()), name
        )
    assert_padding_is_zero(network_, flat)


def assert_padding_is_zero(network_: Compiled, flat: torch.Tensor) -> None:
    there = network_.packing.pack(
        {place.name: torch.ones(place.shape) for place in network_.packing.places}, flat.dtype
    )
    assert not flat[there == 0].any()


@pytest.fixture
def all_in_double():
    """Let PyTorch divide by numbers of atoms in float64: it takes its default for the inverse of a whole number."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.usefixtures("all_in_double")
@every_network
@pytest.mark.parametrize("loss", ["mae", "huber", "l2"])
def test_penalties_and_their_gradient(options, loss):
    """Labels are missing here and there, and a structure has one atom without neighbours."""
    potential, graphs = network(options), mixture()
    labels = labels_for(graphs)
    stress_weight = 0.3 if options["forces"] == "gradient" else 0.0
    optim = OptimSettings(loss=loss, energy_weight=0.7, force_weight=1.3, stress_weight=stress_weight)
    factors = part_weights(optim) / np.array([5, 60, 27])
    scales = Scales(potential.references, float(potential.energy_scale), float(potential.force_scale))
    sums = sum_penalties(potential, Normalisation(*scales), graphs, labels, optim)
    torch.dot(torch.from_numpy(factors), sums).backward()
    network_, flat = compiled(potential)
    gradient = network_.packing.empty(torch.float64).fill_(torch.nan)
    found = network_.learn(flat, gradient, (graphs, labels), scales, loss, factors)
    assert_near(torch.from_numpy(found), sums.detach(), 1e-12)
    assert_same_gradient(network_, gradient, potential, 1e-11)
    alone = network_.learn(flat, None, (graphs, labels), scales, loss, factors)
    assert (alone == found).all(), "the loss alone is that of a step"
    once = gradient.clone()
    network_.learn(flat, gradient, (graphs, labels), scales, loss, factors, add=True)
    torch.testing.assert_close(gradient, 2 * once, rtol=1e-12, atol=1e-14)


@every_network
@every_precision
def test_threads_change_no_bit(options, dtype):
    potential = network(options)
    rng = np.random.default_rng(3)
    samples = [make_crystal(rng, 4) if k % 3 else make_molecule(rng, 8) for k in range(24)]
    graphs = make_batch([s._replace(source=k % SOURCES) for k, s in enumerate(samples)], dtype=dtype)
    labels, factors = labels_for(graphs, dtype), np.array([0.1, 0.2, 0.3 * (options["forces"] == "gradient")])
    scales = Scales(potential.references, 1.7, 0.6)
    seen = []
    for threads in (1, 2, 3):
        network_, flat = compiled(potential, dtype, threads)
        gradient = network_.packing.empty(dtype)
        sums = network_.learn(flat, gradient, (graphs, labels), scales, "mae", factors)
        seen.append((sums.tobytes(), gradient.numpy().tobytes()))
        out = network_.evaluate(flat, graphs, 2.0)
        seen[-1] += (out.energy.numpy().tobytes(), out.forces.numpy().tobytes())
    assert seen[0] == seen[1] == seen[2]


def lone(numbers=(8,), gap=9.0, dtype=torch.float64) -> AtomGraphs:
    positions = np.array([[gap * k, 0.0, 0.0] for k in range(len(numbers))])
    return make_batch([Sample(np.array(numbers), positions, np.zeros((3, 3)), np.zeros(3, bool))], dtype=dtype)


@pytest.mark.usefixtures("all_in_double")
@every_network
@pytest.mark.parametrize(
    ("graphs", "edges"), [(lone(), 0), (lone((1, 6, 8)), 0), (lone((1, 6), gap=1.1), 2)], ids=["atom", "none", "pair"]
)
def test_few_edges_or_none(options, graphs, edges):
    assert len(graphs.receivers) == edges
    potential = network(options)
    labels = Properties(torch.tensor([3.0], dtype=torch.float64), torch.ones_like(graphs.positions))
    stress = torch.full((1, 3, 3), torch.nan, dtype=torch.float64)
    labels, optim = labels._replace(stress=stress), OptimSettings()
    scales = Scales(potential.references, 1.7, 0.6)
    sums = sum_penalties(potential, Normalisation(*scales), graphs, labels, optim)
    (sums[0] + 2 * sums[1]).backward()
    network_, flat = compiled(potential)
    gradient = network_.packing.empty(torch.float64)
    found = network_.learn(flat, gradient, (graphs, labels), scales, "mae", np.array([1.0, 2.0, 0.0]))
    assert_near(torch.from_numpy(found), sums.detach(), 1e-12)
    parameters = dict(potential.named_parameters())
    for name, of_name in network_.packing.unpack(gradient):
        expected = parameters[name].grad
        expected = torch.zeros_like(of_name) if expected is None else expected
        assert_near(of_name, expected, 1e-10 if expected.abs().max() > 1e-12 else np.inf, name)
    assert gradient.isfinite().all()


def test_a_batch_of_nothing_but_missing_labels_teaches_nothing():
    potential, graphs = network({"form": "deferred", "forces": "gradient", "width": 16, "depth": 1}), mixture()
    labels = Properties(*(torch.full_like(label, torch.nan) for label in labels_for(graphs)))
    network_, flat = compiled(potential)
    gradient = network_.packing.empty(torch.float64)
    scales = Scales(potential.references, 1.0, 1.0)
    sums = network_.learn(flat, gradient, (graphs, labels), scales, "mae", np.ones(3))
    assert not sums.any() and not gradient.any()


@pytest.mark.parametrize("forces", ["direct", "gradient"])
@pytest.mark.parametrize("kind", KINDS)
def test_memory_grows_with_atoms_times_width_and_never_with_edges_times_width(kind, forces):
    """The library holds the geometry of an edge and nothing else of it: as many numbers at every width."""
    rng = np.random.default_rng(0)
    samples = [make_crystal(rng, 12) for _ in range(8)]

    def held(width: int, cutoff: float) -> tuple[int, int]:
        potential = build(make_config(KINDS[kind] | {"width": width, "forces": forces}), 1, 12.0)
        compiled = compile_network(potential, torch.float32)
        assert isinstance(compiled, Compiled)
        graphs = make_batch(samples, cutoff, torch.float32)
        atoms = len(graphs.numbers)
        by = torch.randn(atoms), torch.randn(atoms, 3)
        compiled.differentiate(
            compiled.packing.pack(dict(potential.named_parameters()), torch.float32), graphs, 1.0, *by
        )
        return compiled.bytes, len(graphs.receivers)

    (narrow, edges), (wide, _) = held(16, 4.0), held(128, 4.0)
    (narrow_dense, more), (wide_dense, _) = held(16, 8.0), held(128, 8.0)
    assert more > 5 * edges
    assert wide > 3 * narrow, "arrays over atoms grow with the width"
    assert wide_dense - wide == narrow_dense - narrow <= 300 * (more - edges), "those over edges do not"
