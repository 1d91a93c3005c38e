"""The folders of gnnscale on this disk: in a checkout, in a container image or in an installed package."""

from __future__ import annotations

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]  # holds the packages gnnscale/ and workflow/
SHARE = "gnnscale/share"  # below site-packages: what lies beside the packages in a checkout; setup.py copies it there


def data_root(root: Path = ROOT) -> Path:
    """Return the folder that holds datasets/, sites/, containers/ and constraints.txt."""
    return root / SHARE if (root / SHARE).is_dir() else root


DATA_ROOT = data_root()
IS_INSTALLED = DATA_ROOT != ROOT
DATASETS = DATA_ROOT / "datasets"
SITES = DATA_ROOT / "sites"
CONTAINERS = DATA_ROOT / "containers"
STUDIES = ROOT / "workflow" / "studies"


def runs_folder() -> Path:
    """Return the folder of run directories: the checkout's, or that of the current directory for an installed package."""
    return (Path.cwd() if IS_INSTALLED else ROOT) / "runs"


def data_folder() -> Path:
    """Return the folder of published data where a site names none: beside that of run directories."""
    return runs_folder().with_name("data")


def cache_folder() -> Path:
    """Return the folder of what can be made again: in the checkout, or below the user's own cache."""
    if not IS_INSTALLED:
        return ROOT / ".cache"
    return Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "gnnscale"


def images_folder() -> Path:
    """Return the folder in which container images are built."""
    return cache_folder() / "images"


def source_file(name: str, root: Path = ROOT) -> Path:
    """Return the file that keys and images call `name`, such as gnnscale/train/loop.py or datasets/qm9.py."""
    return (data_root(root) if name.split("/")[0] == "datasets" else root) / name


def source_name(path: Path) -> str:
    """Return the name of a source file in keys and images, which is the same in a checkout and in an installed package."""
    return str(path.relative_to(DATA_ROOT if path.is_relative_to(DATA_ROOT) else ROOT))


def source_files() -> list[Path]:
    """Return all source files that stages may run, in the order of their paths."""
    package = [path for path in (ROOT / "gnnscale").rglob("*") if path.suffix in (".py", ".cpp", ".h")]
    own = [path for path in package if not path.is_relative_to(ROOT / SHARE)]
    return sorted(path for path in [*own, *DATASETS.glob("*.py")] if path.is_file())
