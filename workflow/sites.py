"""What a sites/*.yaml may say: where and how the stages of a study run. The file's name is the site's name."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

from pydantic import Field

from gnnscale.schema import Spec
from workflow import yamlfile

SITES = Path(__file__).parent.parent / "sites"


class Node(Spec):
    """One machine of the site."""

    cores: int | None = Field(None, ge=1, description="null = all that this process may use")
    memory_gb: float | None = Field(None, gt=0, description="of the device that trains; null = this machine's memory")
    core_gflops: float = Field(gt=0, description="sustained in training, per core; for estimates only")
    step_seconds: float = Field(gt=0, description="fixed cost of one optimiser step; for estimates only")
    start_seconds: float = Field(gt=0, description="of one stage before it does anything; for estimates only")


class Launch(Spec):
    """How one stage is started."""

    ranks: int = Field(1, ge=1, description="of one training")
    threads_per_rank: int = Field(1, ge=1)
    parallel_stages: int | None = Field(None, ge=1, description="null = cores / threads_per_rank")


class Verified(Spec):
    """What was really done with this file; no more may be claimed."""

    level: Literal["docs", "dryrun", "live"]
    date: str = Field(description='quoted, "2026-11-21"')
    note: str = ""


class SiteConfig(Spec):
    title: str
    scheduler: Literal["none"] = Field(description="none = processes on this machine")
    node: Node
    launch: Launch = Launch()
    env: dict[str, str] = Field(default_factory=dict, description="set for every stage")
    verified: Verified

    @property
    def cores(self) -> int:
        return self.node.cores or len(os.sched_getaffinity(0))

    @property
    def rank_bytes(self) -> float:
        """Memory that one rank of a training may fill, with as many at once as there may be."""
        whole = (
            self.node.memory_gb * 1e9
            if self.node.memory_gb
            else os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        )
        return whole / (self.parallel_stages * self.launch.ranks)

    @property
    def parallel_stages(self) -> int:
        return self.launch.parallel_stages or max(1, self.cores // self.launch.threads_per_rank)


def names() -> list[str]:
    return sorted(path.stem for path in SITES.glob("*.yaml"))


def load(name: str) -> SiteConfig:
    if name not in names():
        raise yamlfile.Problem(f"no site {name!r} in sites/; {yamlfile.nearest(name, names())}")
    return yamlfile.load(SITES / f"{name}.yaml", SiteConfig, f"sites/{name}.yaml")
