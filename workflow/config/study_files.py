"""Finds and loads the YAML file of a study."""

from __future__ import annotations

import re
from pathlib import Path

from gnnscale.contract import errors
from gnnscale.contract.places import STUDIES
from workflow.config import field_problems, yaml_file
from workflow.config.study import NAME, Study
from workflow.config.sweeps import expand_combinations, make_run


def list_studies() -> list[str]:
    return sorted(path.stem for path in STUDIES.glob("*.yaml"))


def study_name(typed: str) -> str:
    """Return the name of a study that was given by name or as a file."""
    return re.sub(r"\.ya?ml$", "", Path(typed).name)


def load(typed: str) -> tuple[str, Study]:
    """Load a study by its name in workflow/studies/ or by the path of a YAML file, and check its sweeps."""
    name, path, shown = find_file(typed)
    study = yaml_file.load(path, Study, shown)
    for number, sweep in enumerate(study.sweeps):
        try:
            for changes in expand_combinations(sweep):
                make_run(study, changes, sweep.name)
        except errors.UserError as problem:
            line = yaml_file.line_in(path, ["sweeps", number])
            raise errors.UserError(
                "\n".join(f"{shown}:{line}: {text}" for text in problem.message.splitlines()), *problem.hints
            ) from None
    return name, study


def find_file(typed: str) -> tuple[str, Path, str]:
    """Return a study's name, its file, and the file as messages show it."""
    name = study_name(typed)
    if typed.endswith((".yaml", ".yml")):
        if not re.match(NAME, name):
            raise errors.UserError(
                f"{typed}: directories are named after a study's file, so its name has letters, digits, '_', '.', '-'"
            )
        return name, Path(typed), typed
    if typed in list_studies():
        return name, STUDIES / f"{name}.yaml", f"workflow/studies/{name}.yaml"
    raise errors.UserError(
        f"no study {typed!r} in workflow/studies/; {field_problems.suggest(typed, list_studies())}",
        "or give the path of a YAML file",
    )
