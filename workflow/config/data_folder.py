"""The folder of published data sets on a site: paths of studies that name one, and files that are missing there."""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath

from gnnscale.contract import places
from gnnscale.contract.errors import UserError
from gnnscale.contract.settings import Scalar
from workflow.config.published_files import BY_NAME, PublishedFile, PublishedSet, find_set
from workflow.config.site import SiteConfig
from workflow.config.study import DataSource, Study

PREFIX = "data:"  # of a path that begins in the folder of published data


def data_folder(site: SiteConfig) -> Path:
    """Return the folder of published data, with one folder in it for each set."""
    if site.filesystems.data is None:
        return places.data_folder()
    expanded = os.path.expandvars(os.path.expanduser(site.filesystems.data))
    if "$" in expanded:
        raise UserError(
            f"filesystems.data: {site.filesystems.data} has a variable that is not set here",
            "set it, or give a path: --set filesystems.data=DIR",
        )
    return Path(expanded).absolute()


def with_data_folder(study: Study, site: SiteConfig) -> Study:
    """Return the study with paths in place of all `data:NAME`."""
    return study.model_copy(update={"data": [place_source(source, site) for source in study.data]})


def place_source(source: DataSource, site: SiteConfig) -> DataSource:
    """Return the source with paths in place of `data:NAME`, in its tests too."""
    tests = {name: place_options(source, given, site) for name, given in source.tests.items()}
    return source.model_copy(update={"options": place_options(source, source.options, site), "tests": tests})


def place_options(source: DataSource, options: dict[str, Scalar], site: SiteConfig) -> dict[str, Scalar]:
    raw = options.get("raw")
    if not isinstance(raw, str) or not raw.startswith(PREFIX):
        return options
    name = raw.removeprefix(PREFIX)
    try:
        published, below = split_name(name)
    except UserError as error:
        raise UserError(f"source {source.name!r}: raw: {raw}: {error.message}", *error.hints) from None
    if published.dataset != source.dataset:
        raise UserError(
            f"source {source.name!r}: raw: {raw} is read by the script {published.dataset!r}, not by {source.dataset!r}",
            f"set dataset: {published.dataset}",
        )
    folder = data_folder(site) / published.name / below
    return options | {"raw": str(folder)}


def split_name(name: str) -> tuple[PublishedSet, str]:
    """Return the set that a path names with its first words, and the rest, which lies in the set's folder."""
    parts = PurePosixPath(name).parts
    if ".." in parts:
        raise UserError("a path in the folder of published data has no `..`")
    for count in range(len(parts), 0, -1):
        if (first := "/".join(parts[:count])) in BY_NAME:
            return BY_NAME[first], "/".join(parts[count:])
    return find_set(name), ""


def set_of_path(raw: str, site: SiteConfig) -> PublishedSet | None:
    """Return the published set in whose folder a path lies, if it lies in one."""
    folder, path = data_folder(site), Path(raw)
    named = [each for each in BY_NAME.values() if path.is_relative_to(folder / each.name)]
    return max(named, key=lambda each: len(each.name), default=None)


def missing_files(published: PublishedSet, folder: Path) -> list[PublishedFile]:
    """List the files that are not in the folder of the set under their final names."""
    return [file for file in published.files if not (folder / file.final_name).exists()]
