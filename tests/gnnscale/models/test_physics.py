"""The physics contract: what every listed model, in every form and force mode, must satisfy for any structure."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gnnscale.architectures.egnn import EGNNConfig
from gnnscale.architectures.registry import ARCHITECTURES
from gnnscale.atoms.graph import Properties
from gnnscale.models.potential import Potential, predict
from gnnscale.models.registry import build
from tests.support.architectures import small_variants
from tests.support.structures import (
    CUTOFF,
    Sample,
    crystals,
    generators,
    make_batch,
    make_molecule,
    make_orthogonal,
    molecules,
    structures,
)

ALL = small_variants()
CONFIGS = {name: config for name, config in ALL.items() if config.is_equivariant}
PAPER = EGNNConfig(form="paper", width=16, depth=2, cutoff=CUTOFF)
every_model = pytest.mark.parametrize("name", CONFIGS)
stress_models = pytest.mark.parametrize("name", [name for name in CONFIGS if CONFIGS[name].has_stress])


@cache
def lively(name: str) -> Potential:
    """Random weights everywhere, also where training starts from zero, and scales that are not 1."""
    generator = torch.Generator().manual_seed(1)
    potential = build(PAPER if name == "paper" else CONFIGS[name], sources=2, average_degree=12.0).double()
    for parameter in potential.parameters():
        scale = parameter.shape[1] ** -0.5 if parameter.ndim == 2 else 0.3
        parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * scale
    references = torch.randn(potential.references.shape, generator=generator, dtype=torch.float64)
    potential.set_normalisation(references, energy_scale=1.7, force_scale=0.6)
    return potential


def properties(name: str, *samples: Sample, cutoff: float = CUTOFF) -> Properties:
    """In physical units; stress as well where the model has one."""
    with torch.no_grad():
        return predict(lively(name), make_batch(list(samples), cutoff), stress=CONFIGS[name].has_stress)


def assert_equal(got: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-9) -> None:
    torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance, equal_nan=True)


def strained(sample: Sample, strain: np.ndarray) -> Sample:
    deformation = np.eye(3) + strain
    return sample._replace(positions=sample.positions @ deformation.T, cell=sample.cell @ deformation.T)


def test_every_architecture_is_here_and_all_of_its_networks():
    """But the paper's own network: it is listed to be compared with, and breaks the contract, as the next test shows."""
    assert {config.kind for config in CONFIGS.values()} == set(ARCHITECTURES)
    assert {config.network for config in ALL.values()} == {*(c.network for c in CONFIGS.values()), PAPER.network}
    assert [config for config in ALL.values() if not config.is_equivariant] == [PAPER]


def test_the_network_of_the_paper_sees_where_the_origin_is():
    rng = np.random.default_rng(0)
    sample, q = make_molecule(rng, 8), make_orthogonal(rng)
    moved, turned = (sample._replace(positions=x) for x in (sample.positions + 10, sample.positions @ q.T))
    with torch.no_grad():
        here, there, around = (predict(lively("paper"), make_batch([s])) for s in (sample, moved, turned))
    assert (there.energy - here.energy).abs() > 0.1 * here.energy.abs()
    assert (there.forces - here.forces).norm() > 0.1 * here.forces.norm()
    assert (around.forces - here.forces @ torch.from_numpy(q.T)).norm() > 0.1 * here.forces.norm()


@every_model
@given(structures, generators)
def test_rigid_motion(name, sample, rng):
    q, shift = make_orthogonal(rng), rng.normal(size=3) * 5
    before = properties(name, sample)
    after = properties(name, sample._replace(positions=sample.positions @ q.T + shift, cell=sample.cell @ q.T))
    rotation = torch.from_numpy(q)
    assert_equal(after.energy, before.energy)
    assert_equal(after.forces, before.forces @ rotation.T)
    if before.stress is not None and sample.pbc.all():
        assert_equal(after.stress, rotation @ before.stress @ rotation.T)


@every_model
@given(structures, generators)
def test_permutation(name, sample, rng):
    order = rng.permutation(len(sample.numbers))
    before = properties(name, sample)
    after = properties(name, sample._replace(numbers=sample.numbers[order], positions=sample.positions[order]))
    assert_equal(after.energy, before.energy)
    assert_equal(after.forces, before.forces[order])


@every_model
@given(molecules, molecules)
def test_distant_fragments_are_additive(name, one, two):
    two = two._replace(source=one.source)
    numbers = np.concatenate((one.numbers, two.numbers))
    both = one._replace(numbers=numbers, positions=np.concatenate((one.positions, two.positions + 50)))
    together, first, second = properties(name, both), properties(name, one), properties(name, two)
    assert_equal(together.energy, first.energy + second.energy)
    assert_equal(together.forces, torch.cat((first.forces, second.forces)))


