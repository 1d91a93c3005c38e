"""The script that draws the rooms from the imports, for tests of the drawing and of the imports themselves."""

from __future__ import annotations

import importlib.util
import sys
from functools import cache

from tests.support.corpus import ROOT


@cache
def drawing():
    """Load docs/draw_rooms.py, which is a script and lies in no package."""
    spec = importlib.util.spec_from_file_location("draw_rooms", ROOT / "docs" / "draw_rooms.py")
    module = sys.modules["draw_rooms"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
