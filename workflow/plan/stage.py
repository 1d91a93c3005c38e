"""The record of one stage of a plan, and of its state: done, or why it runs."""

from __future__ import annotations

import os
from typing import Literal, NamedTuple

from gnnscale.contract.results import StageResult
from gnnscale.contract.settings import Settings
from gnnscale.contract.stage_spec import Runtime, StageSpec
from workflow.plan.memory_fit import MemoryFit
from workflow.plan.missing_data import MissingData

FOLDER_OF_KIND = {  # in the order of the work
    "convert_part": "data",
    "convert": "data",
    "audit": "audit",
    "memory_levers": "levers",
    "train": "train",
    "evaluate": "evaluate",
    "scaling": "scaling",
    "report": "report",
}
StageState = Literal["done", "run", "resume", "check", "refused"]


class Stage(NamedTuple):
    """One command, to be run once everything that it needs is done."""

    id: str
    kind: str
    name: str
    settings: Settings
    needs: tuple[str, ...]
    code: dict[str, str]
    raw: dict[str, str]
    key: str
    folder: str  # relative to the run directory
    core_seconds: float  # estimated; for a training on a cluster, the seconds of its job
    levers: MemoryFit | None = None  # of a stage with ranks: how many, and how it fits into their memory
    shorter: tuple[str, ...] = ()  # trainings with the same first steps: this one waits for them, but needs none
    image: str | None = None  # id of the container image
    lacks: MissingData | None = None  # published files that a conversion would read

    @property
    def refusal(self) -> str:
        """Why the stage cannot run; "" if it can."""
        if self.lacks is not None:
            return self.lacks.description
        return self.levers.refusal if self.levers is not None else ""

    def spec(self, stages: dict[str, Stage]) -> StageSpec:
        """Return what the stage reads from its spec.json, with paths relative to its folder."""
        needs = {need: os.path.relpath(stages[need].folder, self.folder) for need in self.needs}
        runtime = self.levers.runtime if self.levers else Runtime()
        shorter = tuple(os.path.relpath(stages[id].folder, self.folder) for id in self.shorter)
        runtime = runtime.model_copy(update={"shorter": shorter})
        return StageSpec(
            id=self.id,
            key=self.key,
            settings=self.settings,
            code=self.code,
            raw=self.raw,
            image=self.image,
            needs=needs,
            runtime=runtime,
        )


class PlannedStage(NamedTuple):
    """A stage, whether it is done, and if not, why it runs or cannot."""

    stage: Stage
    state: StageState
    reason: str
    result: StageResult | None
