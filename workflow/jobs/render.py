"""Render the scripts of all batch jobs of a study, exactly as they would be submitted, without a scheduler."""

from __future__ import annotations

import sys
from pathlib import Path

from gnnscale.contract import places
from workflow.config.site import SiteConfig
from workflow.jobs import launch
from workflow.jobs.requests import Request
from workflow.plan.stage import Stage


def render_scripts(
    requests: dict[str, Request],
    stages: dict[str, Stage],
    site: SiteConfig,
    root: Path,
    python: str = sys.executable,
    code: Path = places.ROOT,
) -> dict[str, str]:
    """Map file names to scripts, for the first attempt of each stage."""
    from workflow.jobs import parsl_provider  # Parsl takes half a second to import

    scripts = {}
    for request in dict.fromkeys(requests.values()):
        attempts = [launch.StageAttempt(id, stages[id].kind, root / stages[id].folder, 1) for id in request.all]
        name = request.stages[0].replace("/", "-")
        body = launch.render_job_body(request, attempts, site, python, code)
        script = parsl_provider.JobScript(request, name, attempts[0].folder, body)
        scripts[f"{name}.sh"] = parsl_provider.render_script(script, site)
    return scripts
