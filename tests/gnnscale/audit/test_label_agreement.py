"""Signs, units and totals of labels are checked on real and on exact data, and where nothing tells, that is said."""

from itertools import product

import numpy as np
import pytest

from gnnscale.atoms import units
from gnnscale.audit import measure
from gnnscale.audit.check_results import Coverage, Flagged
from gnnscale.audit.checks import label_agreement, near_pairs
from gnnscale.contract.dataset_card import Split
from gnnscale.contract.settings import AuditSettings
from gnnscale.data.storage import adios
from tests.support.morse import CUTOFF, labelled
from tests.support.real_labels import ENERGY_FAULTS, FORCE_FAULTS, STRESS_FAULTS, read_set, scale_forces, scale_stress


def measure_known(path, known):
    adios.write(path / "shards", known, Split(), CUTOFF)
    return measure.measure_source("one", path / "shards")


def judge(path, known):
    """Return check -> "unchecked", "in order" or the severity; and all sentences and reasons."""
    found, words = {}, []
    for report in label_agreement.check_agreement(measure_known(path, known), AuditSettings()):
        if isinstance(report, Coverage):
            found[report.check] = "in order" if report.examined else "unchecked"
            words.append(report.describe())
        else:
            assert isinstance(report, Flagged)
            found[report.finding.check] = report.finding.severity
            words.append(report.finding.sentence)
    return found, " ".join(words)


# ------------------------------------------------------------------------------------------------------------- real
REAL = {  # name -> number of structures, verdicts on slope, totals, stress
    "ethanol": (300, "in order", "in order", "unchecked"),
    "3BPA mixed T": (300, "in order", "in order", "unchecked"),
    "Mo AIMD": (60, "in order", "in order", "in order"),
    "W elastic": (121, "unchecked", "unchecked", "in order"),
    "MoW alloys": (240, "unchecked", "unchecked", "in order"),
    "MAD": (200, "in order", "in order", "unchecked"),
    "Alexandria": (100, "unchecked", "in order", "unchecked"),
}


@pytest.fixture(scope="module")
def real():
    read = {}

    def get(name):
        if name not in read:
            read[name] = read_set(name, REAL[name][0])
        return read[name]

    return get


FAULTS_BY_UNIT = [fault for fault in FORCE_FAULTS if fault != "/ 1.89"]  # which is found by near pairs alone


@pytest.mark.parametrize("name", REAL)
def test_real_labels_are_in_order_or_cannot_be_checked(name, real, tmp_path):
    found, _ = judge(tmp_path, real(name))
    assert (found["slope"], found["totals"], found["stress"]) == REAL[name][1:]


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        *product(["ethanol"], FAULTS_BY_UNIT),
        *product(["3BPA mixed T", "Mo AIMD"], ["flipped", "x 1000"]),
        ("MAD", "flipped"),
    ],
)
def test_a_fault_of_real_forces_is_found(name, fault, real, tmp_path):
    """The causes that are named are the right one or of nearly the same size."""
    found, words = judge(tmp_path, [FORCE_FAULTS[fault](s) for s in real(name)])
    assert found["slope"] == "error", words
    causes = {"flipped": "gradients stored as forces", "x 1000": "meV", "x 51.4": "twice"}
    assert causes.get(fault, "Hartree") in words and ("gradients" in words) == (fault == "flipped")


def test_near_pairs_find_forces_per_bohr(real, tmp_path):
    found, words = judge(tmp_path, [FORCE_FAULTS["/ 1.89"](s) for s in real("Mo AIMD")])
    assert found["slope"] == "error" and "forces per Bohr" in words


@pytest.mark.parametrize("name", ["ethanol", "Mo AIMD", "Alexandria"])
def test_real_energies_per_atom_are_found(name, real, tmp_path):
    found, words = judge(tmp_path, [ENERGY_FAULTS["per atom"](s) for s in real(name)])
    assert found["totals"] in ("error", "warning") and "per atom" in words


@pytest.mark.parametrize(("name", "fault"), [*product(["W elastic"], STRESS_FAULTS), ("MoW alloys", "flipped")])
def test_a_fault_of_a_real_stress_is_found(name, fault, real, tmp_path):
    found, words = judge(tmp_path, [STRESS_FAULTS[fault](s) for s in real(name)])
    assert found["stress"] == "error"
    assert {"flipped": "compression", "in GPa": "GPa", "in kbar": "kbar", "virial": "virials"}[fault] in words


def test_shear_of_vasp_read_in_the_order_of_ase_is_found(real, tmp_path):
    """VASP prints xy yz zx where ASE has yz xz xy."""

    def misread(s):
        yz, xz, xy = s.stress[1, 2], s.stress[0, 2], s.stress[0, 1]
        wrong = np.diag(np.diag(s.stress))
        wrong[1, 2] = wrong[2, 1] = xy
        wrong[0, 2] = wrong[2, 0] = yz
        wrong[0, 1] = wrong[1, 0] = xz
        return s._replace(stress=wrong)

    found, words = judge(tmp_path, [misread(s) for s in real("W elastic")])
    assert found["stress"] == "error" and "yz, xz, xy are those of xy, yz, xz" in words


