"""The parsed command line and what it resolved to: study, site, run directory and stages."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

from gnnscale.contract.command_name import command_name
from gnnscale.contract.places import runs_folder
from workflow.config import data_folder, site_files, study, study_files
from workflow.images import image_file
from workflow.plan.build import build_stages
from workflow.plan.stage import FOLDER_OF_KIND
from workflow.run_directory import status

# The parser sets no defaults: an option may stand before or after the verb, and a default would overwrite it.
DEFAULT_SITE, DEFAULT_STUDY = "local", "default"


class Invocation:
    """The study, the site and the run directory that the command line names."""

    def __init__(self, arguments: argparse.Namespace):
        self.typed_site = site_files.type_anywhere(named_site(arguments))
        self.site_name = site_files.site_name(self.typed_site)
        self.site_file = self.typed_site if site_files.is_path(self.typed_site) else ""
        self.typed_study = named_study(arguments)
        self.study_name, asked = study_files.load(self.typed_study)
        self.settings = site_settings(arguments)
        self.max_node_hours: float | None = getattr(arguments, "max_node_hours", None)
        self.site = site_files.load(named_site(arguments), self.settings)
        self.study = data_folder.with_data_folder(asked, self.site)
        if self.site.container.use:
            self.site = image_file.with_image(self.site, study.paths_read(self.study))
        self.root = run_directory(arguments, self.study_name)
        status.check_format(self.root)
        self.stages = build_stages(self.study_name, self.study, self.site, self.root)
        self.until: str | None = getattr(arguments, "until", None)
        kinds = list(FOLDER_OF_KIND)
        kinds = kinds[: kinds.index(self.until) + 1] if self.until else kinds
        self.wanted = {id: stage for id, stage in self.stages.items() if stage.kind in kinds}

    def command(self, verb: str = "", site: str = "") -> str:
        """Return the command that, typed in the same directory, comes back to this study."""
        return f"{command_name()} {shlex.join(self.words(verb, site))}"

    def words(self, verb: str = "", site: str = "") -> list[str]:
        """Return the words of that command."""
        words = [*filter(None, [verb]), "--site", site or self.typed_site]
        words += ["--study", self.typed_study] if self.typed_study != DEFAULT_STUDY else []
        words += ["--root", str(self.root)] if self.root != runs_folder() / self.study_name else []
        words += [word for text in self.settings for word in ("--set", text)]
        if verb in ("", "run"):
            words += ["--until", self.until] if self.until else []
            words += ["--max-node-hours", f"{self.max_node_hours:.15g}"] if self.max_node_hours is not None else []
        return words


def named_site(arguments: argparse.Namespace) -> str:
    return getattr(arguments, "site", DEFAULT_SITE)


def named_study(arguments: argparse.Namespace) -> str:
    """Return the study as it was typed: a name, or the path of a file."""
    return getattr(arguments, "study", DEFAULT_STUDY)


def run_directory(arguments: argparse.Namespace, name: str) -> Path:
    """Return the directory of a run: --root, or the study's own."""
    root: Path = getattr(arguments, "root", runs_folder() / name)
    return root.resolve()


def site_settings(arguments: argparse.Namespace) -> list[str]:
    """Return the settings of the site that --set and --container give."""
    return getattr(arguments, "set", []) + (["container.use=true"] if getattr(arguments, "container", False) else [])
