"""The mom of the stand-in for PBS: it runs a job in a session of its own, and signals every process there.

A login shell, the top shell, reads from its standard input the name of the script. It gets each signal too, and when it has
ended, all others of the job are killed at once: a script that hears SIGTERM has no time for an answer.
"""

from __future__ import annotations

import os
import pwd
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from tests.support.pbs.scheduling import schedule
from tests.support.pbs.store import Job, Store, to_seconds
from tests.support.pbs.submission import describe_variables

KILLED = {"ncpus": -25, "vmem": -26, "mem": -27, "cput": -28, "walltime": -29}  # JOB_EXEC_KILL_* of job.h
LOOK_SECONDS = 0.2  # between looks for signals that are due
ON_NODE = 'hostname "$1" && mount --bind "$2" /etc/hosts && shift 2 && exec "$@"'


def run_cycle(store: Store) -> None:
    """Let the scheduler look at the jobs, and start those that begin."""
    with store.locked():
        begun = schedule(store)
    for id in begun:
        start_mom(store, id)


def start_mom(store: Store, id: str) -> None:
    """Run the job in a process that nothing here waits for."""
    if child := os.fork():
        os.waitpid(child, 0)
        return
    os.setsid()
    if os.fork():
        os._exit(0)
    log = os.open(store.home / "mom.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in range(3):
        os.dup2(log if stream else os.open(os.devnull, os.O_RDONLY), stream)
    sys.stdout, sys.stderr = (os.fdopen(k, "w", buffering=1, closefd=False) for k in (1, 2))
    try:
        RunningJob(store, store.load(id)).run()
        run_cycle(store)
    finally:
        os._exit(0)


class RunningJob:
    """Job on its nodes, from its start to the copies of what it printed."""

    def __init__(self, store: Store, job: Job):
        self.store, self.job = store, job
        self.folder = store.home / "spool" / job["id"]
        self.folder.mkdir()
        self.temporary = self.folder / "tmp"
        self.temporary.mkdir()
        self.home = store.home / "user"  # whose .profile the top shell reads
        self.out, self.err = self.folder / "OU", self.folder / "ER"
        if job["join"] in ("oe", "eo"):
            self.err = self.out
        self.status: int | None = None  # the mom's own, if it ends the job
        self.kill_at = 0.0

    def run(self) -> None:
        (self.folder / "SC").write_text(self.job["script"])
        (self.folder / "SC").chmod(0o700)
        shell = self.start_shell()
        self.store.change(self.job["id"], sid=shell.pid)
        limit = self.job["walltime"]
        end = time.monotonic() + to_seconds(limit) if limit else float("inf")
        handle = os.pidfd_open(shell.pid)
        while not select.select([handle], [], [], LOOK_SECONDS)[0]:
            self.look_after(end)
        code = shell.wait()
        with self.store.locked():
            self.job = self.store.load(self.job["id"]) | {"state": "E"}
            self.store.save(self.job)
        self.signal(signal.SIGKILL)
        self.copy_output()
        with self.store.locked():
            self.store.finish(self.job, self.status if self.status is not None else 256 - code if code < 0 else code)

    def start_shell(self) -> subprocess.Popen[str]:
        name = Path(self.job["shell"] or pwd.getpwuid(os.getuid()).pw_shell).name
        command = on_host(self.store, self.job["hosts"][0], ["bash", "-c", f"exec -a -{name} {name}"])
        mask = int(self.job["umask"], 8)
        with open(self.out, "a", opener=masked(mask)) as out, open(self.err, "a", opener=masked(mask)) as err:
            shell = subprocess.Popen(
                command,
                cwd=self.home,
                env=self.environment(),
                stdin=subprocess.PIPE,
                stdout=out,
                stderr=err,
                text=True,
                start_new_session=True,
                umask=mask,
            )
        assert shell.stdin is not None
        shell.stdin.write(f"{self.folder / 'SC'}\n")
        shell.stdin.close()
        return shell

    def environment(self) -> dict[str, str]:
        """Return what the mom gives a job: nothing of the submitter's but under other names."""
        job, user = self.job, pwd.getpwuid(os.getuid())
        lines = [host for host, chunk in zip(job["hosts"], job["chunks"]) for _ in range(chunk["mpiprocs"])]
        (self.folder / "nodefile").write_text("".join(f"{host}\n" for host in lines))
        cores = str(job["chunks"][0]["ncpus"])
        own = {"HOME": str(self.home), "LOGNAME": user.pw_name, "USER": user.pw_name, "SHELL": user.pw_shell}
        own |= {"PATH": "/bin:/usr/bin", "LANG": "C", "TMPDIR": str(self.temporary), "ENVIRONMENT": "BATCH"}
        own |= {"OMP_NUM_THREADS": cores, "NCPUS": cores, "PBS_ENVIRONMENT": "PBS_BATCH", "PBS_JOBID": job["id"]}
        own |= {"PBS_JOBNAME": job["name"], "PBS_QUEUE": job["queue"], "PBS_NODEFILE": str(self.folder / "nodefile")}
        own |= {"PBS_JOBDIR": str(self.home), "PBS_NODENUM": "0", "PBS_TASKNUM": "1", "PBS_MOMPORT": "15003"}
        return describe_variables(job) | own

    def look_after(self, end: float) -> None:
        """End a job that exceeds a limit, and kill one that has been told to end."""
        now = time.monotonic()
        resource = "walltime" if now > end else self.store.conf["kill"].get(self.job["id"].split(".")[0])
        if resource and self.status is None:
            self.status = KILLED[resource]
            with open(self.err, "a") as err:
                err.write(f"=>> PBS: job killed: {resource} {describe_excess(resource)}\n")
            self.signal(signal.SIGTERM)
            self.kill_at = now + self.store.conf["kill_delay"]
        if not self.kill_at and self.store.load(self.job["id"]).get("deleted"):
            self.signal(signal.SIGTERM)  # it may have been deleted before its shell was there
            self.kill_at = now + self.store.conf["kill_delay"]
        if self.kill_at and now > self.kill_at:
            self.signal(signal.SIGKILL)

    def signal(self, signum: int) -> None:
        signal_job(self.store.load(self.job["id"]), signum)

    def copy_output(self) -> None:
        """Copy what the job printed to where it was asked to be, with the modes that it has in the spool."""
        number, job = self.job["id"].split(".")[0], self.job
        wanted = {
            self.err: job["err"] or f"{job['name']}.e{number}",
            self.out: job["out"] or f"{job['name']}.o{number}",
        }
        for path, name in wanted.items():  # of a joined file, the name of the output
            try:
                shutil.copyfile(path, target := Path(job["cwd"], name))
                target.chmod(path.stat().st_mode & 0o777)
            except OSError as error:
                print(f"{job['id']}: {error}", file=sys.stderr)  # PBS sends a mail, which nobody reads


def describe_excess(resource: str) -> str:
    return "9437184kb exceeded limit 8388608kb" if resource.endswith("mem") else "11 exceeded limit 10"


def masked(mask: int) -> Callable[[str, int], int]:
    """Return how a file is opened whose mode a job's umask decides, whatever that of this process is."""

    def opener(path: str, flags: int) -> int:
        file = os.open(path, flags, 0o600)
        os.fchmod(file, 0o666 & ~mask)
        return file

    return opener


def on_host(store: Store, host: str, command: list[str]) -> list[str]:
    """Return the command that runs another one on a node: with its name, where nodes have names."""
    if not store.conf["named"]:
        return command
    return ["unshare", "--uts", "--mount", "sh", "-c", ON_NODE, "sh", host, str(store.home / "hosts"), *command]


def signal_job(job: Job, signum: int) -> None:
    """Send a signal to every process of every session of a job."""
    for pid in find_processes([job["sid"], *job["tasks"]] if "sid" in job else []):
        try:
            os.kill(pid, signum)
        except ProcessLookupError:
            pass


def find_processes(sessions: Iterable[int]) -> list[int]:
    wanted, found = set(sessions), []
    for each in Path("/proc").glob("[0-9]*/stat") if wanted else ():
        try:
            if int(each.read_text().rpartition(")")[2].split()[3]) in wanted:
                found.append(int(each.parent.name))
        except OSError:
            pass
    return found
