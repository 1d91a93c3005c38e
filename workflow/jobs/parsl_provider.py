"""The exact script of a batch job, and its submission by Parsl's providers. The only door to parsl.providers.

Only `submit` of the providers is used; workflow/scheduler asks about the jobs afterwards, for all of them at once.
"""

from __future__ import annotations

import logging
import re
import shlex
import string
from pathlib import Path
from typing import Any, NamedTuple

from parsl.launchers import SimpleLauncher
from parsl.providers import PBSProProvider, SlurmProvider
from parsl.providers.errors import SubmitException

from gnnscale.contract import files
from workflow.config.site import PBS, SiteConfig, Slurm
from workflow.jobs import launch
from workflow.jobs.requests import Request
from workflow.scheduler.interface import SchedulerUnreachable, run_command

logging.getLogger("parsl").addHandler(logging.NullHandler())  # this project reports its errors in one line

SCRIPT_NAME = "job.sh"  # and beside it job.out: what the script itself prints
TRANSIENT_WORDS = re.compile(
    "unable to contact|connection (refused|reset|timed out)|connect failure|timed out|time.?out|temporarily|try again"
    "|cannot connect|cannot send|socket|communication|slurmctld|no permission to contact|server (is )?(busy|down)"
    "|transport endpoint|zero bytes",
    re.I,
)
# Time lifts a limit on the number of jobs, but not one on the size of a job. Slurm names the latter, in front of a sentence
# that fits both.
SIZE_LIMIT_WORDS = re.compile(r"\b(Assoc|QOS)\w*(PerJob|PerNode|WallDuration|Min(?!ute))\w*", re.I)
JOB_COUNT_LIMIT_WORDS = re.compile(
    "maxsubmit|max_?queued|would exceed|exceeds? (the )?(queue|user|group|max).*(limit|number)|submit limit"
    "|too many jobs|job limit|limit on .*jobs|maximum number of jobs",
    re.I,
)
JOB_ID = re.compile(r"\d+\S*")  # 1234, 1234.server


class JobRefused(Exception):
    """Final refusal of a job by the scheduler, in its own words."""

    def __init__(self, message: str, hint: str):
        super().__init__(message)
        self.hint = hint


class JobLimitReached(Exception):
    """Refusal of a job for now: the scheduler holds too many of ours."""


class JobScript(NamedTuple):
    """Script of a job, and all that its submission needs."""

    request: Request
    name: str
    folder: Path  # of the script and of what it prints
    body: str  # what follows the head
    avoid: tuple[str, ...] = ()  # nodes


class ScriptProvider:
    """Mixin for Parsl's providers that decides how a script is named, written and submitted.

    Parsl names a script by the time of its submission. Here it has the name by which a later driver finds the job, and
    lies in the directory of the attempt, from where it is submitted: no path goes into a directive, which cannot quote it.
    """

    script: JobScript
    text: str
    timeout: float  # seconds
    dry = True

    def _write_submit_script(self, template: str, script_filename: str, job_name: str, configs: dict[str, Any]) -> None:
        configs |= {"job_stdout_path": "job.out", "job_stderr_path": "job.out"}
        self.text = string.Template(template).substitute(configs, jobname=self.script.name)
        if not self.dry:
            files.write(self.script.folder / SCRIPT_NAME, self.text)

    def execute_wait(self, cmd: str, timeout: float | None = None) -> tuple[int, str, str]:
        verb, *options = cmd.rpartition(" ")[0].split()  # the last word is the script that Parsl thinks it wrote
        if verb not in ("sbatch", "qsub") or self.dry:  # `sacct`, when a provider is made; or a script only rendered
            return 0, "Submitted batch job 0\n", ""
        done = run_command([verb, *options, SCRIPT_NAME], self.timeout, self.script.folder)
        return done.returncode, done.stdout, done.stderr


class SlurmScriptProvider(ScriptProvider, SlurmProvider):
    pass


class PBSScriptProvider(ScriptProvider, PBSProProvider):
    pass


