"""A stage and a site to the script that runs it: a text that a person could run by hand with the same effect. Pure."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

from workflow.plan import Stage
from workflow.sites import SiteConfig

ROOT = Path(__file__).parent.parent


def script(stage: Stage, site: SiteConfig, python: str = sys.executable, code: Path = ROOT) -> str:
    """command.sh of a stage's directory."""
    env = {
        "OMP_NUM_THREADS": str(site.launch.threads_per_rank),
        "PYTHONUNBUFFERED": "1",
        "PYTHONPATH": str(code),
    } | site.env
    exports = "\n".join(f"export {name}={shlex.quote(value)}" for name, value in env.items())
    return f"""#!/bin/sh
# {stage.id}
set -eu
cd "$(dirname "$0")"
{exports}
exec {shlex.quote(python)} -m gnnscale.{stage.kind} .
"""
