"""Planted defects are found, each by the check that is meant for it and by no other; clean data are found clean."""

import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from types import SimpleNamespace

import numpy as np
import pytest
from ase.data import covalent_radii
from hypothesis import given, settings
from hypothesis import strategies as st

from gnnscale.atoms import units
from gnnscale.atoms.structure import Structure
from gnnscale.audit import measure, robust
from gnnscale.audit.check_results import CHECK_TITLES, Audit, Quarantine
from gnnscale.audit.run_checks import run_checks
from gnnscale.contract import exit_codes, files, stage_run
from gnnscale.contract.dataset_card import Split
from gnnscale.contract.settings import AuditSettings, ConvertSettings
from gnnscale.data.storage import adios, reference_energies
from gnnscale.data.storage.packed import pack
from gnnscale.job import stage_process
from gnnscale.report import study_tables
from gnnscale.report.audit_page import render_audit_page
from gnnscale.stages import convert
from tests.support import layouts
from tests.support.corpus import ENV, make_stage_directory, read_result, run_stage
from tests.support.morse import CUTOFF, NONE, labelled

FRAMES, GROUPS = 25, 10
SPLITS = ["train"] * 7 + ["validation", "test", "test"]  # of the groups


# ------------------------------------------------------------------------------------------------------- clean data
def frames(rng, kind, structures=FRAMES):
    """Place a few atoms of each group on a grid that fills a molecule or a cell, and rattle them."""
    made, grid = [], np.stack(np.meshgrid(*[np.arange(3)] * 3), -1).reshape(-1, 3)
    for group in range(GROUPS):
        crystal = kind == "crystals"
        sites = grid if crystal else grid[np.argsort(np.abs(grid - 1).sum(1) + rng.random(27))[: 8 + group % 4]]
        numbers = np.concatenate([[6, 7, 8], rng.choice([6, 7, 8], len(sites) - 3)])
        cell = np.eye(3) * (3 * 1.6) + rng.normal(size=(3, 3)) * 0.1 if crystal else np.zeros((3, 3))
        base = sites / 3 @ cell if crystal else 1.5 * sites
        for _ in range(structures):
            positions = base + rng.normal(size=base.shape) * 0.04
            made.append(labelled(numbers, positions, cell, np.full(3, crystal), f"{kind} {group}", SPLITS[group]))
    return made


@pytest.fixture(scope="module")
def clean():
    return {kind: frames(np.random.default_rng(5), kind) for kind in ("molecules", "crystals")}


def look(root, **sources):
    """Audit and quarantine of structures, by source."""
    root.mkdir(exist_ok=True)
    for name, known in sources.items():
        adios.write(root / name / "shards", known, Split(), CUTOFF)
    return of(root, *sources)


def of(root, *names):
    return run_checks([measure.measure_source(name, root / name / "shards") for name in names], AuditSettings())


def grave(audit):
    return {(f.check, f.severity, f.source, f.count) for f in audit.findings if f.severity != "note"}


def test_clean_data_are_clean(clean, tmp_path):
    audit, left_out = look(tmp_path, **clean)
    assert not grave(audit), audit.summarise()
    assert not left_out.structures and ": no errors or warnings; " in audit.summarise()
    molecules = audit.sources["molecules"]
    assert molecules.structures == FRAMES * GROUPS and molecules.groups == GROUPS and molecules.periodic == 0
    assert molecules.labels == {"energy": 250, "forces": 250, "stress": 0}
    assert sum(molecules.elements.values()) == molecules.atoms == sum(len(s.numbers) for s in clean["molecules"])
    for histogram in (molecules.sizes, molecules.energies, molecules.forces, molecules.contacts):
        assert sum(histogram.counts) == 250


# ---------------------------------------------------------------------------------------------------------- planted
def turned(s, seed=0, **more):
    turn = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))[0]
    return s._replace(positions=s.positions @ turn + 1.0, forces=s.forces @ turn, cell=s.cell @ turn)._replace(**more)


def each(known, which, change):
    return [change(s) if k in which else s for k, s in enumerate(known)]


def every(known, change):
    return [change(s) for s in known]


def pushed(s, share):
    """Its second atom at `share` of the radii from the first."""
    direction = s.positions[1] - s.positions[0]
    apart = share * covalent_radii[s.numbers[:2]].sum()
    moved = s.positions.copy()
    moved[1] = moved[0] + direction / np.linalg.norm(direction) * apart
    return s._replace(positions=moved)


