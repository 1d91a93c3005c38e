"""The settings of every stage: fields with types, defaults and units, as study files and spec.json hold them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from gnnscale.architectures.registry import ModelConfig, default_model
from gnnscale.contract.dataset_card import Split
from gnnscale.schema import Record

Scalar = str | int | float | bool | None


class ConversionSettings(Record):
    """Settings of a conversion of one dataset into ADIOS2 shards."""

    dataset: str = Field(description="a file in datasets/, without .py")
    name: str = Field(description="the source's name in this study")
    options: dict[str, Scalar] = Field(
        default_factory=dict,
        description="options of the dataset's script; `raw` is a path, and a key holds its files in place of it",
    )
    split: Split = Split()
    test_of: str | None = Field(None, description="source of which this is an external test: all of it is held out")
    references: dict[str, float] | Literal["fit"] = Field(
        default_factory=dict,
        description="symbol -> eV, energy of an isolated atom; fit = by least squares, whatever the files give",
    )
    cutoff: float = Field(5.0, gt=0, description="Angstrom, at which the card counts edges")
    quarantine: str | None = Field(
        None,
        description="JSON or CSV that lists structures to leave out, as an audit writes it; a key holds its content",
    )


class ConvertSettings(ConversionSettings):
    """Settings of the stage `convert`, which writes all shards or joins those of the parts."""

    kind: Literal["convert"] = "convert"


class PartSettings(ConversionSettings):
    """Settings of the stage `convert_part`: one of several parts of a conversion, which `convert` joins."""

    kind: Literal["convert_part"] = "convert_part"
    part: int = Field(ge=0, description="number of this part, from 0")
    parts: int = Field(ge=1, description="number of all parts")


class AuditSettings(Record):
    """Settings of the stage `audit`: from which deviation on a structure is reported or left out."""

    kind: Literal["audit"] = "audit"
    report_above: float = Field(
        20.0, gt=0, description="robust z-score of an energy per atom or a force above which a structure is reported"
    )
    quarantine_above: float = Field(100.0, gt=0, description="robust z-score above which a structure is quarantined")


class Compute(Record):
    """A length of training, given as its cost, as in an iso-FLOP study."""

    flops: float = Field(gt=0, description="of all matrix products, forward and backward; rounded up to whole steps")


Length = Annotated[
    Annotated[float, Field(gt=0), Tag("passes")] | Annotated[Compute, Tag("compute")],
    Discriminator(lambda value: "compute" if isinstance(value, dict | Compute) else "passes"),
]


class OptimSettings(Record):
    """The training recipe: loss, optimizer and schedule (warm-up, stable, decay)."""

    epochs: Length = Field(4.0, description="passes over the training structures, or {flops: F}: as many as F pays for")
    batch: int = Field(16, ge=1, description="structures in a global batch, over all ranks")
    optimizer: Literal["adamw", "muon"] = Field("adamw", description="of hidden matrices; all else learns by AdamW")
    learning_rate: float = Field(2e-3, gt=0, description="at width 64; see scale_rate")
    scale_rate: bool = Field(
        True, description="hidden matrices learn at rate x 64/width (muP for Adam; Muon needs none)"
    )
    weight_decay: float = Field(1e-4, ge=0, description="of hidden matrices, per unit of learning rate")
    warmup: int = Field(30, ge=0, description="steps with rising rate; no share, so that longer runs begin alike")
    cooldown: float = Field(0.4, ge=0, le=1, description="share of the steps, at the end, with linearly falling rate")
    clip: float = Field(10.0, gt=0, description="global gradient norm")
    precision: Literal["fp32", "bf16"] = Field("fp32", description="of matrix products; weights and sums stay fp32")
    ema: float = Field(
        0.0, ge=0, lt=1, description="decay per step of a running mean of the weights, used in their place"
    )
    loss: Literal["mae", "huber", "l2"] = Field(
        "mae", description="of errors / rms of their label; huber bends at 0.01"
    )
    energy_weight: float = Field(
        1.0,
        ge=0,
        description="of the mean loss of energy per atom / energy unit: the energy rms, or if that is more the force rms x "
        "3 Angstrom with gradient forces, x 0.2 Angstrom with direct forces",
    )
    force_weight: float = Field(1.0, ge=0, description="of the mean loss of force components / force rms")
    stress_weight: float = Field(0.0, ge=0, description="of the mean loss of the virial per atom / energy unit")

    def count_epochs(self, epoch_flops: float) -> float:
        """Return the number of epochs, where one costs `epoch_flops`."""
        return self.epochs.flops / epoch_flops if isinstance(self.epochs, Compute) else self.epochs


class TrainSettings(Record):
    """Settings of the stage `train`: one run of a sweep."""

    kind: Literal["train"] = "train"
    model: ModelConfig = default_model()
    sources: tuple[str, ...] | None = Field(
        None, min_length=1, description="names of the sources to train and to be tested on; null = all of the study"
    )
    structures: int | None = Field(None, ge=1, description="training structures over these sources; null = all")
    subset_seed: int = Field(0, ge=0, description="which nested subset; stratified by source")
    subset: Literal["random", "prefix"] = Field(
        "random",
        description="which structures come first: in random order, or in that of the files, for comparison only",
    )
    optim: OptimSettings = OptimSettings()
    seed: int = Field(0, ge=0, description="of the weights and of the data order")

    @property
    def learned_forces(self) -> Literal["direct", "gradient"] | None:
        """Return the kind of forces that are learned, if any."""
        return self.model.forces if self.optim.force_weight > 0 else None

    @model_validator(mode="after")
    def _possible(self) -> TrainSettings:
        if self.optim.stress_weight and not self.model.has_stress:
            raise ValueError("stress_weight needs a model with forces: gradient; direct forces have no stress")
        return self


class LeverSettings(Record):
    """Settings of the stage `memory_levers`, which measures what each lever saves and costs on one network and batch."""

    kind: Literal["memory_levers"] = "memory_levers"
    model: ModelConfig
    batch: int = Field(64, ge=1, description="structures, over all ranks")
    steps: int = Field(3, ge=1, description="timed in a turn; each lever has three turns")


class EvaluateSettings(Record):
    """Settings of the stage `evaluate`: errors of one trained model on a held-out split."""

    kind: Literal["evaluate"] = "evaluate"
    split: Literal["validation", "test"] = "test"


class ScalingSettings(Record):
    """Settings of the stage `scaling`: the laws to fit."""

    kind: Literal["scaling"] = "scaling"
    targets: tuple[Literal["loss", "energy_mae", "force_mae"], ...] = ("loss", "energy_mae", "force_mae")
    bootstrap: int = Field(1000, ge=0, description="resamples for the intervals")
    confidence: float = Field(0.95, gt=0, lt=1)
    seed: int = Field(0, ge=0)
    drop_highest: int = Field(0, ge=0, description="number of points of largest loss that are left out of the laws")


Measure = Literal["force_rmse", "force_mae", "energy_rmse", "energy_mae", "energy_rmse_per_structure"]


class PublishedErrors(Record):
    """Errors of another model on one source or external test, as its authors published them."""

    source: str = Field(description="name of the source in this study")
    test: str | None = Field(None, description="name of one of its external tests; null = the test split of the source")
    model: str = Field(description="name of the model, as its authors call it")
    errors: dict[Measure, Annotated[float, Field(gt=0)]] = Field(
        min_length=1, description="meV/Angstrom per component, meV/atom, or meV per structure"
    )
    citation: str = Field(description="where they were published, with a DOI or an arXiv number")
    note: str = Field("", description="how their protocol differs from that of this study")

    @property
    def where(self) -> str:
        """Name of the structures, as evaluations have it."""
        return self.source if self.test is None else f"{self.source}.{self.test}"


class ReportSettings(Record):
    """Settings of the stage `report`."""

    kind: Literal["report"] = "report"
    title: str
    study: str
    description: str = ""
    published: tuple[PublishedErrors, ...] = Field((), description="errors of others, beside those of this study")


Settings = Annotated[
    ConvertSettings
    | PartSettings
    | AuditSettings
    | TrainSettings
    | LeverSettings
    | EvaluateSettings
    | ScalingSettings
    | ReportSettings,
    Field(discriminator="kind"),
]

# Former names of fields, for the message about a study file that still has them.
RENAMED_FIELDS: dict[type[Record], dict[str, str]] = {
    AuditSettings: {"outlier": "report_above", "surely": "quarantine_above"}
}
