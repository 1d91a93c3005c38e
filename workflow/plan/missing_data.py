"""The published files that a conversion would read and that are not in the site's folder of published data."""

from __future__ import annotations

from typing import NamedTuple

from gnnscale.contract.settings import ConversionSettings
from workflow.config.data_folder import data_folder, missing_files, set_of_path
from workflow.config.site import SiteConfig


class MissingData(NamedTuple):
    """The files of a published set that are not in its folder."""

    published: str  # name of the set, for `data fetch`
    folder: str
    files: tuple[str, ...]
    total: int  # files of the set
    gigabytes: float  # to download; 0 = not known

    @property
    def description(self) -> str:
        if self.total == 1:
            return f"the file of {self.published} is missing"
        some = "all" if len(self.files) == self.total else f"{len(self.files)} of"
        return f"{some} {self.total} files of {self.published} are missing"


def find_missing(settings: ConversionSettings, site: SiteConfig) -> MissingData | None:
    """Return the files that a conversion lacks; None if it reads no published set, or a whole one."""
    raw = settings.options.get("raw")
    published = set_of_path(raw, site) if isinstance(raw, str) else None
    if published is None:
        return None
    folder = data_folder(site) / published.name
    missing = missing_files(published, folder)
    if not missing:
        return None
    gigabytes = published._replace(files=tuple(missing)).gigabytes
    names = tuple(file.final_name for file in missing)
    return MissingData(published.name, str(folder), names, len(published.files), gigabytes)
