"""A private Slurm, a stand-in for PBS, and a study that runs there through the real command line."""

from __future__ import annotations

import getpass
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.corpus import ROOT
from workflow.plan import stage
from workflow.run_directory import journal

SCRIPT = ROOT / "tests" / "support" / "slurm.sh"
RUN = [sys.executable, str(ROOT / "workflow" / "run.py")]
QUICK = {
    "poll_seconds": 1.0,
    "command_timeout": 20.0,
    "late_seconds": 3.0,
    "signal_seconds": 60,
}  # for a scheduler on this machine
# Trainings take long enough for something to happen to their jobs, and DeepSpeed's ranks meet under real schedulers.
BY_DEEPSPEED = {"GNNSCALE_NATIVE": "0"}
PATIENCE = 900.0  # seconds: a test fails after them, whatever else a machine has to do
BEFORE_TRAINING = list(stage.FOLDER_OF_KIND)[: list(stage.FOLDER_OF_KIND).index("audit") + 1]


# A program for `spoil_module`: a training fails on the first node as it does where a node is sick.
FAILS_ON_N1 = """
if platform.node() == "n1":
    print("NCCL WARN: unhandled system error", file=sys.stderr, flush=True)
    os._exit(1)
"""


def make_study(epochs: int) -> dict:
    """Return a study of one training with three steps an epoch: a hundred epochs take some seconds."""
    return {
        "title": "One training",
        "data": [{"name": "bulk", "dataset": "generated", "options": {"source": "bulk", "structures": 60}}],
        "split": {"validation": 0.1, "test": 0.25},
        "train": {
            "model": {"kind": "egnn", "width": 8, "depth": 2, "cutoff": 4.0},
            "optim": {"epochs": epochs, "batch": 8},
        },
        "sweeps": [{"name": "one", "over": {"structures": [24]}}],
    }


SHORT, SOME, LONG = make_study(2), make_study(100), make_study(3000)


def spoil_module(place: Path, program: str, module: str = "gnnscale.stages.train") -> list[str]:
    """Return lines for the head of a job that make this module, and no other, begin with this program."""
    folder = place / "spoiled"
    folder.mkdir()
    head = f"import os, platform, sys, time\nif {module!r} in sys.orig_argv:\n"
    (folder / "sitecustomize.py").write_text(head + "".join(f"    {line}\n" for line in program.strip().splitlines()))
    return [f"export PYTHONPATH={folder}"]


def hold_training(place: Path, first: str = "") -> list[str]:
    """Return lines for the head of a job whose training waits, after a step, to be told to stop or for a file `go`.

    Before that it runs another program, `first`.
    """
    program = f"""
import signal
told, listen, replace = [], signal.signal, os.replace
def hear(signum, handler):
    return listen(signum, (lambda *words: told.append(signum) or handler(*words)) if callable(handler) else handler)
def hold(source, target):
    replace(source, target)
    while str(target).endswith("progress.json") and not told and not os.path.exists({str(place / "go")!r}):
        time.sleep(0.05)
signal.signal, os.replace = hear, hold
"""
    return spoil_module(place, first + program)


def find_processes(word: str) -> list[tuple[int, str]]:
    """List (pid, directory) of all processes whose command line holds the word."""
    found = []
    for each in Path("/proc").glob("[0-9]*"):
        try:
            if word in (each / "cmdline").read_text().split("\0"):
                found.append((int(each.name), os.readlink(each / "cwd")))
        except OSError:
            pass
    return found


def require(what: str, missing: str) -> None:
    """Skip the test, or fail where GNNSCALE_REQUIRE names `what`: a skip is easily taken for a pass."""
    assert what not in os.environ.get("GNNSCALE_REQUIRE", "").split(), f"{what} was required, but {missing}"
    pytest.skip(missing)


