"""Every file that two parts of gnnscale share, as pydantic models: the whole interface between login node and job.

Energies eV, lengths Angstrom, forces eV/Angstrom, stress eV/Angstrom^3, positive in tension. `workflow` imports
this, architectures.py, schema.py and files.py and nothing else of the package: pydantic and the standard library.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from gnnscale.architectures import EGNNConfig, ModelConfig
from gnnscale.schema import Spec

FORMAT = 1  # of run directories; raised when an older one can no longer be read

Scalar = str | int | float | bool | None


# ---------------------------------------------------------------------------------------------------------- data
class Split(Spec):
    """Which share of the groups (a molecule, a trajectory, a material) is held out; whole groups, by hash."""

    validation: float = Field(0.05, ge=0, lt=0.5, description="share of groups for validation")
    test: float = Field(0.15, gt=0, lt=0.5, description="share of groups for the final errors")
    seed: int = Field(0, ge=0, description="another seed, another split")

    def over_training(self, name: Literal["validation", "test"]) -> float:
        """How large a split is, about, over that for training."""
        return getattr(self, name) / (1 - self.validation - self.test)


class DatasetCard(Spec):
    """What a dataset is, said by its script in datasets/: provenance for people, sizes for the planner."""

    name: str
    title: str = Field(description="one line for tables and figures")
    mirrors: str | None = Field(None, description="for generated data: the published dataset whose place it takes")
    theory: str = Field(description="level of theory of the labels, in full")
    citation: str
    licence: str
    structures: int = Field(description="structures asked for, or published count")
    atoms_per_structure: float = Field(description="mean; an estimate until converted")
    neighbours_per_atom: float = Field(description="mean at 5 Angstrom; an estimate until converted")
    seconds_per_structure: float = Field(description="converting one structure on one core; an estimate")


class SplitCount(Spec):
    """How much one split of a converted dataset holds."""

    structures: int
    groups: int
    atoms: int
    edges: int = Field(description="directed, at the cutoff of the conversion")


class ShardCard(Spec):
    """card.json beside the shards: what was converted, measured; normalisation and planning need nothing else."""

    card: DatasetCard
    cutoff: float = Field(description="Angstrom, at which edges were counted")
    counts: dict[Literal["train", "validation", "test"], SplitCount]
    elements: dict[str, int] = Field(description="symbol -> atoms, all splits")
    references: dict[str, float] = Field(description="symbol -> eV, least squares on the training split only")
    reference_rank: int = Field(description="rank of that least-squares problem; below len(references) = collinear")
    energy_rms: float = Field(description="eV/atom, training split, after the references are subtracted")
    force_rms: float = Field(description="eV/Angstrom per component, training split")
    skipped: dict[str, int] = Field(description="reason -> structures left out")
    content: str = Field(description="sha256 over all arrays: equal content, equal digest")


class ConvertSettings(Spec):
    """Settings of the stage `convert`: one dataset into ADIOS2 shards."""

    kind: Literal["convert"] = "convert"
    dataset: str = Field(description="a file in datasets/, without .py")
    name: str = Field(description="the source's name in this study")
    options: dict[str, Scalar] = Field(default_factory=dict, description="what the dataset's script may be asked for; "
                                       "`raw` is a path, and its files count instead of it")  # fmt: skip
    split: Split = Split()
    cutoff: float = Field(5.0, gt=0, description="Angstrom, for the edge counts of the card")
    quarantine: str | None = Field(
        None, description="JSON or CSV that lists structures to leave out, as an audit writes it; its content counts"
    )


class PartSettings(ConvertSettings):
    """Settings of the stage `shards`: one of several parts of a conversion, to be joined by `convert`."""

    kind: Literal["shards"] = "shards"
    part: int = Field(ge=0, description="which, from 0")
    parts: int = Field(ge=1, description="how many there are")


class AuditSettings(Spec):
    """Settings of the stage `audit`: what is looked for in the data of a study."""

    kind: Literal["audit"] = "audit"
    outlier: float = Field(20.0, gt=0, description="robust z of an energy per atom or a force, from which on it is told")
    surely: float = Field(100.0, gt=0, description="the same, from which on it is quarantined")


# ---------------------------------------------------------------------------------------------------------- stages
class Compute(Spec):
    """A length of training told by what it costs, as an iso-FLOP study does."""

    flops: float = Field(gt=0, description="of all matrix products, forward and backward; rounded up to whole steps")


Length = Annotated[
    Annotated[float, Field(gt=0), Tag("passes")] | Annotated[Compute, Tag("compute")],
    Discriminator(lambda value: "compute" if isinstance(value, dict | Compute) else "passes"),
]


class OptimSettings(Spec):
    """The training recipe: what is minimised, by which steps; warm-up, stable, decay."""

    epochs: Length = Field(
        4.0, description="passes over the training structures, or {flops: F}: as many as F pays for"
    )
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
    energy_weight: float = Field(1.0, ge=0, description="of the mean loss of energy per atom / energy rms")
    force_weight: float = Field(1.0, ge=0, description="of the mean loss of force components / force rms")
    stress_weight: float = Field(0.0, ge=0, description="of the mean loss of the virial per atom / energy rms")

    def passes(self, epoch_flops: float) -> float:
        """Epochs, where one costs so much."""
        return self.epochs.flops / epoch_flops if isinstance(self.epochs, Compute) else self.epochs


class TrainSettings(Spec):
    """Settings of the stage `train`: one run of a sweep."""

    kind: Literal["train"] = "train"
    model: ModelConfig = EGNNConfig()
    structures: int | None = Field(None, ge=1, description="training structures over all sources; null = all")
    subset_seed: int = Field(0, ge=0, description="which nested subset; stratified by source")
    subset: Literal["random", "prefix"] = Field(
        "random", description="which structures come first: in random order, or in that of the files, for comparison only"
    )
    optim: OptimSettings = OptimSettings()
    seed: int = Field(0, ge=0, description="of the weights and of the data order")

    @model_validator(mode="after")
    def _possible(self) -> TrainSettings:
        if self.optim.stress_weight and self.model.forces == "direct":
            raise ValueError("stress_weight needs a model with forces: gradient; direct forces have no stress")
        return self


class LeverSettings(Spec):
    """Settings of the stage `levers`: what each lever for memory saves and costs, on one network and one batch."""

    kind: Literal["levers"] = "levers"
    model: ModelConfig
    batch: int = Field(64, ge=1, description="structures, over all ranks")
    steps: int = Field(3, ge=1, description="timed at a time; each lever has three times its turn")


class EvaluateSettings(Spec):
    """Settings of the stage `evaluate`: errors of one trained model on a held-out split."""

    kind: Literal["evaluate"] = "evaluate"
    split: Literal["validation", "test"] = "test"


class ScalingSettings(Spec):
    """Settings of the stage `scaling`: the laws to fit."""

    kind: Literal["scaling"] = "scaling"
    targets: tuple[Literal["loss", "energy_mae", "force_mae"], ...] = ("loss", "energy_mae", "force_mae")
    bootstrap: int = Field(1000, ge=0, description="resamples for the intervals")
    confidence: float = Field(0.95, gt=0, lt=1)
    seed: int = Field(0, ge=0)
    drop_highest: int = Field(0, ge=0, description="so many points of largest loss are left out of the laws")


class ReportSettings(Spec):
    """Settings of the stage `report`."""

    kind: Literal["report"] = "report"
    title: str
    study: str
    description: str = ""


Settings = Annotated[
    ConvertSettings | PartSettings | AuditSettings | TrainSettings | LeverSettings | EvaluateSettings | ScalingSettings
    | ReportSettings,
    Field(discriminator="kind"),
]


class Runtime(Spec):
    """How a stage is run: where, not what. Never part of a key, so a result is valid on any site."""

    ranks: int = Field(1, ge=1)
    threads: int = Field(1, ge=1, description="per rank")
    zero_stage: Literal[0, 1, 2, 3] = 0
    micro_batch_edges: int | None = Field(None, ge=1, description="memory: edges of a rank at a time; null = its share")
    edge_chunk: int | None = Field(None, ge=1, description="memory: edges of a message at a time; null = all")
    activation_checkpointing: bool = Field(False, description="memory: compute each layer again in the backward pass")
    loader_workers: int = Field(1, ge=0, description="threads of a rank that make batches ahead; 0 = in between")
    data: Literal["map", "memory", "store"] = Field(
        "map", description="structures: on disk, mapped; in each rank's memory; once in all nodes' memory (needs MPI)"
    )
    checkpoint_seconds: float = Field(30.0, gt=0, description="a checkpoint this often, in up to a tenth of the time")
    shorter: tuple[str, ...] = Field((), description="trainings that differ in length alone, longest first: directories "
                                     "relative to this one; this one may begin where they began their decay")  # fmt: skip


class StageSpec(Spec):
    """spec.json: all that a stage may know. Everything but `runtime` is in `key`."""

    format: Literal[1] = FORMAT
    id: str = Field(description="stage/name, as people type it")
    key: str = Field(description="hash of settings, code, raw files, image and the keys of `needs`; of no path")
    settings: Settings
    code: dict[str, str] = Field(description="source file -> digest, of all that the stage's result depends on")
    raw: dict[str, str] = Field(default_factory=dict, description="input file, below its folder -> digest")
    image: str | None = Field(None, description="digest of the container image; null = this environment")
    needs: dict[str, str] = Field(default_factory=dict, description="id -> its directory, relative to this one")
    runtime: Runtime = Runtime()


class OutputFile(Spec):
    size: int
    sha256: str
    mtime_ns: int = Field(description="when unchanged, the content is not hashed again")


class StageResult(Spec):
    """result.json: a stage's last act. Where it is and its outputs are as it says, the stage is done."""

    format: Literal[1] = FORMAT
    id: str
    key: str
    outputs: dict[str, OutputFile]
    digest: str = Field(description="over the outputs' contents; what depends on this stage depends on this")
    inputs: dict[str, str] = Field(description="id -> digest, as they were when this stage read them")
    values: dict[str, Scalar] = Field(default_factory=dict, description="a few numbers worth a table")
    started: float = Field(description="seconds since the epoch, first attempt")
    seconds: float = Field(description="wall time of all attempts, this stage alone")
    cpu_seconds: float
    peak_bytes: int = Field(description="resident, of one rank")
    attempts: int = 1
    provenance: dict[str, Scalar] = Field(default_factory=dict)


