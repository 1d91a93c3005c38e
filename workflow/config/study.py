"""The fields of a study's YAML file, and the conversions that its sources need. Pure."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from gnnscale.contract import datasets, errors
from gnnscale.contract.dataset_card import Split
from gnnscale.contract.settings import (
    AuditSettings,
    ConvertSettings,
    EvaluateSettings,
    LeverSettings,
    PublishedErrors,
    Scalar,
    ScalingSettings,
    TrainSettings,
)
from gnnscale.schema import Record
from workflow.config import field_problems

NAME = r"^[A-Za-z0-9][A-Za-z0-9_.-]*$"
# Options of a source that its external tests do not take over: amounts, groups and splits are of no use there, and the
# energies of isolated atoms are the source's.
NOT_OF_TESTS = ("limit", "structures", "group", "split_key", "split_by_file", "isolated_atoms")
MAX_NAME_CHARACTERS = 120  # of a run: directories are named after it, and few file systems take more than 255


class DataSource(Record):
    """One data set of a study."""

    name: str = Field(pattern=NAME, max_length=MAX_NAME_CHARACTERS, description="name in tables and figures")
    dataset: str = Field(description="a file in datasets/, without .py")
    options: dict[str, Scalar] = Field(default_factory=dict, description="options of that file")
    split: Split | None = Field(None, description="how it is split; a field that is not given is the study's")
    tests: dict[str, dict[str, Scalar]] = Field(
        default_factory=dict,
        description="name -> options that differ from the source's, such as {raw: FILE}: structures to test on, by name",
    )
    references: dict[str, float] | Literal["fit"] = Field(
        default_factory=dict,
        description="symbol -> eV, energy of an isolated atom, in place of those of the files; fit = by least squares",
    )
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

    @field_validator("tests")
    @classmethod
    def check_names(cls, value: dict[str, dict[str, Scalar]]) -> dict[str, dict[str, Scalar]]:
        for name in value:
            if not re.match(NAME, name) or len(name) > MAX_NAME_CHARACTERS:
                raise ValueError(f"{name!r} is no name; letters, digits, '_', '.', '-' make one")
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
    published: tuple[PublishedErrors, ...] = Field(
        (), description="errors of other models on these sources; the report has a table of them beside the study's own"
    )

    @field_validator("data")
    @classmethod
    def check_distinct(cls, value: list[DataSource]) -> list[DataSource]:
        names = [name for s in value for name in (s.name, *(test_name(s, test) for test in s.tests))]
        repeated = {name for name in names if names.count(name) > 1}
        if repeated:
            raise ValueError(f"two sources or their tests are called {sorted(repeated)[0]!r}")
        return value

    @model_validator(mode="after")
    def check_tests(self) -> Study:
        for source in self.data:
            if not self.split_of(source).test and not source.tests:
                raise ValueError(
                    f"source {source.name!r}: with split.test 0 nothing is left to test on; "
                    "give a share, or files by tests: {NAME: {raw: FILE}}"
                )
        return self

    @model_validator(mode="after")
    def check_published(self) -> Study:
        known = [name for source in self.data for name in (source.name, *(test_name(source, t) for t in source.tests))]
        for each in self.published:
            if each.where not in known:
                question = field_problems.suggest(each.where, known)
                raise ValueError(f"published errors of {each.model!r} are on {each.where!r}; {question}")
        return self

    def split_of(self, source: DataSource) -> Split:
        """Return how a source is split: as it says, and else as the study says."""
        given = {} if source.split is None else source.split.model_dump(exclude_unset=True)
        return self.split.model_copy(update=given)

    def parts(self, source: str) -> int:
        return next(each.parts for each in self.data if each.name == source)


def conversions(study: Study) -> dict[str, ConvertSettings]:
    """Return the settings of the stage `convert` for each source."""
    found = {}
    for source in study.data:
        found[source.name] = ConvertSettings(
            dataset=source.dataset,
            name=source.name,
            options=with_absolute_path(source.options, source),
            split=study.split_of(source),
            references=source.references,
            cutoff=study.train.model.cutoff,
            quarantine=source.quarantine and absolute_path(source.quarantine, source),
        )
    return found


def external_tests(study: Study) -> dict[str, ConvertSettings]:
    """Return the settings of the stage `convert` for each external test; its options are mostly the source's.

    An external test stays as published: no list of quarantined structures changes it.
    """
    found = {}
    for source in study.data:
        common = {name: value for name, value in source.options.items() if name not in NOT_OF_TESTS}
        for test, given in source.tests.items():
            options = with_absolute_path(common | given, source)
            if options == with_absolute_path(common, source):
                raise errors.UserError(
                    f"source {source.name!r}: its test {test!r} has the options of the source, so it is the training data",
                    "give other structures, such as {raw: FILE}",
                )
            found[test_name(source, test)] = ConvertSettings(
                dataset=source.dataset,
                name=test_name(source, test),
                options=options,
                test_of=source.name,
                cutoff=study.train.model.cutoff,
            )
    return found


def test_name(source: DataSource, test: str) -> str:
    return f"{source.name}.{test}"


def with_absolute_path(options: dict[str, Scalar], source: DataSource) -> dict[str, Scalar]:
    raw = options.get("raw")
    return options | {"raw": absolute_path(raw, source)} if isinstance(raw, str) else options


def absolute_path(path: str, source: DataSource) -> str:
    """Return the path from the root, as the stage runs in another directory."""
    try:
        return str(Path(path).expanduser().resolve())
    except (RuntimeError, ValueError) as error:  # a user without a home; a character that no path has
        reason = str(error).rstrip(".").lower()
        raise errors.UserError(f"source {source.name!r}: {path!r} is not a path: {reason}") from None


def paths_read(study: Study) -> list[str]:
    """List the paths outside of the run directory that conversions read."""
    settings = [*conversions(study).values(), *external_tests(study).values()]
    found = [path for each in settings for path in (each.options.get("raw"), each.quarantine) if path]
    return list(dict.fromkeys(map(str, found)))