# ------------------------------------------------------------------------------------------------------------ exact
@pytest.fixture(scope="module")
def liquid():
    """Frames of a liquid in a box, all far from each other."""
    rng, known = np.random.default_rng(0), []
    grid = np.stack(np.meshgrid(*[np.arange(3)] * 3), -1).reshape(-1, 3) * 1.7
    numbers = np.array([6, 8, 7] * 9)
    for _ in range(40):
        positions = grid[rng.permutation(27)] + rng.normal(size=(27, 3)) * 0.2
        known.append(labelled(numbers, positions, np.eye(3) * 5.1, np.ones(3, bool), "liquid", stressed=True))
    return known


@pytest.fixture(scope="module")
def sheared():
    """One crystal under random strains, its atoms at rest on the lattice of the cell."""
    rng, known = np.random.default_rng(1), []
    grid = (
        np.stack(np.meshgrid(*[np.arange(2)] * 3), -1).reshape(-1, 3) * 1.62
    )  # no shell of neighbours near the cutoff
    numbers = np.array([6, 8] * 4)
    for _ in range(16):
        strain = rng.normal(size=(3, 3)) * 0.005
        deform = np.eye(3) + (strain + strain.T) / 2
        cell = 3.24 * np.eye(3) @ deform
        known.append(labelled(numbers, grid @ deform, cell, np.ones(3, bool), "crystal", stressed=True))
    return known


def test_a_pair_model_tells_signs_and_units_without_near_pairs(liquid, tmp_path):
    source = measure_known(tmp_path / "right", liquid)
    assert not len(near_pairs.measure_near_pairs(source).step), "no pair is near"
    found, words = judge(tmp_path / "again", liquid)
    assert found == {"slope": "in order", "totals": "in order", "stress": "in order"} and "pair model" in words
    flipped, words = judge(tmp_path / "flipped", [scale_forces(-1)(s) for s in liquid])
    assert flipped["slope"] == "error" and "gradients stored as forces" in words
    assert flipped["stress"] == "unchecked", "wrong forces do not accuse the stress"
    large, words = judge(tmp_path / "large", [scale_forces(1000)(s) for s in liquid])
    assert large["slope"] == "error" and "meV/Å" in words
    pressed, words = judge(tmp_path / "pressed", [scale_stress(-1 / units.GPA)(s) for s in liquid])
    assert pressed == found | {"stress": "error"} and "positive in compression and stress in GPa" in words


def test_the_stress_of_strained_crystals_is_measured(sheared, tmp_path):
    pairs = near_pairs.measure_near_pairs(measure_known(tmp_path / "right", sheared))
    work = (pairs.tension * pairs.strain).sum((1, 2))
    large = np.abs(work) > 0.02
    np.testing.assert_allclose(pairs.change[large], work[large], rtol=0.01)
    assert judge(tmp_path / "again", sheared)[0]["stress"] == "in order"
    for k, (fault, word) in enumerate({"flipped": "compression", "in kbar": "kbar", "virial": "virials"}.items()):
        found, words = judge(tmp_path / str(k), [STRESS_FAULTS[fault](s) for s in sheared])
        assert found["stress"] == "error" and word in words


def test_molecules_are_turned_onto_each_other(tmp_path):
    rng, known = np.random.default_rng(2), []
    base = np.stack(np.meshgrid(*[np.arange(2)] * 3), -1).reshape(-1, 3) * 1.5
    for _ in range(12):
        turn = np.linalg.qr(rng.normal(size=(3, 3)))[0]
        turn *= np.sign(np.linalg.det(turn))
        positions = (base + rng.normal(size=(8, 3)) * 0.04) @ turn + rng.normal(size=3) * 5
        known.append(labelled(np.array([6, 7, 8, 6, 7, 8, 6, 8]), positions, np.zeros((3, 3)), np.zeros(3, bool), "m"))
    source = measure_known(tmp_path, known)
    pairs = near_pairs.measure_near_pairs(source)
    assert len(pairs.step) == 66 and pairs.step.max() < 0.3
    found = label_agreement.judge_pairs(pairs)
    assert found.tolerance == label_agreement.EXACT and found.ratio == pytest.approx(1, abs=0.05)


def test_nothing_is_said_where_nothing_can_be_measured(liquid, sheared, tmp_path):
    found, words = judge(tmp_path / "one", liquid[:1])
    assert found["slope"] == found["stress"] == "unchecked" and "0 pairs of structures are near each other" in words
    bare = [s._replace(energy=np.nan) for s in sheared]
    found, words = judge(tmp_path / "bare", bare)
    assert found["slope"] == found["totals"] == "unchecked" and "no structure has an energy" in words