class StageError(Spec):
    """error.json: why a stage stopped, in words for its user."""

    id: str
    kind: Literal["configuration", "data", "out-of-memory", "disk-full", "permission", "application"]
    message: str
    hint: str = Field("", description="what to do or type next")


# --------------------------------------------------------------------------------------------------------- results
class Errors(Spec):
    """Errors over one set of structures. NaN-labelled ones are not counted."""

    structures: int
    atoms: int
    energy_mae: float = Field(description="eV/atom")
    energy_rmse: float = Field(description="eV/atom")
    force_mae: float = Field(description="eV/Angstrom per component")
    force_rmse: float = Field(description="eV/Angstrom per component")


class TrainedModel(Spec):
    """model.json beside model.safetensors: what must be known to use the weights, and what it took to get them."""

    model: ModelConfig
    sources: tuple[str, ...] = Field(description="in the order of the source embedding")
    average_degree: float = Field(description="neighbours per atom in the training data; part of the model")
    diverged: bool
    parameters: int
    body_parameters: int
    structures: int
    atoms: int
    epochs: float
    steps: int
    structures_seen: int
    atoms_seen: int
    edges_seen: int
    flops: float
    seed: int
    optim: OptimSettings


class Diverged(Spec):
    """diverged.json: the step before which a run was ended, as its loss or gradient was not finite."""

    step: int = Field(description="steps done; the weights are as after the last of them")
    what: Literal["loss", "gradient"]
    value: float
    structures: tuple[str, ...] = Field(description="of the batch: index in the training set, source, formula")


