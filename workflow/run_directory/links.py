"""TODO: say what a reader finds here."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from gnnscale.contract.errors import Problem
from workflow.plan.stage import FOLDERS, Stage

LINKED = {
    "report/all": ("report.html", "figures"),
    "scaling/all": ("fit.json", "points.csv"),
    "audit/all": ("audit.html", "quarantine.json"),
}


def links(root: Path, stages: dict[str, Stage]) -> None:
    """report.html and the like at the top of the run directory, as links to the results that are current."""
    for id, names in LINKED.items():
        for name in names:
            target = Path(stages[id].folder) / name
            if (root / target).exists() and (root / stages[id].folder / "result.json").exists():
                beside = root / f".{name}.tmp"
                beside.unlink(missing_ok=True)
                beside.symlink_to(target)
                os.replace(beside, root / name)


def clean(root: Path, stages: dict[str, Stage], everything: bool, do: bool) -> None:
    """Only what is plainly ours: directories named as stages are, in a directory that holds a plan."""
    if not (root / "plan.json").exists():
        raise Problem(f"{root}: no study has been run here, so nothing is removed")
    if everything:
        gone = [root]
    else:
        current = {stage.folder for stage in stages.values()}
        found = [path for folder in set(FOLDERS.values()) for path in (root / folder).glob("*-????????")]
        gone = sorted(path for path in found if str(path.relative_to(root)) not in current)
    for path in gone:
        print(f"{'removing' if do else 'would remove'} {path}  ({megabytes(path):.1f} MB)")
        if do:
            shutil.rmtree(path)
    if not gone:
        print("nothing to remove: every result is of the study as it is now")
    elif not do:
        print("nothing was removed; add --yes to do it")


def megabytes(path: Path) -> float:
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file() and not file.is_symlink()) / 1e6
