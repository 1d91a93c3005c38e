"""Sums of parts give the references that a direct fit to all data gives."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gnnscale.data.storage import reference_energies


def data(rng, structures, elements):
    counts = rng.integers(0, 9, (structures, elements)).astype(float)
    counts[:, 0] += 1
    true = -rng.uniform(10, 12000, elements)
    return counts, counts @ true + rng.normal(size=structures), true


def direct(counts, energy):
    """Fit all rows at once, around the mean energy of an atom."""
    mean = energy.sum() / counts.sum()
    solution, _, rank, _ = np.linalg.lstsq(counts, energy - mean * counts.sum(1), rcond=1e-10)
    return mean + solution, rank


def in_parts(counts, energy, cuts):
    """Return sums of parts, each of which has only its own elements."""
    made = []
    for part in np.split(np.arange(len(energy)), cuts):
        present = np.flatnonzero(counts[part].any(0))
        made.append(reference_energies.sum_energies(present + 1, counts[part][:, present], energy[part]))
    return reference_energies.add_energy_sums(made)


@given(st.integers(0, 99), st.lists(st.integers(0, 60), max_size=5))
def test_parts_give_what_a_direct_fit_gives(seed, cuts):
    counts, energy, _ = data(np.random.default_rng(seed), 60, 5)
    found, rank = reference_energies.fit_references(in_parts(counts, energy, sorted(cuts)))
    expected, same = direct(counts, energy)
    np.testing.assert_allclose(list(found.values()), expected, rtol=1e-10)
    assert rank == same == 5
    left = (energy - counts @ expected) / counts.sum(1)
    assert reference_energies.residual_rms(in_parts(counts, energy, sorted(cuts)), found) == pytest.approx(
        np.sqrt(np.mean(left**2)), rel=1e-8
    )


def test_collinear_and_unseen_elements_stay_near_the_mean():
    rng = np.random.default_rng(0)
    pairs = np.repeat(rng.integers(1, 9, (60, 1)), 2, axis=1).astype(float)  # MO: metal and oxygen in step
    counts, energy = np.hstack([pairs, np.zeros((60, 1))]), pairs @ np.array([-5.0, -9.0])
    whole = reference_energies.sum_energies(np.array([8, 12, 99]), counts, energy)
    found, rank = reference_energies.fit_references(
        reference_energies.add_energy_sums(
            [whole, reference_energies.sum_energies(np.array([3]), np.zeros((0, 1)), np.zeros(0))]
        )
    )
    assert rank == 1 and list(found) == [3, 8, 12, 99]
    np.testing.assert_allclose(list(found.values()), -7.0, rtol=1e-9)


def test_small_residuals_of_large_energies_survive():
    """All-electron energies of -1e6 eV with residuals of 1e-6 eV/atom: normal equations would lose them."""
    rng = np.random.default_rng(1)
    counts, _, true = data(rng, 500, 4)
    true = true * 1000
    noise = rng.normal(size=500) * 1e-6
    energy = counts @ true + noise * counts.sum(1)
    parts = in_parts(counts, energy, [100, 300])
    found, _ = reference_energies.fit_references(parts)
    assert reference_energies.residual_rms(parts, found) == pytest.approx(1e-6, rel=0.05)


def test_no_energy_at_all():
    nothing = reference_energies.add_energy_sums(
        [reference_energies.sum_energies(np.array([1, 8]), np.zeros((0, 2)), np.zeros(0))]
    )
    assert reference_energies.fit_references(nothing) == ({1: 0.0, 8: 0.0}, 0)
    assert np.isnan(reference_energies.residual_rms(nothing, {1: 0.0, 8: 0.0}))
