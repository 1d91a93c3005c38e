"""The exact script of a batch job, and its submission by Parsl's provider of its scheduler. The only door to parsl.providers.

Only `submit` of the providers is used; workflow/scheduler asks about the jobs afterwards, for all of them at once. A scheduler
for which Parsl has no provider submits its script by its own command.
"""

from __future__ import annotations

import contextlib
import logging
import re
import string
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from parsl import providers
from parsl.launchers import SimpleLauncher
from parsl.providers.cluster_provider import ClusterProvider
from parsl.providers.errors import SubmitException

from gnnscale.contract import files
from workflow.config.site import SiteConfig
from workflow.config.walltime import to_seconds
from workflow.jobs.requests import Request
from workflow.scheduler.interface import SchedulerUnreachable
from workflow.scheduler.registry import SCHEDULERS
from workflow.scheduler.submission import OUTPUT_NAME, SCRIPT_NAME, JobHead

logging.getLogger("parsl").addHandler(logging.NullHandler())  # this project reports its errors in one line


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


Send = Callable[[str], subprocess.CompletedProcess[str]]  # submits a script of this text


class ScriptProvider(ClusterProvider):
    """Parent of Parsl's providers here, which decides how a script is named, written and submitted.

    Parsl names a script by the time of its submission. Here it has the name by which a later driver finds the job, and
    lies in the directory of the attempt, from where it is submitted: no path goes into a directive, which cannot quote it.
    """

    job_name: str
    unwanted_lines: tuple[str, ...]  # beginnings
    verb = ""  # first word of the submission
    send: Send | None = None  # None: the script is only rendered
    text = ""
    done: subprocess.CompletedProcess[str] | None = None

    def _write_submit_script(self, template: str, script_filename: str, job_name: str, configs: dict[str, Any]) -> None:
        configs |= {"job_stdout_path": OUTPUT_NAME, "job_stderr_path": OUTPUT_NAME}
        lines = [line for line in template.splitlines(keepends=True) if not line.startswith(self.unwanted_lines)]
        self.text = string.Template("".join(lines)).substitute(configs, jobname=self.job_name)

    def execute_wait(self, cmd: str, timeout: float | None = None) -> tuple[int, str, str]:
        if self.send is None or cmd.split()[0] != self.verb:  # `sacct`, when a provider is made
            return 0, "", ""
        self.done = self.send(self.text)
        return self.done.returncode, self.done.stdout, self.done.stderr


def make_provider(script: JobScript, site: SiteConfig) -> ScriptProvider | None:
    """Make Parsl's provider of the site's scheduler, if there is one."""
    settings = site.batch_scheduler
    scheduler, head = SCHEDULERS[settings.kind], describe_job(script, site)
    if scheduler.provider is None:
        return None
    # ScriptProvider last: some of them call the methods of their parent by `super()`.
    made: ScriptProvider = type("Provider", (getattr(providers, scheduler.provider), ScriptProvider), {})(
        nodes_per_block=head.nodes,
        walltime=head.walltime,
        scheduler_options="\n".join(render_head(script, site)),
        launcher=SimpleLauncher(debug=False),
        **scheduler.provider_options(head, settings),
    )
    made.job_name, made.script_dir, made.verb = script.name, ".", scheduler.submit_command.split()[0]
    made.unwanted_lines = scheduler.unwanted_lines
    return made


def run_provider(provider: ScriptProvider, script: JobScript) -> None:
    """Let Parsl write the script and, where there is a way to send it, submit it."""
    with contextlib.suppress(SubmitException):  # what it printed is judged here
        provider.submit(script.body, script.request.ranks_per_node)


def render_head(script: JobScript, site: SiteConfig) -> list[str]:
    settings = site.batch_scheduler
    options = SCHEDULERS[settings.kind].render_options(describe_job(script, site), settings)
    return [f"{settings.directive_word} {option}" for option in options]


def render_script(script: JobScript, site: SiteConfig) -> str:
    """Render the script exactly as it would be submitted; run no command and write no file."""
    provider = make_provider(script, site)
    if provider is None:
        return "\n".join(["#!/bin/bash", *render_head(script, site), "", script.body])
    run_provider(provider, script)
    return provider.text


def describe_job(script: JobScript, site: SiteConfig) -> JobHead:
    request, queue = script.request, site.queues[script.request.queue]
    return JobHead(
        script.name,
        request.queue if queue.partition is None else queue.partition,
        site.account,
        queue.qos,
        request.nodes,
        request.ranks_per_node,
        request.threads,
        request.slots,
        site.cores,
        to_seconds(request.walltime),
        request.walltime,
        script.avoid,
        (*site.batch_scheduler.directives, *queue.directives),
    )


def submit(script: JobScript, site: SiteConfig) -> str:
    """Submit the script and return the id of the job.

    Raise JobRefused, JobLimitReached or SchedulerUnreachable, or OSError if the script cannot be written.
    """
    scheduler = SCHEDULERS[site.batch_scheduler.kind]

    def send(text: str) -> subprocess.CompletedProcess[str]:
        files.write(script.folder / SCRIPT_NAME, text)
        return scheduler.submit_script(script.folder, site.batch_scheduler.command_timeout)

    if provider := make_provider(script, site):
        provider.send = send
        run_provider(provider, script)
        done = provider.done
        assert done is not None, f"{scheduler.provider} does not submit by {scheduler.submit_command}"
    else:
        done = send(render_script(script, site))
    if done.returncode:
        raise submission_error(site, done.stderr + done.stdout)
    id = scheduler.parse_job_id(done.stdout)
    if id is None:  # options or a wrapper hid it; the job can be found by its name
        raise SchedulerUnreachable("the scheduler took the job and gave no id")
    return id


def submission_error(site: SiteConfig, printed: str) -> Exception:
    """Return the error for what a failed submission printed: refused, must wait, or the scheduler did not answer."""
    scheduler = SCHEDULERS[site.batch_scheduler.kind]
    verb = scheduler.submit_command
    lines = [re.sub(rf"^{verb}: (error: )?", "", line).strip() for line in printed.splitlines() if line.strip()]
    words = "; ".join(dict.fromkeys(lines)) or "no reason given"
    refusal = scheduler.judge_refusal(words, site.account)
    if refusal.action == "wait":
        return JobLimitReached(f"{verb}: {words}")
    if refusal.action == "unreachable":
        return SchedulerUnreachable(f"{verb}: {words}")
    return JobRefused(f"{verb} refuses the job: {words}", refusal.hint)
