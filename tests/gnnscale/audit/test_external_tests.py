"""The audit sees external tests and the way in which a source was split."""

import pytest

from gnnscale.contract.dataset_card import Split
from gnnscale.contract.settings import AuditSettings
from gnnscale.stages.audit import audit_sources
from tests.support import conversions, layouts


def molecules(*seeds):
    return [s._replace(group=f"{seed} {k}") for seed in seeds for k, s in enumerate(layouts.make_molecules(seed=seed))]


def findings(folder, tests=None, structures=None, **settings):
    """Return (check, severity) -> sentences about a source and its external tests."""
    folders = {"mine": folder / "mine"}
    conversions.convert(folder / "mine", structures or molecules(*range(9)), **settings)
    for name, held_out in (tests or {}).items():
        conversions.convert(folder / name, held_out, name=name, test_of="mine")
        folders[name] = folder / name
    audit, _ = audit_sources(folders, AuditSettings())
    assert "references" not in audit.list_checks("unchecked"), "a test has those of its source"
    found = {}
    for each in audit.findings:
        found.setdefault((each.check, each.severity), []).append(f"{each.source}: {each.sentence}")
    return found


def test_a_test_that_shares_structures_with_the_training_is_found_by_geometry(tmp_path):
    """The copies are under other names, in another file and group."""
    copies = [s._replace(group="new") for s in molecules(*range(9))[:20]]
    found = findings(tmp_path, {"mine.leaks": copies, "mine.clean": molecules(50, 51)}, split=Split(test=0.2))
    (leak,) = found["leaks", "error"]
    assert leak.startswith("mine.leaks: ") and "same geometry is in a training split" in leak
    assert not any("mine.clean" in sentence for sentence in found.get(("leaks", "error"), []))


@pytest.mark.parametrize("test", [0.2, 0.0])
def test_shares_of_external_tests_and_of_their_source_are_usual(test, tmp_path):
    found = findings(tmp_path, {"mine.a": molecules(50, 51)}, split=Split(validation=0.1, test=test))
    assert ("splits", "warning") not in found


def test_frames_that_were_split_one_by_one_are_a_warning(tmp_path):
    alike = [s._replace(group="one") for s in molecules(*range(9))]
    found = findings(tmp_path, structures=alike, split=Split(by="frame", test=0.2))
    assert "one by one" in found["groups", "warning"][0]


def test_known_references_need_no_determination(tmp_path):
    fitted = findings(tmp_path / "fitted")
    assert "3 of 4" in fitted["references", "note"][0]
    known = findings(tmp_path / "known", references={"O": -2041.0})
    assert ("references", "note") not in known


def test_elements_of_a_test_that_no_training_has_are_named(tmp_path):
    trained = [s for s in molecules(*range(9)) if 8 not in s.numbers]
    found = findings(tmp_path, {"mine.a": molecules(50)}, structures=trained, split=Split(test=0.2))
    assert any(
        sentence.startswith("mine.a: 3 structures") and ": O." in sentence for sentence in found["splits", "warning"]
    )
