"""mpiexec of the stand-in for PBS: Hydra's way, which reaches other nodes by ssh unless it is told to use pbs_tmrsh."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.support.pbs.mom import on_host
from tests.support.pbs.store import PbsError, Store

NAMES = {
    "n": "n",
    "np": "n",
    "ppn": "ppn",
    "hosts": "hosts",
    "host": "hosts",
    "launcher": "launcher",
    "bootstrap": "launcher",
    "launcher-exec": "exec",
    "bootstrap-exec": "exec",
}


def mpiexec(store: Store, words: list[str]) -> int:
    """Run mpiexec -n RANKS -ppn PER_NODE [-hosts A,B] COMMAND, and end all ranks when one fails."""
    given, command = parse_options(words)
    hosts = given["hosts"].split(",") if "hosts" in given else read_hosts()
    ranks, per_node = int(given.get("n", "1")), int(given.get("ppn", "1"))
    used = [hosts[rank // per_node % len(hosts)] for rank in range(ranks)]
    own = read_hosts()[0]
    if far := sorted({host for host in used if host != own}):
        check_launcher(store, given, far)
    started = [start_rank(store, command, rank, used, own) for rank in range(ranks)]

    def forward_signal(signum: int, frame: object) -> None:
        for each in started:
            each.send_signal(signum)

    for signum in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, forward_signal)
    return wait_for(started)


def parse_options(words: list[str]) -> tuple[dict[str, str], list[str]]:
    given: dict[str, str] = {}
    while words and words[0].startswith("-"):
        name = words[0].lstrip("-")
        if name not in NAMES or len(words) < 2:
            raise PbsError(f"unrecognized argument {name}", 1)
        given[NAMES[name]] = words[1]
        words = words[2:]
    return given, words


def read_hosts() -> list[str]:
    return list(dict.fromkeys(Path(os.environ["PBS_NODEFILE"]).read_text().split()))


def check_launcher(store: Store, given: dict[str, str], far: list[str]) -> None:
    """Raise in ssh's words unless the launcher asks PBS to start processes on other nodes."""
    if store.conf["ssh"]:
        return
    launcher = given.get("launcher", os.environ.get("HYDRA_LAUNCHER", "ssh"))
    program = given.get("exec", os.environ.get("HYDRA_LAUNCHER_EXEC", ""))
    if launcher == "rsh" and Path(program).name == "pbs_tmrsh" and shutil.which(program):
        return
    print(f"ssh: connect to host {far[0]} port 22: Connection refused", file=sys.stderr)
    raise SystemExit(255)


def start_rank(store: Store, command: list[str], rank: int, used: list[str], own: str) -> subprocess.Popen[bytes]:
    """Start a rank; on another node it is a task of the job, in a session of its own, which signals reach too."""
    host = used[rank]
    local = used[:rank].count(host)
    env = os.environ | {"PMI_RANK": str(rank), "PMI_SIZE": str(len(used)), "MPI_LOCALRANKID": str(local)}
    if host == own:
        return subprocess.Popen(command, env=env)
    task = subprocess.Popen(on_host(store, host, command), env=env, start_new_session=True)
    with store.locked():
        job = store.load(env["PBS_JOBID"])
        job["tasks"].append(task.pid)
        store.save(job)
    return task


def wait_for(started: list[subprocess.Popen[bytes]]) -> int:
    code = 0
    while any(each.poll() is None for each in started):
        bad = [each.returncode for each in started if each.returncode not in (None, 0)]
        if bad and not code:
            code = bad[0]
            for each in started:
                each.kill()
        time.sleep(0.02)
    codes = [each.returncode for each in started if each.returncode]
    code = code or (codes[0] if codes else 0)
    return code if code >= 0 else 128 - code
