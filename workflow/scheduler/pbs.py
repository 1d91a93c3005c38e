"""PBS Professional and OpenPBS: qstat, qselect and qdel, parsed defensively, with or without a history of ended jobs.

A server keeps no history unless its administrator switches that on. Then a job that has ended is unknown there, and its files
say how. A job that an answer does not list may still be there: only the server's own words about this very job count.
"""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import time
from collections.abc import Iterable
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, ClassVar

from gnnscale.contract.job_plan import AllocationPlan
from workflow.config.batch_scheduler import BatchScheduler
from workflow.config.schedulers.pbs import PBS
from workflow.config.walltime import to_seconds
from workflow.scheduler.interface import (
    JobStatus,
    Remark,
    Scheduler,
    SchedulerUnreachable,
    Snapshot,
    command_output,
    run_command,
    user_name,
)
from workflow.scheduler.limits import QueueLimit, SchedulerLimits, parse_whole_number
from workflow.scheduler.queue_facts import QueueFacts, SiteDraft, parse_json
from workflow.scheduler.submission import JobHead, Refusal, judge_refusal

STATES = {
    "R": "RUNNING",
    "E": "RUNNING",
    "B": "RUNNING",
    "S": "PENDING",  # suspended, as by default for a job of higher priority: it shows no progress meanwhile
    "U": "PENDING",
    "Q": "PENDING",
    "T": "PENDING",
    "W": "PENDING",
    "H": "PENDING",
    "M": "PENDING",
}
# Exit_status below 0 is PBS's own: JOB_EXEC_* of its job.h. What is not here: it could not start the job, or lost it.
END_STATES = {
    -10: "FAILED",  # the user is not known on the node
    -17: "FAILED",  # a hook rejected it, and would again
    -19: "FAILED",
    -24: "FAILED",  # more CPUs than requested
    -25: "FAILED",
    -26: "OUT_OF_MEMORY",  # vmem
    -27: "OUT_OF_MEMORY",  # mem
    -28: "TIMEOUT",  # cput
    -29: "TIMEOUT",  # walltime
}
# Comments with which a job waits for ever. Those that begin with "Not Running" wait for others.
HOPELESS_COMMENT = re.compile("^Can Never Run|too many failed attempts to run", re.I)
NO_HISTORY = "not configured to maintain job history"  # printed with exit code 0 where the history is off
GONE = re.compile(r"Unknown Job Id:? (\S+)|(\S+) Job has finished", re.I)
# Without -E there is one request for each id, and JSON holds the first job only; before version 14 there is no -E.
FORMS = (("-E", "-f", "-F", "json"), ("-E", "-f"), ("-f",))
IDS_PER_COMMAND = 1000
# qsub prints one text for many causes. A queue is disabled, and a server shut down, for maintenance: both pass.
PASSING_REFUSAL = re.compile("Queue is not enabled|Server shutting down", re.I)
LOST_ANSWER = re.compile("End of File|end of message|protocol (error|failure)", re.I)  # the job may have been taken
REFUSAL_HINTS = (
    (
        "Access to queue is denied",
        "you, your group or this host may not use the queue: `qstat -Qf` shows its acl_users, acl_groups and acl_hosts; "
        "or another queue: --set train.queue=NAME",
    ),
    (
        "Unauthorized Request|Access from host not allowed",
        "the server takes no jobs from you on this host: submit from a login node; `qstat -Bf` shows acl_hosts and acl_users",
    ),
    (
        "Bad UID",
        "the server does not trust this host with your name: submit from its own login node, not as root; or its "
        "administrator sets flatuid (or, for root, acl_roots)",
    ),
    ("Bad GID", "your group is not known on the server: tell its administrators what `id` prints here"),
    (
        "violates queue and/or server resource limits|rejected by all possible destinations|limit exceeds allowable",
        "nodes, cores, memory or walltime are beyond the queue's: compare `queues` and `node` of the site's file with "
        "resources_max and resources_min of `qstat -Qf`",
    ),
    (
        "Unknown resource|Illegal attribute or resource value|Resource invalid|resource not available",
        "the server does not know a resource of the request: look at select and directives of the site's file",
    ),
)


