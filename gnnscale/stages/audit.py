"""The stage `audit`: is the data of a study beyond doubt? audit.json, audit.html, quarantine.json.

python -m gnnscale.stages.audit DIRECTORY                     a stage's, with its spec.json
python -m gnnscale.stages.audit DATA [DATA ...] [--out OUT]   converted datasets: folders with shards/ and card.json
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path

from gnnscale.audit import measure
from gnnscale.audit.check_results import Audit, Quarantine, Quarantined, joined
from gnnscale.audit.run_checks import audited
from gnnscale.contract import errors, exit_codes, files, stage_run
from gnnscale.contract.datasets import quarantined
from gnnscale.contract.settings import AuditSettings
from gnnscale.data.storage.manifest import MANIFEST, Manifest, read
from gnnscale.job import stage_process
from gnnscale.report.audit_page import page

OUTPUTS = ["audit.json", "audit.html", "quarantine.json"]


def main(run: stage_run.Run) -> stage_run.Outputs:
    folders = {need.split("/", 1)[1]: path for need, path in run.needs.items() if need.startswith("convert/")}
    if not folders:
        raise errors.Refusal(f"{run.spec.id} needs converted data, and was given {', '.join(run.needs) or 'nothing'}")
    audit, left_out = look(folders, run.spec.settings, run.progress)
    leave(run.directory, audit, left_out)
    print(audit.said(), flush=True)
    severities = [finding.severity for finding in audit.findings]
    values = {
        "found": audit.said(),
        "structures": sum(source.structures for source in audit.sources.values()),
        "errors": severities.count("error"),
        "warnings": severities.count("warning"),
        "quarantined": audit.quarantined,
    }
    return stage_run.Outputs(files=OUTPUTS, values=values)


def look(
    folders: dict[str, Path], asked: AuditSettings, progress: Callable[[int, int], None] = lambda done, total: None
) -> tuple[Audit, Quarantine]:
    """Source by source in the order of their names; the checks come when all have been measured."""
    total = sum(read(path / "shards" / MANIFEST, Manifest).total.structures for path in folders.values())
    done, sources = 0, []

    def tell(more: int) -> None:
        nonlocal done
        done += more
        progress(done, total)

    for name, path in sorted(folders.items()):
        sources.append(measure.measured(name, path / "shards", tell))
    audit, left_out = audited(sources, asked)
    before = [each for name, path in folders.items() for each in already(name, path)]
    return audit.model_copy(update={"left_out": len(before)}), joined([*before, *left_out.structures])


def already(name: str, folder: Path) -> list[Quarantined]:
    """What the conversion was told to leave out. It stays on the list, so that a study may go on using its latest."""
    try:
        listed = json.loads((folder / "spec.json").read_text())["settings"]["quarantine"]
    except (OSError, ValueError, KeyError, TypeError):
        return []
    found = quarantined(Path(listed), name) if listed else {}
    return [
        Quarantined(source=name, unit=unit, number=number, reasons=tuple(why.split("; ")))
        for (unit, number), why in found.items()
    ]


def leave(out: Path, audit: Audit, left_out: Quarantine) -> None:
    files.write_model(out / "quarantine.json", left_out)
    files.write(out / "audit.html", page(audit))
    files.write_model(out / "audit.json", audit)


# -------------------------------------------------------------------------------------------------------- by hand
def by_hand(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m gnnscale.stages.audit", description="Is converted data beyond doubt?"
    )
    parser.add_argument("data", metavar="DATA", nargs="+", type=Path, help="a folder with shards/ and card.json")
    parser.add_argument("--out", type=Path, default=Path("audit"), help="folder for what is found [audit]")
    given = parser.parse_args(arguments)
    try:
        folders = named(given.data)
        audit, left_out = look(folders, AuditSettings())
        leave(given.out, audit, left_out)
    except Exception as error:
        kind, message, hint = stage_process.classify(error, given.out)
        if kind == "application":
            raise
        print(f"error ({kind}): {message}" + (f"\n  {hint}" if hint else ""), file=sys.stderr)
        return exit_codes.EXIT.get(kind, exit_codes.FAILED)
    for finding in audit.findings:
        if finding.severity != "note":
            print(f"{finding.severity:8} {finding.source}: {finding.sentence}")
    print(f"{audit.said()}\n{given.out / 'audit.html'}")
    return exit_codes.DONE


def named(folders: list[Path]) -> dict[str, Path]:
    """By the names that their studies give them, as the settings `quarantine` of a conversion must find them."""
    found: dict[str, Path] = {}
    for folder in folders:
        if not (folder / "shards").is_dir():
            raise errors.Refusal(f"{folder}: no shards/ in it", "name folders that a conversion has made", "data")
        name = source_name(folder)
        if name in found:
            raise errors.Refusal(f"{folder} and {found[name]} are both called {name!r}", "name one of them", "data")
        found[name] = folder
    return found


def source_name(folder: Path) -> str:
    try:
        return json.loads((folder / "spec.json").read_text())["settings"]["name"]
    except (OSError, ValueError, KeyError, TypeError):
        return folder.resolve().name


def is_stage(arguments: list[str]) -> bool:
    try:
        (directory,) = arguments
        return json.loads((Path(directory) / "spec.json").read_text())["settings"]["kind"] == "audit"
    except (OSError, ValueError, KeyError, TypeError):
        return False


if __name__ == "__main__":
    if is_stage(sys.argv[1:]):
        stage_process.run(main)
    sys.exit(by_hand(sys.argv[1:]))