def away(s):
    moved = s.positions.copy()
    moved[np.argmax(np.linalg.norm(moved - moved.mean(0), axis=1))] += 30.0
    return s._replace(positions=moved)


def holed(s):
    forces = s.forces.copy()
    forces[2, 1] = np.nan
    return s._replace(forces=forces)


def sulphur(s):
    return s._replace(numbers=np.where(s.numbers == 8, 16, s.numbers))


def stretched(axis):
    """Make a crystal of one atom to a cell, longer along one axis; all are equal by symmetry, and no force acts."""
    cell = np.diag([1.6 + 0.1 * (k == axis) for k in range(3)])
    return labelled(np.array([6]), np.zeros((1, 3)), cell, np.ones(3, bool), "crystals 0", "train")


def repelled(s, share):
    """Its first two atoms at `share` of the radii, with the energy and the forces of that."""
    return labelled(s.numbers, pushed(s, share).positions, s.cell, s.pbc, s.group, s.split)


W = (3, 40, 81)  # of three groups, all trained on
PLANTS = {  # name -> (kind, what is done, what is to be found: {(check, severity): count}, who is quarantined)
    "infinite energy": (
        "molecules",
        lambda k: each(k, W, lambda s: s._replace(energy=np.inf)),
        {("finite", "error"): 3},
        W,
    ),
    "a hole in the forces": ("molecules", lambda k: each(k, W, holed), {("finite", "error"): 3}, W),
    "no energy": (
        "molecules",
        lambda k: each(k, W, lambda s: s._replace(energy=np.nan)),
        {("labels", "warning"): 3},
        (),
    ),
    "no forces": (
        "molecules",
        lambda k: each(k, W, lambda s: s._replace(forces=s.forces * np.nan)),
        {("labels", "warning"): 3},
        (),
    ),
    "forces not computed": (
        "molecules",
        lambda k: each(k, W, lambda s: s._replace(forces=s.forces * 0)),
        {("labels", "warning"): 3},
        (),
    ),
    "an energy too high": (
        "molecules",
        lambda k: each(k, W, lambda s: s._replace(energy=s.energy + 900.0)),
        {("energy outliers", "error"): 3},
        W,
    ),
    "an energy in Hartree": (
        "molecules",
        lambda k: each(k, W, lambda s: s._replace(energy=s.energy / units.HARTREE)),
        {("energy outliers", "error"): 3},
        W,
    ),
    "a force too large": (
        "crystals",
        lambda k: each(k, W, lambda s: s._replace(forces=s.forces * 1000)),
        {("force outliers", "error"): 3},
        W,
    ),
    "a force rather large": (
        "crystals",
        lambda k: each(k, W, lambda s: s._replace(forces=s.forces * 12)),
        {("force outliers", "warning"): 3},
        (),
    ),
    "overlap": ("molecules", lambda k: each(k, W, lambda s: pushed(s, 0.3)), {("overlap", "error"): 3}, W),
    "overlap in a crystal": ("crystals", lambda k: each(k, W, lambda s: pushed(s, 0.3)), {("overlap", "error"): 3}, W),
    "overlap that was computed": (
        "molecules",
        lambda k: each(k, W, lambda s: repelled(s, 0.1)._replace(forces=s.forces * 40)),
        {("overlap", "warning"): 3, ("force outliers", "warning"): 3, ("energy outliers", "warning"): 3},
        (),
    ),
    "equal by symmetry": (
        "crystals",
        lambda k: [*k, *(stretched(axis) for axis in range(3))],
        {},
        (),
    ),
    "large forces of a close contact": (
        "crystals",
        lambda k: each(k, W, lambda s: pushed(s, 0.55)._replace(forces=s.forces * 1000)),
        {("force outliers", "warning"): 3},
        (),
    ),
    "energies per atom": (
        "molecules",
        lambda k: every(k, lambda s: s._replace(energy=s.energy / len(s.numbers))),
        {("totals", "error"): 0, ("slope", "error"): 0},
        (),
    ),
    "forces a thousand times too large": (
        "crystals",
        lambda k: every(k, lambda s: s._replace(forces=s.forces * 1000)),
        {("slope", "error"): 0, ("force outliers", "error"): 0},
        (),
    ),
    "close": ("molecules", lambda k: each(k, W, lambda s: pushed(s, 0.45)), {("overlap", "warning"): 3}, ()),
    "an atom apart": ("molecules", lambda k: each(k, W, away), {("isolated", "warning"): 3}, ()),
    "net force": (
        "molecules",
        lambda k: each(k, W, lambda s: s._replace(forces=s.forces + 0.02)),
        {("net force", "warning"): 3},
        (),
    ),
    "a copy": ("molecules", lambda k: [*k, turned(k[3])], {("copies", "warning"): 1}, (250,)),
    "a copy of a crystal, twice": (
        "crystals",
        lambda k: [*k, turned(k[3]), turned(k[3], 1)],
        {("copies", "warning"): 2},
        (250, 251),
    ),
    "a copy that is held out": (
        "molecules",
        lambda k: [*k, turned(k[3], split="test", group="x")],
        {("copies", "warning"): 1, ("leaks", "error"): 1},
        (3,),
    ),
    "nearly a copy that is held out": (
        "molecules",
        lambda k: [
            *k,
            k[3]._replace(
                positions=k[3].positions + 3e-4 * np.sin(np.arange(len(k[3].numbers) * 3)).reshape(-1, 3),
                split="test",
                group="x",
            ),
        ],
        {("leaks", "warning"): 1},
        (),
    ),
    "a copy that contradicts": (
        "molecules",
        lambda k: [*k, turned(k[3], energy=k[3].energy + 0.1)],
        {("contradictions", "warning"): 1},
        (),
    ),
    "a copy with other forces": (
        "crystals",
        lambda k: [*k, k[3]._replace(forces=k[3].forces + 0.3)],
        {("contradictions", "warning"): 1, ("net force", "warning"): 1},
        (),
    ),
    "a group in two splits": (
        "molecules",
        lambda k: each(k, range(5), lambda s: s._replace(split="test")),
        {("groups", "warning"): 25},
        (),
    ),
    "no test": (
        "molecules",
        lambda k: every(k, lambda s: s._replace(split="train" if s.split == "test" else s.split)),
        {("splits", "warning"): 0},
        (),
    ),
    "an element held out alone": (
        "molecules",
        lambda k: each(k, range(225, 250), sulphur),
        {("splits", "warning"): 25},
        (),
    ),
    "lengths in Bohr": (
        "molecules",
        lambda k: every(k, lambda s: s._replace(positions=s.positions / units.BOHR)),
        {("lengths", "error"): 0, ("slope", "error"): 0},
        (),
    ),
    "energies in Hartree": (
        "molecules",
        lambda k: every(k, lambda s: s._replace(energy=s.energy / units.HARTREE)),
        {("energy unit", "error"): 0, ("slope", "error"): 0},
        (),
    ),
    "energies in kcal/mol": (
        "crystals",
        lambda k: every(k, lambda s: s._replace(energy=s.energy / units.KCAL_PER_MOL)),
        {("energy unit", "error"): 0, ("slope", "error"): 0},
        (),
    ),
    "forces in Hartree/Bohr": (
        "molecules",
        lambda k: every(k, lambda s: s._replace(forces=s.forces / units.HARTREE * units.BOHR)),
        {("slope", "error"): 0},
        (),
    ),
    "gradients": ("crystals", lambda k: every(k, lambda s: s._replace(forces=-s.forces)), {("slope", "error"): 0}, ()),
    "crystals without images": (
        "crystals",
        lambda k: each(k, W, lambda s: s._replace(pbc=np.zeros(3, bool))),
        {("periodicity", "warning"): 3},
        (),
    ),
    "bulk said to be a slab": (
        "crystals",
        lambda k: each(k, W, lambda s: s._replace(pbc=np.array([True, True, False]))),
        {("periodicity", "warning"): 3},
        (),
    ),
}
SAID = {
    "equal by symmetry": ("2 structures are equal to another structure of this source up to symmetry",),
    "energies per atom": ("given per atom instead of as totals", "energies per atom given as totals"),
    "forces a thousand times too large": ("forces in meV/Å", "although no two atoms are close"),
    "lengths in Bohr": ("lengths in Bohr", "positions in Bohr"),
    "energies in Hartree": ("Hartree", "energies in Hartree"),
    "energies in kcal/mol": ("kcal/mol", "energies in kcal/mol"),
    "forces in Hartree/Bohr": ("forces in Hartree/Bohr",),
    "gradients": ("gradients stored as forces",),
}