class PBSScheduler(Scheduler):
    """PBS: qstat and qselect. It learns whether the server keeps a history, and in which form qstat answers for many jobs."""

    submit_command: ClassVar = "qsub"
    cancel_command: ClassVar = "qdel"
    provider: ClassVar = "PBSProProvider"
    allocation: ClassVar[AllocationPlan] = {"id": ["echo", "$PBS_JOBID"], "hosts": ["cat", "$PBS_NODEFILE"]}
    option_variables: ClassVar = "PBS_"
    kept_variables: ClassVar = frozenset(
        {
            "PBS_CONF_FILE",
            "PBS_EXEC",
            "PBS_HOME",
            "PBS_SERVER",
            "PBS_DEFAULT",
            "PBS_PRIMARY",
            "PBS_SECONDARY",
            "PBS_AUTH_METHOD",
            "PBS_ENCRYPT_METHOD",
        }
    )

    def __init__(self) -> None:
        self.keeps_history: bool | None = None  # None: not known yet
        self.form = 0  # index of FORMS

    def find_by_id(self, ids: Iterable[str], seconds: float) -> Snapshot:
        """Query all jobs by one command. Those that its answer lacks are looked for in the history, then one by one."""
        began, wanted = time.time(), list(dict.fromkeys(ids))
        jobs = self.list_jobs(wanted, seconds, with_history=bool(self.keeps_history))
        if self.keeps_history is None and (missing := missing_from(jobs, wanted)):
            jobs |= self.list_jobs(missing, seconds, with_history=True)
        unknown: set[str] = set()
        if missing := missing_from(jobs, wanted):
            listed, unknown = query_one_by_one(missing, seconds, with_history=bool(self.keeps_history))
            jobs |= listed
        found = {id: jobs[job_number(id)]._replace(id=id) for id in wanted if job_number(id) in jobs}
        return Snapshot(began, found, frozenset(id for id in wanted if job_number(id) in unknown) - found.keys())

    def find_by_name(self, names: set[str], seconds: float) -> list[JobStatus]:
        """Return our jobs of these names; ended ones only of a single name, as a history may hold thousands of others."""
        if len(names) == 1:
            ids = self.select_ids(["-u", user_name(), "-N", *names], seconds)
        else:
            ids = command_output(["qselect", "-u", user_name()], seconds).split()
        return [job for job in self.find_by_id(ids, seconds).jobs.values() if job.name in names]

    def cancel(self, ids: list[str], seconds: float) -> None:
        raise_on_error(run_command(["qdel", *ids], seconds))

    def render_options(self, head: JobHead, settings: BatchScheduler) -> list[str]:
        options = {"-q": head.partition, "-A": head.account}
        own = ["-r n", f"-W umask={read_umask()}"]  # PBS would take 077, and nobody else could read the results
        return [*(f"{name} {value}" for name, value in options.items() if value), *own, *head.directives, "-j oe"]

    def provider_options(self, head: JobHead, settings: BatchScheduler) -> dict[str, Any]:
        assert isinstance(settings, PBS)
        chunk = [f"mpiprocs={head.ranks_per_node}", *filter(None, [settings.select])]
        return {"cpus_per_node": head.cores, "select_options": ":".join(chunk)}

    def judge_refusal(self, words: str, account: str | None) -> Refusal:
        if PASSING_REFUSAL.search(words):
            return Refusal("wait")
        if LOST_ANSWER.search(words):
            return Refusal("unreachable")
        hint = next((hint for pattern, hint in REFUSAL_HINTS if re.search(pattern, words, re.I)), None)
        return Refusal("refused", hint) if hint else judge_refusal(words, account)

    def read_release(self, seconds: float) -> str:
        release = command_output(["qstat", "--version"], seconds).strip()
        self.find_by_id([], seconds)
        return release.removeprefix("pbs_version = ") or "pbs"

    def read_limits(self, seconds: float) -> SchedulerLimits:
        output = command_output(["qstat", "-Q", "-f", "-F", "json"], seconds)
        try:
            return parse_limits(output)
        except (ValueError, AttributeError):  # some versions write what is not JSON
            raise SchedulerUnreachable(
                f"qstat: its list of queues could not be read: {output[:60].strip()!r}"
            ) from None

    def find_remarks(self, seconds: float) -> list[Remark]:
        return judge_server(parse_server(command_output(["qstat", "-B", "-f"], seconds)), platform.node(), os.geteuid())

    def read_queues(self, seconds: float) -> list[QueueFacts]:
        nodes = command_output(["pbsnodes", "-a", "-F", "json"], seconds)
        return parse_queues(nodes, command_output(["qstat", "-Q", "-f", "-F", "json"], seconds))

    def draft(self, main: QueueFacts) -> SiteDraft:
        options = [f"select: ngpus={main.gpus}"] if main.gpus else []
        options += ['directives: ["-l place=scatter"]  # ??? some sites want -l filesystems=...']
        return SiteDraft(options, "mpiexec", '["-n", "{ranks}", "-ppn", "{per_node}"]')

    def list_jobs(self, ids: list[str], seconds: float, *, with_history: bool) -> dict[str, JobStatus]:
        """List the jobs of these ids by number, with as few commands as their length allows; some may be missing."""
        jobs: dict[str, JobStatus] = {}
        for first in range(0, len(ids), IDS_PER_COMMAND):
            jobs |= self.list_batch(ids[first:][:IDS_PER_COMMAND], seconds, with_history)
        return jobs

    def list_batch(self, ids: list[str], seconds: float, with_history: bool) -> dict[str, JobStatus]:
        """List jobs in the first form that this version of qstat knows and prints readably."""
        while True:
            form = FORMS[self.form]
            done = run_command(["qstat", *(["-x"] if with_history else []), *form, *ids], seconds)
            if "usage:" in done.stderr and self.form < len(FORMS) - 1:
                self.form += 1
                continue
            raise_on_error(done)
            if self.has_no_history(done):
                return {}
            try:
                jobs = parse_qstat(done.stdout) if "json" in form else parse_qstat_text(done.stdout)
            except json.JSONDecodeError:  # some versions write environments into it that are not JSON
                self.form += 1
                continue
            if any(not job.is_active for job in jobs):
                self.keeps_history = True
            return index_by_number(jobs)

    def select_ids(self, options: list[str], seconds: float) -> list[str]:
        """Select the ids of our jobs, with those that have ended where the server remembers them."""
        if self.keeps_history is not False:
            done = run_command(["qselect", "-x", *options], seconds)
            raise_on_error(done)
            if not self.has_no_history(done):
                return done.stdout.split()
        return command_output(["qselect", *options], seconds).split()

    def has_no_history(self, done: subprocess.CompletedProcess[str]) -> bool:
        """Return whether an answer says, instead of an answer, that there is no history; remember it."""
        if NO_HISTORY not in done.stderr + done.stdout:
            return False
        self.keeps_history = False
        return True