class Estimate(Spec):
    """One fitted number; the interval is null where the data do not support one."""

    value: float
    low: float | None = None
    high: float | None = None


class Lever(Spec):
    """One way to take the same training step, and what it took."""

    name: str
    runtime: Runtime
    precision: Literal["fp32", "bf16"]
    peak_bytes: int = Field(description="of all tensors of the fullest rank: weights, gradients, moments, activations, buffers")
    seconds: float = Field(description="of a step: the slowest rank's, median")
    relative: Estimate = Field(description="the same over that of the first way, turn by turn; ends: of all turns")
    loss: float = Field(description="before the second step, so that a wrong gradient is seen")


class LeverTable(Spec):
    """levers.json: the plain way first."""

    model: ModelConfig
    parameters: int
    ranks: int
    device: str
    structures: int
    atoms: int
    edges: int
    ways: tuple[Lever, ...]


class LayerFeatures(Spec):
    """How unlike the features of atoms are at one place in a network; defined in gnnscale/oversmoothing.py."""

    distance: float = Field(description="mean pairwise cosine distance within a structure, averaged over structures")
    sample_distance: float = Field(description="the same over all pairs of atoms of the sample")
    dirichlet: float = Field(description="Dirichlet energy over edges, normalised to 0..2, averaged over structures")


