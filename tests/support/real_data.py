"""Published structures with labels, read from ../shared/data, where each folder's SOURCE.txt names their authors."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.support.raw import SHARED


def require_folder(name: str) -> Path:
    path = SHARED / name
    if not path.exists() and "shared" not in os.environ.get("GNNSCALE_REQUIRE", ""):
        pytest.skip(f"the published data are not on this machine ({name}); GNNSCALE_REQUIRE=shared makes this an error")
    return path