def explain_missing(*more: str) -> str:
    """Return why this machine cannot bring up a Slurm, or ""."""
    if os.geteuid() != 0:
        return "a private Slurm needs root"
    absent = [name for name in ("slurmctld", "slurmd", "munged", "unshare", *more) if shutil.which(name) is None]
    if absent:
        return f"no {', '.join(absent)}: `tests/support/slurm.sh install` brings them"
    if subprocess.run(["unshare", "--uts", "--mount", "--pid", "--fork", "true"], capture_output=True).returncode:
        return "no namespaces: this machine cannot be several nodes"
    return ""


class Cluster:
    """A Slurm that runs from `with` to its end, or to the end of this process."""

    kind = "slurm"

    def __init__(self, state: Path, nodes: int = 3, **options: object):
        self.state, self.nodes = state, nodes
        self.env = {"GNNSCALE_SLURM": str(state), "SLURM_CONF": str(state / "slurm.conf")}
        self.options = {name: str(value) for name, value in options.items()}

    def __enter__(self) -> Cluster:
        self.script("up", str(self.nodes), str(os.getpid()))
        return self

    def __exit__(self, *_: object) -> None:
        self.script("down")

    def script(self, *words: str) -> str:
        return self.call(str(SCRIPT), *words, **self.options)

    def call(self, *command: str, check: bool = True, **env: str) -> str:
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=os.environ | self.env | env)
        assert done.returncode == 0 or not check, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout

    def jobs(self) -> list[tuple[str, str, str]]:
        """List (id, name, state) of all jobs that Slurm remembers."""
        listed = self.call("squeue", "--noheader", "--states=all", "--format=%i %j %T").splitlines()
        return [tuple(line.split()) for line in listed]

    def active(self) -> list[str]:
        return [id for id, _, state in self.jobs() if state in ("PENDING", "RUNNING", "COMPLETING", "CONFIGURING")]

    def empty(self) -> None:
        if left := self.active():
            self.call("scancel", *left, check=False)  # one may have ended meanwhile
        wait_until(lambda: not self.active(), "the cluster to become empty")


