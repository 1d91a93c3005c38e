"""TODO: say what a reader finds here."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from gnnscale.schema import Spec


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
