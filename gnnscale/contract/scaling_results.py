"""points.csv and fit.json of the stage `scaling`: the points of a study and the laws fitted to them."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from gnnscale.schema import Record


class Estimate(Record):
    """One fitted number; the interval is null where the data do not support one."""

    value: float
    low: float | None = None
    high: float | None = None

    @property
    def has_interval(self) -> bool:
        return self.low is not None

    @property
    def interval(self) -> tuple[float, float]:
        """The ends of the interval; twice the value where the data do not support one."""
        return (self.value if self.low is None else self.low, self.value if self.high is None else self.high)


class Point(Record):
    """A row of points.csv: one trained and evaluated model."""

    run: str
    model: str = Field(description="architecture and form")
    width: int
    depth: int
    parameters: int
    body_parameters: int
    structures: int
    atoms: int
    epochs: float
    atoms_seen: int
    flops: float
    learning_rate: float = Field(description="as in the settings, at width 64")
    seed: int
    diverged: bool
    loss: float
    energy_mae: float
    force_mae: float
    subset: Literal["random", "prefix"] = Field("random", description="of the structures; no law uses a prefix")
    cosine_distance: float | None = Field(None, description="of the last layer's features, within structures")
    dirichlet_energy: float | None = Field(None, description="of the last layer's features")
    source_names: str = Field("", description="names of the sources that were trained on, with + between them")

    @field_validator("cosine_distance", "dirichlet_energy", mode="before")
    @classmethod
    def _known(cls, value: object) -> object:
        """Read an empty cell, or one that holds no number, as None."""
        return None if value in ("", "nan") or value != value else value


class HeldOut(Record):
    """The error of a law at the largest points, fitted without them."""

    points: int = Field(description="number of points left out")
    beyond: float = Field(description="largest N D left out / largest N D of the rest")
    mean: float = Field(description="mean relative error")
    worst: float = Field(description="largest relative error")


class LawFit(Record):
    """One law, fitted to one target on some of the points."""

    law: str = Field(description="name in LAWS of gnnscale/scaling/fitting/laws.py")
    formula: str
    target: str
    where: str = Field(description="which points, in words")
    points: tuple[str, ...] = Field(description="runs used")
    excluded: dict[str, str] = Field(description="run -> the rule that left it out")
    estimates: dict[str, Estimate]
    objective: float
    log_rms: float = Field(description="rms residual of log(target)")
    at_optimum: float = Field(description="share of the starts that reached the best optimum")
    aicc: float | None = Field(None, description="Akaike's criterion for few points, for Laplace residuals of log L")
    bic: float | None = Field(None, description="the Bayesian criterion, for the same residuals")
    held_out: HeldOut | None = None
    allocation: Estimate | None = Field(None, description="a of the best N ~ C^a, where compute C ~ N D")
    identified: bool = Field(description="true if the points determine every parameter")
    chosen: bool = Field(False, description="true for the selected law of this target, on the whole grid; at most one")
    notes: tuple[str, ...] = ()
    replicas: tuple[tuple[float, ...], ...] = Field(
        (), description="resampled parameters of the selected law, for bands"
    )


class Fit(Record):
    """fit.json: all laws, and what they say in sentences."""

    format: Literal[1] = 1
    laws: tuple[LawFit, ...]
    bootstrap: int
    confidence: float
    seed: int
    drop_highest: int = 0
    findings: tuple[str, ...] = Field((), description="what the fits support, in sentences")
    unsupported: tuple[str, ...] = Field((), description="what they do not support, in sentences")
