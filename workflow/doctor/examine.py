"""Check whether a site is ready for a study. Each finding is ok, bad (with a fix) or not checked (with why).

Host, scheduler, account, queues, run directory and container are checked from this machine. Compute nodes are checked by
a small real job that is started as a training is (trial_job.py), whose result diagnosis.py judges.
"""

from __future__ import annotations

import itertools
import platform
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from gnnscale.contract.errors import UserError, describe_os_error
from gnnscale.machine import directory_check
from gnnscale.machine.native_build import open_fastest
from workflow.config import capacity, scratch_lifetime, site_files
from workflow.config.field_problems import suggest
from workflow.config.site import SiteConfig
from workflow.config.walltime import to_seconds
from workflow.doctor import trial_job
from workflow.doctor.diagnosis import (
    CHECKED_BY_JOB,
    MAX_CLOCK_SKEW_SECONDS,
    MAX_TEMPORARY_LENGTH,
    ChosenSite,
    Finding,
    bad,
    bad_as,
    describe_long_path,
    find_native_library,
    judge,
    not_checked,
    ok,
    trains_in_this_environment,
)
from workflow.doctor.driver_limits import examine_driver
from workflow.images import checks, image_file
from workflow.jobs.requests import schedule, total_node_hours
from workflow.plan.stage import PlannedStage
from workflow.scheduler import limits
from workflow.scheduler.interface import SchedulerUnreachable, command_output, user_name
from workflow.scheduler.registry import SCHEDULERS
from workflow.scheduler.submission import SCRIPT_NAME

# The smallest study takes less than this, a paper's a hundred times as much.
MIN_FREE_BYTES = 5e9
MIN_FREE_FILES = 10_000
SLOW_ANSWER_SECONDS = 10.0  # of one query to the scheduler, worth a hint
# Subjects without which a job would reveal nothing more.
REQUIRED_FOR_JOB = ("host", "architecture", "scheduler", "account", "run directory", "container")


def examine(
    chosen: ChosenSite, root: Path, may_start_job: bool, queue: str | None, wait: float, say: Callable[[str], None]
) -> Iterator[Finding]:
    """Yield each finding as soon as it is known. `may_start_job` also allows processes on this machine."""
    bad_subjects: set[str] = set()
    new_folders = [path for path in (root, *root.parents) if not path.exists()]  # that the checks will make
    chosen, missing = find_image(chosen)
    try:
        for finding in itertools.chain(examine_from_here(chosen, root), missing or examine_container(chosen)):
            bad_subjects |= {finding.what} if finding.state == "bad" else set()
            yield finding
        if not may_start_job:
            yield not_checked("compute nodes", f"{CHECKED_BY_JOB}: no job was requested")
        elif first := next((what for what in REQUIRED_FOR_JOB if what in bad_subjects), None):
            yield not_checked("compute nodes", f"{CHECKED_BY_JOB}: no job until this is fixed: {first}")
        else:
            yield from examine_compute_nodes(chosen, root, queue, wait, say, bad_subjects)
    finally:
        for path in new_folders:  # removed again, unless files in them show a fault
            try:
                path.rmdir()
            except OSError:
                break


def examine_from_here(chosen: ChosenSite, root: Path) -> Iterator[Finding]:
    """Check what can be checked without a job."""
    yield from examine_host(chosen)
    if chosen.site.has_scheduler:
        finding, reported = examine_scheduler(chosen)
        yield finding
        if reported is not None:
            yield examine_account(chosen, reported)
            yield from examine_queues(chosen, reported)
            yield from examine_server(chosen)
    yield examine_driver(chosen.site)
    yield from examine_run_directory(chosen, root)
    if trains_in_this_environment(chosen.site):
        yield examine_native_library()


# ------------------------------------------------------------------------------------------------------ from this host
def examine_host(chosen: ChosenSite) -> Iterator[Finding]:
    """Check that this machine is one of the site's, and its directory for temporary files."""
    for what, check in (("host", site_files.check_host), ("architecture", site_files.check_arch)):
        try:
            check(chosen.name, chosen.site, chosen.settings)
        except UserError as error:
            yield bad_as(what, error)
        else:
            yield ok(what, platform.node() if what == "host" else platform.machine())
    text = tempfile.gettempdir()
    if len(text) > MAX_TEMPORARY_LENGTH:
        yield bad("temporary files", describe_long_path(text), "export TMPDIR=/tmp")


