"""TODO: say what a reader finds here."""

from __future__ import annotations

import os
from typing import Literal, NamedTuple

from gnnscale.contract.results import StageResult
from gnnscale.contract.settings import Settings
from gnnscale.contract.stage_spec import Runtime, StageSpec
from workflow.plan.memory_fit import Levers

FOLDERS = {  # in the order of the work
    "convert_part": "data",
    "convert": "data",
    "audit": "audit",
    "memory_levers": "levers",
    "train": "train",
    "evaluate": "evaluate",
    "scaling": "scaling",
    "report": "report",
}


State = Literal["done", "run", "resume", "check", "refused"]


class Stage(NamedTuple):
    """One command to run, once all that it needs is done."""

    id: str
    kind: str
    name: str
    settings: Settings
    needs: tuple[str, ...]
    code: dict[str, str]
    raw: dict[str, str]
    key: str
    folder: str  # relative to the run root
    core_seconds: float  # estimate; of a training on a cluster: of its job
    levers: Levers | None = None  # of a stage with ranks: on how many, and how it fits into their memory
    shorter: tuple[str, ...] = ()  # trainings whose first steps are this one's; it waits for them, but needs none
    image: str | None = None  # id of the container image

    def spec(self, stages: dict[str, Stage]) -> StageSpec:
        there = {need: os.path.relpath(stages[need].folder, self.folder) for need in self.needs}
        runtime = self.levers.runtime if self.levers else Runtime()
        before = tuple(os.path.relpath(stages[id].folder, self.folder) for id in self.shorter)
        runtime = runtime.model_copy(update={"shorter": before})
        return StageSpec(
            id=self.id,
            key=self.key,
            settings=self.settings,
            code=self.code,
            raw=self.raw,
            image=self.image,
            needs=there,
            runtime=runtime,
        )


class Planned(NamedTuple):
    stage: Stage
    state: State
    reason: str
    result: StageResult | None
