"""The files that stages leave for other stages and for the login node: results, errors, trained models, measurements.

Energies eV, lengths Angstrom, forces eV/Angstrom, stress eV/Angstrom^3, positive in tension.
"""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field

from gnnscale.architectures.registry import ModelConfig
from gnnscale.contract.errors import ErrorKind
from gnnscale.contract.scaling_results import Estimate
from gnnscale.contract.settings import OptimSettings, Scalar
from gnnscale.contract.stage_spec import FORMAT, Runtime
from gnnscale.schema import Record


class OutputFile(Record):
    """One output of a stage, by which `verify` notices that it was altered."""

    size: int
    sha256: str
    mtime_ns: int = Field(description="when unchanged, the content is not hashed again")


class StageResult(Record):
    """result.json, which a stage writes last: the stage is done if its outputs are as listed."""

    format: Literal[2] = FORMAT
    id: str
    key: str
    outputs: dict[str, OutputFile]
    digest: str = Field(description="over the outputs' contents; later stages depend on it")
    inputs: dict[str, str] = Field(description="id -> digest, as this stage read them")
    values: dict[str, Scalar] = Field(default_factory=dict, description="a few numbers worth a table")
    started: float = Field(description="seconds since the epoch, first attempt")
    seconds: float = Field(description="wall time of all attempts, this stage alone")
    cpu_seconds: float
    start_cpu_seconds: float = Field(0.0, description="those before the stage began its work: interpreter and imports")
    peak_bytes: int = Field(description="resident, of one rank")
    attempts: int = 1
    provenance: dict[str, Scalar] = Field(default_factory=dict)


class StageError(Record):
    """error.json: why a stage failed, in words for its user."""

    id: str
    kind: ErrorKind
    message: str
    hint: str = Field("", description="what to do or type next")


class Errors(Record):
    """Errors over one set of structures, without those whose label is NaN."""

    structures: int
    atoms: int
    energy_mae: float = Field(description="eV/atom")
    energy_rmse: float = Field(description="eV/atom")
    energy_rmse_per_structure: float = Field(math.nan, description="eV, of the whole energy of a structure")
    force_mae: float = Field(description="eV/Angstrom per component")
    force_rmse: float = Field(description="eV/Angstrom per component")


class TrainedModel(Record):
    """model.json beside model.safetensors: what the weights need to be used, and what their training took."""

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


class Diverged(Record):
    """diverged.json: the step before which a run ended because its loss or gradient was not finite."""

    step: int = Field(description="steps done; the weights are as after the last of them")
    what: Literal["loss", "gradient"]
    value: float
    structures: tuple[str, ...] = Field(description="of the batch: index in the training set, source, formula")


class MeasuredStep(Record):
    """One way to take the same training step, with its memory and time."""

    name: str
    runtime: Runtime
    precision: Literal["fp32", "bf16"]
    peak_bytes: int = Field(
        description="of all tensors of the fullest rank: weights, gradients, moments, activations, buffers"
    )
    seconds: float = Field(description="of a step: the slowest rank's, median")
    relative: Estimate = Field(
        description="seconds over those of the first way, turn by turn; the interval spans all turns"
    )
    loss: float = Field(description="before the second step, so that a wrong gradient is seen")


class LeverComparison(Record):
    """levers.json: one training step taken in several ways, the plain way first."""

    model: ModelConfig
    parameters: int
    ranks: int
    device: str
    structures: int
    atoms: int
    edges: int
    ways: tuple[MeasuredStep, ...]


class LayerFeatures(Record):
    """Differences between the features of atoms at one layer; gnnscale/inference/oversmoothing.py defines them."""

    distance: float = Field(description="mean pairwise cosine distance within a structure, averaged over structures")
    sample_distance: float = Field(description="mean pairwise cosine distance over all atoms of the sample")
    dirichlet: float = Field(description="Dirichlet energy over edges, normalised to 0..2, averaged over structures")


class UnseenElements(Record):
    """Errors on structures with elements that the training split of their source lacks; they are in no other error."""

    elements: tuple[str, ...] = Field(description="symbols")
    errors: Errors


class Evaluation(Record):
    """errors.json of the stage `evaluate`: one point of a scaling study, with everything that a law may use."""

    run: str
    model: ModelConfig
    trained_on: tuple[str, ...] = Field((), description="names of the sources; a law is of runs with the same ones")
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
    subset: Literal["random", "prefix"] = Field(description="which structures were taken")
    diverged: bool
    split: Literal["validation", "test"]
    loss: float = Field(
        description="mean absolute errors over the scales of training, weighted as in training, for any loss"
    )
    all: Errors = Field(
        description="over held-out splits of sources, and external tests of those without; the laws are fitted to these"
    )
    sources: dict[str, Errors] = Field(description="by source, and by external test as SOURCE.NAME")
    tests: dict[str, str] = Field(default_factory=dict, description="external test -> its source")
    unseen: dict[str, UnseenElements] = Field(default_factory=dict, description="by source or external test")
    layers: tuple[LayerFeatures, ...] = Field(description="before the first layer and after each")


class Metrics(Record):
    """A line of metrics.jsonl: one optimizer step."""

    step: int
    loss: float
    energy: float = Field(description="mean loss of energy per atom / energy unit, unweighted")
    forces: float = Field(description="mean loss of force components / force rms, unweighted")
    stress: float = Field(0.0, description="mean loss of the virial per atom / energy unit, unweighted")
    rate: float = Field(description="learning rate at width 64")
    gradient: float = Field(description="norm before clipping")
    structures_seen: int
    atoms_seen: int
    seconds: float = Field(description="of training so far; the only field that is not reproducible")
    validation: float | None = Field(None, description="objective on the validation split, when measured")
