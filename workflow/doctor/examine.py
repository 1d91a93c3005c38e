"""Is this site ready for a study? Every doubt is a line: ok, bad with what to do, or not checked with why.

What can be asked from here is asked from here: host, scheduler, accounts, queues, the run directory, the container. What only
a compute node can tell is told by a real small job, started as a training is (trial.py), and judged in diagnosis.py.
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

from gnnscale.contract.errors import Problem
from gnnscale.machine import directory_check
from workflow.config import capacity, scratch_lifetime, site_files
from workflow.config.site import SiteConfig
from workflow.config.walltime import seconds
from workflow.config.yaml_file import nearest
from workflow.doctor import trial_job
from workflow.doctor.diagnosis import CLOCK, COMPUTE, SOCKET, Finding, Where, bad, judge, long_path, ok, unknown
from workflow.images import find
from workflow.jobs import requests as queueing
from workflow.plan.stage import Planned
from workflow.scheduler import limits, query

ROOM, FILES = (
    5e9,
    10_000,
)  # bytes and files that are left: the smallest study takes less, a paper's takes a hundred times that
SLOW = 10.0  # s of one question to the scheduler, worth a word
FIRST = (
    "host",
    "architecture",
    "scheduler",
    "account",
    "run directory",
    "container",
)  # without these a job would tell nothing


def examine(
    at: Where, root: Path, ask: bool, queue: str | None, wait: float, say: Callable[[str], None]
) -> Iterator[Finding]:
    """All of it, each as soon as it is known. `ask`: whether a job may be submitted (or processes started)."""
    wrong, absent = set(), [path for path in (root, *root.parents) if not path.exists()]
    at, missing = imaged(at)
    try:
        for found in itertools.chain(from_here(at, root), missing or container(at)):
            wrong |= {found.what} if found.state == "bad" else set()
            yield found
        if not ask:
            yield unknown("compute nodes", f"{COMPUTE}: no job, as asked")
        elif first := next((what for what in FIRST if what in wrong), None):
            yield unknown("compute nodes", f"{COMPUTE}: no job before the {first} is right")
        else:
            yield from compute(at, root, queue, wait, say, wrong)
    finally:
        for path in absent:  # a doctor leaves nothing behind, unless it is to be looked at
            try:
                path.rmdir()
            except OSError:
                break


def from_here(at: Where, root: Path) -> Iterator[Finding]:
    yield from machine(at)
    if at.site.batch:
        found, known = reachable(at)
        yield found
        if known is not None:
            yield account(at, known)
            yield from queues(at, known)
    yield from directory(at, root)


# ------------------------------------------------------------------------------------------------------ from this host
def machine(at: Where) -> Iterator[Finding]:
    for what, check in (("host", site_files.check_host), ("architecture", site_files.check_arch)):
        try:
            check(at.name, at.site, at.settings)
        except Problem as problem:
            said, *fix = str(problem).splitlines()
            yield bad(what, said, fix[0] if fix else "")
        else:
            yield ok(what, platform.node() if what == "host" else platform.machine())
    text = tempfile.gettempdir()
    if len(text) > SOCKET:
        yield bad("temporary files", long_path(text), "export TMPDIR=/tmp")


def reachable(at: Where) -> tuple[Finding, limits.Known | None]:
    kind, timeout = at.site.scheduler.kind, at.site.scheduler.command_timeout
    program = "scontrol" if kind == "slurm" else "qstat"
    began = time.monotonic()
    try:
        version = query.answer([program, "--version"], timeout).strip().splitlines()
        query.KINDS[kind].look(["0"] if kind == "slurm" else [], timeout)
        took = time.monotonic() - began
        known = limits.KINDS[kind](timeout)
    except query.Unreachable as error:
        words = re.sub(r"^(\w+): \1: ", r"\1: ", str(error))
        again = re.search("not answered|not be read", words)
        fix = "try again" if again else f"run this on a login node, where `{program}` answers"
        return bad("scheduler", words, fix), None
    told = (version or [kind])[0].removeprefix("pbs_version = ")
    slow = f"; that is slow: {at.line('scheduler', 'poll_seconds')}: poll_seconds may be higher" if took > SLOW else ""
    return ok("scheduler", f"{told}, answered in {took:.2f} s{slow}"), known


def account(at: Where, known: limits.Known) -> Finding:
    rule = at.site.account_rule
    good, said, fix = limits.account(at.site.account, rule.required, known)
    if good is None and at.site.account is None and rule.required:
        return bad("account", "none is given", f"--set account={rule.example or 'ACCOUNT'}")
    if good is None:
        return unknown("account", said)
    given = f"{at.line('account')}: " if at.site.account else ""
    return ok("account", said) if good else bad("account", said, given + fix)


def queues(at: Where, known: limits.Known) -> Iterator[Finding]:
    for name, queue in at.site.queues.items():
        if found := limits.complaints(name, queue, at.site.account, known):
            lines = dict.fromkeys(at.line("queues", name, *filter(None, [each.field])) for each in found)
            yield bad(
                f"queue {name}",
                "; ".join(each.found for each in found),
                f"{', '.join(lines)}: {', '.join(each.fix for each in found)}",
            )
        else:
            yield rehearsed(at, name, f"{capacity.span(queue)}, {queue.max_walltime}{use(at.site, name)}")


def rehearsed(at: Where, name: str, said: str) -> Finding:
    """The smallest and longest job of the queue, shown to Slurm without being submitted: it says when it would begin."""
    from workflow.jobs import parsl_provider  # Parsl takes half a second to import

    if at.site.scheduler.kind != "slurm":
        return ok(f"queue {name}", said)
    queue = at.site.queues[name]
    least, longest = queue.nodes[0], seconds(queue.max_walltime)
    asked = trial_job.request(at.site, name)._replace(nodes=least, nodes_each=least, seconds=longest)
    with tempfile.TemporaryDirectory(prefix="gnnscale-doctor-") as folder:
        script = Path(folder) / "job.sh"
        script.write_text(
            parsl_provider.text(parsl_provider.Job(asked, "gnnscale-doctor", Path(folder), "true"), at.site)
        )
        try:
            done = query.ask(["sbatch", "--test-only", str(script)], at.site.scheduler.command_timeout)
        except query.Unreachable as error:
            return unknown(f"queue {name}", str(error))
    if done.returncode:
        why = parsl_provider.why(at.site, done.stderr + done.stdout)
        if isinstance(why, parsl_provider.Refused):
            return bad(f"queue {name}", str(why), f"{at.line('queues', name)}: {why.hint}")
        return unknown(f"queue {name}", str(why))
    start = re.search(r"to start at (\d{4}-\d\d-\d\d)T(\d\d:\d\d)", done.stderr + done.stdout)
    return ok(f"queue {name}", f"{said}; the longest would begin {moment(*start.groups())}" if start else said)


def moment(day: str, hour: str) -> str:
    """now, at 14:30, or on a later day."""
    now = time.localtime()
    if f"{day} {hour}" <= time.strftime("%Y-%m-%d %H:%M", time.localtime(time.time() + 90)):
        return "now"
    return f"at {hour}" if day == time.strftime("%Y-%m-%d", now) else f"on {day}"


def use(site: SiteConfig, name: str) -> str:
    """What is done there."""
    uses = ["trainings"] if name in capacity.for_trainings(site) else []
    uses += ["stages without ranks"] if site.serial and site.serial.queue == name else []
    return f"; {' and '.join(uses)}" if uses else ""


def of_study(planned: dict[str, Planned], site: SiteConfig) -> Finding:
    """Does all of it fit into memory and queues?"""
    left = [each for each in planned.values() if each.state != "done"]
    if refused := [each for each in left if each.state == "refused"]:
        return bad("study", f"{refused[0].stage.id} {refused[0].reason}", "`plan` tells of all")
    try:
        requests = queueing.schedule([each.stage for each in left], site)
    except Problem as problem:
        return bad("study", str(problem).splitlines()[0], "another queue, or another study")
    jobs = (
        f" in {len(set(requests.values()))} jobs, {queueing.node_hours(requests):,.1f} node-hours" if requests else ""
    )
    return ok("study", f"{len(left)} of {len(planned)} stages to do{jobs}")


# ---------------------------------------------------------------------------------------------------- the run directory
def directory(at: Where, root: Path) -> Iterator[Finding]:
    try:
        root.mkdir(parents=True, exist_ok=True)
        fault = directory_check.fault(root)
    except OSError as error:
        fault = f"{error.filename}: {(error.strerror or str(error)).lower()}"
    if fault:
        yield bad("run directory", f"{root}: {fault}", "another one: --root DIR")
        return
    above = scratch_lifetime.scratch(at.site)
    aside = (
        f"; not below {above}, where this site wants them" if above and not root.is_relative_to(above.resolve()) else ""
    )
    yield ok("run directory", f"{root}{aside}")
    yield room(root)
    if said := quota(root, at.site):
        yield said
    lead = directory_check.clock_lead(root)
    if abs(lead) > CLOCK:
        yield bad(
            "clock",
            f"the file server's differs from this machine's by {lead:+.0f} s",
            "ages of files will mislead; tell whoever runs the machines",
        )
    else:
        yield ok("clock", f"within {max(0.1, abs(lead)):.1f} s of the file server's")
    yield from purged(at, root)


def room(root: Path) -> Finding:
    found = directory_check.room(root)
    said = f"{found.bytes / 1e9:,.0f} GB" + (f", {found.files:,} files" if found.files is not None else "")
    if found.bytes < ROOM or (found.files is not None and found.files < FILES):
        return bad("space", f"{said} are left", "remove something, or another place: --root DIR")
    return ok("space", said)


def quota(root: Path, site: SiteConfig) -> Finding | None:
    """Of this user where the file system is a Lustre; others have no one command that tells it."""
    try:
        mounted = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    except OSError:
        return None
    above = [words for words in mounted if root.is_relative_to(words[1])]
    if not above or max(above, key=lambda words: len(words[1]))[2] != "lustre":
        return None
    try:
        said = query.answer(["lfs", "quota", "-q", "-u", query.user(), str(root)], 20)
    except query.Unreachable as error:
        return unknown("quota", str(error))
    return lustre(said)


def lustre(said: str) -> Finding:
    """PATH KBYTES[*] SOFT HARD GRACE FILES[*] SOFT HARD GRACE; 0 = no limit, * = beyond it."""
    words = re.findall(r"\S+", said)
    if len(words) < 9:
        return unknown("quota", "lfs quota says nothing that could be read")
    used, soft, hard, files, files_soft, files_hard = (
        int(re.sub(r"\D", "", words[k]) or 0) for k in (1, 2, 3, 5, 6, 7)
    )
    most, most_files = (hard or soft) * 1024, files_hard or files_soft
    text = f"{used * 1024 / 1e9:,.0f} GB of {most / 1e9:,.0f}" if most else "no limit of bytes"
    text += f", {files:,} files of {most_files:,}" if most_files else ""
    full = (most and most - used * 1024 < ROOM) or (most_files and most_files - files < FILES)
    if full or "*" in words[1] or "*" in words[5]:
        return bad("quota", text, "remove something, or another place: --root DIR")
    return ok("quota", text)


def purged(at: Where, root: Path) -> Iterator[Finding]:
    if not scratch_lifetime.applies(root, at.site):
        return
    days = at.site.filesystems.purge_days
    folders = [path.parent for path in root.glob("*/*/result.json")]
    paths = [path for folder in folders for path in folder.iterdir() if path.is_file() and path.name != "result.json"]
    if warned := scratch_lifetime.warnings(paths, root, at.site):
        yield bad(
            "purge", warned[0].split(". ")[0], "copy the run directory to where files stay; it can be continued there"
        )
    else:
        found = scratch_lifetime.oldest(paths, time.time())
        yield ok(
            "purge", f"after {days} days" + (f"; the oldest result was used {found.days:.0f} days ago" if found else "")
        )


def container(at: Where) -> Iterator[Finding]:
    """Of an image: whether it is there, whole, for these processors, and may be run."""
    box = at.site.container
    if not box.use:
        yield ok("container", f"none; the environment of {at.site.python or sys.executable}")
        return
    found = list(find.faults(at.site))
    yield from (bad("container", fault.message, fault.hint) for fault in found)
    if not found:
        yield ok("container", f"{box.runtime}, {box.image}" + (f", {box.digest[:12]}" if box.digest else ""))


def imaged(at: Where) -> tuple[Where, list[Finding]]:
    """With the image found, if stages are to run in one."""
    if not at.site.container.use:
        return at, []
    try:
        return at._replace(site=find.resolve(at.site, [])), []
    except Problem as problem:
        said, *fix = str(problem).splitlines()
        return at, [bad("container", said, fix[0] if fix else "")]


# ------------------------------------------------------------------------------------------------- on the compute nodes
def compute(
    at: Where, root: Path, queue: str | None, wait: float, say: Callable[[str], None], wrong: set[str]
) -> Iterator[Finding]:
    if at.site.batch:
        if queue is not None and queue not in at.site.queues:
            yield bad("job", f"no queue {queue!r}", nearest(queue, list(at.site.queues)))
            return
        able = [name for name in trial_job.suited(at.site) if f"queue {name}" not in wrong]
        if not able and queue is None:
            yield unknown("compute nodes", f"{COMPUTE}: no queue is right")
            return
        done = trial_job.in_queue(at.site, queue or able[0], root, wait, say)
    else:
        done = trial_job.here(at.site, root, say)
    found = list(judge(at, done))
    if all(each.state == "ok" for each in found) or not done.began:
        trial_job.remove(done)
    yield from found
    if done.folder.exists():
        yield unknown("its files", f"kept: {done.folder}")


# ----------------------------------------------------------------------------------------------------------- the screen