class Evaluation(Spec):
    """errors.json of the stage `evaluate`: one point of a scaling study, with all that a law may use."""

    run: str
    model: ModelConfig
    parameters: int
    body_parameters: int = Field(description="without embeddings of elements and sources: N of the laws")
    structures: int = Field(description="unique training structures: D of the laws")
    atoms: int = Field(description="unique training atoms")
    epochs: float
    steps: int
    atoms_seen: int
    flops: float = Field(description="of the whole training, counted exactly per atom and edge")
    learning_rate: float
    seed: int
    subset: Literal["random", "prefix"] = Field(description="which of the structures")
    diverged: bool
    split: Literal["validation", "test"]
    loss: float = Field(description="mean absolute errors / scales of training, weighted as there; whatever the loss")
    all: Errors
    sources: dict[str, Errors]
    layers: tuple[LayerFeatures, ...] = Field(description="before the first layer and after each")


class Point(Spec):
    """A row of points.csv."""

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
    learning_rate: float = Field(description="as asked for, at width 64")
    seed: int
    diverged: bool
    loss: float
    energy_mae: float
    force_mae: float
    subset: Literal["random", "prefix"] = Field("random", description="of the structures; prefixes are in no law")
    cosine_distance: float | None = Field(None, description="of the last layer's features, within structures")
    dirichlet_energy: float | None = Field(None, description="of the same")

    @field_validator("cosine_distance", "dirichlet_energy", mode="before")
    @classmethod
    def _known(cls, value: object) -> object:
        """An empty cell, and not a number."""
        return None if value in ("", "nan") or value != value else value


class HeldOut(Spec):
    """How well a law, fitted without the largest points, foretells them."""

    points: int = Field(description="left out")
    beyond: float = Field(description="largest N D left out / largest N D of the rest")
    mean: float = Field(description="relative error")
    worst: float


class LawFit(Spec):
    """One law, fitted to one target on some of the points."""

    law: str = Field(description="name in LAWS of gnnscale/scaling/laws.py")
    formula: str
    target: str
    where: str = Field(description="which points, in words")
    points: tuple[str, ...] = Field(description="runs used")
    excluded: dict[str, str] = Field(description="run -> the rule that left it out")
    estimates: dict[str, Estimate]
    objective: float
    log_rms: float = Field(description="rms residual of log(target)")
    at_optimum: float = Field(description="share of the starts that reached the best optimum")
    aicc: float | None = Field(None, description="Akaike's criterion for few points, of Laplace residuals of log L")
    bic: float | None = Field(None, description="the Bayesian one, of the same")
    held_out: HeldOut | None = None
    allocation: Estimate | None = Field(None, description="a of the best N ~ C^a, where compute C ~ N D")
    identified: bool = Field(description="whether the points determine every parameter")
    chosen: bool = Field(False, description="the law of this target to go by, on the whole grid; at most one")
    notes: tuple[str, ...] = ()
    replicas: tuple[tuple[float, ...], ...] = Field(
        (), description="of the chosen law: resampled parameters, for bands"
    )


class Fit(Spec):
    """fit.json of the stage `scaling`."""

    format: Literal[1] = FORMAT
    laws: tuple[LawFit, ...]
    bootstrap: int
    confidence: float
    seed: int
    drop_highest: int = 0
    findings: tuple[str, ...] = Field((), description="what the fits say, in sentences")
    unsupported: tuple[str, ...] = Field((), description="what they do not say, in sentences")


class Metrics(Spec):
    """A line of metrics.jsonl: one optimiser step, as logged."""

    step: int
    loss: float
    energy: float = Field(description="mean loss of energy per atom / energy rms, unweighted")
    forces: float = Field(description="mean loss of force components / force rms, unweighted")
    stress: float = Field(0.0, description="mean loss of the virial per atom / energy rms, unweighted")
    rate: float = Field(description="learning rate at width 64")
    gradient: float = Field(description="norm before clipping")
    structures_seen: int
    atoms_seen: int
    seconds: float = Field(description="of training so far; not reproducible, all else is")
    validation: float | None = Field(None, description="objective on the validation split, when measured")