def examine_native_library() -> Finding:
    """Check that trainings on this machine have the native library."""
    try:
        build = open_fastest()
    except UserError as error:
        return bad_as("native library", error)
    return find_native_library(build.instruction_set, build.reason, build.hint)


def examine_scheduler(chosen: ChosenSite) -> tuple[Finding, limits.SchedulerLimits | None]:
    """Query the scheduler; return the finding and, if it answered, its limits."""
    scheduler, timeout = SCHEDULERS[chosen.site.batch_scheduler.kind], chosen.site.batch_scheduler.command_timeout
    began = time.monotonic()
    try:
        release = scheduler.read_release(timeout).splitlines()[0]
        took = time.monotonic() - began
        reported = scheduler.read_limits(timeout)
    except SchedulerUnreachable as error:
        words = re.sub(r"^(\w+): \1: ", r"\1: ", str(error))
        is_transient = re.search("not answered|not be read", words)
        fix = "try again" if is_transient else f"run this on a login node, where `{scheduler.submit_command}` works"
        return bad("scheduler", words, fix), None
    slow = (
        f"; that is slow, {chosen.line('scheduler', 'poll_seconds')}: poll_seconds may be higher"
        if took > SLOW_ANSWER_SECONDS
        else ""
    )
    return ok("scheduler", f"{release}, answered in {took:.2f} s{slow}"), reported


def examine_server(chosen: ChosenSite) -> Iterator[Finding]:
    """Report what the scheduler's server says about itself."""
    scheduler = SCHEDULERS[chosen.site.batch_scheduler.kind]
    try:
        remarks = scheduler.find_remarks(chosen.site.batch_scheduler.command_timeout)
    except SchedulerUnreachable as error:
        yield not_checked("server", str(error))
        return
    for each in remarks:
        state = bad if each.is_certain else not_checked
        yield state(each.what, each.said, each.fix) if each.fix else ok(each.what, each.said)


def examine_account(chosen: ChosenSite, reported: limits.SchedulerLimits) -> Finding:
    """Check the account against the accounts that the scheduler has for this user."""
    rule = chosen.site.account_rule
    is_valid, text, fix = limits.check_account(chosen.site.account, rule.required, reported)
    if is_valid is None and chosen.site.account is None and rule.required:
        return bad("account", "no account is given", f"--set account={rule.example or 'ACCOUNT'}")
    if is_valid is None:
        return not_checked("account", text)
    line = f"{chosen.line('account')}: " if chosen.site.account else ""
    return ok("account", text) if is_valid else bad("account", text, line + fix)


def examine_queues(chosen: ChosenSite, reported: limits.SchedulerLimits) -> Iterator[Finding]:
    """Check each queue against the scheduler's limits, and ask when its longest job would start."""
    for name, queue in chosen.site.queues.items():
        if mismatches := limits.find_mismatches(name, queue, chosen.site.account, reported):
            lines = dict.fromkeys(chosen.line("queues", name, *filter(None, [each.field])) for each in mismatches)
            yield bad(
                f"queue {name}",
                "; ".join(each.found for each in mismatches),
                f"{', '.join(lines)}: {', '.join(each.fix for each in mismatches)}",
            )
        else:
            yield rehearse_longest_job(
                chosen,
                name,
                f"{capacity.format_node_range(queue)}, {queue.max_walltime}{describe_use(chosen.site, name)}",
            )


def rehearse_longest_job(chosen: ChosenSite, name: str, text: str) -> Finding:
    """Let the scheduler judge the smallest, longest job of the queue without submitting it, where it can."""
    from workflow.jobs import parsl_provider  # Parsl takes half a second to import

    queue, settings = chosen.site.queues[name], chosen.site.batch_scheduler
    least, longest = queue.nodes[0], to_seconds(queue.max_walltime)
    request = trial_job.trial_request(chosen.site, name)._replace(nodes=least, nodes_each=least, seconds=longest)
    with tempfile.TemporaryDirectory(prefix="gnnscale-doctor-") as folder:
        script = Path(folder) / SCRIPT_NAME
        job = parsl_provider.JobScript(request, "gnnscale-doctor", Path(folder), "true")
        script.write_text(parsl_provider.render_script(job, chosen.site))
        try:
            rehearsal = SCHEDULERS[settings.kind].rehearse(script, settings.command_timeout)
        except SchedulerUnreachable as error:
            return not_checked(f"queue {name}", str(error))
    if rehearsal is None or (rehearsal.accepted and rehearsal.start is None):
        return ok(f"queue {name}", text)
    if rehearsal.accepted and rehearsal.start:
        return ok(f"queue {name}", f"{text}; the longest would start {format_start(*rehearsal.start)}")
    why = parsl_provider.submission_error(chosen.site, rehearsal.printed)
    if isinstance(why, parsl_provider.JobRefused):
        return bad(f"queue {name}", str(why), f"{chosen.line('queues', name)}: {why.hint}")
    return not_checked(f"queue {name}", str(why))