@pytest.mark.parametrize("plant", PLANTS)
def test_what_is_planted_is_found_and_nothing_else(plant, clean, tmp_path):
    kind, change, expected, wrong = PLANTS[plant]
    audit, left_out = look(tmp_path, one=change(clean[kind]))
    found = {(check, severity): count for check, severity, _, count in grave(audit)}
    assert found == expected, audit.summarise()
    assert [(q.source, q.unit, q.number) for q in left_out.structures] == [("one", "", k) for k in wrong]
    assert audit.quarantined == len(wrong) == len([q for q in left_out.structures if q.reasons])
    told = " ".join(f.sentence for f in audit.findings)
    assert all(words in told for words in SAID.get(plant, ()))
    for finding in audit.findings:
        if finding.severity != "note" and finding.count == 3:
            assert sorted(int(e.origin.removeprefix("number ")) for e in finding.examples) == list(W)


def test_a_geometry_that_cannot_be(clean, tmp_path):
    """Such never comes through a conversion, so it is written past it: no place, no volume, no place in the cell."""
    packed, names = pack(clean["crystals"], Split(), CUTOFF)
    positions, cell = packed.positions.copy(), packed.cell.copy()
    positions[packed.ptr[W[0]]] = np.nan
    cell[W[1], 2] = cell[W[1], 1]
    cell[W[2]] = 0
    broken = packed._replace(positions=positions, cell=cell)
    entry = adios.write_packed(tmp_path / "one" / "shards" / "0.bp", broken, CUTOFF, names)
    adios.write_manifest(tmp_path / "one" / "shards", [entry])
    audit, left_out = of(tmp_path, "one")
    assert grave(audit) == {("finite", "error", "one", 3)} and [q.number for q in left_out.structures] == list(W)


