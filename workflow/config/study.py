"""The fields of a study's YAML file, and their expansion into runs. Pure: files in, settings out."""

from __future__ import annotations

import copy
import itertools
import math
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from pydantic import Field, ValidationError, field_validator

from gnnscale.architectures.registry import complete_options
from gnnscale.contract import datasets, errors, files
from gnnscale.contract.dataset_card import Split
from gnnscale.contract.places import STUDIES
from gnnscale.contract.settings import (
    AuditSettings,
    ConvertSettings,
    EvaluateSettings,
    LeverSettings,
    Scalar,
    ScalingSettings,
    TrainSettings,
)
from gnnscale.schema import Spec
from workflow.config import yaml_file

NAME = r"^[A-Za-z0-9][A-Za-z0-9_.-]*$"
MAX_NAME_CHARACTERS = 120  # of a run: directories are named after it, and few file systems take more than 255


class DataSource(Spec):
    """One data set of a study."""

    name: str = Field(pattern=NAME, max_length=MAX_NAME_CHARACTERS, description="name in tables and figures")
    dataset: str = Field(description="a file in datasets/, without .py")
    options: dict[str, Scalar] = Field(default_factory=dict, description="options of that file")
    parts: int = Field(
        1, ge=1, le=10_000, description="stages that convert it side by side; the result does not depend on this"
    )
    quarantine: str | None = Field(
        None, description="JSON or CSV file that lists structures to leave out, such as an audit writes"
    )

    @field_validator("dataset")
    @classmethod
    def exists(cls, value: str) -> str:
        known = datasets.dataset_names()
        if value not in known:
            raise ValueError(f"no such file in datasets/; {yaml_file.suggest(value, known)}")
        return value


def _one_empty_case() -> list[dict[str, Any]]:
    return [{}]


class Sweep(Spec):
    """Runs with all combinations of `over`, for each of `cases`; names are dotted paths into `train`."""

    name: str = Field(pattern=NAME)
    over: dict[str, Annotated[list[Any], Field(min_length=1)]] = Field(
        default_factory=dict, description="path -> values"
    )
    cases: list[dict[str, Any]] = Field(
        default_factory=_one_empty_case, min_length=1, description="path -> value; those of one case apply together"
    )


class Study(Spec):
    """A whole study file."""

    title: str
    description: str = ""
    data: list[DataSource] = Field(min_length=1)
    split: Split = Split()
    audit: AuditSettings = AuditSettings()
    train: TrainSettings = Field(TrainSettings(), description="settings of all runs, before a sweep changes some")
    sweeps: list[Sweep] = Field(min_length=1)
    levers: LeverSettings | None = Field(
        None, description="if given, a stage measures what each memory lever saves and costs"
    )
    evaluate: EvaluateSettings = EvaluateSettings()
    scaling: ScalingSettings = ScalingSettings()

    @field_validator("data")
    @classmethod
    def distinct(cls, value: list[DataSource]) -> list[DataSource]:
        repeated = {s.name for s in value if sum(t.name == s.name for t in value) > 1}
        if repeated:
            raise ValueError(f"two sources are called {sorted(repeated)[0]!r}")
        return value

    def parts(self, source: str) -> int:
        return next(each.parts for each in self.data if each.name == source)


class RunSettings(NamedTuple):
    """One training of a study: its settings and the sweeps that contain it."""

    name: str
    sweeps: tuple[str, ...]
    settings: TrainSettings


def names() -> list[str]:
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
            for changes in combinations(sweep):
                apply_changes(study.train, changes, sweep.name)
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
    if typed in names():
        return name, STUDIES / f"{name}.yaml", f"workflow/studies/{name}.yaml"
    raise errors.UserError(
        f"no study {typed!r} in workflow/studies/; {yaml_file.suggest(typed, names())}",
        "or give the path of a YAML file",
    )


def conversions(study: Study) -> dict[str, ConvertSettings]:
    """Return the settings of the stage `convert` for each source."""
    found = {}
    for source in study.data:
        options, raw = source.options, source.options.get("raw")
        if isinstance(raw, str):
            options = options | {"raw": absolute_path(raw, source)}
        found[source.name] = ConvertSettings(
            dataset=source.dataset,
            name=source.name,
            options=options,
            split=study.split,
            cutoff=study.train.model.cutoff,
            quarantine=source.quarantine and absolute_path(source.quarantine, source),
        )
    return found