# ----------------------------------------------------------------------------------------------------------------- jobs
def query_one_by_one(ids: list[str], seconds: float, *, with_history: bool) -> tuple[dict[str, JobStatus], set[str]]:
    """Return the jobs of these ids by number, and the numbers of which the server says that there is no such job now.

    Without -E the server is asked about each id, and answers for each: in the text, or with an error.
    """
    jobs: dict[str, JobStatus] = {}
    unknown: set[str] = set()
    for first in range(0, len(ids), IDS_PER_COMMAND):
        options = ["-x", "-f"] if with_history else ["-f"]
        done = run_command(["qstat", *options, *ids[first:][:IDS_PER_COMMAND]], seconds)
        raise_on_error(done)
        jobs |= index_by_number(parse_qstat_text(done.stdout))
        unknown |= {job_number(before or after) for before, after in GONE.findall(done.stderr)}
    return jobs, unknown


def raise_on_error(done: subprocess.CompletedProcess[str]) -> None:
    """Raise for errors, but not for those that only say that one of many jobs is not there."""
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    wrong = [line for line in lines if not GONE.search(line) and NO_HISTORY not in line]
    if done.returncode and (wrong or not lines):
        message = wrong[-1] if wrong else f"exit code {done.returncode}"
        raise SchedulerUnreachable(message if message.startswith(done.args[0]) else f"{done.args[0]}: {message}")