def test_two_sources_in_other_units(clean, tmp_path):
    """Two theories, of which the second is given in kcal/mol throughout: nothing in it alone tells."""
    rng, other = np.random.default_rng(8), []
    for s in clean["molecules"][::2]:
        moved = labelled(
            s.numbers, s.positions + rng.normal(size=s.positions.shape) * 0.02, s.cell, s.pbc, s.group, s.split
        )
        other.append(moved._replace(energy=moved.energy * 23.0605 * 1.003, forces=moved.forces * 23.0605))
    audit, _ = look(tmp_path, a=clean["molecules"], b=other)
    told = [f.sentence for f in audit.findings if f.check == "shared units" and "in common" in f.sentence]
    assert len(told) == 2 and all("of b are" in words and "kcal/mol" in words for words in told)
    assert {f.source for f in audit.findings if f.check == "shared units"} == {"b"}


def test_the_same_structures_in_two_sources(clean, tmp_path):
    known = clean["molecules"]
    also = [turned(s, energy=s.energy + 300.0) for s in known[:7]] + [s._replace(split="train") for s in known[-2:]]
    audit, left_out = look(tmp_path, a=known, b=[*also, *frames(np.random.default_rng(1), "molecules")])
    note = next(f for f in audit.findings if f.check == "copies" and f.severity == "note")
    assert note.source == "a" and note.count == 9 and not left_out.structures, "another theory is no defect"
    assert {(f.check, f.source, f.count) for f in audit.findings if f.severity == "error"} == {("leaks", "a", 2)}


@pytest.mark.filterwarnings("error")
def test_a_source_without_labels_and_one_of_a_single_structure(clean, tmp_path):
    bare = every(clean["crystals"], lambda s: s._replace(energy=np.nan, forces=s.forces * np.nan))
    audit, left_out = look(tmp_path, bare=bare, one=clean["molecules"][:1])
    assert grave(audit) == {("splits", "warning", "one", 0)} and not left_out.structures
    told = {f.sentence for f in audit.findings if (f.check, f.source) == ("labels", "bare")}
    assert told == {"No structure has an energy.", "No structure has forces.", "No periodic structure has a stress."}
    assert audit.sources["bare"].energies is None and audit.sources["bare"].forces is None
    assert "in order" in render_audit_page(audit)


