"""Judge how an attempt in a batch job ended, and decide what to do next. Pure.

The evidence is exit.json, which the job's script leaves; error.json, which the stage leaves; the last lines that both
printed; and the state that the scheduler reports. Each of them may be missing.
"""

from __future__ import annotations

import re
from typing import Literal

from gnnscale.contract.exit_codes import DISK, MEMORY, REFUSED, STOPPED, TERMINATED
from gnnscale.contract.results import StageError
from workflow.run_directory.attempt import DISK_FULL, AttemptOutcome, ExitRecord, find_telling_line
from workflow.scheduler.interface import JobStatus

Action = Literal["continue", "again", "avoid", "shrink", "space", "fail"]

# kind: (the next action, how often in a row without progress)
RESPONSES: dict[str, tuple[Action, int]] = {
    "not-begun": ("again", 20),  # the job ended before its turn came
    "unfit": ("avoid", 5),  # a node was sick before anything ran there; more in a row are hardly chance
    "stopped": ("continue", 2),  # it kept its work: signalled before the end of its time, or preempted
    "walltime": ("continue", 2),
    "preempted": ("continue", 20),
    "cancelled": ("again", 2),  # not by this driver
    "node": ("avoid", 3),
    "lost": ("again", 2),
    "stalled": ("again", 1),
    "out-of-memory": ("shrink", 3),
    "disk-full": ("space", 5),
    "busy": ("again", 5),  # another process still holds the directory
}
MEMORY_WORDS = re.compile(
    "out of memory|can't allocate memory|oom[-_ ]?kill|std::bad_alloc|CUDA_ERROR_OUT_OF_MEMORY|cannot allocate memory",
    re.I,
)
NODE_WORDS = re.compile(
    "uncorrectable ECC|NCCL.*(unhandled system error|internal error|remote process exited)|fell off the bus|\\bXid\\b"
    "|CUDA error: (device|unknown error|unspecified launch)|no CUDA-capable device|hipErrorNoDevice|Bus error"
    "|Stale file handle|Transport endpoint|Input/output error|node failure|Communication connection failure",
    re.I,
)
# Printed by PBS into job.out as it kills a job; where its server keeps no history nothing else says so.
KILLED_WORDS = re.compile("PBS: job killed: ((\\w+) .*)|(Cgroup (mem)\\w* limit exceeded.*)", re.I)
HOPELESS_HINT = "request less, or another queue: look at `queues` of the site's file"
HOPELESS_HINTS = (  # words of a scheduler's reason or comment -> what to change
    ("resource: ncpus", "no node has so many cores: node.cores of the site's file; `pbsnodes -a` shows what they have"),
    ("resource: ", "no node has that: look at `node`, select and directives of the site's file, and at `pbsnodes -a`"),
    ("total nodes|placement set", "there are not so many nodes: look at train.nodes and `queues` of the site's file"),
    ("failed attempts", "the nodes could not start it: `doctor` starts a small job there and shows why"),
)
ENDED_WORDS = re.compile(  # the launcher lost its job, which squeue may have forgotten too
    "job \\d+ has expired|invalid job id|unknown job id|already completing or completed|unable to confirm allocation",
    re.I,
)


def classify(
    exit: ExitRecord | None,
    job: JobStatus | None,
    error: StageError | None,
    printed: str,
    reason_invalid: str,
    preemptible: bool = False,
) -> AttemptOutcome:
    """Name how an attempt ended.

    printed: the last lines of the job's script and of the stage
    reason_invalid: why the stage's result is not valid; "" if it is
    preemptible: the queue may take nodes back; PBS shows that only as a job that was deleted
    """
    if not reason_invalid:
        return AttemptOutcome("done", "")
    return (
        judge_start(exit)
        or judge_kill(printed)
        or judge_state(exit, job, preemptible)
        or judge_reported_error(error)
        or judge_printed(exit, exit_code(exit, job), printed)
        or (AttemptOutcome("application", error.message, error.hint) if error else None)
        or judge_exit_code(exit, job, printed, reason_invalid)
    )


def exit_code(exit: ExitRecord | None, job: JobStatus | None) -> int | None:
    return exit.code if exit else job.code if job else None


def judge_start(exit: ExitRecord | None) -> AttemptOutcome | None:
    """Judge an attempt that never began."""
    if exit and exit.sick:
        reasons = "; ".join(f"{host}: {why}" for host, why in exit.sick.items())
        hint = "if all nodes are unfit, check `node` of the site's file, and run `doctor`"
        return AttemptOutcome("node", f"not fit: {reasons[:400]}", hint, bad_hosts=tuple(exit.sick), begun=False)
    if exit and not exit.begun:
        return AttemptOutcome("not-begun", "its job ended before its turn came", begun=False)
    return None