@every_model
@given(st.lists(structures, min_size=2, max_size=4))
def test_a_batch_equals_its_structures(name, samples):
    together, alone = properties(name, *samples), [properties(name, sample) for sample in samples]
    for field in ("energy", "forces") + (("stress",) if together.stress is not None else ()):
        assert_equal(getattr(together, field), torch.cat([getattr(single, field) for single in alone]))


@every_model
@given(crystals, st.permutations((2, 1, 1)))
def test_supercells_are_extensive(name, sample, repeats):
    axis = repeats.index(2)
    large = sample._replace(
        numbers=np.tile(sample.numbers, 2),
        positions=np.concatenate((sample.positions, sample.positions + sample.cell[axis])),
        cell=sample.cell * np.array(repeats)[:, None],
    )
    once, twice = properties(name, sample), properties(name, large)
    assert_equal(twice.energy, 2 * once.energy)
    assert_equal(twice.forces, once.forces.repeat(2, 1))
    if once.stress is not None:
        assert_equal(twice.stress, once.stress)


@every_model
@given(crystals, generators)
def test_any_description_of_a_crystal_will_do(name, sample, rng):
    images = rng.integers(-3, 4, (len(sample.numbers), 3)) @ sample.cell  # atoms outside of the cell
    basis = np.array([[1, rng.integers(-1, 2), 0], [0, 1, 0], [rng.integers(-1, 2), 0, 1]])  # the same lattice
    before = properties(name, sample)
    after = properties(name, sample._replace(positions=sample.positions + images, cell=basis @ sample.cell))
    for field in ("energy", "forces") + (("stress",) if before.stress is not None else ()):
        assert_equal(getattr(after, field), getattr(before, field))


@every_model
@given(structures, generators)
def test_cutoff_is_smooth(name, sample, rng):
    """A pair is brought to just inside of the cutoff: leaving it out must hardly matter, for forces also."""
    found = make_batch([sample], cutoff=CUTOFF / 0.6)  # so that no atoms come to lie on top of each other
    if len(found.receivers) == 0:
        return
    pick = rng.integers(len(found.receivers))
    shift = found.shifts[pick].numpy() @ sample.cell
    length = np.linalg.norm(sample.positions[found.senders[pick]] - sample.positions[found.receivers[pick]] + shift)
    factor = CUTOFF * (1 - 1e-4) / length
    scaled = sample._replace(positions=sample.positions * factor, cell=sample.cell * factor)
    exact, without = properties(name, scaled), properties(name, scaled, cutoff=CUTOFF * (1 - 2e-4))
    assert_equal(without.energy, exact.energy, 1e-7)
    assert_equal(without.forces, exact.forces, 3e-5)
    beyond = properties(name, scaled, cutoff=CUTOFF * 1.2)
    assert_equal(beyond.energy, exact.energy, 1e-12)
    assert_equal(beyond.forces, exact.forces, 1e-12)


@every_model
@given(structures, generators)
def test_forces_are_smooth(name, sample, rng):
    """Along a line, midpoints lie between their neighbours up to curvature: no jumps and no kinks."""
    step = rng.normal(size=sample.positions.shape) * 1e-4
    a, b, c = (properties(name, sample._replace(positions=sample.positions + k * step)) for k in (-1, 0, 1))
    scale = 1 + float(b.forces.abs().max())
    assert float((c.forces - a.forces).abs().max()) < 0.05 * scale
    assert float((a.forces + c.forces - 2 * b.forces).abs().max()) < 1e-3 * scale


@stress_models
@given(structures, generators)
def test_forces_are_the_gradient(name, sample, rng):
    direction, h = rng.normal(size=sample.positions.shape), 1e-5
    plus, minus = (
        properties(name, sample._replace(positions=sample.positions + sign * h * direction)).energy for sign in (1, -1)
    )
    work = (properties(name, sample).forces * torch.from_numpy(direction)).sum()
    assert_equal(-(plus - minus)[0] / (2 * h), work, 1e-6)


@stress_models
@given(crystals, generators)
def test_stress_is_the_strain_derivative(name, sample, rng):
    strain, h = rng.normal(size=(3, 3)), 1e-5
    strain = (strain + strain.T) / 2
    plus, minus = (properties(name, strained(sample, sign * h * strain)).energy for sign in (1, -1))
    volume = abs(np.linalg.det(sample.cell))
    stress = properties(name, sample).stress[0]
    assert_equal(stress, stress.T)
    assert_equal((plus - minus)[0] / (2 * h), volume * (stress * torch.from_numpy(strain)).sum(), 1e-6)
