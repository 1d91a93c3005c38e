"""Options of a site with the toy, which runs its jobs as processes of this machine."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from workflow.config.batch_scheduler import BatchScheduler, RankLauncher


class Toy(BatchScheduler):
    """The toy: a folder with a folder for each job."""

    title: ClassVar = "Toy"
    directive_word: ClassVar = "#TOY"
    decided_elsewhere: ClassVar = {"--name": "the driver", "--minutes": "the planner"}
    launchers: ClassVar = {"toyrun": RankLauncher(("--on", "{hosts}"), ("TOY_RANK", "TOY_LOCAL", "TOY_SIZE"))}

    kind: Literal["toy"]
    colour: str = Field("", description="of the jobs")
