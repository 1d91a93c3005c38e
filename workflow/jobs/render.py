"""The scripts of all batch jobs of a study, to the letter as they would be submitted, without a scheduler."""

from __future__ import annotations

import sys
from pathlib import Path

from workflow.config.site import SiteConfig
from workflow.jobs import launch
from workflow.jobs.requests import Request
from workflow.plan.stage import Stage


def scripts(
    requests: dict[str, Request],
    stages: dict[str, Stage],
    site: SiteConfig,
    root: Path,
    python: str = sys.executable,
    code: Path = launch.ROOT,
) -> dict[str, str]:
    """File name -> text. The first attempt of each stage."""
    from workflow.jobs import parsl_provider  # Parsl takes half a second to import

    made = {}
    for request in dict.fromkeys(requests.values()):
        attempts = [launch.Attempt(id, stages[id].kind, root / stages[id].folder, 1) for id in request.all]
        name = request.stages[0].replace("/", "-")
        body = launch.batch(request, attempts, site, python, code)
        made[f"{name}.sh"] = parsl_provider.text(parsl_provider.Job(request, name, attempts[0].folder, body), site)
    return made