# -------------------------------------------------------------------------------------------------------- properties
@given(st.integers(0, 10**6))
@settings(max_examples=10)
def test_what_is_measured_is_what_brute_force_finds(tmp_path_factory, seed):
    """In skew cells, periodic in some directions or none, against all images and all pairs."""
    rng, known = np.random.default_rng(seed), []
    for _ in range(6):
        atoms, cell = rng.integers(1, 7), np.diag(rng.uniform(4, 9, 3)) + rng.normal(size=(3, 3)) * 0.6
        positions = rng.uniform(-1, 2, (atoms, 3)) @ cell
        forces = rng.normal(size=(atoms, 3)) * (rng.random((atoms, 1)) < 0.7)
        known.append(
            Structure(rng.choice([1, 8, 29], atoms), positions, cell, rng.random(3) < 0.6, 0.0, forces, NONE, "g")
        )
    path = tmp_path_factory.mktemp("brute")
    adios.write(path, known, Split(), CUTOFF)
    source = measure.measure_source("one", path)
    seen, ratios = source.measured, []
    for k, s in enumerate(known):
        images = np.stack(np.meshgrid(*[np.arange(-4, 5) if p else [0] for p in s.pbc]), -1).reshape(-1, 3) @ s.cell
        r = np.linalg.norm(s.positions[None, :, None] + images - s.positions[:, None, None], axis=-1)  # (A, A, images)
        r = np.where(r < 1e-9, np.inf, r)
        radii = covalent_radii[s.numbers]
        share = np.where(r < measure.CONTACT_REACH_ANGSTROM, r / (radii[:, None] + radii)[..., None], np.inf).min(
            (1, 2)
        )
        ratios += list(share)
        assert seen.contact[k] == pytest.approx(share.min(), rel=1e-4)
        assert seen.isolated[k] == (r.min((1, 2)) > CUTOFF).sum()
        assert seen.volume[k] == pytest.approx(abs(np.linalg.det(s.cell)) / len(s.numbers), rel=1e-4)
        for axis in range(3):
            normal = np.cross(s.cell[axis - 2], s.cell[axis - 1])
            height = np.abs(s.cell[axis] @ normal) / np.linalg.norm(normal)
            along = np.sort((s.positions @ np.linalg.inv(s.cell))[:, axis] % 1)
            widest = np.diff([*along, along[0] + 1]).max() * height
            assert seen.gaps[k, axis] == pytest.approx(widest, abs=1e-3)
        assert seen.net[k] == pytest.approx(np.linalg.norm(s.forces.sum(0)) / len(s.numbers), rel=1e-4, abs=1e-6)
        assert seen.force[k] == pytest.approx(np.linalg.norm(s.forces, axis=1).max(), rel=1e-5)
        assert seen.unmoved[k] == (~s.forces.any(1)).sum()
        assert dict(zip(source.elements, source.formulas[source.formula[k]])) == pytest.approx(
            {z: (s.numbers == z).mean() for z in source.elements}, rel=1e-5
        )
    bins = [*measure.CONTACT_BINS[:-1], measure.CONTACT_BINS[-1], np.inf]
    assert np.abs(source.nearest - np.histogram(np.minimum(ratios, 99), bins)[0]).sum() <= 2  # one may lie on an edge


@given(st.integers(0, 10**6))
@settings(max_examples=4)
def test_the_order_of_structures_and_shards_does_not_matter(clean, tmp_path_factory, seed):
    known = each(clean["molecules"], W, lambda s: s._replace(energy=s.energy + 900.0))
    known = [*known, *(turned(s) for s in known[20:30]), turned(known[0], split="test", group="x"), away(known[7])]
    origins = [(f"file {k % 3}", k) for k in range(len(known))]
    rng, outcomes = np.random.default_rng(seed), []
    for order in (np.arange(len(known)), rng.permutation(len(known))):
        root = tmp_path_factory.mktemp("order")
        cuts = np.sort(rng.choice(np.arange(1, len(known)), 3, replace=False))
        entries = [
            adios.write_shard(root / f"{n}.bp", [known[k] for k in part], Split(), CUTOFF, [origins[k] for k in part])
            for n, part in enumerate(np.split(order, cuts))
        ]
        adios.write_manifest(root, entries)
        outcomes.append(run_checks([measure.measure_source("one", root)], AuditSettings()))
    assert outcomes[0] == outcomes[1]
    assert outcomes[0][0].quarantined == 14


