"""How an attempt of a stage in a batch job ended, and what is to be done about it. Pure.

What is known: exit.json, which the job's script leaves; error.json, which the stage leaves; the last words of both; and
the state that the scheduler tells. Each of them may be missing.
"""

from __future__ import annotations

import re
from typing import Literal, NamedTuple

from gnnscale.contract.results import StageError
from gnnscale.schema import Spec
from workflow.scheduler.query import Seen

Kind = Literal[
    "done",
    "not-begun",
    "stopped",
    "walltime",
    "preempted",
    "cancelled",
    "withdrawn",
    "node",
    "lost",
    "stalled",
    "memory",
    "disk-full",
    "busy",
    "configuration",
    "data",
    "permission",
    "application",
]
Action = Literal["continue", "again", "avoid", "shrink", "space", "fail"]

# kind: (what is done, how often in a row without progress)
RESPONSES: dict[str, tuple[Action, int]] = {
    "not-begun": ("again", 20),  # the job ended before its turn came
    "unfit": ("avoid", 5),  # a node was sick before anything ran there; more in a row are hardly chance
    "stopped": ("continue", 2),  # it kept its work: signalled before the end of its time, or preempted
    "walltime": ("continue", 2),
    "preempted": ("continue", 20),
    "cancelled": ("again", 2),  # by somebody else
    "node": ("avoid", 3),
    "lost": ("again", 2),
    "stalled": ("again", 1),
    "memory": ("shrink", 3),
    "disk-full": ("space", 5),
    "busy": ("again", 5),  # another process still holds the directory
}
STOPPED, DISK, REFUSED = 75, 74, 64  # gnnscale/job/stage_process.py
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

ENDED_WORDS = re.compile(  # the launcher lost its job, which squeue may not know any more either
    "job \\d+ has expired|invalid job id|unknown job id|already completing or completed|unable to confirm allocation",
    re.I,
)


class Exit(Spec):
    """exit.json of an attempt, as the job's script leaves it."""

    code: int
    rank: int | None
    host: str
    launcher: int
    job: str
    hosts: tuple[str, ...]
    begin: int
    end: int
    begun: bool = True
    sick: dict[str, str] = {}  # node -> why it is not fit


class Outcome(NamedTuple):
    kind: Kind
    message: str
    hint: str = ""
    hosts: tuple[str, ...] = ()  # to be avoided
    begun: bool = True
    tail: tuple[str, ...] = ()  # last words that say more than those in its files


def classify(
    exit: Exit | None, seen: Seen | None, error: StageError | None, words: str, valid: str, preemptible: bool = False
) -> Outcome:
    """`valid`: "" where the result is, else why it is not. `words`: the end of all that was printed. `preemptible`: its
    queue takes nodes back without a word, which PBS tells in no other way than that the job was deleted."""
    if not valid:
        return Outcome("done", "")
    code, state = exit.code if exit else (seen.code if seen else None), seen.state if seen else ""
    if exit and exit.sick:
        said = "; ".join(f"{host}: {why}" for host, why in exit.sick.items())
        hint = "if all nodes are so it is not the nodes: look at `node` of the site's file, and try `doctor`"
        return Outcome("node", f"not fit: {said[:400]}", hint, tuple(exit.sick), begun=False)
    if exit and not exit.begun:
        return Outcome("not-begun", "its job ended before its turn came", begun=False)
    if state == "PREEMPTED":
        return Outcome("preempted", "preempted")
    if state == "CANCELLED":
        return Outcome("preempted", "preempted") if preemptible else Outcome("cancelled", "cancelled by somebody else")
    if exit and code == STOPPED:
        return Outcome("stopped", "told to stop, and kept its work")
    if state == "NODE_FAIL":
        return Outcome("node", f"a node failed ({seen.nodes})", hosts=tuple(expand(seen.nodes)[:1]))
    if state == "OUT_OF_MEMORY":
        return memory("the scheduler ended it for want of memory")
    if state == "TIMEOUT":
        return Outcome("walltime", "ran into the end of its time")
    if error and "is in use by" in error.message:
        return Outcome("busy", error.message)
    if error and error.kind == "out-of-memory":
        return memory(error.message)
    if error and error.kind != "application":
        return Outcome(error.kind, error.message, error.hint)
    if NODE_WORDS.search(words):
        host = exit.host if exit else ""
        said = next(line for line in words.splitlines() if NODE_WORDS.search(line)).strip()
        return Outcome("node", f"{host + ': ' if host else ''}{said[:200]}", hosts=(host,) if host else ())
    if MEMORY_WORDS.search(words) or code == 137:
        return memory("killed, most likely for want of memory" if code == 137 else "out of memory")
    if error:
        return Outcome("application", error.message, error.hint)
    if code == 143 or ENDED_WORDS.search(words):
        said = next((line.strip() for line in words.splitlines() if ENDED_WORDS.search(line)), "told to end")
        return Outcome("lost", f"ended from outside: {said[:200]}")
    if exit is None:
        return Outcome(
            "lost",
            f"the job ended without a trace{f' ({state})' if state else ''}",
            "if all do: `doctor` finds out whether compute nodes see the run directory",
        )
    if code == DISK:
        return Outcome("disk-full", "no space left on device")
    if code == REFUSED:
        return Outcome("configuration", last(words) or "the stage refused its input")
    if code == 0:
        return Outcome("application", f"ended without a valid result: {valid}")
    where = f" on {exit.host}" if exit.host else ""
    return Outcome("application", f"exit code {code}{f' of rank {exit.rank}' if exit.rank is not None else ''}{where}")