class StandIn:
    """A stand-in for PBS: its commands, as tests/support/pbs/ implements them."""

    kind = "pbs"

    def __init__(self, state: Path, **conf: object):
        self.state = state
        (state / "bin").mkdir(parents=True)
        (state / "conf.json").write_text(json.dumps({"named": can_name_nodes()} | conf))
        names = "".join(f"127.0.1.{k} n{k}\n" for k in range(1, 10))
        (state / "hosts").write_text(Path("/etc/hosts").read_text() + names)
        program = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from tests.support.pbs import commands"
        for verb in ("qsub", "qstat", "qselect", "qdel", "qsig", "pbsnodes", "mpiexec"):
            run = f'"{program}; sys.exit(commands.main(*sys.argv[1:]))" {state} {verb}'
            self.write_program(verb, f'exec {sys.executable} -SE -c {run} "$@"')
        self.write_program("pbs_tmrsh", 'shift; exec "$@"')
        (state / "user").mkdir()
        (state / "user" / ".profile").write_text(f"export PATH={state / 'bin'}:$PATH\n")
        self.env = {"PATH": f"{state / 'bin'}:{os.environ['PATH']}"}

    def write_program(self, name: str, line: str) -> None:
        path = self.state / "bin" / name
        path.write_text(f"#!/bin/sh\n{line}\n")
        path.chmod(0o755)

    def site(self, **said: object) -> dict[str, Any]:
        """Return the user's layer of the site: its queue, its nodes and its launcher, in the way of PBS."""
        flags = ["-launcher", "rsh", "-launcher-exec", "pbs_tmrsh"]
        launch = {"flags": [*flags, "-n", "{ranks}", "-ppn", "{per_node}"]}
        queues = {"default": {"partition": "workq", "nodes": [1, 3], "max_walltime": "02:00:00"}}
        quick = {"poll_seconds": 0.5, "late_seconds": 0.5}
        return {"queues": queues, "node": {"cores": 4}, "launch": launch, "scheduler": quick} | said

    def set(self, **conf: object) -> None:
        """Change the settings of the server."""
        path = self.state / "conf.json"
        beside = path.with_suffix(".new")
        beside.write_text(json.dumps(json.loads(path.read_text()) | conf))
        beside.replace(path)

    def called(self) -> list[tuple[float, list[str]]]:
        """List the commands that were called: when, and with which words."""
        path = self.state / "commands.log"
        lines = path.read_text().splitlines() if path.exists() else []
        return [(moment, words) for moment, *words in map(json.loads, lines)]

    def commands(self, verb: str) -> int:
        return sum(words[0] == verb for _, words in self.called())

    def ended(self) -> list[dict]:
        """List the jobs that have ended, with the exit status of each, of which the server itself tells nothing."""
        path = self.state / "ended.log"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def call(self, *command: str, check: bool = True, cwd: Path | None = None) -> str:
        done = self.run(*command, cwd=cwd)
        assert done.returncode == 0 or not check, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout if check else done.stderr

    def run(self, *command: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        return subprocess.run(command, capture_output=True, text=True, timeout=120, env=os.environ | self.env, cwd=cwd)

    def job(self, id: str) -> dict[str, Any]:
        """Return what the server says of a job, which has a session once it runs."""
        return json.loads(self.call("qstat", "-f", "-F", "json", id))["Jobs"][id]

    def active(self) -> list[str]:
        return self.call("qselect").split()

    def empty(self) -> None:
        for id in self.active():
            self.call("qdel", id, check=False)
        wait_until(lambda: not self.active(), "the last jobs to end")


class RealPBS:
    """A PBS of this machine, whose nodes see the directories of the tests; only jobs from there are touched."""

    kind = "pbs"
    env: dict[str, str] = {}

    def __init__(self, place: Path) -> None:
        self.place = place
        self.conf = dict(re.findall(r"^    (\w+) = (.*)$", self.call("qstat", "-B", "-f"), re.M))
        nodes = json.loads(self.call("pbsnodes", "-a", "-F", "json"))["nodes"].values()
        self.cores = min(int(node["resources_available"]["ncpus"]) for node in nodes)
        self.nodes = len(nodes)

    def site(self, **said: object) -> dict[str, Any]:
        flags = ["-launcher", "rsh", "-launcher-exec", "pbs_tmrsh", "-n", "{ranks}", "-ppn", "{per_node}"]
        launch = {"flags": flags}
        queue = {"partition": self.conf["default_queue"], "nodes": [1, self.nodes], "max_walltime": "01:00:00"}
        return {"queues": {"default": queue}, "node": {"cores": min(4, self.cores)}, "launch": launch} | said

    def call(self, *command: str, check: bool = True, cwd: Path | None = None) -> str:
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=cwd)
        assert done.returncode == 0 or not check, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout if check else done.stderr

    def active(self) -> list[str]:
        ids = self.call("qselect", "-u", getpass.getuser()).split()
        done = subprocess.run(["qstat", "-f", *ids], capture_output=True, text=True, timeout=120) if ids else None
        jobs = done.stdout.replace("\n\t", "").split("Job Id: ")[1:] if done else []  # some may have ended meanwhile
        return [job.split()[0] for job in jobs if f"PBS_O_WORKDIR={self.place}/" in job]

    def empty(self) -> None:
        for id in self.active():
            self.call("qdel", id, check=False)
        wait_until(lambda: not self.active(), "the last jobs to end")


def explain_no_pbs() -> str:
    """Return why the tests cannot use a real PBS here; "" if they can."""
    if absent := [each for each in ("qstat", "qsub", "pbsnodes", "pbs_tmrsh", "mpiexec") if not shutil.which(each)]:
        return f"no {', '.join(absent)}: no PBS is installed here"
    done = subprocess.run(["qstat", "-B"], capture_output=True, text=True, timeout=60)
    return f"PBS does not answer: {done.stderr.strip()}" if done.returncode else ""


def can_name_nodes() -> bool:
    """Tell whether processes here can have a host's name and /etc/hosts of their own."""
    return subprocess.run(["unshare", "--uts", "--mount", "true"], capture_output=True).returncode == 0


