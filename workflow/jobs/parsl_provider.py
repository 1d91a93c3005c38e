"""Parsl's providers: the exact script of a batch job, and its submission. The only door to parsl.providers.

What of them is used is `submit`; what is asked of the scheduler afterwards is asked by scheduler.py, for all jobs at once.
"""

from __future__ import annotations

import logging
import re
import shlex
import string
from pathlib import Path
from typing import NamedTuple

from parsl.launchers import SimpleLauncher
from parsl.providers import PBSProProvider, SlurmProvider
from parsl.providers.errors import SubmitException

from gnnscale.contract import files
from workflow.config.site import SiteConfig
from workflow.jobs import launch
from workflow.jobs.requests import Request
from workflow.scheduler import query

logging.getLogger("parsl").addHandler(logging.NullHandler())  # its errors are told by us, in a line

SCRIPT = "job.sh"  # and beside it job.out: what the script itself prints
TRANSIENT = re.compile(
    "unable to contact|connection (refused|reset|timed out)|connect failure|timed out|time.?out|temporarily|try again"
    "|cannot connect|cannot send|socket|communication|slurmctld|no permission to contact|server (is )?(busy|down)"
    "|transport endpoint|zero bytes",
    re.I,
)
# A limit on the number of jobs, which time will lift. One on the size of a job it will not: Slurm names that, in front of a
# sentence in which both are possible.
SIZE = re.compile(r"\b(Assoc|QOS)\w*(PerJob|PerNode|WallDuration|Min(?!ute))\w*", re.I)
LIMIT = re.compile(
    "maxsubmit|max_?queued|would exceed|exceeds? (the )?(queue|user|group|max).*(limit|number)|submit limit"
    "|too many jobs|job limit|limit on .*jobs|maximum number of jobs",
    re.I,
)
ID = re.compile(r"\d+\S*")  # 1234, 1234.server


class Refused(Exception):
    """The scheduler will not have this job: told once, in its own words."""

    def __init__(self, message: str, hint: str):
        super().__init__(message)
        self.hint = hint


class Limit(Exception):
    """The scheduler takes no more of our jobs for now."""


class Job(NamedTuple):
    """All that is submitted."""

    request: Request
    name: str
    folder: Path  # of the script and of what it prints
    body: str  # what follows the head
    avoid: tuple[str, ...] = ()  # nodes


class Commands:
    """How a provider of Parsl writes and submits here; mixed into each of them.

    It names a script by the time of its submission. Here it has the name by which a later driver finds the job, in the
    directory of the attempt, where it is also submitted from: so no path goes into a directive, which could not quote it.
    """

    job: Job
    seconds: float
    dry = True

    def _write_submit_script(self, template: str, script_filename: str, job_name: str, configs: dict) -> None:
        configs |= {"job_stdout_path": "job.out", "job_stderr_path": "job.out"}
        self.text = string.Template(template).substitute(configs, jobname=self.job.name)
        if not self.dry:
            files.write(self.job.folder / SCRIPT, self.text)

    def execute_wait(self, cmd: str, timeout: float | None = None) -> tuple[int, str, str]:
        verb, *options = cmd.rpartition(" ")[0].split()  # the last word is the script that it thinks it wrote
        if verb not in ("sbatch", "qsub") or self.dry:  # `sacct`, when a provider is made; and what is only rendered
            return 0, "Submitted batch job 0\n", ""
        done = query.ask([verb, *options, SCRIPT], self.seconds, self.job.folder)
        return done.returncode, done.stdout, done.stderr


class Slurm(Commands, SlurmProvider):
    pass


class PBS(Commands, PBSProProvider):
    pass


def provider(job: Job, site: SiteConfig) -> Slurm | PBS:
    request, head = job.request, "\n".join(launch.directives(job.request, site))
    common = {"walltime": request.walltime, "launcher": SimpleLauncher(debug=False)}
    if site.scheduler.kind == "slurm":
        head += f"\n#SBATCH --exclude={','.join(job.avoid)}" if job.avoid else ""
        made = Slurm(nodes_per_block=request.nodes, scheduler_options=head, exclusive=False, **common)
    else:
        made = PBS(
            nodes_per_block=request.nodes,
            scheduler_options=f"{head}\n#PBS -j oe",
            cpus_per_node=site.cores,
            select_options=select(request, site),
            **common,
        )
    made.job, made.script_dir, made.seconds = job, ".", site.scheduler.command_timeout
    return made


def select(request: Request, site: SiteConfig) -> str:
    """After select=N:ncpus=C."""
    parts = [f"mpiprocs={request.ranks_per_node}", *filter(None, [site.scheduler.select])]
    return ":".join(parts)


def text(job: Job, site: SiteConfig) -> str:
    """The script, to the letter as it would be submitted; nothing is asked of any scheduler, and nothing written."""
    made = provider(job, site)
    made.submit(job.body, job.request.ranks_per_node)
    return made.text


def submit(job: Job, site: SiteConfig) -> str:
    """The id that the scheduler gave. Raises Refused, Limit, scheduler.Unreachable, or OSError for the script."""
    made = provider(job, site)
    made.dry = False
    try:
        id = made.submit(job.body, job.request.ranks_per_node)
    except SubmitException as error:
        if error.retcode != 0:  # the provider of PBS leaves it out, and raises for nothing else
            raise why(site, (error.stderr or "") + (error.stdout or "")) from None
        id = None
    if not ID.fullmatch(id or ""):  # options or a wrapper made it silent; by its name the job can be found
        raise query.Unreachable("the scheduler took the job and gave no id")
    return id


def why(site: SiteConfig, said: str) -> Exception:
    verb = "sbatch" if site.scheduler.kind == "slurm" else "qsub"
    lines = [re.sub(rf"^{verb}: (error: )?", "", line).strip() for line in said.splitlines() if line.strip()]
    words = "; ".join(dict.fromkeys(lines)) or "no reason given"
    if not SIZE.search(words):
        if LIMIT.search(words):
            return Limit(f"{verb}: {words}")
        if TRANSIENT.search(words):
            return query.Unreachable(f"{verb}: {words}")
    return Refused(f"{verb} refuses the job: {words}", advice(words, site))


def advice(words: str, site: SiteConfig) -> str:
    named = SIZE.search(words)
    low = (named[0] if named else words).lower()  # and not what Slurm says of all limits
    if "wall" in low or "time limit" in low:
        return "the walltime may be longer than the queue allows: look at `max_walltime` of the site's file"
    if named:
        return "no job may be of that size: look at `nodes` of `queues` of the site's file, or --set train.queue=NAME"
    if "account" in low or "project" in low or "allocation" in low:
        said = f"it was {shlex.quote(site.account)}" if site.account else "none was given"
        return f"the account may be wrong ({said}): --set account=ACCOUNT"
    if "partition" in low or "queue" in low or "qos" in low:
        return "the queue may be wrong: look at `queues` of the site's file, or --set train.queue=NAME"
    if "node" in low or "requested" in low or "resource" in low:
        return "no node may be as the site's file says: look at its `node` and `queues`, and at what the scheduler says"
    return "look at the script (job.sh of the attempt), submit it by hand, and mend the site's file"