@given(st.integers(0, 10**6))
def test_medians_of_groups_are_medians(seed):
    rng = np.random.default_rng(seed)
    values, group = rng.normal(size=40), rng.integers(0, 6, 40)
    expected = [np.median(values[group == k]) if (group == k).any() else np.nan for k in range(7)]
    np.testing.assert_allclose(robust.compute_group_medians(values, group, 7), expected)


@given(st.integers(0, 10**6))
def test_a_few_wrong_values_do_not_move_the_fit(seed):
    rng = np.random.default_rng(seed)
    rows = rng.dirichlet(np.ones(4), 60)
    truth = rng.normal(size=4) * 100
    values = rows @ truth + rng.normal(size=60) * 1e-3
    values[rng.choice(60, 3, replace=False)] += rng.choice([-1, 1]) * 10 ** rng.uniform(1, 4)
    assert np.abs(robust.fit_least_absolute(rows, values, np.ones(60)) - truth).max() < 0.05


def test_references_that_cannot_be_told_apart():
    """Magnesium and oxygen in step, sodium and chlorine too, iron alone, gold never."""
    elements, counts = np.array([8, 11, 12, 17, 26, 79]), np.zeros((4, 6))
    counts[:2, [0, 2]] = [[1, 1], [3, 3]]
    counts[2:, [1, 3]] = [[2, 2], [1, 1]]
    counts[:, 4] = [1, 4, 2, 0]
    found = reference_energies.sum_energies(elements, counts, np.arange(4.0))
    assert reference_energies.find_undetermined(found) == [(8, 12), (11, 17), (79,)]
    assert reference_energies.fit_references(found)[1] == 3


# --------------------------------------------------------------------------------------------------- the stage, the page
@pytest.fixture(scope="module")
def loop(tmp_path_factory):
    """Convert and audit a study, then convert it without what is quarantined and audit it again."""
    root = tmp_path_factory.mktemp("loop")
    known = frames(np.random.default_rng(2), "crystals", 12)
    known = [*each(known, (5,), lambda s: s._replace(energy=s.energy + 900.0)), turned(known[30]), turned(known[100])]
    known = each(known, (50,), lambda s: pushed(s, 0.3))
    known = every(known, lambda s: s._replace(stress=np.zeros((3, 3))))
    (root / "raw").mkdir()
    layouts.write_extxyz(root / "raw", known)
    needs, audits = {}, []
    for number in range(2):
        quarantine = str(root / "audit" / "0" / "quarantine.json") if number else None
        asked = ConvertSettings(
            dataset="extxyz",
            name="mine",
            options={"raw": str(root / "raw"), "group": "material"},
            quarantine=quarantine,
        )
        made = make_stage_directory(root / str(number), "convert/mine", asked)
        stage_process.run_and_record(stage_run.Run(made), convert.main, first=True)
        needs = {"convert/mine": made}
        audits.append(make_stage_directory(root, f"audit/{number}", AuditSettings(), needs))
        done = run_stage(audits[-1])
        assert done.returncode == 0, done.stderr
    return root, audits


def test_what_was_quarantined_is_gone_and_nothing_else(loop):
    root, (first, second) = loop
    listed = files.read_model(first / "quarantine.json", Quarantine).structures
    reasons = {(q.unit, q.number): set(q.reasons) for q in listed}
    assert {frozenset(why) for why in reasons.values()} == {
        frozenset({"energy outlier"}),
        frozenset({"overlapping atoms"}),
        frozenset({"copy of another structure"}),
    }
    assert len(reasons) == 4 and {5, 50} <= {number for _, number in reasons}
    assert read_result(root / "1" / "convert/mine").values["skipped"] == 4
    assert files.read_model(second / "quarantine.json", Quarantine).structures == listed, "they stay on the list"
    before, after = read_result(first).values, read_result(second).values
    assert before["structures"] - after["structures"] == before["quarantined"] == 4 and after["quarantined"] == 0
    assert before["errors"] and "energy outliers" in before["found"]
    audit = files.read_model(second / "audit.json", Audit)
    assert not {f.check for f in audit.findings} & {"energy outliers", "overlap", "copies", "leaks"}
    assert audit.left_out == 4 and "4 were left out already" in (second / "audit.html").read_text()


