"""Links from the top of a run directory to its current results, and the removal of results that are not current."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from gnnscale.contract.errors import UserError
from workflow.plan.stage import FOLDER_OF_KIND, Stage

LINKED_OUTPUTS = {
    "report/all": ("report.html", "figures", "beside_published.csv"),
    "scaling/all": ("fit.json", "points.csv"),
    "audit/all": ("audit.html", "quarantine.json"),
}


def link_results(root: Path, stages: dict[str, Stage]) -> None:
    """Link report.html and other results at the top of the run directory, as far as they are there and current."""
    for id, names in LINKED_OUTPUTS.items():
        for name in names:
            target = Path(stages[id].folder) / name
            if (root / target).exists() and (root / stages[id].folder / "result.json").exists():
                temporary = root / f".{name}.tmp"
                temporary.unlink(missing_ok=True)
                temporary.symlink_to(target)
                os.replace(temporary, root / name)


def remove_results(root: Path, stages: dict[str, Stage], everything: bool, confirmed: bool) -> None:
    """Print and, if confirmed, remove what is certainly ours: directories named as stages, in a directory with a plan."""
    if not (root / "plan.json").exists():
        raise UserError(f"{root}: no study has been run here, so nothing is removed")
    if everything:
        unwanted = [root]
    else:
        current = {stage.folder for stage in stages.values()}
        found = [path for folder in set(FOLDER_OF_KIND.values()) for path in (root / folder).glob("*-????????")]
        unwanted = sorted(path for path in found if str(path.relative_to(root)) not in current)
    for path in unwanted:
        print(f"{'removing' if confirmed else 'would remove'} {path}  ({directory_megabytes(path):.1f} MB)")
        if confirmed:
            shutil.rmtree(path)
    if not unwanted:
        print("nothing to remove: every result belongs to the study as it is now")
    elif not confirmed:
        print("nothing was removed; add --yes to do it")


def directory_megabytes(path: Path) -> float:
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file() and not file.is_symlink()) / 1e6
