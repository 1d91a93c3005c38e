"""A warm parent whose programs are those of a test: it loads no library, and starts at once."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from gnnscale.machine.warm_parent import ForkedProcess, WarmParent
from tests.support.corpus import ROOT

# What each program does is in one file, which is run by a warm parent, or by itself as a fresh process.
PROGRAMS = """
import json, os, resource, signal, sys, threading, time

def describe(words):
    fields = {}
    for name in ("SigBlk", "SigIgn", "SigCgt"):
        fields[name] = next(l.split()[1] for l in open("/proc/self/status") if l.startswith(name))
    handles = {n: os.readlink(f"/proc/self/fd/{n}") for n in sorted(os.listdir("/proc/self/fd"))[:3]}
    known = {
        "environ": dict(os.environ), "cwd": os.getcwd(), "path": sys.path, "arguments": words, "signals": fields,
        "limits": [resource.getrlimit(k) for k in range(16)], "nice": os.nice(0), "umask": os.umask(0),
        "leads": [os.getpid() == os.getpgid(0), os.getpid() == os.getsid(0)], "parent": os.getppid(), "handles": handles,
        "threads": threading.active_count(), "open": len(os.listdir("/proc/self/fd")), "input": sys.stdin.read(),
    }
    print(json.dumps(known, sort_keys=True))
    print("a warning", file=sys.stderr)

def end(words):
    how = words[0]
    if how == "raise":
        raise ValueError("our mistake")
    if how.startswith("SIG"):
        os.kill(os.getpid(), getattr(signal, how))
    sys.exit(int(how) if how.isdigit() else how)

def fill(words):
    bytearray(int(words[0]))
    print("there was room")

def wait(words):
    with open("began.new", "w") as file:
        file.write(str(os.getpid()))
    os.replace("began.new", "began")
    while not os.path.exists("go"):
        time.sleep(0.02)

PROGRAMS = {"describe": describe, "end": end, "fill": fill, "wait": wait}

def run_stage(words):
    # in a batch job: as the file `behave` of its directory says
    signal.signal(signal.SIGUSR1, lambda *_: os._exit(75))
    words = open("behave").read().split()
    PROGRAMS[words[0]](words[1:])
    sys.stdout.flush()
    os._exit(0)

if __name__ == "__main__":
    PROGRAMS[sys.argv[1]](sys.argv[2:])
"""
SERVER = """
import sys
from functools import partial
from pathlib import Path
from gnnscale.job import fork_server, rank_wrapper
from gnnscale.stages.programs import PROGRAMS, run_stage

def run_rank(words, cpu_seconds):
    sys.exit(rank_wrapper.main(Path(words[0]), words[1], partial(run_stage, words)))

def forked(program):
    return lambda words, cpu_seconds: program(words)

sys.exit(fork_server.serve({name: forked(program) for name, program in PROGRAMS.items()} | {"rank": run_rank}))
"""


def make_programs(place: Path, before: str = "") -> dict[str, str]:
    """Write a package in which the warm parent's program is that of the tests, and return the variables to find it."""
    package = place / "overlay" / "gnnscale"
    (package / "stages").mkdir(parents=True)
    (package / "__init__.py").write_text(f"__path__.append({str(ROOT / 'gnnscale')!r})\n")
    (package / "stages" / "__init__.py").touch()
    (package / "stages" / "programs.py").write_text(PROGRAMS)
    (package / "stages" / "preloaded.py").write_text(before + SERVER)
    return {"PYTHONPATH": str(package.parent), "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}


def list_processes(place: Path) -> list[int]:
    """List the processes that find the package of `make_programs`."""
    found = []
    for each in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if f"PYTHONPATH={place / 'overlay'}\0" in (each / "environ").read_text():
                found.append(int(each.name))
    return found


class Warm:
    """A warm parent for tests, with the means to run the same program in a fresh process."""

    def __init__(self, place: Path, before: str = ""):
        self.place = place
        self.environ = os.environ | make_programs(place, before)
        self.parent = WarmParent(self.environ)

    def fork(self, program: str, *words: str, **more: str) -> ForkedProcess | None:
        with open(self.place / "out", "wb") as out, open(self.place / "err", "wb") as err:
            return self.parent.fork(program, words, self.place, self.environ | more, out, err)

    def run(self, program: str, *words: str, **more: str) -> tuple[int, str, str]:
        """Return exit code, output and errors of a forked process."""
        process = self.fork(program, *words, **more)
        assert process is not None
        return process.wait(), (self.place / "out").read_text(), (self.place / "err").read_text()

    def run_fresh(self, program: str, *words: str, **more: str) -> tuple[int, str, str]:
        with open(self.place / "out", "wb") as out, open(self.place / "err", "wb") as err:
            process = subprocess.Popen(
                [sys.executable, "-m", "gnnscale.stages.programs", program, *words],
                env=self.environ | more,
                cwd=self.place,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
            )
        return process.wait(), (self.place / "out").read_text(), (self.place / "err").read_text()