def test_by_hand_the_same_is_found(loop, tmp_path):
    root, (first, _) = loop
    command = [sys.executable, "-m", "gnnscale.stages.audit"]
    done = subprocess.run(
        [*command, str(root / "0" / "convert/mine"), "--out", str(tmp_path / "out")],
        env=ENV,
        capture_output=True,
        text=True,
    )
    assert done.returncode == exit_codes.DOUBTFUL and "error     mine: " in done.stdout, done.stderr
    for name in ("audit.json", "quarantine.json", "audit.html"):
        assert (tmp_path / "out" / name).read_bytes() == (first / name).read_bytes()
    for folders, message in (
        ([tmp_path], "no shards/ in it"),
        ([root / "0" / "convert/mine", root / "1" / "convert/mine"], "both called 'mine'"),
    ):
        done = subprocess.run([*command, *map(str, folders)], env=ENV, capture_output=True, text=True)
        assert done.returncode == 64 and message in done.stderr and "Traceback" not in done.stderr


def test_what_could_not_be_checked_is_told_and_ends_with_a_code_of_its_own(clean, tmp_path):
    """Twenty-five frames of one molecule, which alone would tell nothing of stress."""
    adios.write(tmp_path / "one" / "shards", clean["molecules"], Split(), CUTOFF)
    command = [sys.executable, "-m", "gnnscale.stages.audit", str(tmp_path / "one"), "--out", str(tmp_path / "out")]
    done = subprocess.run(command, env=ENV, capture_output=True, text=True)
    assert done.returncode == exit_codes.UNCHECKED, done.stderr
    audit = files.read_model(tmp_path / "out" / "audit.json", Audit)
    assert audit.list_checks("unchecked") == ["stress"] and len(audit.list_checks("in order")) == len(CHECK_TITLES) - 2
    lines = done.stdout.splitlines()
    assert lines[0].startswith("unchecked one: Stress is") and lines[0].endswith("No structure has a stress.")
    assert "18 checked and in order, 1 could not be checked (stress)" in lines[1]
    page = Page((tmp_path / "out" / "audit.html").read_text()).text
    assert "All 18 checks that could be made are in order. 1 could not be made." in page


class Page(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.text, self.outside, self.stack = [], "", [], []
        self.feed(text)
        assert not self.stack, f"never closed: {self.stack}"

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        if tag not in ("meta", "rect", "path", "br"):
            self.stack.append(tag)
        self.outside += [v for name, v in attributes if name in ("src", "href")]

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.stack.pop() == tag

    def handle_data(self, data):
        self.text += data


def test_the_page_says_everything_and_needs_nothing(loop, clean, tmp_path):
    audit = files.read_model(loop[1][0] / "audit.json", Audit)
    shown = Page(render_audit_page(audit))
    assert not shown.outside and {"script", "img", "link"}.isdisjoint(shown.tags)
    for finding in audit.findings:
        assert finding.sentence in shown.text
        assert all(e.origin in shown.text and e.description in shown.text for e in finding.examples)
    made = [check for check in CHECK_TITLES if check != "shared units"]
    assert all(CHECK_TITLES[check] in shown.text for check in made)
    rows = re.findall(r'class="verdict" style="--mark: #\w+">([\w ]+)</span></td>', render_audit_page(audit))
    assert rows.count("in order") == len(audit.list_checks("in order")) and len(rows) == len(made)
    assert rows.count("could not be checked") == len(audit.list_checks("unchecked")) > 0
    assert all(each.describe() in shown.text for each in audit.coverage)
    odd, _ = look(tmp_path / "<b>", **{"<i>&": each(clean["molecules"], W, away)})
    assert "<i>&" in Page(render_audit_page(odd)).text


def test_the_report_says_it_in_a_line(loop):
    said = study_tables.render_audit_line(SimpleNamespace(results={"audit/all": read_result(loop[1][0])}))
    assert f"{read_result(loop[1][0]).values['found']}. More in" in said and not study_tables.render_audit_line(
        SimpleNamespace(results={})
    )


def test_a_stage_without_data_is_refused(tmp_path):
    done = run_stage(make_stage_directory(tmp_path, "audit/all", AuditSettings()))
    assert done.returncode == 64 and "needs converted data" in done.stderr
    assert json.loads((tmp_path / "audit/all/error.json").read_text())["kind"] == "configuration"
