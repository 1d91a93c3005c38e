"""How an attempt of a stage in a batch job ended, and what is to be done about it. Pure.

What is known: exit.json, which the job's script leaves; error.json, which the stage leaves; the last words of both; and
the state that the scheduler tells. Each of them may be missing.
"""

from __future__ import annotations

import re
from typing import Literal, NamedTuple

from gnnscale.schema import Spec
from gnnscale.specs import StageError
from workflow.scheduler import Seen

Kind = Literal["done", "stopped", "walltime", "preempted", "cancelled", "withdrawn", "node", "lost", "stalled", "memory",
               "disk-full", "busy", "configuration", "data", "permission", "application"]  # fmt: skip
Action = Literal["continue", "again", "avoid", "shrink", "space", "fail"]

# kind: (what is done, how often in a row without progress)
RESPONSES: dict[str, tuple[Action, int]] = {
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
STOPPED, DISK, REFUSED = 75, 74, 64  # gnnscale/stage.py
MEMORY_WORDS = re.compile(
    "out of memory|can't allocate memory|oom[-_ ]?kill|std::bad_alloc|CUDA_ERROR_OUT_OF_MEMORY|cannot allocate memory",
    re.I,
)
NODE_WORDS = re.compile(
    "uncorrectable ECC|NCCL.*(unhandled system error|internal error|remote process exited)|fell off the bus|\\bXid\\b"
    "|CUDA error: (device|unknown error|unspecified launch)|no CUDA-capable device|hipErrorNoDevice|Bus error"
    "|Stale file handle|Transport endpoint|Input/output error|node failure|Communication connection failure", re.I,
)  # fmt: skip


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


class Outcome(NamedTuple):
    kind: Kind
    message: str
    hint: str = ""
    hosts: tuple[str, ...] = ()  # to be avoided


def classify(exit: Exit | None, seen: Seen | None, error: StageError | None, words: str, valid: str) -> Outcome:
    """`valid`: "" where the result is, else why it is not. `words`: the end of all that was printed."""
    if not valid:
        return Outcome("done", "")
    code, state = exit.code if exit else (seen.code if seen else None), seen.state if seen else ""
    if state == "PREEMPTED":
        return Outcome("preempted", "preempted")
    if state == "CANCELLED":
        return Outcome("cancelled", "cancelled by somebody else")
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
    if exit is None:
        return Outcome("lost", f"the job ended without a trace{f' ({state})' if state else ''}")
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
        self.used[outcome.kind] += 1
        if action == "continue" and self.used["stopped"] + self.used["walltime"] >= allowed:
            return "fail", outcome._replace(
                kind="walltime", message=f"{allowed} jobs in a row ended ({outcome.message}) and got no further",
                hint="a job must last for more than one checkpoint: a queue with a longer walltime, or more nodes",
            )  # fmt: skip
        if self.used[outcome.kind] > allowed:
            return "fail", outcome._replace(
                message=f"{outcome.message}; so it was {self.used[outcome.kind]} times in a row"
            )
        return action, outcome