def judge_kill(printed: str) -> AttemptOutcome | None:
    """Judge by what PBS printed when it killed the job for more than it had requested."""
    if not (found := KILLED_WORDS.search(printed)):
        return None
    message, resource = f"PBS ended it: {found[1] or found[3]}", (found[2] or found[4]).lower()
    if resource.endswith("mem"):
        return memory_outcome(message)
    if resource in ("walltime", "cput"):
        return AttemptOutcome("walltime", message)
    hint = "request more in `node` of the site's file, or use less: launch.threads_per_rank"
    return AttemptOutcome("configuration", message, hint)


def judge_state(exit: ExitRecord | None, job: JobStatus | None, preemptible: bool) -> AttemptOutcome | None:
    """Judge by the state in which the scheduler saw the job end, and by the request to stop."""
    state = job.state if job else ""
    if state == "PREEMPTED" or (state == "CANCELLED" and preemptible):
        return AttemptOutcome("preempted", "preempted")
    if state == "CANCELLED":
        return AttemptOutcome("cancelled", "cancelled by another user or command")
    if exit and exit.code == STOPPED:
        return AttemptOutcome("stopped", "signalled to stop; its work is saved")
    if job and state == "NODE_FAIL":
        return AttemptOutcome("node", f"a node failed ({job.nodes})", bad_hosts=tuple(expand_hosts(job.nodes)[:1]))
    if state == "OUT_OF_MEMORY":
        return memory_outcome("the scheduler ended it because it ran out of memory")
    if state == "TIMEOUT":
        return AttemptOutcome("walltime", "reached its walltime")
    return None


def judge_reported_error(error: StageError | None) -> AttemptOutcome | None:
    """Judge by error.json, unless it only says that the stage failed: the printed lines may contain a better reason."""
    if error is None:
        return None
    if "is in use by" in error.message:
        return AttemptOutcome("busy", error.message)
    if error.kind == "application":
        return None
    if error.kind == "out-of-memory":
        return memory_outcome(error.message)
    return AttemptOutcome(error.kind, error.message, error.hint)


def judge_printed(exit: ExitRecord | None, code: int | None, printed: str) -> AttemptOutcome | None:
    """Judge by words that libraries and launchers print when a node or its memory fails."""
    if NODE_WORDS.search(printed):
        host = exit.host if exit else ""
        line = first_line_with(NODE_WORDS, printed)
        return AttemptOutcome("node", f"{host + ': ' if host else ''}{line}", bad_hosts=(host,) if host else ())
    if MEMORY_WORDS.search(printed) or code == MEMORY:
        return memory_outcome("killed, most likely because memory ran out" if code == MEMORY else "out of memory")
    return None


def judge_exit_code(
    exit: ExitRecord | None, job: JobStatus | None, printed: str, reason_invalid: str
) -> AttemptOutcome:
    """Judge by the exit code, or by its absence."""
    code = exit_code(exit, job)
    if code == TERMINATED or ENDED_WORDS.search(printed):
        line = first_line_with(ENDED_WORDS, printed) or "it received SIGTERM"
        return AttemptOutcome("lost", f"ended from outside: {line}")
    if exit is None:
        state = f" ({job.state})" if job else ""
        hint = "if all jobs end so: `doctor` checks whether compute nodes see the run directory"
        return AttemptOutcome("lost", f"the job ended without a trace{state}", hint)
    if code == DISK:
        return DISK_FULL
    if code == REFUSED:
        return AttemptOutcome("configuration", last_line(printed) or "the stage refused its input")
    if code == 0:
        return AttemptOutcome("application", f"ended without a valid result: {reason_invalid}")
    rank = f" of rank {exit.rank}" if exit.rank is not None else ""
    where = f" on {exit.host}" if exit.host else ""
    why = "" if rank else find_telling_line(printed.splitlines())  # no rank began, or none could say that it failed
    return AttemptOutcome("application", f"exit code {code}{rank}{where}" + (f": {why[:200]}" if why else ""))


def hopeless_outcome(id: str, reason: str) -> AttemptOutcome:
    """Return the outcome of a job that would wait for ever, with what to change."""
    hint = next((hint for pattern, hint in HOPELESS_HINTS if re.search(pattern, reason, re.I)), HOPELESS_HINT)
    return AttemptOutcome("configuration", f"job {id} would wait for ever: {reason}", hint)


def memory_outcome(message: str) -> AttemptOutcome:
    hint = "a smaller batch or model, more nodes, or a site with more memory"
    return AttemptOutcome("out-of-memory", message, hint)


def last_line(text: str) -> str:
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")


