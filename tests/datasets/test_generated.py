"""The generated dataset: the contract of a dataset's script, for each of its five sources."""

import importlib.util
import os
import subprocess
import sys
from collections import Counter
from functools import cache
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "datasets" / "generated.py"


@cache
def script():
    spec = importlib.util.spec_from_file_location("generated", SCRIPT)
    module = sys.modules["generated"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


COUNT = 45  # structures: 3 or more groups of each source
SOURCES = ("organic", "small", "adsorbate", "oxide", "bulk")
PERIODICITY = {
    "organic": [False] * 3,
    "small": [False] * 3,
    "bulk": [True] * 3,
    "adsorbate": [True, True, False],
    "oxide": [True, True, False],
}


def make(source: str, count: int, seed: int = 0, **more):
    skipped = Counter()
    options = script().Options(source=source, structures=count, seed=seed)
    pieces = script().pieces(options)
    found = [
        s
        for piece in pieces
        for s in script().structures(options, piece, lambda reason: skipped.update([reason]), **more)
    ]
    return found, skipped


@cache
def made(source: str):
    return make(source, COUNT)


def same(one, two) -> bool:
    pairs = zip(map(np.asarray, one), map(np.asarray, two))
    return all(np.array_equal(a, b, equal_nan=a.dtype.kind == "f") for a, b in pairs)


@pytest.mark.slow
@pytest.mark.parametrize("source", SOURCES)
def test_fewer_structures_are_the_beginning_of_more(source):
    fewer, _ = make(source, 23)
    assert len(fewer) == 23
    assert all(same(one, two) for one, two in zip(fewer, made(source)[0]))


def test_pieces_are_independent_and_fewer_of_them_are_the_beginning_of_more(monkeypatch):
    monkeypatch.setattr(script(), "STRUCTURES_PER_BLOCK", 15)
    whole, _ = make("oxide", 40)
    options = script().Options(source="oxide", structures=40)
    pieces = script().pieces(options)
    assert [piece.structures for piece in pieces] == [15, 15, 10]
    for piece in reversed(pieces):
        alone = list(script().structures(options, piece, lambda reason: None))
        assert all(same(one, two) for one, two in zip(alone, whole[slice(*piece.span)], strict=True))
    fewer, _ = make("oxide", 21)
    assert all(same(one, two) for one, two in zip(fewer, whole)) and len(fewer) == 21
    groups = [{s.group for s in whole[slice(*piece.span)]} for piece in pieces]
    assert groups[0].isdisjoint(groups[1]) and groups[1].isdisjoint(groups[2])
    assert not any(one.energy == two.energy for one, two in zip(whole, whole[15:]))


def test_another_seed_is_another_stream():
    other, _ = make("oxide", 20, seed=1)
    assert not any(one.energy == two.energy for one, two in zip(other, made("oxide")[0]))
    assert {s.group for s in other}.isdisjoint(s.group for s in made("oxide")[0])


@pytest.mark.slow
@pytest.mark.parametrize("source", SOURCES)
def test_structures_are_well_formed(source):
    from vesin import NeighborList

    structures, _ = made(source)
    assert len(structures) == COUNT
    assert 2 < len({s.group for s in structures}) < COUNT
    for s in structures:
        count = len(s.numbers)
        assert s.positions.shape == s.forces.shape == (count, 3) and s.cell.shape == s.stress.shape == (3, 3)
        assert isinstance(s.energy, float) and np.isfinite(s.energy)
        assert np.isfinite(s.positions).all() and np.isfinite(s.forces).all()
        assert np.linalg.norm(s.forces, axis=1).max() <= 40 and np.abs(s.forces.sum(0)).max() < 1e-6
        assert s.pbc.tolist() == PERIODICITY[source] and s.group and s.label
        assert np.isfinite(s.stress).all() if s.pbc.any() else np.isnan(s.stress).all()
        assert np.linalg.det(s.cell) > 1 if s.pbc.any() else not s.cell.any()
        box = s.cell if s.pbc.any() else np.eye(3)
        (r,) = NeighborList(cutoff=5.0, full_list=False).compute(s.positions, box, s.pbc, "d")
        assert r.min() > 0.5


@pytest.mark.parametrize("source", SOURCES)
def test_there_is_something_to_learn(source):
    """Energies follow composition, but not entirely; the rest is structure."""
    structures, _ = made(source)
    counts = np.array([np.bincount(s.numbers, minlength=100) for s in structures])
    energies, atoms = np.array([s.energy for s in structures]), counts.sum(1)
    references = np.linalg.lstsq(counts.astype(float), energies, rcond=None)[0]
    residual = ((energies - counts @ references) / atoms).std()
    assert 0.01 < residual < 0.7  # eV/atom
    rms = np.sqrt(np.mean(np.concatenate([s.forces for s in structures]) ** 2))
    assert 0.3 < rms < 4.0  # eV/Angstrom


def test_labels_are_not_cut_for_fixed_atoms():
    assert all((np.abs(s.forces) > 1e-6).any(1).all() for s in made("adsorbate")[0])


@pytest.mark.slow
def test_a_molecule_is_one_group(monkeypatch):
    tiny = script().MOLECULES["organic"]._replace(heavy=2, frames=4)  # few molecules, so some are drawn again
    monkeypatch.setitem(script().MOLECULES, "organic", tiny)
    structures, skipped = make("organic", 40)
    groups = [s.group for s in structures]
    assert skipped["molecule drawn before"] > 0
    assert max(Counter(groups).values()) <= 4
    for group in set(groups):
        assert len({tuple(s.numbers) for s in structures if s.group == group}) == 1


def above_half(values) -> float:
    """Return a cap between the two values in the middle, so that some are above it and some are not."""
    ordered = np.sort(values)
    middle = len(ordered) // 2
    assert ordered[middle - 1] < ordered[middle]
    return float((ordered[middle - 1] + ordered[middle]) / 2)


@pytest.mark.slow
def test_what_is_above_a_cap_is_left_out_and_counted(monkeypatch):
    """The caps are chosen from what was generated.

    The positions of atoms depend on the processor: the signs and mixtures of the eigenvectors from which a molecule is
    embedded follow the last bits of the arithmetic. A fixed cap has nothing above it on some processors.
    """
    relaxed_first = script().MOLECULES["organic"]._replace(relaxed=True)  # frame 0 tells the energy of the minimum
    monkeypatch.setitem(script().MOLECULES, "organic", relaxed_first)
    free, none = make("organic", 40, caps=script().Caps(force=1e9, energy=1e9))
    minimum = {s.group: s.energy for s in reversed(free)}
    excess = np.array([(s.energy - minimum[s.group]) / len(s.numbers) for s in free])
    force = np.array([np.linalg.norm(s.forces, axis=1).max() for s in free])
    displaced = excess > 0
    energy_cap = above_half(excess[displaced])
    force_cap = above_half(force[displaced & (excess <= energy_cap)])  # what is above both counts as of high energy

    capped, skipped = make("organic", 40, caps=script().Caps(force=force_cap, energy=energy_cap))
    assert skipped[f"force above {force_cap:g} eV/A"] > 0 and skipped[f"energy above {energy_cap:g} eV/atom"] > 0
    assert not any("above" in reason for reason in none)
    assert max(np.linalg.norm(s.forces, axis=1).max() for s in capped) <= force_cap
    assert max(np.linalg.norm(s.forces, axis=1).max() for s in free) > force_cap
    kept = {s.label: s for s in free if s.label in {t.label for t in capped}}
    assert kept and all(same(kept[s.label], s) for s in capped if s.label in kept)  # a cap removes, it changes nothing


def test_each_structure_that_is_left_out_is_counted_once():
    caps = script().Caps(force=4.0)
    structures, skipped = make("oxide", 40, caps=caps)
    frames = 10
    groups = list(dict.fromkeys(s.group for s in structures))
    last = int(structures[-1].label.rsplit(" ", 1)[1])
    assert skipped.total() > 0
    begun = int(groups[-1].rsplit("-", 1)[1])  # groups that are over, all of one block
    assert len(structures) + skipped.total() == begun * frames + last + 1


@pytest.mark.slow
def test_a_molecule_without_a_density_is_skipped(monkeypatch):
    hot = script().MOLECULES["small"]._replace(frames=3, temperatures=(1e7, 1e7))  # K: atoms fly apart
    monkeypatch.setitem(script().MOLECULES, "small", hot)
    structures, skipped = make("small", 3)
    assert skipped["GFN1-xTB found no self-consistent density"] == 4  # two of three frames, of the first two molecules
    assert all(s.label.endswith("frame 0") for s in structures)


def test_it_gives_up_when_nothing_passes():
    with pytest.raises(ValueError, match="50 groups in a row gave nothing"):
        make("oxide", 1, caps=script().Caps(force=0.0))  # no structure has none


def test_what_cannot_be_asked():
    for wrong in ({"source": "water", "structures": 1}, {"source": "bulk", "structures": 0}, {"structures": 3}):
        with pytest.raises(ValueError):
            script().Options(**wrong)


@pytest.mark.parametrize("source", SOURCES)
def test_cards_tell_the_truth(source):
    card = script().card(script().Options(source=source, structures=7))
    assert card.structures == 7 and card.mirrors and "DFT" not in card.theory
    assert all(word in card.citation for word in ("generated", "10."))
    structures, _ = made(source)
    mean = np.mean([len(s.numbers) for s in structures])
    assert card.atoms_per_structure == pytest.approx(mean, rel=0.5)  # few of them against thousands


def test_importing_is_light():
    code = (
        f"import importlib.util, sys; spec = importlib.util.spec_from_file_location('generated', {str(SCRIPT)!r});"
        "module = sys.modules['generated'] = importlib.util.module_from_spec(spec); spec.loader.exec_module(module);"
        "module.card(module.Options(source='bulk', structures=5));"
        "print(sorted({'ase', 'tblite', 'torch', 'scipy', 'numpy', 'vesin'} & set(sys.modules)))"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_summary_by_path():
    command = [sys.executable, str(SCRIPT), "--source", "oxide", "--structures", "12"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("12 structures, 2 groups") and "skipped" in done.stdout
