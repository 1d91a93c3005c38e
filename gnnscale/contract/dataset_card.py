"""The cards of datasets: what a script declares of its data, and what a conversion has measured."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from gnnscale.schema import Record

SplitName = Literal["train", "validation", "test"]
ReferenceOrigin = Literal["given", "file", "published", "fitted", "fitted, not determined alone"]


class Split(Record):
    """Shares of the groups that are held out. A group (a molecule, a trajectory, a material) is never divided."""

    by: Literal["group", "frame"] = Field(
        "group", description="frame = each frame is a group of its own, so errors are too optimistic; said in results"
    )
    validation: float = Field(0.05, ge=0, lt=0.5, description="share of groups for validation")
    test: float = Field(
        0.15, ge=0, lt=0.5, description="share of groups for the final errors; 0 only for a source with `tests`"
    )
    seed: int = Field(0, ge=0, description="another seed, another split")

    def share(self, name: SplitName) -> float:
        return {"train": 1 - self.validation - self.test, "validation": self.validation, "test": self.test}[name]


class DatasetCard(Record):
    """A dataset as its script in datasets/ declares it: provenance for people, sizes for the planner."""

    name: str
    title: str = Field(description="one line for tables and figures")
    mirrors: str | None = Field(None, description="for generated data: the published dataset that it stands for")
    theory: str = Field(description="level of theory of the labels, in full")
    citation: str
    licence: str
    structures: int = Field(description="structures asked for, or published count")
    atoms_per_structure: float = Field(description="mean; an estimate until converted")
    neighbours_per_atom: float = Field(description="mean at 5 Angstrom; an estimate until converted")
    seconds_per_structure: float = Field(description="converting one structure on one core; an estimate")
    references: dict[str, float] = Field(
        default_factory=dict, description="symbol -> eV, the published energy from which its atoms are counted"
    )


class SplitCount(Record):
    """The size of one split of a converted dataset."""

    structures: int
    groups: int
    atoms: int
    edges: int = Field(description="directed, at the cutoff of the conversion")


class ShardCard(Record):
    """card.json beside the shards: what the conversion measured, for normalisation and planning."""

    card: DatasetCard
    cutoff: float = Field(description="Angstrom, at which edges were counted")
    split: Split = Field(description="as it was asked for; see `remarks` and `counts` for what became of it")
    counts: dict[SplitName, SplitCount]
    elements: dict[str, int] = Field(description="symbol -> atoms, all splits")
    trained_elements: tuple[str, ...] = Field(description="symbols of the training split")
    test_of: str | None = Field(None, description="source of which all these structures are an external test")
    references: dict[str, float] = Field(
        description="symbol -> eV, energy of an atom alone; fitted on the training split where it is unknown"
    )
    reference_origins: dict[str, ReferenceOrigin] = Field(description="symbol -> where its reference comes from")
    reference_rank: int = Field(
        description="number of independent sums of references that are known or fitted; fewer than elements: some are "
        "not determined alone"
    )
    shifts: dict[str, float] = Field(
        description="symbol -> eV, mean binding energy of its atoms: least squares on the training split of what the "
        "references leave; 0 where all are fitted"
    )
    energy_rms: float = Field(description="eV/atom, training split, after references and shifts are subtracted")
    force_rms: float = Field(description="eV/Angstrom per component, training split")
    skipped: dict[str, int] = Field(description="reason -> structures left out")
    remarks: tuple[str, ...] = Field((), description="sentences about splits and references that a result must carry")
    content: str = Field(description="sha256 over all arrays: equal content, equal digest")

    @property
    def baselines(self) -> dict[str, float]:
        """The energy of an atom of each element that a network need not learn, in eV."""
        return {symbol: energy + self.shifts.get(symbol, 0.0) for symbol, energy in self.references.items()}
