"""Drive a study: start the stages that are not done, show the progress, and summarize at the end."""

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
from gnnscale.contract.exit_codes import BUSY, DONE, FAILED, INTERRUPTED, STOPPED, USAGE
from workflow.cli import detached_output, live_table, output, plan_output
from workflow.cli.invocation import Invocation
from workflow.config import site_files
from workflow.detach import cpu_limit
from workflow.images import checks
from workflow.jobs.requests import Request, check_budget, schedule
from workflow.plan import done
from workflow.plan.stage import PlannedStage
from workflow.run_directory import journal, lease, links, status

if TYPE_CHECKING:  # Parsl takes half a second to import
    from workflow.execute.dag import Dag

LOOP_SECONDS = 0.1
REQUEST_SECONDS = 1.0  # between two looks for a request to stop
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
        return BUSY if isinstance(error, lease.DriverAtWork) else USAGE
    traceback.print_exception(error)
    return FAILED


def do_run(arguments: argparse.Namespace) -> int:
    """Take the run directory for this driver and drive the study."""
    invocation = Invocation(arguments)
    invocation.root.mkdir(parents=True, exist_ok=True)
    holder = lease.Lease(invocation.root)
    holder.take()
    try:
        requests = prepare(invocation)
        if requests is None:
            return DONE
        if not getattr(arguments, "detach", False):
            return execute(invocation, holder, requests)
    finally:
        holder.release()
    detached_output.start(invocation)
    return DONE


def prepare(invocation: Invocation) -> dict[str, Request] | None:
    """Check all that can be checked before the first stage, and return the requests for jobs; None if all is done."""
    planned = done.judge_stages(invocation.stages, invocation.root)
    left = [each for each in planned.values() if each.state != "done" and each.stage.id in invocation.wanted]
    print_head(invocation, planned, left)
    status.check_site_file(invocation.root, invocation.site_name, invocation.site_file)
    status.write_plan(
        invocation.root, invocation.study_name, invocation.site_name, invocation.site_file, invocation.stages
    )
    output.write_resolved(invocation.root, invocation.study, invocation.site)
    if not left:
        links.link_results(invocation.root, invocation.stages)
        print(f"nothing to do; report: {invocation.root / 'report.html'}" if not invocation.until else "nothing to do")
        return None
    raise_if_refused(left, invocation)
    raise_if_not_ready(invocation)
    print_hints(invocation)
    requests = schedule([each.stage for each in left], invocation.site)
    check_budget(requests, invocation.max_node_hours)
    return requests


def execute(invocation: Invocation, holder: lease.Lease, requests: dict[str, Request]) -> int:
    """Run the stages, locally or in batch jobs, until all have ended or the driver is stopped."""
    from workflow.execute.dag import Dag  # Parsl takes half a second to import

    stop, began = StopRequest(), time.monotonic()
    dag = Dag(invocation.wanted, invocation.site, invocation.site_name, invocation.root, requests)
    try:
        run_until_finished(dag, invocation, holder, stop)
        code = DONE
    except BaseException as error:
        dag.stop()
        code = report_error(error)
    dag.close()
    if code := stop.code or code:
        with contextlib.suppress(BrokenPipeError):  # `| tee` received the same Ctrl-C
            output.print_stopped(dag, invocation, stop.why)
        holder.release()
        os._exit(code)  # threads that wait for Parsl must not delay the exit
    links.link_results(invocation.root, invocation.stages)
    output.print_summary(dag, invocation, time.monotonic() - began)
    return FAILED if dag.failures else DONE


def print_head(invocation: Invocation, planned: dict[str, PlannedStage], left: list[PlannedStage]) -> None:
    """Print how much is left to do, where the results will be, and what may go wrong."""
    print(
        f"{invocation.study.title}: {len(invocation.wanted)} stages, {len(invocation.wanted) - len(left)} done, {len(left)} to do"
        + (f", about {output.format_duration(done.remaining_seconds(planned, invocation.site))}" if left else "")
    )
    print(f"results: {invocation.root}", flush=True)
    plan_output.print_warnings(planned, invocation.site, invocation.root)


def raise_if_not_ready(invocation: Invocation) -> None:
    """Raise if this host, the account or the image is not what the site needs."""
    site_files.check_host(invocation.typed_site, invocation.site, invocation.settings)
    site_files.check_arch(invocation.typed_site, invocation.site, invocation.settings)
    site_files.check_account(invocation.typed_site, invocation.site)
    if invocation.site.container.use:
        checks.raise_if_faulty(invocation.site)


def print_hints(invocation: Invocation) -> None:
    """Print commands worth typing before jobs are submitted."""
    if invocation.site.has_scheduler and not (invocation.root / "events.jsonl").exists():
        print(f"first run here; to check the site: {invocation.command('doctor')}", flush=True)
    folders = {stage.folder for stage in invocation.stages.values()}
    stale = [job for job in journal.unfinished_jobs(invocation.root) if job.is_stale(folders)]
    if stale:
        print(
            f"{len(stale)} job(s) of stages that the study no longer has may be in the queue; to end them: "
            f"{invocation.command('cancel')} --stale"
        )


def raise_if_refused(left: list[PlannedStage], invocation: Invocation) -> None:
    """Raise if the plan holds stages that cannot run here."""
    refused = [each for each in left if each.state == "refused"]
    if lines := plan_output.describe_missing_data(refused, invocation):
        raise UserError(f"{lines[0]}; nothing was started", *lines[1:])
    if refused:
        where = f"the memory of a rank of site {invocation.site_name}"
        raise UserError(
            f"{len(refused)} training(s) do not fit into {where}; nothing was started",
            *(f"{each.stage.id} {each.reason}" for each in refused[:MAX_REFUSED_SHOWN]),
            *(["..."] if len(refused) > MAX_REFUSED_SHOWN else []),
        )


def run_until_finished(dag: Dag, invocation: Invocation, holder: lease.Lease, stop: StopRequest) -> None:
    """Submit the stages and show their progress until all have ended or a stop is requested."""
    with live_table.ProgressDisplay(invocation.root, status.read_plan(invocation.root)) as display:
        dag.submit()
        while not dag.is_complete and not stop.requested:
            display.update(dag.states, dag.banner)
            holder.renew()
            stop.heed(holder)
            time.sleep(LOOP_SECONDS)
        if stop.requested:
            dag.stop()
        display.update(dag.states)


class StopRequest:
    """A flag that Ctrl-C, SIGTERM, the limit of CPU time and the verb `stop` set, and the exit code that goes with it."""

    def __init__(self) -> None:
        self.requested, self.code, self.why, self.asked = False, DONE, "", time.monotonic()
        cpu_limit.leave_time_to_stop()
        signal.signal(signal.SIGINT, lambda *_: self.note(INTERRUPTED))
        signal.signal(signal.SIGTERM, lambda *_: self.note(STOPPED))
        signal.signal(signal.SIGXCPU, lambda *_: self.note(STOPPED, cpu_limit.describe_limit()))

    def note(self, code: int, why: str = "") -> None:
        self.requested, self.code, self.why = True, code, why

    def heed(self, holder: lease.Lease) -> None:
        """Look now and then whether `stop` has been typed, on this host or another."""
        if time.monotonic() - self.asked > REQUEST_SECONDS:
            self.asked = time.monotonic()
            if holder.is_told_to_stop():
                self.note(INTERRUPTED)
