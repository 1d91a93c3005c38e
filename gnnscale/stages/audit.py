"""The stage `audit`: a search for errors in the data of a study; leaves audit.json, audit.html and quarantine.json.

python -m gnnscale.stages.audit DIRECTORY                     a stage, with its spec.json
python -m gnnscale.stages.audit DATA [DATA ...] [--out OUT]   converted datasets: folders with shards/ and card.json

By hand it ends with 0 if all is checked and in order, 3 if something is wrong or doubtful, 4 if some checks could not be made.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path

from gnnscale.audit import measure
from gnnscale.audit.check_results import (
    CHECK_TITLES,
    VERDICTS,
    Audit,
    Quarantine,
    Quarantined,
    Verdict,
    merge_quarantined,
)
from gnnscale.audit.run_checks import run_checks
from gnnscale.contract import errors, exit_codes, files, stage_run
from gnnscale.contract.datasets import read_quarantine
from gnnscale.contract.settings import AuditSettings, Scalar
from gnnscale.data.storage.manifest import MANIFEST, Manifest, read_checked
from gnnscale.job import stage_process
from gnnscale.report.audit_page import render_audit_page

CODE_OF_VERDICT: dict[Verdict, int] = {  # exit codes of an audit by hand
    "error": exit_codes.DOUBTFUL,
    "warning": exit_codes.DOUBTFUL,
    "unchecked": exit_codes.UNCHECKED,
    "in order": exit_codes.DONE,
}
OUTPUT_FILES = ["audit.json", "audit.html", "quarantine.json"]


def main(run: stage_run.Run) -> stage_run.Outputs:
    folders = {need.split("/", 1)[1]: path for need, path in run.needs.items() if need.startswith("convert/")}
    if not folders:
        raise errors.UserError(f"{run.spec.id} needs converted data, and was given {', '.join(run.needs) or 'nothing'}")
    audit, left_out = audit_sources(folders, run.require_settings(AuditSettings), run.report_progress)
    write_audit(run.directory, audit, left_out)
    print(audit.summarise(), flush=True)
    severities = [finding.severity for finding in audit.findings]
    values: dict[str, Scalar] = {
        "found": audit.summarise(),
        "structures": sum(source.structures for source in audit.sources.values()),
        "errors": severities.count("error"),
        "warnings": severities.count("warning"),
        "unchecked": len(audit.list_checks("unchecked")),
        "quarantined": audit.quarantined,
    }
    return stage_run.Outputs(files=OUTPUT_FILES, values=values)


def audit_sources(
    folders: dict[str, Path],
    settings: AuditSettings,
    report_progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[Audit, Quarantine]:
    """Measure the sources in the order of their names, then check all of them."""
    total = sum(read_checked(path / "shards" / MANIFEST, Manifest).total.structures for path in folders.values())
    done, sources = 0, []

    def count_measured(more: int) -> None:
        nonlocal done
        done += more
        report_progress(done, total)

    for name, path in sorted(folders.items()):
        sources.append(measure.measure_source(name, path / "shards", count_measured))
    audit, left_out = run_checks(sources, settings)
    before = [each for name, path in folders.items() for each in read_left_out(name, path)]
    return audit.model_copy(update={"left_out": len(before)}), merge_quarantined([*before, *left_out.structures])


def read_left_out(name: str, folder: Path) -> list[Quarantined]:
    """Return the structures that the conversion left out. They stay in the list, so that a study may use its latest list."""
    try:
        listed = json.loads((folder / "spec.json").read_text())["settings"]["quarantine"]
    except (OSError, ValueError, KeyError, TypeError):
        return []
    found = read_quarantine(Path(listed), name) if listed else {}
    return [
        Quarantined(source=name, unit=unit, number=number, reasons=tuple(why.split("; ")))
        for (unit, number), why in found.items()
    ]


def write_audit(out: Path, audit: Audit, left_out: Quarantine) -> None:
    files.write_model(out / "quarantine.json", left_out)
    files.write(out / "audit.html", render_audit_page(audit))
    files.write_model(out / "audit.json", audit)


# -------------------------------------------------------------------------------------------------------- by hand
def audit_by_hand(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m gnnscale.stages.audit", description="Search converted data for errors."
    )
    parser.add_argument("data", metavar="DATA", nargs="+", type=Path, help="a folder with shards/ and card.json")
    parser.add_argument("--out", type=Path, default=Path("audit"), help="folder for the findings [audit]")
    options = parser.parse_args(arguments)
    try:
        folders = name_sources(options.data)
        audit, left_out = audit_sources(folders, AuditSettings())
        write_audit(options.out, audit, left_out)
    except Exception as error:
        explained = stage_process.explain_error(error, options.out)
        if explained.kind == "application":
            raise
        errors.print_error(explained, f"error ({explained.kind})")
        return exit_codes.CODE_OF_KIND.get(explained.kind, exit_codes.FAILED)
    print_audit(audit)
    print(f"{audit.summarise()}\n{options.out / 'audit.html'}")
    return CODE_OF_VERDICT[next((v for v in VERDICTS if audit.list_checks(v)), "in order")]


def print_audit(audit: Audit) -> None:
    """Print errors, warnings, and what could not be checked."""
    for finding in audit.findings:
        if finding.severity != "note":
            print(f"{finding.severity:9} {finding.source}: {finding.sentence}")
    for each in audit.coverage:
        if not each.examined:
            print(f"unchecked {each.source}: {CHECK_TITLES[each.check]}? {each.reason[:1].upper()}{each.reason[1:]}.")


def name_sources(folders: list[Path]) -> dict[str, Path]:
    """Return name -> folder, with the names that studies give to sources, as `quarantine` refers to them."""
    found: dict[str, Path] = {}
    for folder in folders:
        if not (folder / "shards").is_dir():
            raise errors.UserError(
                f"{folder}: no shards/ in it", "name folders that a conversion has made", kind="data"
            )
        name = read_source_name(folder)
        if name in found:
            raise errors.UserError(
                f"{folder} and {found[name]} are both called {name!r}", "name one of them", kind="data"
            )
        found[name] = folder
    return found


def read_source_name(folder: Path) -> str:
    try:
        return str(json.loads((folder / "spec.json").read_text())["settings"]["name"])
    except (OSError, ValueError, KeyError, TypeError):
        return folder.resolve().name


def is_stage_directory(arguments: list[str]) -> bool:
    try:
        (directory,) = arguments
        return bool(json.loads((Path(directory) / "spec.json").read_text())["settings"]["kind"] == "audit")
    except (OSError, ValueError, KeyError, TypeError):
        return False


if __name__ == "__main__":
    if is_stage_directory(sys.argv[1:]):
        stage_process.run(main)
    sys.exit(audit_by_hand(sys.argv[1:]))
