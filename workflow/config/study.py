"""A study in YAML, and its expansion into runs. Pure: files in, settings out."""

from __future__ import annotations

import copy
import itertools
import math
import re
from collections import Counter
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from pydantic import Field, ValidationError, field_validator

from gnnscale.architectures.egnn import EGNNConfig
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
LONGEST = 120  # characters of a run's name: directories are called after it, and few file systems take more than 255


class Source(Spec):
    """One dataset of a study."""

    name: str = Field(pattern=NAME, max_length=LONGEST, description="what it is called in tables and figures")
    dataset: str = Field(description="a file in datasets/, without .py")
    options: dict[str, Scalar] = Field(default_factory=dict, description="what that file may be asked for")
    parts: int = Field(1, ge=1, le=10_000, description="stages that convert it side by side; the result is the same")
    quarantine: str | None = Field(None, description="JSON or CSV that lists structures to leave out (an audit's)")

    @field_validator("dataset")
    @classmethod
    def exists(cls, value: str) -> str:
        known = datasets.names()
        if value not in known:
            raise ValueError(f"no such file in datasets/; {yaml_file.nearest(value, known)}")
        return value


class Sweep(Spec):
    """Some runs: all combinations of `over`, for each of `cases`. Names are dotted paths into `train`."""

    name: str = Field(pattern=NAME)
    over: dict[str, Annotated[list[Any], Field(min_length=1)]] = Field(
        default_factory=dict, description="path -> values"
    )
    cases: list[dict[str, Any]] = Field(
        default_factory=lambda: [{}], min_length=1, description="path -> value, together"
    )


class Study(Spec):
    title: str
    description: str = ""
    data: list[Source] = Field(min_length=1)
    split: Split = Split()
    audit: AuditSettings = AuditSettings()
    train: TrainSettings = Field(TrainSettings(), description="what all runs share, before a sweep changes it")
    sweeps: list[Sweep] = Field(min_length=1)
    levers: LeverSettings | None = Field(None, description="measure what each lever for memory saves and costs")
    evaluate: EvaluateSettings = EvaluateSettings()
    scaling: ScalingSettings = ScalingSettings()

    @field_validator("data")
    @classmethod
    def distinct(cls, value: list[Source]) -> list[Source]:
        repeated = {s.name for s in value if sum(t.name == s.name for t in value) > 1}
        if repeated:
            raise ValueError(f"two sources are called {sorted(repeated)[0]!r}")
        return value

    def parts(self, source: str) -> int:
        return next(each.parts for each in self.data if each.name == source)


class RunSettings(NamedTuple):
    name: str
    sweeps: tuple[str, ...]
    settings: TrainSettings


def names() -> list[str]:
    return sorted(path.stem for path in STUDIES.glob("*.yaml"))


def called(typed: str) -> str:
    """A study's name; of a file, the file's."""
    return re.sub(r"\.ya?ml$", "", Path(typed).name)


def load(name: str) -> tuple[str, Study]:
    """By name from workflow/studies/, or any YAML file by path; its sweeps are expanded once, to find what is wrong."""
    if name.endswith((".yaml", ".yml")):
        path, name, shown = Path(name), called(name), name
        if not re.match(NAME, name):
            why = "a study's file name names directories: letters, digits, '_', '.', '-'"
            raise errors.Problem(f"{shown}: {why}")
    elif name in names():
        path, shown = STUDIES / f"{name}.yaml", f"workflow/studies/{name}.yaml"
    else:
        raise errors.Problem(
            f"no study {name!r} in workflow/studies/; {yaml_file.nearest(name, names())}",
            "or give the path of a YAML file",
        )
    asked = yaml_file.load(path, Study, shown)
    for number, sweep in enumerate(asked.sweeps):
        try:
            for changes in combinations(sweep):
                changed(asked.train, changes, sweep.name)
        except errors.Problem as problem:
            line = yaml_file.line_in(path, ["sweeps", number])
            raise errors.Problem(*(f"{shown}:{line}: {text}" for text in str(problem).splitlines())) from None
    return name, asked


def conversions(study: Study) -> dict[str, ConvertSettings]:
    cutoff, found = study.train.model.cutoff, {}
    for s in study.data:
        options = s.options
        if isinstance(options.get("raw"), str):
            options = options | {"raw": absolute(options["raw"], s)}
        found[s.name] = ConvertSettings(
            dataset=s.dataset,
            name=s.name,
            options=options,
            split=study.split,
            cutoff=cutoff,
            quarantine=s.quarantine and absolute(s.quarantine, s),
        )
    return found


