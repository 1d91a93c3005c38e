"""Stages as the planner has them, made by hand, for the tests of what depends on their size alone."""

from __future__ import annotations

from gnnscale.architectures.memory import Memory
from gnnscale.contract.settings import ConvertSettings, TrainSettings
from gnnscale.contract.stage_spec import Runtime
from workflow.config.site import SiteConfig
from workflow.plan.memory_fit import Levers
from workflow.plan.stage import FOLDERS, Stage


def stage(kind: str, name: str, seconds: float, **more: object) -> Stage:
    settings = TrainSettings() if kind == "train" else ConvertSettings(dataset="generated", name=name)
    folder = f"{FOLDERS[kind]}/{name}-00000000"
    needs = more.pop("needs", ())
    return Stage(f"{kind}/{name}", kind, name, settings, needs, {}, {}, "0" * 16, folder, seconds, **more)


def training(site: SiteConfig, name: str = "x", hours: float = 1.0, nodes: int = 1, **more: object) -> Stage:
    ranks = nodes * site.ranks_per_node
    runtime = Runtime(ranks=ranks, threads=site.launch.threads_per_rank)
    return stage("train", name, 3600 * hours, levers=Levers(runtime, Memory(0, 0, 0, 0, 0), "", ""), **more)


def sweep(site: SiteConfig, count: int, hours: float = 1.0, nodes: int = 1) -> list[Stage]:
    return [training(site, f"t{i}", hours, nodes) for i in range(count)]