def read_umask() -> str:
    """Read the umask of this process, in octal digits; os.umask would change it for other threads."""
    try:
        found = re.search(r"^Umask:\s*0*([0-7]{3})$", Path("/proc/self/status").read_text(), re.M)
    except OSError:  # a system without /proc
        found = None
    return found[1] if found else "022"


def job_number(id: str) -> str:
    """Return the number in an id of PBS, which shortens the server's name after it as it likes."""
    return id.split(".")[0]


def index_by_number(jobs: list[JobStatus]) -> dict[str, JobStatus]:
    return {job_number(job.id): job for job in jobs}


def missing_from(jobs: dict[str, JobStatus], ids: list[str]) -> list[str]:
    return [id for id in ids if job_number(id) not in jobs]


def parse_qstat(text: str) -> list[JobStatus]:
    answer = json.loads(text, strict=False) if text.strip() else {}
    return [parse_job(id, job) for id, job in answer.get("Jobs", {}).items()]


def parse_qstat_text(text: str) -> list[JobStatus]:
    """Parse `Job Id: X`, then `    name = value`, which continues in lines that begin with a tab."""
    found: list[JobStatus] = []
    id, job = "", dict[str, str]()
    for line in [*text.replace("\n\t", "").splitlines(), "Job Id:"]:
        if line.startswith("Job Id:"):
            if id:
                found.append(parse_job(id, job))
            id, job = line.partition(":")[2].strip(), {}
        elif " = " in line:
            name, _, value = line.strip().partition(" = ")
            job.setdefault(name, value)  # a line further below may be one of a variable's value
    return found


def parse_job(id: str, fields: dict[str, Any]) -> JobStatus:
    status = str(fields.get("Exit_status", ""))
    code = int(status) if re.fullmatch(r"-?\d+", status) else None
    word, comment = str(fields.get("job_state", "")), str(fields.get("comment", ""))
    state = find_end_state(code) if word in ("F", "X", "C") else STATES.get(word, "RUNNING")
    nodes = ",".join(dict.fromkeys(re.findall(r"(?:^|\+)\(?([^/+()]+)/", str(fields.get("exec_host", "")))))
    is_hopeless = state == "PENDING" and HOPELESS_COMMENT.search(comment) is not None
    return JobStatus(id, str(fields.get("Job_Name", "")), state, comment, nodes, code, is_hopeless)


def find_end_state(code: int | None) -> str:
    """Return how a job ended whose state says only that it did."""
    if code is None or code in (256 + 15, 256 + 9):  # deleted before it began, or by qdel
        return "CANCELLED"
    if code < 0:
        return END_STATES.get(code, "NODE_FAIL")
    return "FAILED" if code else "COMPLETED"


# --------------------------------------------------------------------------------------------------------------- server
def parse_server(text: str) -> dict[str, str]:
    """Parse what `qstat -B -f` prints about the first server."""
    return dict(re.findall(r"^    (\w+) = (.*)$", text.replace("\n\t", ""), re.M))


def judge_server(server: dict[str, str], host: str, user: int) -> list[Remark]:
    """Judge settings of a server that decide whether it takes jobs from this host, and what it says of them."""
    if "server_state" not in server:
        return []
    home, is_on = server.get("server_host", ""), server.get("job_history_enable") == "True"
    remarks = [Remark("job history", "on" if is_on else "off, as by default: files of the jobs say how they ended")]
    if server.get("scheduling") == "False":
        remarks.append(Remark("scheduling", "switched off, so jobs wait", "see the site's news of maintenance", False))
    if user == 0 and not server.get("acl_roots"):
        remarks.append(Remark("user", "PBS runs no jobs of root here", "submit as another user"))
    if server.get("acl_host_enable") == "True" and not is_listed(host, server.get("acl_hosts", "")):
        allowed = server.get("acl_hosts") or "no host"
        remarks.append(
            Remark("submit host", f"{host} may not submit: acl_hosts has {allowed}", "use a host of acl_hosts")
        )
    elif server.get("flatuid") != "True" and shorten(host) != shorten(home):
        said = f"flatuid is off, so {home} may not trust {host} with your name"
        remarks.append(Remark("submit host", said, f"if a job is refused with `Bad UID`: submit from {home}", False))
    return remarks


