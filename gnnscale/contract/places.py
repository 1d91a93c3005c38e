"""The folders of gnnscale on this disk: of a checkout, of an image, or of an installed package."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]  # holds gnnscale/ and workflow/
DATASETS = ROOT / "datasets"
SITES = ROOT / "sites"
CONTAINERS = ROOT / "containers"
STUDIES = ROOT / "workflow" / "studies"