def memory(message: str) -> Outcome:
    return Outcome("memory", message, "a smaller batch or model, more nodes, or a site with more memory")


def last(words: str) -> str:
    return next((line.strip() for line in reversed(words.splitlines()) if line.strip()), "")


def expand(nodes: str) -> list[str]:
    """n[1-2,07],x -> n1 n2 n07 x"""
    found = []
    for name, inner in re.findall(r"([^,\[]+)(?:\[([^\]]*)\])?,?", nodes):
        for part in inner.split(",") if inner else [""]:
            low, dash, high = part.partition("-")
            numbers = [f"{n:0{len(low)}}" for n in range(int(low), int(high) + 1)] if dash else [part]
            found += [name + number for number in numbers]
    return found


# ------------------------------------------------------------------------------------------------------- who hangs where
LABEL = re.compile(r"^\[(rank \d+ on \S+)\] (.*)$", re.M)  # gnnscale/job/rank_wrapper.py, when it is asked where it is
FRAME = re.compile(r'\s*File "([^"]*)", line (\d+) in (.*)')


def stacks(words: str) -> dict[str, list[str]]:
    """Rank -> where its main thread is, innermost first: `all_reduce (distributed_c10d.py:2810)`; or why it does not say."""
    found: dict[str, list[str]] = {}
    mine: dict[str, bool] = {}  # whether the lines that follow are of that thread
    for rank, line in LABEL.findall(words):
        if line.startswith(("Thread 0x", "Current thread 0x")):
            mine[rank] = line.startswith("Current")
            if mine[rank]:
                found[rank] = []
        elif frame := FRAME.match(line):
            if mine.get(rank):
                path, number, name = frame.groups()
                _, ours, inner = path.rpartition("/gnnscale/")
                ours = ours and "lib/python" not in inner  # which lies in a checkout of that name
                short = f"gnnscale/{inner}" if ours else "/".join(path.split("/")[-2:])
                found[rank].append(f"{name} ({short}:{number})")
        elif line.startswith("no answer"):
            found[rank] = [line]
    return found


def hanging(outcome: Outcome, words: str) -> Outcome:
    """Told with where its ranks are: those that do not answer first, since the others may wait for them."""
    found = sorted(stacks(words).items(), key=lambda each: not each[1][:1] or not each[1][0].startswith("no answer"))
    if not found:
        return outcome
    where = [f"{rank}: {called(frames)}" for rank, frames in found]
    more = f"; and {len(where) - 3} more" if len(where) > 3 else ""
    tail = tuple(f"{rank}: {frame}" for rank, frames in found[:3] for frame in frames[:5])
    return outcome._replace(message=f"{outcome.message}; {'; '.join(where[:3])}{more}", tail=tail)


def called(frames: list[str]) -> str:
    """The innermost frame, and the innermost of ours."""
    if not frames:
        return "nowhere in Python"
    ours = next((frame for frame in frames if "(gnnscale/" in frame), frames[0])
    return frames[0] if ours == frames[0] else f"{frames[0]}, called from {ours}"


class Budget:
    """What may still be tried. Progress pays all of it back: on a large machine a node may fail every hour."""

    def __init__(self, progress: float):
        self.progress, self.used = progress, dict.fromkeys(RESPONSES, 0)

    def decide(self, outcome: Outcome, progress: float) -> tuple[Action, Outcome]:
        """The action, and the outcome as it is to be told if that is to fail."""
        action, allowed = RESPONSES.get(outcome.kind, ("fail", 0))
        if progress > self.progress:
            self.progress, self.used = progress, dict.fromkeys(RESPONSES, 0)
        if action == "fail":
            return "fail", outcome
        counted = outcome.kind if outcome.begun else "unfit" if outcome.kind == "node" else "not-begun"
        allowed = RESPONSES[counted][1]
        self.used[counted] += 1
        if action == "continue" and self.used["stopped"] + self.used["walltime"] >= allowed:
            return "fail", outcome._replace(
                kind="walltime",
                message=f"{allowed} jobs in a row ended ({outcome.message}) and got no further",
                hint="a job must last for more than one checkpoint: a queue with a longer walltime, or more nodes",
            )
        if self.used[counted] > allowed:
            return "fail", outcome._replace(message=f"{outcome.message}; so it was {self.used[counted]} times in a row")
        return action, outcome