def is_listed(host: str, access_list: str) -> bool:
    """Return whether a list such as `+*.site.org,-login3.site.org` allows a host; the first entry that fits decides."""
    for entry in filter(None, re.split(r"[\s,]+", access_list)):
        pattern = entry.lstrip("+-")
        if fnmatch(host, pattern) or (shorten(host) == pattern.split(".")[0] and "." not in host):
            return not entry.startswith("-")
    return False


def shorten(host: str) -> str:
    return host.split(".")[0]


# --------------------------------------------------------------------------------------------------------------- limits
def parse_limits(queues: str) -> SchedulerLimits:
    """Parse the JSON of `qstat -Q`."""
    limits, routes = {}, {}
    for name, fields in json.loads(queues, strict=False).get("Queue", {}).items():
        most, least = fields.get("resources_max", {}), fields.get("resources_min", {})
        time = str(most.get("walltime", ""))
        closed_by = [word for word in ("enabled", "started") if str(fields.get(word, "True")) != "True"]
        limits[name] = QueueLimit(
            fewest=parse_whole_number(str(least.get("nodect", ""))),
            most=parse_whole_number(str(most.get("nodect", ""))),
            seconds=to_seconds(time) if re.fullmatch(r"\d+:\d\d:\d\d", time) else None,
            running=parse_limit_per_user(str(fields.get("max_run", ""))),
            queued=parse_limit_per_user(str(fields.get("max_queued", ""))),
            closed=f"is not {closed_by[0]}" if closed_by else "",
        )
        if fields.get("queue_type") == "Route":
            routes[name] = tuple(filter(None, re.split(r"[\s,]+", str(fields.get("route_destinations", "")))))
    return SchedulerLimits(limits, "", routes=routes)


def parse_limit_per_user(text: str) -> int | None:
    """Parse [u:PBS_GENERIC=2], a limit for any user."""
    found = re.search(r"u:PBS_GENERIC=(\d+)", text)
    return int(found[1]) if found else None


# --------------------------------------------------------------------------------------------------------------- queues
def parse_queues(nodes: str, queues: str) -> list[QueueFacts]:
    machines = [m for m in parse_json(nodes).get("nodes", {}).values() if "offline" not in m.get("state", "")]
    if not machines:
        return []
    resources = [machine.get("resources_available", {}) for machine in machines]
    cores = min(int(r.get("ncpus", 1)) for r in resources)
    memory = min(parse_gigabytes(str(r.get("mem", "0kb"))) for r in resources)
    gpus = min(int(r.get("ngpus", 0)) for r in resources)
    found = []
    for name, queue in parse_json(queues).get("Queue", {}).items():
        if queue.get("queue_type") != "Execution" or str(queue.get("enabled")) != "True":
            continue
        limit = str(queue.get("resources_max", {}).get("walltime", ""))
        time_limit = (
            sum(int(part) * unit for part, unit in zip(limit.split(":"), (3600, 60, 1))) if ":" in limit else None
        )
        fewest = int(queue.get("resources_min", {}).get("nodect", 1))
        most = int(queue.get("resources_max", {}).get("nodect", len(machines)))
        found.append(QueueFacts(name, False, fewest, most, time_limit, cores, memory, gpus, ""))
    return found


def parse_gigabytes(text: str) -> float:
    value = re.match(r"(\d+)([kmgt]?)b?", text.lower())
    return int(value[1]) * {"": 1e-9, "k": 1e-6, "m": 1e-3, "g": 1, "t": 1e3}[value[2]] if value else 0
