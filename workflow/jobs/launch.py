"""Render the script that runs a stage at a site: a text that a person could run by hand with the same effect. Pure.

`render_command` is for a stage that runs where the driver runs. `render_job_body` is for a batch job, of one training or
of several stages. However an attempt ends in a job, it leaves attempts/N/exit.json, whole:

    {"code": 75, "rank": 0, "host": "n2", "launcher": 0, "job": "1234", "hosts": ["n1", "n2"], "begin": ..., "end": ...,
     "begun": true, "sick": {}}

`code` is that of the first rank that did not end with 0, so it says why the attempt ended, and not how the launcher
stopped the other ranks: 0 done, 75 stopped on a signal, to be continued, 64 the user must change something, 74 the disk, 137
and 143 killed. Without the file the job was cut off. `begun` is false if the attempt's turn never came; `sick` says which
nodes were not fit for it, and why. Ranks that stop on a signal exit with 0 for the launcher, since it would kill the
other ranks of a job in which one fails.
"""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from gnnscale.contract.job_plan import JobPlan, StagePlan
from gnnscale.contract.places import ROOT
from workflow.config.batch_scheduler import RankLauncher
from workflow.config.site import SiteConfig
from workflow.config.walltime import to_seconds
from workflow.images import runtimes
from workflow.images.runtimes import KINDS_WITH_RANKS
from workflow.jobs.requests import Request
from workflow.plan.stage import Stage
from workflow.scheduler.registry import SCHEDULERS

HYDRA_HOSTS = ("--hosts", "{hosts}")  # of mpiexec, where it is that of MPICH, Intel MPI or PALS


class StageAttempt(NamedTuple):
    """Attempt of one stage in a job."""

    id: str
    kind: str
    folder: Path  # of the stage, absolute
    number: int


def render_command(
    stage: Stage | StageAttempt,
    site: SiteConfig,
    root: Path = Path(),
    python: str = sys.executable,
    code: Path = ROOT,
    ranks: int = 1,
) -> str:
    """Render command.sh of a stage's directory; several ranks all run on this machine."""
    words = [
        *runtimes.wrap_stage(site, stage.kind, root / stage.folder, code).prefix,
        runtimes.stage_interpreter(site, python),
    ]
    env = stage_variables(site, code)
    module = f"stages.{stage.kind}" if ranks == 1 else f"job.local_launcher {ranks} {stage.kind}"
    exports = "\n".join(f"export {name}={shlex.quote(value)}" for name, value in env.items())
    return f"""#!/bin/sh
# {stage.id}
set -eu
cd "$(dirname "$0")"
{exports}
exec {shlex.join(words)} -m gnnscale.{module} .
"""


def stage_variables(site: SiteConfig, code: Path = ROOT) -> dict[str, str]:
    """Return the variables that command.sh sets, in addition to those of the driver."""
    env = {
        "OMP_NUM_THREADS": str(site.launch.threads_per_rank),
        "PYTHONUNBUFFERED": "1",
        "PYTHONPATH": str(code),
    }
    return env | site.env


# ------------------------------------------------------------------------------------------------------- batch jobs
def render_job_body(
    request: Request,
    attempts: Sequence[StageAttempt],
    site: SiteConfig,
    python: str = sys.executable,
    code: Path = ROOT,
    avoid: Sequence[str] = (),
) -> str:
    """Render what follows the head: the environment, and the plan that gnnscale/job/batch_job.py carries out."""
    python, scheduler = site.python or python, SCHEDULERS[site.batch_scheduler.kind]
    seconds_to_stop = to_seconds(request.walltime) - site.batch_scheduler.signal_seconds
    plan: JobPlan = {
        "allocation": scheduler.allocation,
        "interface": site.launch.interface,
        "seconds": None if scheduler.signals_jobs else max(1, seconds_to_stop),  # an alarm in 0 s is none
        "slots": request.slots or None,
        "gpus": shared_gpus(request, site),
        "stages": [plan_stage(each, [a.id for a in attempts], request, site, python, code) for each in attempts],
    }
    if avoid and not scheduler.excludes_nodes:
        plan["avoid"] = list(avoid)
    return "\n".join(
        [
            *(f"# {each.id}, attempt {each.number}" for each in attempts),
            *render_environment(request, site, code),
            *runtimes.job_lines(site, request.nodes, [(each.kind, each.folder) for each in attempts], code),
            f"exec {shlex.quote(python)} -m gnnscale.job.batch_job <<'PLAN'",
            json.dumps(plan, indent=1),
            "PLAN",
            "",
        ]
    )