def absolute(path: str, source: Source) -> str:
    """As the stage runs in another directory."""
    try:
        return str(Path(path).expanduser().resolve())
    except (RuntimeError, ValueError) as error:  # the home of nobody; a character that no path has
        raise errors.Problem(f"source {source.name!r}: {path!r} is no path: {str(error).rstrip('.').lower()}") from None


def reads(study: Study) -> list[str]:
    """What conversions read outside of the run directory."""
    found = [path for s in conversions(study).values() for path in (s.options.get("raw"), s.quarantine) if path]
    return list(dict.fromkeys(map(str, found)))


def runs(study: Study) -> list[RunSettings]:
    """Every run once, whichever sweeps ask for it."""
    found: dict[str, RunSettings] = {}
    for sweep in study.sweeps:
        for changes in combinations(sweep):
            settings = changed(study.train, changes, sweep.name)
            identity = settings.model_dump_json()
            before = found.get(identity)
            found[identity] = RunSettings("", (*(before.sweeps if before else ()), sweep.name), settings)
    names = {identity: run_name(run.settings, study.train) for identity, run in found.items()}
    shared = Counter(names.values())  # by runs that differ in a number's last digits
    for identity, name in names.items():
        if shared[name] > 1 or len(name) > LONGEST:
            names[identity] = f"{name[: LONGEST - 9]}-{files.digest(identity)[:8]}"
    return [run._replace(name=names[identity]) for identity, run in found.items()]


def combinations(sweep: Sweep) -> list[dict[str, Any]]:
    values = itertools.product(*sweep.over.values())
    product = [dict(zip(sweep.over, row)) for row in values]
    return [case | row for case in sweep.cases for row in product]


def changed(settings: TrainSettings, changes: dict[str, Any], sweep: str) -> TrainSettings:
    """The settings with the values at dotted paths replaced, checked again."""
    data = settings.model_dump()
    for path, value in changes.items():
        inner = data
        *outer, last = path.split(".")
        for part in outer:
            inner = inner.get(part) if isinstance(inner, dict) else None
        if not isinstance(inner, dict) or last not in inner:
            known = dotted(settings.model_dump())
            raise errors.Problem(f"sweep {sweep!r}: nothing is called {path!r}; {yaml_file.nearest(path, known)}")
        inner[last] = copy.deepcopy(value)  # as it is changed here
    model, size = data["model"], None
    if isinstance(model, dict) and isinstance(model.get("width"), dict):
        size = parameters(model["width"], sweep)
        model["width"] = 1  # until all else is known to be right
    try:
        made = TrainSettings.model_validate(data)
    except ValidationError as error:
        raise errors.Problem(*yaml_file.explain(error, TrainSettings, f"sweep {sweep!r} with {changes}")) from None
    if endless := [
        path for path, value in leaves(made.model_dump()) if isinstance(value, float) and not math.isfinite(value)
    ]:
        raise errors.Problem(f"sweep {sweep!r} with {changes}: {endless[0]}: found no finite number")
    if size is None:
        return made
    model = EGNNConfig.for_parameters(size, **made.model.model_dump(exclude={"width"}))
    return made.model_copy(update={"model": model})


def parameters(width: dict, sweep: str) -> float:
    """Of a width that is given as {parameters: N}."""
    if set(width) != {"parameters"}:
        raise errors.Problem(f"sweep {sweep!r}: model.width: found {width}, expected a number or {{parameters: N}}")
    number = width["parameters"]
    if isinstance(number, bool) or not isinstance(number, int | float) or not 0 < number < math.inf:
        raise errors.Problem(f"sweep {sweep!r}: model.width.parameters: found {number!r}, expected a number above 0")
    return number


def dotted(data: dict) -> list[str]:
    return [path for path, _ in leaves(data)]


def leaves(data: dict, prefix: str = "") -> list[tuple[str, Any]]:
    """(dotted path, value)"""
    return [
        leaf
        for key, value in data.items()
        for leaf in (leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else [(f"{prefix}{key}", value)])
    ]


def run_name(settings: TrainSettings, common: TrainSettings) -> str:
    """w64-d3-n2000, then whatever else a sweep has changed."""
    model, n = settings.model, settings.structures
    name = f"w{model.width}-d{model.depth}-n{n if n is not None else 'all'}"
    mine, theirs = settings.model_dump(), common.model_dump()
    for path in dotted(mine):
        value, usual = mine, theirs
        for part in path.split("."):
            value, usual = value[part], usual.get(part) if isinstance(usual, dict) else None
        if value != usual and path not in ("model.width", "model.depth", "structures"):
            name += f"-{path.split('.')[-1]}{f'{value:g}'.replace('e+', 'e') if isinstance(value, float) else value}"
    return re.sub(r"[^A-Za-z0-9_.-]", "_", name)
