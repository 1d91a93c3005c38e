"""The fields of a study's YAML file, and the conversions that its sources need. Pure."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, field_validator

from gnnscale.contract import datasets, errors
from gnnscale.contract.dataset_card import Split
from gnnscale.contract.settings import (
    AuditSettings,
    ConvertSettings,
    EvaluateSettings,
    LeverSettings,
    Scalar,
    ScalingSettings,
    TrainSettings,
)
from gnnscale.schema import Record
from workflow.config import field_problems

NAME = r"^[A-Za-z0-9][A-Za-z0-9_.-]*$"
MAX_NAME_CHARACTERS = 120  # of a run: directories are named after it, and few file systems take more than 255


class DataSource(Record):
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
    def check_exists(cls, value: str) -> str:
        known = datasets.dataset_names()
        if value not in known:
            raise ValueError(f"no such file in datasets/; {field_problems.suggest(value, known)}")
        return value


def unchanged_case() -> list[dict[str, Any]]:
    """Return the cases of a sweep that names none: one, which changes nothing."""
    return [{}]


class Sweep(Record):
    """Runs with all combinations of `over`, for each of `cases`; names are dotted paths into `train`."""

    name: str = Field(pattern=NAME)
    over: dict[str, Annotated[list[Any], Field(min_length=1)]] = Field(
        default_factory=dict, description="path -> values"
    )
    cases: list[dict[str, Any]] = Field(
        default_factory=unchanged_case, min_length=1, description="path -> value; those of one case apply together"
    )


class Study(Record):
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
    def check_distinct(cls, value: list[DataSource]) -> list[DataSource]:
        repeated = {s.name for s in value if sum(t.name == s.name for t in value) > 1}
        if repeated:
            raise ValueError(f"two sources are called {sorted(repeated)[0]!r}")
        return value

    def parts(self, source: str) -> int:
        return next(each.parts for each in self.data if each.name == source)


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
        raise errors.UserError(f"source {source.name!r}: {path!r} is not a path: {reason}") from None


def paths_read(study: Study) -> list[str]:
    """List the paths outside of the run directory that conversions read."""
    found = [
        path for each in conversions(study).values() for path in (each.options.get("raw"), each.quarantine) if path
    ]
    return list(dict.fromkeys(map(str, found)))