def make_provider(script: JobScript, site: SiteConfig) -> SlurmScriptProvider | PBSScriptProvider:
    request, scheduler = script.request, site.batch_scheduler
    head = "\n".join(launch.render_directives(request, site))
    launcher = SimpleLauncher(debug=False)
    provider: SlurmScriptProvider | PBSScriptProvider
    if isinstance(scheduler, Slurm):
        head += f"\n#SBATCH --exclude={','.join(script.avoid)}" if script.avoid else ""
        provider = SlurmScriptProvider(
            nodes_per_block=request.nodes,
            walltime=request.walltime,
            scheduler_options=head,
            launcher=launcher,
            exclusive=False,
        )
    else:
        provider = PBSScriptProvider(
            nodes_per_block=request.nodes,
            walltime=request.walltime,
            scheduler_options=f"{head}\n#PBS -j oe",
            launcher=launcher,
            cpus_per_node=site.cores,
            select_options=pbs_select(request, scheduler),
        )
    provider.script, provider.script_dir, provider.timeout = script, ".", scheduler.command_timeout
    return provider


def pbs_select(request: Request, scheduler: PBS) -> str:
    """Return what follows select=N:ncpus=C."""
    return ":".join([f"mpiprocs={request.ranks_per_node}", *filter(None, [scheduler.select])])


def render_script(script: JobScript, site: SiteConfig) -> str:
    """Render the script exactly as it would be submitted; run no command and write no file."""
    provider = make_provider(script, site)
    provider.submit(script.body, script.request.ranks_per_node)
    return provider.text


def submit(script: JobScript, site: SiteConfig) -> str:
    """Submit the script and return the id of the job.

    Raise JobRefused, JobLimitReached or SchedulerUnreachable, or OSError if the script cannot be written.
    """
    provider = make_provider(script, site)
    provider.dry = False
    try:
        id = provider.submit(script.body, script.request.ranks_per_node)
    except SubmitException as error:
        if error.retcode != 0:  # the provider of PBS leaves it out, and raises for nothing else
            raise submission_error(site, (error.stderr or "") + (error.stdout or "")) from None
        id = None
    if id is None or not JOB_ID.fullmatch(id):  # options or a wrapper hid it; the job can be found by its name
        raise SchedulerUnreachable("the scheduler took the job and gave no id")
    return id


def submission_error(site: SiteConfig, printed: str) -> Exception:
    """Return the error for the output of sbatch or qsub: the job is refused, must wait, or the scheduler did not answer."""
    verb = "sbatch" if site.scheduler.kind == "slurm" else "qsub"
    lines = [re.sub(rf"^{verb}: (error: )?", "", line).strip() for line in printed.splitlines() if line.strip()]
    words = "; ".join(dict.fromkeys(lines)) or "no reason given"
    if not SIZE_LIMIT_WORDS.search(words):
        if JOB_COUNT_LIMIT_WORDS.search(words):
            return JobLimitReached(f"{verb}: {words}")
        if TRANSIENT_WORDS.search(words):
            return SchedulerUnreachable(f"{verb}: {words}")
    return JobRefused(f"{verb} refuses the job: {words}", suggest_fix(words, site))


def suggest_fix(words: str, site: SiteConfig) -> str:
    """Suggest what to change in the site's file or on the command line."""
    size_limit = SIZE_LIMIT_WORDS.search(words)
    lowered = (size_limit[0] if size_limit else words).lower()  # and not the sentence that Slurm adds to every limit
    if "wall" in lowered or "time limit" in lowered:
        return "the walltime may be longer than the queue allows: look at `max_walltime` of the site's file"
    if size_limit:
        return "no job may be of that size: look at `nodes` of `queues` of the site's file, or --set train.queue=NAME"
    if "account" in lowered or "project" in lowered or "allocation" in lowered:
        used = f"it was {shlex.quote(site.account)}" if site.account else "none was given"
        return f"the account may be wrong ({used}): --set account=ACCOUNT"
    if "partition" in lowered or "queue" in lowered or "qos" in lowered:
        return "the queue may be wrong: look at `queues` of the site's file, or --set train.queue=NAME"
    if "node" in lowered or "requested" in lowered or "resource" in lowered:
        return "no node may match the site's file: look at its `node` and `queues`, and at the scheduler's message"
    return "look at the script (job.sh of the attempt), submit it by hand, and correct the site's file"