def format_start(day: str, hour: str) -> str:
    """Return "now", "at 14:30" or "on" a later day."""
    now = time.localtime()
    if f"{day} {hour}" <= time.strftime("%Y-%m-%d %H:%M", time.localtime(time.time() + 90)):
        return "now"
    return f"at {hour}" if day == time.strftime("%Y-%m-%d", now) else f"on {day}"


def describe_use(site: SiteConfig, name: str) -> str:
    """Return what the site uses a queue for, after a semicolon."""
    uses = ["trainings"] if name in capacity.training_queues(site) else []
    uses += ["stages without ranks"] if site.serial and site.serial.queue == name else []
    return f"; {' and '.join(uses)}" if uses else ""


def examine_study(planned: dict[str, PlannedStage], site: SiteConfig) -> Finding:
    """Check that the stages that are not done fit into memory and queues."""
    left = [each for each in planned.values() if each.state != "done"]
    if refused := [each for each in left if each.state == "refused"]:
        return bad("study", f"{refused[0].stage.id} {refused[0].reason}", "`plan` lists all of them")
    try:
        requests = schedule([each.stage for each in left], site)
    except UserError as error:
        return bad("study", error.message, "choose another queue, or another study")
    jobs = f" in {len(set(requests.values()))} jobs, {total_node_hours(requests):,.1f} node-hours" if requests else ""
    return ok("study", f"{len(left)} of {len(planned)} stages to do{jobs}")


# ---------------------------------------------------------------------------------------------------- the run directory
def examine_run_directory(chosen: ChosenSite, root: Path) -> Iterator[Finding]:
    """Check that the run directory can be used, its space, its quota, its file server's clock, and when it is purged."""
    try:
        root.mkdir(parents=True, exist_ok=True)
        fault = directory_check.find_fault(root)
    except OSError as error:
        fault = describe_os_error(error)
    if fault:
        yield bad("run directory", f"{root}: {fault}", "choose another one: --root DIR")
        return
    scratch = scratch_lifetime.scratch_directory(chosen.site)
    remark = (
        f"; not below {scratch}, where this site wants run directories"
        if scratch and not root.is_relative_to(scratch.resolve())
        else ""
    )
    yield ok("run directory", f"{root}{remark}")
    yield examine_space(root)
    if finding := examine_quota(root, chosen.site):
        yield finding
    lead = directory_check.measure_clock_lead(root)
    if abs(lead) > MAX_CLOCK_SKEW_SECONDS:
        yield bad(
            "clock",
            f"the file server's differs from this machine's by {lead:+.0f} s",
            "ages of files will be wrong; report it to the administrators",
        )
    else:
        yield ok("clock", f"within {max(0.1, abs(lead)):.1f} s of the file server's")
    yield from examine_purge(chosen, root)


def examine_space(root: Path) -> Finding:
    """Check the free space of the file system."""
    free_space = directory_check.measure_free_space(root)
    text = f"{free_space.bytes / 1e9:,.0f} GB"
    text += f", {free_space.files:,} files" if free_space.files is not None else ""
    if free_space.bytes < MIN_FREE_BYTES or (free_space.files is not None and free_space.files < MIN_FREE_FILES):
        return bad("space", f"only {text} free", "free some space, or choose another place: --root DIR")
    return ok("space", text)


def examine_quota(root: Path, site: SiteConfig) -> Finding | None:
    """Check the quota of this user on a Lustre file system; others have no common command for it."""
    try:
        mounted = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    except OSError:
        return None
    mounts_above = [words for words in mounted if root.is_relative_to(words[1])]
    if not mounts_above or max(mounts_above, key=lambda words: len(words[1]))[2] != "lustre":
        return None
    try:
        output = command_output(["lfs", "quota", "-q", "-u", user_name(), str(root)], 20)
    except SchedulerUnreachable as error:
        return not_checked("quota", str(error))
    return judge_lustre_quota(output)