def wait_until(condition: Callable[[], Any], what: str) -> Any:
    deadline = time.monotonic() + PATIENCE
    while not (found := condition()):
        assert time.monotonic() < deadline, f"waited {PATIENCE} s in vain for {what}"
        time.sleep(0.05)
    return found


def measure_patience(command: Callable[[], object]) -> float:
    """Return the seconds that suffice for what is done at once: ten, or ten times what this command takes now."""
    began = time.monotonic()
    command()
    return max(10.0, 10 * (time.monotonic() - began))


class Run:
    """A run directory, and the driver that works in it."""

    def __init__(
        self, cluster: Cluster, place: Path, study: dict, site: dict | None = None, before: Path | None = None
    ):
        """Prepare a run with the data of the run directory `before`. `site` overrides sites/slurm.yaml or sites/pbs.yaml."""
        self.cluster, self.root, self.driver = cluster, place / "run", None
        self.study = place / "study.yaml"
        self.study.write_text(json.dumps(study))
        self.env = os.environ | cluster.env | {"XDG_CONFIG_HOME": str(place / "config")}
        self.layer(**(site or {}))
        for folder in sorted({stage.FOLDER_OF_KIND[kind] for kind in BEFORE_TRAINING}) if before is not None else ():
            shutil.copytree(before / folder, self.root / folder, symlinks=True)

    def layer(self, **said: Any) -> None:
        """Write the user's layer of the site."""
        name = self.cluster.kind
        path = Path(self.env["XDG_CONFIG_HOME"]) / "gnnscale" / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        asked = {"kind": name} | QUICK | said.pop("scheduler", {})
        said = {"env": BY_DEEPSPEED} | said | {"scheduler": asked}
        path.write_text(json.dumps(said))  # JSON is YAML whose times are quoted

    def command(self, *words: str, site: str = "") -> list[str]:
        return [*RUN, *words, "--site", site or self.cluster.kind, "--study", str(self.study), "--root", str(self.root)]

    def call(self, *words: str, site: str = "", timeout: float = 300) -> subprocess.CompletedProcess:
        return subprocess.run(
            self.command(*words, site=site),
            capture_output=True,
            text=True,
            timeout=timeout,
            env=self.env,
            cwd=self.root.parent,
        )

    def start(self, *words: str, **env: str) -> subprocess.Popen:
        self.driver = subprocess.Popen(
            self.command("run", *words),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=self.env | env,
            cwd=self.root.parent,
        )
        return self.driver

    def end(self, code: int = 0, seconds: float = 900) -> str:
        """Wait until the driver has ended with this code, and return what it printed."""
        said, _ = self.driver.communicate(timeout=seconds)
        assert self.driver.returncode == code, said
        assert "Traceback" not in said, said
        return said

    def kill(self) -> None:
        self.driver.kill()
        self.driver.communicate()

    def wait(self, condition: Callable[[], Any], what: str) -> Any:
        def looked() -> Any:
            if (found := condition()) or self.driver.poll() is None:
                return found
            raise AssertionError(f"the driver ended before {what}: {self.driver.stdout.read()}")

        return wait_until(looked, what)

    def events(self, kind: str = "") -> list[dict]:
        return [e for e in journal.read_events(self.root / "events.jsonl") if not kind or e["event"] == kind]

    def submitted(self) -> list[str]:
        return [event["job"] for event in self.events("submit")]

    def folder(self, kind: str = "train") -> Path:
        """Return the directory of the only stage of this kind."""
        return next((self.root / kind).iterdir())

    def running(self) -> str:
        """Return the id of the running job, once its training has taken steps; "" before."""
        told = [e for e in self.events("job") if e["state"] == "RUNNING"]
        ids = {e["name"]: e["job"] for e in self.events("submit")}
        folder = self.root / "train"
        if told and folder.exists() and (self.folder() / "progress.json").exists():
            return ids.get(told[-1]["name"], "")
        return ""

    def steps(self) -> int:
        return json.loads((self.folder() / "progress.json").read_text())["done"]

    def stop(self) -> None:
        """Kill the driver if it still runs."""
        if self.driver is not None and self.driver.poll() is None:
            self.kill()