def shared_gpus(request: Request, site: SiteConfig) -> tuple[str, int] | None:
    """Return the variable that shows GPUs and their number, for a node on which stages run side by side."""
    gpus = (site.queues[request.queue].node or site.node).gpus
    return (gpus.visible_variable, gpus.count) if gpus and request.slots else None


def plan_stage(
    attempt: StageAttempt, ids: list[str], request: Request, site: SiteConfig, python: str, code: Path
) -> StagePlan:
    """Return the entry of an attempt in the plan of its job.

    `first` and `nodes` are its share of the hosts; `after` is the index of the stage that must have ended well before.
    """
    before = dict(request.evaluations).get(attempt.id)
    index = 0 if request.slots else request.stages.index(before or attempt.id)
    needs_check = (
        attempt.kind in KINDS_WITH_RANKS
        and attempt.kind != "rank_report"
        and (request.nodes_each > 1 or site.node.gpus is not None)
    )
    check = shlex.join(build_rank_command(attempt, request, site, python, "machine.node_check", code))
    command = build_rank_command(attempt, request, site, python, code=code)
    has_ranks = attempt.kind in KINDS_WITH_RANKS
    plan: StagePlan = {
        "folder": str(attempt.folder),
        "number": attempt.number,
        "first": index * request.nodes_each,
        "nodes": request.nodes_each if has_ranks else 1,
        "per_node": request.ranks_per_node if has_ranks else 1,
        "command": shlex.join(command),
        "check": check if needs_check else None,
        "after": None if before is None else ids.index(before),
    }
    launcher = site.batch_scheduler.launchers.get(command[0])
    if site.container.use or (launcher is not None and not launcher.forwards_signals):
        plan["by_file"] = True
    return plan


def render_environment(request: Request, site: SiteConfig, code: Path) -> list[str]:
    names = (*site.modules, *(site.container.modules if site.container.use else ()))
    lines = [*runtimes.module_lines(site, names), *site.setup]
    env = {"OMP_NUM_THREADS": str(request.threads), "PYTHONUNBUFFERED": "1"}
    if site.launch.interface is not None:  # the one of several networks by which nodes reach each other
        env |= dict.fromkeys(("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"), site.launch.interface)
    env |= site.env
    lines += [f"export {name}={shlex.quote(value)}" for name, value in env.items()]
    return [*lines, f"export PYTHONPATH={shlex.quote(str(code))}${{PYTHONPATH:+:$PYTHONPATH}}"]


def build_rank_command(
    attempt: StageAttempt,
    request: Request,
    site: SiteConfig,
    python: str,
    module: str = "job.rank_wrapper",
    code: Path = ROOT,
) -> list[str]:
    """Build the command that starts all ranks of a stage; {hosts} stands for their part of the allocation."""
    own = [
        runtimes.stage_interpreter(site, python),
        "-m",
        f"gnnscale.{module}",
        f"attempts/{attempt.number}",
        attempt.kind,
    ]
    if module == "machine.node_check":
        own[-1] = site.node.gpus.vendor if site.node.gpus else "none"
    within = runtimes.wrap_stage(site, attempt.kind, attempt.folder, code)
    own = [*within.prefix, *own]
    has_own_nodes = request.nodes > request.nodes_each and not request.slots
    is_single = attempt.kind not in KINDS_WITH_RANKS  # one process; beside others on the first of its nodes
    if site.launch.command == "none" or (is_single and not has_own_nodes):
        return [*within.without_launcher, *own]
    own_launcher = site.batch_scheduler.launchers.get(site.launch.command) if site.has_scheduler else None
    if lines := [*site.launch.before_rank, *name_ranks(own_launcher)]:
        own = ["bash", "-c", "; ".join([*lines, 'exec "$@"']), "rank", *own]
    values = {
        "ranks": 1 if is_single else request.ranks,
        "nodes": 1 if is_single else request.nodes_each,
        "per_node": 1 if is_single else request.ranks_per_node,
        "threads": request.threads,
    }
    words = [site.launch.command, *(flag.format_map(values) for flag in site.launch.flags), *within.launcher_options]
    if has_own_nodes:
        # Not --exact: a step without --cpus-per-task would have a core a rank, which masks of cores then miss.
        words += own_launcher.hosts if own_launcher else HYDRA_HOSTS
    return words + own


def name_ranks(launcher: RankLauncher | None) -> list[str]:
    """Return the line by which a rank learns its number from a launcher that only its scheduler's file knows."""
    if launcher is None or launcher.rank_variables is None:
        return []
    pairs = zip(("RANK", "LOCAL_RANK", "WORLD_SIZE"), launcher.rank_variables)
    return ["export " + " ".join(f"{ours}=${theirs}" for ours, theirs in pairs)]
