"""TODO: say what a reader finds here."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

from gnnscale.contract.places import ROOT
from workflow.config import site_files, study
from workflow.images import find
from workflow.plan import build
from workflow.plan import stage as plan_stage
from workflow.run_directory import status


class Asked:
    """The study, the site and the run directory that the command line names."""

    def __init__(self, arguments: argparse.Namespace):
        self.site_name = getattr(arguments, "site", "local")
        self.typed = getattr(arguments, "study", "default")
        self.study_name, self.study = study.load(self.typed)
        self.settings, self.max_node_hours = settings_of(arguments), getattr(arguments, "max_node_hours", None)
        self.site = site_files.load(self.site_name, self.settings)
        if self.site.container.use:
            self.site = find.resolve(self.site, study.reads(self.study))
        self.root = run_root(arguments, self.study_name)
        status.check_format(self.root)
        self.stages = build.stages(self.study_name, self.study, self.site, self.root)
        self.until = getattr(arguments, "until", None)
        kinds = list(plan_stage.FOLDERS)
        kinds = kinds[: kinds.index(self.until) + 1] if self.until else kinds
        self.wanted = {id: stage for id, stage in self.stages.items() if stage.kind in kinds}

    def command(self, verb: str = "", site: str = "") -> str:
        """What to type, in the same directory, to come back to this study."""
        words = ["python", "workflow/run.py", *filter(None, [verb]), "--site", site or self.site_name]
        words += ["--study", self.typed] if self.typed != "default" else []
        words += ["--root", str(self.root)] if self.root != ROOT / "runs" / self.study_name else []
        words += [word for text in self.settings for word in ("--set", text)]
        if not verb:
            words += ["--until", self.until] if self.until else []
            words += ["--max-node-hours", f"{self.max_node_hours:.15g}"] if self.max_node_hours is not None else []
        return shlex.join(words)


def run_root(arguments: argparse.Namespace, name: str) -> Path:
    return getattr(arguments, "root", ROOT / "runs" / name).resolve()


def settings_of(arguments: argparse.Namespace) -> list[str]:
    return getattr(arguments, "set", []) + (["container.use=true"] if getattr(arguments, "container", False) else [])