def judge_lustre_quota(output: str) -> Finding:
    """Read `lfs quota`: PATH KBYTES[*] SOFT HARD GRACE FILES[*] SOFT HARD GRACE; 0 = no limit, * = beyond it."""
    words = re.findall(r"\S+", output)
    if len(words) < 9:
        return not_checked("quota", "the output of lfs quota is not understood")
    used, soft, hard, files, files_soft, files_hard = (
        int(re.sub(r"\D", "", words[k]) or 0) for k in (1, 2, 3, 5, 6, 7)
    )
    most, most_files = (hard or soft) * 1024, files_hard or files_soft
    text = f"{used * 1024 / 1e9:,.0f} GB of {most / 1e9:,.0f}" if most else "no limit on bytes"
    text += f", {files:,} files of {most_files:,}" if most_files else ""
    is_full = (most and most - used * 1024 < MIN_FREE_BYTES) or (most_files and most_files - files < MIN_FREE_FILES)
    if is_full or "*" in words[1] or "*" in words[5]:
        return bad("quota", text, "free some space, or choose another place: --root DIR")
    return ok("quota", text)


def examine_purge(chosen: ChosenSite, root: Path) -> Iterator[Finding]:
    """Check whether the site will soon delete results because nobody used them."""
    days = scratch_lifetime.days_until_purge(root, chosen.site)
    if days is None:
        return
    folders = [path.parent for path in root.glob("*/*/result.json")]
    paths = [path for folder in folders for path in folder.iterdir() if path.is_file() and path.name != "result.json"]
    if warnings := scratch_lifetime.purge_warnings(paths, root, chosen.site):
        yield bad(
            "purge",
            warnings[0].split(". ")[0],
            "copy the run directory to a place that is not purged; it can be continued there",
        )
    else:
        oldest = scratch_lifetime.find_oldest(paths, time.time())
        yield ok(
            "purge",
            f"after {days} days" + (f"; the oldest result was used {oldest.days:.0f} days ago" if oldest else ""),
        )


def examine_container(chosen: ChosenSite) -> Iterator[Finding]:
    """Check that the image exists, is whole, is for these processors and can be run."""
    container = chosen.site.container
    if not container.use:
        yield ok("container", f"not used; stages run in the environment of {chosen.site.python or sys.executable}")
        return
    faults = list(checks.find_faults(chosen.site))
    yield from (bad("container", fault.message, fault.hint) for fault in faults)
    if not faults:
        digest = f", {container.digest[:12]}" if container.digest else ""
        yield ok("container", f"{container.runtime}, {container.image}{digest}")


def find_image(chosen: ChosenSite) -> tuple[ChosenSite, list[Finding]]:
    """Return the site with its image found, if stages run in one, or with the finding that there is none."""
    if not chosen.site.container.use:
        return chosen, []
    try:
        return chosen._replace(site=image_file.with_image(chosen.site, [])), []
    except UserError as error:
        return chosen, [bad_as("container", error)]


# ------------------------------------------------------------------------------------------------- on the compute nodes
def examine_compute_nodes(
    chosen: ChosenSite, root: Path, queue: str | None, wait: float, say: Callable[[str], None], bad_subjects: set[str]
) -> Iterator[Finding]:
    if chosen.site.has_scheduler:
        if queue is not None and queue not in chosen.site.queues:
            yield bad("job", f"no queue {queue!r}", suggest(queue, list(chosen.site.queues)))
            return
        passed = [name for name in trial_job.suitable_queues(chosen.site) if f"queue {name}" not in bad_subjects]
        if not passed and queue is None:
            yield not_checked("compute nodes", f"{CHECKED_BY_JOB}: no queue passed its check")
            return
        trial = trial_job.run_in_queue(chosen.site, queue or passed[0], root, wait, say)
    else:
        trial = trial_job.run_here(chosen.site, root, say)
    findings = list(judge(chosen, trial))
    if all(each.state == "ok" for each in findings) or not trial.started:
        trial_job.remove_folder(trial)
    yield from findings
    if trial.folder.exists():
        yield not_checked("files of the job", f"kept: {trial.folder}")
