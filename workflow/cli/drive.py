"""Drive a study: start what is not done, show the progress, and summarize at the end."""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
import time
import traceback
from typing import TYPE_CHECKING

from gnnscale.contract.errors import UserError, print_error
from gnnscale.contract.exit_codes import DONE, FAILED, INTERRUPTED, STOPPED, USAGE
from workflow.cli import live_table, output, plan_output
from workflow.cli.invocation import Invocation
from workflow.config import site_files
from workflow.images import checks
from workflow.jobs import requests as job_requests
from workflow.jobs.requests import Request
from workflow.plan import done
from workflow.plan.stage import PlannedStage
from workflow.run_directory import journal, lease, links, status

if TYPE_CHECKING:  # Parsl takes half a second to import
    from workflow.execute.dag import Dag

LOOP_SECONDS = 0.1
MAX_REFUSED_SHOWN = 5


def report_error(error: BaseException) -> int:
    """Print the error, with a traceback only for bugs, and return the exit code."""
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED
    if isinstance(error, BrokenPipeError):  # the reader of a pipe, such as `head`, has closed it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return STOPPED
    if isinstance(error, UserError | OSError):
        print_error(error, "gnnscale")
        return USAGE
    traceback.print_exception(error)
    return FAILED


def do_run(arguments: argparse.Namespace) -> int:
    """Take the run directory for this driver and drive the study."""
    asked = Invocation(arguments)
    asked.root.mkdir(parents=True, exist_ok=True)
    holder = lease.Lease(asked.root)
    holder.take()
    try:
        return drive(asked, holder)
    finally:
        holder.release()


def drive(asked: Invocation, holder: lease.Lease) -> int:
    """Do what is not done and return the exit code; show the progress, and at the end a summary."""
    planned = done.judge_stages(asked.stages, asked.root)
    left = [each for each in planned.values() if each.state != "done" and each.stage.id in asked.wanted]
    print_head(asked, planned, left)
    status.write_plan(asked.root, asked.study_name, asked.site_name, asked.stages)
    output.write_resolved(asked.root, asked.study, asked.site)
    if not left:
        links.link_results(asked.root, asked.stages)
        print(f"nothing to do; report: {asked.root / 'report.html'}" if not asked.until else "nothing to do")
        return DONE
    raise_if_refused(left, asked.site_name)
    raise_if_not_ready(asked)
    print_hints(asked)
    requests = job_requests.schedule([each.stage for each in left], asked.site)
    job_requests.check_budget(requests, asked.site, asked.max_node_hours)
    return execute(asked, holder, requests)


def execute(asked: Invocation, holder: lease.Lease, requests: dict[str, Request]) -> int:
    """Run the stages, locally or in batch jobs, until all have ended or the driver is stopped."""
    from workflow.execute.dag import Dag  # Parsl takes half a second to import

    stop, began = StopRequest(), time.monotonic()
    dag = Dag(asked.wanted, asked.site, asked.site_name, asked.root, requests)
    try:
        run_until_finished(dag, asked, holder, stop)
        code = DONE
    except BaseException as error:
        dag.stop()
        code = report_error(error)
    dag.close()
    if code := stop.code or code:
        with contextlib.suppress(BrokenPipeError):  # `| tee` received the same Ctrl-C
            output.print_stopped(dag, asked)
        holder.release()
        os._exit(code)  # threads that wait for Parsl must not keep us
    links.link_results(asked.root, asked.stages)
    output.print_summary(dag, asked, time.monotonic() - began)
    return FAILED if dag.failures else DONE


def print_head(asked: Invocation, planned: dict[str, PlannedStage], left: list[PlannedStage]) -> None:
    """Print what is going to be done, where the results will be, and what may go wrong."""
    print(
        f"{asked.study.title}: {len(asked.wanted)} stages, {len(asked.wanted) - len(left)} done, {len(left)} to do"
        + (f", about {output.format_duration(done.remaining_seconds(planned, asked.site))}" if left else "")
    )
    print(f"results: {asked.root}", flush=True)
    plan_output.print_warnings(planned, asked.site, asked.root)


def raise_if_not_ready(asked: Invocation) -> None:
    """Raise if this host, the account or the image is not what the site needs."""
    site_files.check_host(asked.site_name, asked.site, asked.settings)
    site_files.check_arch(asked.site_name, asked.site, asked.settings)
    site_files.check_account(asked.site_name, asked.site)
    if asked.site.container.use:
        checks.raise_if_faulty(asked.site)


def print_hints(asked: Invocation) -> None:
    """Print commands worth typing before jobs are submitted."""
    if asked.site.has_scheduler and not (asked.root / "events.jsonl").exists():
        print(f"first run here; to check the site: {asked.command('doctor')}", flush=True)
    folders = {stage.folder for stage in asked.stages.values()}
    stale = [job for job in journal.unfinished_jobs(asked.root) if job.is_stale(folders)]
    if stale:
        print(
            f"{len(stale)} job(s) of stages that the study no longer has may be in the queue; to end them: "
            f"{asked.command('cancel')} --stale"
        )


def raise_if_refused(left: list[PlannedStage], site: str) -> None:
    """Raise if the plan holds stages that cannot run here."""
    refused = [each for each in left if each.state == "refused"]
    if refused:
        raise UserError(
            f"{len(refused)} training(s) do not fit into the memory of a rank of site {site}; nothing was started",
            *(f"{each.stage.id} {each.reason}" for each in refused[:MAX_REFUSED_SHOWN]),
            *(["..."] if len(refused) > MAX_REFUSED_SHOWN else []),
        )


def run_until_finished(dag: Dag, asked: Invocation, holder: lease.Lease, stop: StopRequest) -> None:
    """Submit the stages and show their progress until all have ended or a stop is requested."""
    with live_table.ProgressDisplay(asked.root, status.read_plan(asked.root)) as display:
        dag.submit()
        while not dag.is_complete and not stop.asked:
            display.update(dag.states, dag.banner)
            holder.renew()
            time.sleep(LOOP_SECONDS)
        if stop.asked:
            dag.stop()
        display.update(dag.states)


class StopRequest:
    """A flag that Ctrl-C and SIGTERM set, and the exit code that goes with it."""

    def __init__(self) -> None:
        self.asked, self.code = False, DONE
        signal.signal(signal.SIGINT, lambda *_: self.note(INTERRUPTED))
        signal.signal(signal.SIGTERM, lambda *_: self.note(STOPPED))

    def note(self, code: int) -> None:
        self.asked, self.code = True, code
