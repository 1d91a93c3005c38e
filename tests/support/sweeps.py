"""Stages as the planner makes them, for tests that depend only on their sizes."""

from __future__ import annotations

from gnnscale.architectures.memory import Memory
from gnnscale.contract.settings import ConvertSettings, TrainSettings
from gnnscale.contract.stage_spec import Runtime
from workflow.config.site import SiteConfig
from workflow.plan.memory_fit import MemoryFit
from workflow.plan.stage import FOLDER_OF_KIND, Stage


def make_stage(kind: str, name: str, seconds: float, **more: object) -> Stage:
    settings = TrainSettings() if kind == "train" else ConvertSettings(dataset="generated", name=name)
    folder = f"{FOLDER_OF_KIND[kind]}/{name}-00000000"
    needs = more.pop("needs", ())
    return Stage(f"{kind}/{name}", kind, name, settings, needs, {}, {}, "0" * 16, folder, seconds, **more)


def make_training(site: SiteConfig, name: str = "x", hours: float = 1.0, nodes: int = 1, **more: object) -> Stage:
    ranks = nodes * site.ranks_per_node
    runtime = Runtime(ranks=ranks, threads=site.launch.threads_per_rank)
    return make_stage("train", name, 3600 * hours, levers=MemoryFit(runtime, Memory(0, 0, 0, 0, 0), "", ""), **more)


def make_sweep(site: SiteConfig, count: int, hours: float = 1.0, nodes: int = 1) -> list[Stage]:
    return [make_training(site, f"t{i}", hours, nodes) for i in range(count)]