def first_line_with(pattern: re.Pattern[str], text: str) -> str:
    return next((line.strip()[:200] for line in text.splitlines() if pattern.search(line)), "")


def expand_hosts(nodes: str) -> list[str]:
    """Expand a list of nodes: n[1-2,07],x gives n1 n2 n07 x."""
    hosts = []
    for name, inner in re.findall(r"([^,\[]+)(?:\[([^\]]*)\])?,?", nodes):
        for part in inner.split(",") if inner else [""]:
            low, dash, high = part.partition("-")
            numbers = [f"{n:0{len(low)}}" for n in range(int(low), int(high) + 1)] if dash else [part]
            hosts += [name + number for number in numbers]
    return hosts


# ------------------------------------------------------------------------------------------------------ hanging ranks
RANK_LABEL = re.compile(r"^\[(rank \d+ on \S+)\] (.*)$", re.M)  # printed by gnnscale/job/rank_wrapper.py with a stack
STACK_FRAME = re.compile(r'\s*File "([^"]*)", line (\d+) in (.*)')


def parse_stacks(printed: str) -> dict[str, list[str]]:
    """Map each rank to the stack of its main thread, innermost frame first, or to the reason why it gave none.

    A frame reads `all_reduce (distributed_c10d.py:2810)`.
    """
    stacks: dict[str, list[str]] = {}
    in_main_thread: dict[str, bool] = {}  # whether the next lines of a rank are of that thread
    for rank, line in RANK_LABEL.findall(printed):
        if line.startswith(("Thread 0x", "Current thread 0x")):
            in_main_thread[rank] = line.startswith("Current")
            if in_main_thread[rank]:
                stacks[rank] = []
        elif frame := STACK_FRAME.match(line):
            if in_main_thread.get(rank):
                stacks[rank].append(format_frame(*frame.groups()))
        elif line.startswith("no answer"):
            stacks[rank] = [line]
    return stacks


def format_frame(path: str, number: str, name: str) -> str:
    _, package, inside = path.rpartition("/gnnscale/")
    is_ours = package and "lib/python" not in inside  # an environment may lie in a checkout of that name
    short = f"gnnscale/{inside}" if is_ours else "/".join(path.split("/")[-2:])
    return f"{name} ({short}:{number})"


def with_stacks(outcome: AttemptOutcome, printed: str) -> AttemptOutcome:
    """Add where each rank is: those that do not answer first, since the others may wait for them."""
    stacks = sorted(parse_stacks(printed).items(), key=lambda each: not "".join(each[1][:1]).startswith("no answer"))
    if not stacks:
        return outcome
    where = [f"{rank}: {describe_stack(frames)}" for rank, frames in stacks]
    more = f"; and {len(where) - 3} more" if len(where) > 3 else ""
    tail = tuple(f"{rank}: {frame}" for rank, frames in stacks[:3] for frame in frames[:5])
    return outcome._replace(message=f"{outcome.message}; {'; '.join(where[:3])}{more}", tail=tail)


def describe_stack(frames: list[str]) -> str:
    """Name the innermost frame, and the innermost one of this package."""
    if not frames:
        return "nowhere in Python"
    caller = next((frame for frame in frames if "(gnnscale/" in frame), frames[0])
    return frames[0] if caller == frames[0] else f"{frames[0]}, called from {caller}"


# ------------------------------------------------------------------------------------------------------ what comes next
class RetryBudget:
    """Remaining retries. Any progress restores them: on a large machine a node may fail every hour."""

    def __init__(self, progress: float):
        self.progress, self.used = progress, dict.fromkeys(RESPONSES, 0)

    def decide(self, outcome: AttemptOutcome, progress: float) -> tuple[Action, AttemptOutcome]:
        """Return the next action, and the outcome with the words for the user if that is to fail."""
        if progress > self.progress:
            self.progress, self.used = progress, dict.fromkeys(RESPONSES, 0)
        if outcome.kind not in RESPONSES:
            return "fail", outcome
        action = RESPONSES[outcome.kind][0]
        counted = outcome.kind if outcome.begun else "unfit" if outcome.kind == "node" else "not-begun"
        allowed = RESPONSES[counted][1]
        self.used[counted] += 1
        if action == "continue" and self.used["stopped"] + self.used["walltime"] >= allowed:
            return "fail", outcome._replace(
                kind="walltime",
                message=f"{allowed} jobs in a row ended ({outcome.message}) and got no further",
                hint="a job must outlast the interval of checkpoints: choose a queue with a longer walltime, or more nodes",
            )
        if self.used[counted] > allowed:
            return "fail", outcome._replace(
                message=f"{outcome.message}; this happened {self.used[counted]} times in a row"
            )
        return action, outcome