def absolute_path(path: str, source: DataSource) -> str:
    """Return the path from the root, as the stage runs in another directory."""
    try:
        return str(Path(path).expanduser().resolve())
    except (RuntimeError, ValueError) as error:  # a user without a home; a character that no path has
        reason = str(error).rstrip(".").lower()
        raise errors.UserError(f"source {source.name!r}: {path!r} is no path: {reason}") from None


def paths_read(study: Study) -> list[str]:
    """List the paths outside of the run directory that conversions read."""
    found = [
        path for each in conversions(study).values() for path in (each.options.get("raw"), each.quarantine) if path
    ]
    return list(dict.fromkeys(map(str, found)))


# ------------------------------------------------------------------------------------------------- sweeps to runs
def expand_runs(study: Study) -> list[RunSettings]:
    """List the runs of all sweeps; a run that is in several sweeps is listed once."""
    found: dict[str, RunSettings] = {}
    for sweep in study.sweeps:
        for changes in combinations(sweep):
            settings = apply_changes(study.train, changes, sweep.name)
            identity = settings.model_dump_json()
            before = found.get(identity)
            found[identity] = RunSettings("", (*(before.sweeps if before else ()), sweep.name), settings)
    names = {identity: run_name(run.settings, study.train) for identity, run in found.items()}
    shared = Counter(names.values())  # runs that differ in the last digits of a number have one name
    for identity, name in names.items():
        if shared[name] > 1 or len(name) > MAX_NAME_CHARACTERS:
            names[identity] = f"{name[: MAX_NAME_CHARACTERS - 9]}-{files.digest(identity)[:8]}"
    return [run._replace(name=names[identity]) for identity, run in found.items()]


def combinations(sweep: Sweep) -> list[dict[str, Any]]:
    rows = itertools.product(*sweep.over.values())
    product = [dict(zip(sweep.over, row)) for row in rows]
    return [case | row for case in sweep.cases for row in product]


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
            known = dotted_paths(settings.model_dump())
            raise errors.UserError(
                f"sweep {sweep!r}: no setting is called {path!r}; {yaml_file.suggest(path, known)}"
            ) from None
        mapping[last] = copy.deepcopy(value)  # target_parameters takes from it
        if path in ("model", "model.kind"):
            values["model"] = complete_options(values["model"])
    parameters = pop_target_parameters(values["model"], sweep)
    made = validate(values, f"sweep {sweep!r} with {changes}")
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


def validate(values: dict[str, Any], where: str) -> TrainSettings:
    """Return checked settings; `where` begins the message about what is wrong."""
    try:
        made = TrainSettings.model_validate(values)
    except ValidationError as error:
        raise errors.UserError("\n".join(yaml_file.describe_problems(error, TrainSettings, where))) from None
    for path, value in leaves(made.model_dump()):
        if isinstance(value, float) and not math.isfinite(value):
            raise errors.UserError(f"{where}: {path}: found {value}, expected a finite number")
    return made


# ------------------------------------------------------------------------------------------------------ dotted paths
def dotted_paths(values: dict[str, Any]) -> list[str]:
    return [path for path, _ in leaves(values)]


def value_at(values: dict[str, Any], names: Sequence[str]) -> Any:
    found: Any = values
    for name in names:
        found = found[name]
    return found


def leaves(values: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """List (dotted path, value) of all that is no mapping."""
    return [
        leaf
        for key, value in values.items()
        for leaf in (leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else [(f"{prefix}{key}", value)])
    ]


def run_name(settings: TrainSettings, common: TrainSettings) -> str:
    """Return the size of a run, as in w64-d3-n2000, followed by every other setting that a sweep has changed."""
    model, structures = settings.model, settings.structures
    name = f"{model.short_name()}-n{'all' if structures is None else structures}"
    named = {"structures", *(f"model.{field}" for field in model.size_fields)}
    usual = common.model_dump()
    if model.kind != common.model.kind:
        name = f"{model.kind}-{name}"
        usual["model"] = complete_options(usual["model"] | {"kind": model.kind})
    usual_values = dict(leaves(usual))
    for path, value in leaves(settings.model_dump()):
        if path not in named and value != usual_values.get(path):
            name += f"-{path.split('.')[-1]}{f'{value:g}'.replace('e+', 'e') if isinstance(value, float) else value}"
    return re.sub(r"[^A-Za-z0-9_.-]", "_", name)
