"""Expands the sweeps of a study into runs, each with its settings and its name. Pure."""

from __future__ import annotations

import copy
import itertools
import math
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

from pydantic import ValidationError

from gnnscale.architectures.registry import complete_options
from gnnscale.contract import errors, files
from gnnscale.contract.settings import TrainSettings
from workflow.config import field_problems, yaml_file
from workflow.config.study import MAX_NAME_CHARACTERS, Study, Sweep


class RunSettings(NamedTuple):
    """One training of a study: its settings and the sweeps that contain it."""

    name: str
    sweeps: tuple[str, ...]
    settings: TrainSettings


def expand_runs(study: Study) -> list[RunSettings]:
    """List the runs of all sweeps; a run that is in several sweeps is listed once."""
    runs: dict[str, RunSettings] = {}
    for sweep in study.sweeps:
        for changes in expand_combinations(sweep):
            settings = make_run(study, changes, sweep.name)
            identity = settings.model_dump_json()
            before = runs.get(identity)
            runs[identity] = RunSettings("", (*(before.sweeps if before else ()), sweep.name), settings)
    names = {identity: run_name(run.settings, study.train) for identity, run in runs.items()}
    shared = Counter(names.values())  # runs that differ in the last digits of a number have one name
    for identity, name in names.items():
        if shared[name] > 1 or len(name) > MAX_NAME_CHARACTERS:
            names[identity] = f"{name[: MAX_NAME_CHARACTERS - 9]}-{files.digest(identity)[:8]}"
    return [run._replace(name=names[identity]) for identity, run in runs.items()]


def expand_combinations(sweep: Sweep) -> list[dict[str, Any]]:
    rows = itertools.product(*sweep.over.values())
    product = [dict(zip(sweep.over, row)) for row in rows]
    return [case | row for case in sweep.cases for row in product]


def make_run(study: Study, changes: dict[str, Any], sweep: str) -> TrainSettings:
    """Return the settings of one run, with its sources in the order of the study, and null where it has all of them."""
    settings, known = apply_changes(study.train, changes, sweep), [source.name for source in study.data]
    wanted = settings.sources or known
    for name in wanted:
        if name not in known:
            question = field_problems.suggest(name, known)
            where = f"sweep {sweep!r}: sources" if "sources" in changes else "train.sources"
            raise errors.UserError(f"{where}: the study has no source {name!r}; {question}")
    ordered = tuple(name for name in known if name in wanted)
    return settings.model_copy(update={"sources": None if len(ordered) == len(known) else ordered})


def apply_changes(settings: TrainSettings, changes: dict[str, Any], sweep: str) -> TrainSettings:
    """Return the settings with the values at dotted paths replaced, and checked again.

    A width may be given as {parameters: N}: the architecture then finds the width itself.
    """
    values = settings.model_dump()
    for path, value in sorted(changes.items(), key=lambda change: change[0] not in ("model", "model.kind")):
        try:
            *outer, last = path.split(".")
            mapping = value_at(values, outer)
            mapping[last]
        except (KeyError, TypeError):
            known = list_paths(settings.model_dump())
            raise errors.UserError(
                f"sweep {sweep!r}: no setting is called {path!r}; {field_problems.suggest(path, known)}"
            ) from None
        mapping[last] = copy.deepcopy(value)  # pop_target_parameters removes from it
        if path in ("model", "model.kind"):
            values["model"] = complete_options(values["model"])
    parameters = pop_target_parameters(values["model"], sweep)
    made = validate_settings(values, f"sweep {sweep!r} with {changes}")
    if parameters is None:
        return made
    return made.model_copy(update={"model": made.model.for_parameters(parameters)})


def pop_target_parameters(model: Any, sweep: str) -> float | None:
    """Remove a width that is given as {parameters: N} from a model's options, and return N."""
    if not isinstance(model, dict) or not isinstance(model.get("width"), dict):
        return None
    width = model.pop("width")
    if set(width) != {"parameters"}:
        raise errors.UserError(f"sweep {sweep!r}: model.width: found {width}, expected a number or {{parameters: N}}")
    number = width["parameters"]
    if isinstance(number, bool) or not isinstance(number, int | float) or not 0 < number < math.inf:
        raise errors.UserError(f"sweep {sweep!r}: model.width.parameters: found {number!r}, expected a number above 0")
    return number


def validate_settings(values: dict[str, Any], where: str) -> TrainSettings:
    """Return checked settings; the message of an error begins with `where`."""
    try:
        made = TrainSettings.model_validate(values)
    except ValidationError as error:
        raise errors.UserError("\n".join(yaml_file.describe_problems(error, TrainSettings, where))) from None
    for path, value in flatten(made.model_dump()):
        if isinstance(value, float) and not math.isfinite(value):
            raise errors.UserError(f"{where}: {path}: found {value}, expected a finite number")
    return made


# ------------------------------------------------------------------------------------------------------ dotted paths
def list_paths(values: dict[str, Any]) -> list[str]:
    return [path for path, _ in flatten(values)]


def value_at(values: dict[str, Any], names: Sequence[str]) -> Any:
    found: Any = values
    for name in names:
        found = found[name]
    return found


def flatten(values: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """List (dotted path, value) of everything in nested mappings that is not a mapping itself."""
    return [
        leaf
        for key, value in values.items()
        for leaf in (flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else [(f"{prefix}{key}", value)])
    ]


def run_name(settings: TrainSettings, common: TrainSettings) -> str:
    """Return the size of a run, as in w64-d3-n2000, followed by every other setting that a sweep has changed.

    Before the size stand the sources, where the run has not those of all runs, and the kind of another model.
    """
    model, structures = settings.model, settings.structures
    name = f"{model.short_name()}-n{'all' if structures is None else structures}"
    named = {"sources", "structures", *(f"model.{field}" for field in model.size_fields)}
    usual = common.model_dump()
    if model.kind != common.model.kind:
        name = f"{model.kind}-{name}"
        usual["model"] = complete_options(usual["model"] | {"kind": model.kind})
    if settings.sources != common.sources:
        name = f"{'-'.join(settings.sources or ['all'])}-{name}"
    usual_values = dict(flatten(usual))
    for path, value in flatten(settings.model_dump()):
        if path not in named and value != usual_values.get(path):
            name += f"-{path.split('.')[-1]}{f'{value:g}'.replace('e+', 'e') if isinstance(value, float) else value}"
    return re.sub(r"[^A-Za-z0-9_.-]", "_", name)
