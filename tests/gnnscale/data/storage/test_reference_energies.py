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


# ------------------------------------------------------------------------------------- narrow data and known references
TRUE = {1: -13.6, 6: -1030.0, 7: -1484.0, 8: -2041.0}  # eV; a theory of about the table's energies
ETHANOL = np.array([[6.0, 2.0, 0.0, 1.0]])


def sums_of(counts, binding=-4.0, references=TRUE):
    """Return the sums of energies that are those of the atoms, and a binding energy of each."""
    counts = np.asarray(counts, float)
    energy = counts @ np.array(list(references.values())) + binding * counts.sum(1)
    return reference_energies.sum_energies(np.array(list(references)), counts, energy)


def test_one_molecule_gets_plausible_references_and_says_which_are_not_determined():
    """Least norm about the mean of an atom would give H = C = O = -626 eV."""
    sums = sums_of(np.repeat(ETHANOL, 9, axis=0))
    found, rank = reference_energies.fit_references(sums)
    assert rank == 1 and reference_energies.find_undetermined(sums) == [(1, 6, 8), (7,)]
    for z, energy in TRUE.items():
        assert found[z] == pytest.approx(energy, rel=0.02)
    assert reference_energies.residual_rms(sums, found) < 1e-9


def test_valence_energies_get_plausible_references_too():
    sums = sums_of(np.outer(range(1, 9), [1, 1]), binding=0.0, references={8: -6.0, 12: -2.5})
    found, rank = reference_energies.fit_references(sums)
    assert rank == 1 and found[8] < -5 and -3 < found[12] < -1 and found[8] + found[12] == pytest.approx(-8.5)


@given(st.sets(st.sampled_from(sorted(TRUE)), max_size=4), st.integers(0, 9))
def test_known_references_stay_and_the_rest_is_the_fit_of_what_they_leave(known, seed):
    counts = np.random.default_rng(seed).integers(0, 9, (40, 4)).astype(float) + np.array([1, 0, 0, 0])
    sums = sums_of(counts, binding=0.0)
    found, rank = reference_energies.fit_references(sums, {z: TRUE[z] for z in known} | {99: 1.0})
    assert rank == 4 and all(found[z] == TRUE[z] for z in known)
    np.testing.assert_allclose(list(found.values()), list(TRUE.values()), rtol=1e-9)
    assert reference_energies.find_undetermined(sums_of(ETHANOL), known) == [
        each
        for each in [tuple(z for z in (1, 6, 8) if z not in known), tuple({7} - known)]
        if len(each) > (7 not in each)  # one of a set whose others are known is determined
    ]


def test_shifts_take_the_binding_energy_so_that_learning_begins_as_without_known_references():
    counts = np.random.default_rng(3).integers(1, 9, (60, 4))
    sums = sums_of(counts)
    fitted, _ = reference_energies.fit_references(sums)
    shifts = reference_energies.fit_shifts(sums, TRUE)
    np.testing.assert_allclose(list(shifts.values()), -4.0, rtol=1e-6)
    assert reference_energies.residual_rms(sums, TRUE) == pytest.approx(4.0)
    baselines = {z: TRUE[z] + shifts[z] for z in TRUE}
    assert reference_energies.residual_rms(sums, baselines) < 1e-9
    np.testing.assert_allclose(list(baselines.values()), list(fitted.values()), rtol=1e-9)


@pytest.mark.parametrize("factor", [1 / 27.2114, 23.06, 1e3])
def test_references_in_another_unit_are_noticed(factor):
    sums = sums_of(np.random.default_rng(3).integers(1, 9, (60, 4)))
    assert reference_energies.find_wrong_unit(sums, TRUE) == ""
    assert "expected" in reference_energies.find_wrong_unit(sums, {1: factor * TRUE[1]})
    crystal = sums_of([[1, 1], [2, 1]], references={11: -1.1, 17: -2.0})
    assert reference_energies.find_wrong_unit(crystal, {11: -0.2, 17: -0.3}) == ""
    assert "they leave" in reference_energies.find_wrong_unit(crystal, TRUE | {11: -4000.0, 17: -12000.0})
