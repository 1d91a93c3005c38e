"""Every scheduler that there is: for each kind that a site's file may name, the class in the file of that name."""

from __future__ import annotations

from importlib import import_module

from workflow.config.scheduler_kinds import KINDS, find_subclass
from workflow.scheduler.interface import Scheduler

SCHEDULERS: dict[str, Scheduler] = {
    kind: find_subclass(import_module(f"workflow.scheduler.{kind}"), Scheduler)()  # type: ignore[type-abstract] # it makes none
    for kind in KINDS
}
