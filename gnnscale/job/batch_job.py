"""What a batch job does: python -m gnnscale.job.batch_job, with a plan on its standard input, as workflow/jobs/launch.py writes it.

It starts the ranks of its stage, or of several: side by side on hosts of their own, some at a time on one host, or one
after another where the second needs the first. Before a training it looks whether its nodes are fit. It passes on to the
ranks that the time is nearly over or that somebody wants to know where they are, ends those that wait in vain for a
fellow, and leaves attempts/N/exit.json of each, whole. Standard library only: it may run outside of the container in which
the ranks are.

It is not a shell script because it was one: bash forgets the status of a process that ends while a trap interrupts
`wait`, and then waits for ever.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from gnnscale.job.rank_wrapper import BY_FILE, STOPPED, in_child

FAILED, DISK, UNFIT = 1, 74, 76
FULL = (errno.ENOSPC, errno.EDQUOT)
CHECK = 30.0  # s in which a node must have said that it is fit
GRACE, MERCY = 5.0, 30.0  # s from the first failure to SIGTERM for the launcher, and from there to SIGKILL
NAP = 0.1  # s
LOOK = 2.0  # s between two looks for a rank that has failed: they are at a file system that many jobs share
SWEPT = (128 + signal.SIGUSR1, 128 + signal.SIGTERM, 255)  # of a launcher that does not pass a signal on


class Check:
    """Every node of a training asked whether it is fit, in the way in which the training will be launched."""

    def __init__(self, command: list[str], folder: Path, environ: dict[str, str]):
        self.said, self.began = tempfile.TemporaryFile(), time.monotonic()
        self.process = subprocess.Popen(
            command,
            cwd=folder,
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=self.said,
            stderr=subprocess.DEVNULL,
            preexec_fn=in_child,
        )

    def over(self) -> bool:
        if self.process.poll() is None and time.monotonic() - self.began < CHECK:
            return False
        self.process.kill()
        return True

    def sick(self, hosts: list[str], ranks: int) -> dict[str, str]:
        """Host -> what is wrong with it. Where nobody answered it is not the nodes: the training will say what it is."""
        self.said.seek(0)
        said = self.said.read().decode(errors="replace")
        fit = Counter(host.split(".")[0] for host in re.findall(r"\bfit (\S+)$", said, re.M))
        told = dict(re.findall(r"\bsick (\S+): (.+)$", said, re.M))
        known = {host.split(".")[0]: host for host in hosts}  # a node may give its name in full
        sick = {known.get(host.split(".")[0], host): why for host, why in told.items()}
        if fit.keys() & known.keys() or told.keys() & known.keys():
            for short, host in known.items():
                if fit[short] < ranks and host not in sick:
                    who = f"{ranks - fit[short]} of {ranks} ranks" if fit[short] else "it"
                    sick[host] = f"{who} did not answer"
        return sick


class Attempt:
    """One stage: the launcher's process, and what became of it."""

    def __init__(self, plan: dict, job: str, hosts: list[str], address: str, port: int):
        self.job, self.hosts = job, hosts[plan["first"] :][: plan["nodes"]]
        self.folder, self.after, self.per_node = Path(plan["folder"]), plan["after"], plan["per_node"]
        self.place = self.folder / "attempts" / str(plan["number"])
        meet = "127.0.0.1" if len(self.hosts) == 1 else address if plan["first"] == 0 else self.hosts[0]
        self.environ = os.environ | {"MASTER_ADDR": meet, "MASTER_PORT": str(port)}
        self.command, self.checking = (self.words(plan[name]) for name in ("command", "check"))
        self.check: Check | None = None
        self.process: subprocess.Popen | None = None
        self.code: int | None = None
        self.told, self.ending, self.failed_at, self.looked, self.begin = False, 0, 0.0, 0.0, int(time.time())
        # A launcher's signal reaches every process of a step, also the one that serves an image, which ends of it.
        self.by_file = plan.get("by_file", False)
        self.environ |= {BY_FILE: "1"} if self.by_file else {}

    def words(self, command: str | None) -> list[str]:
        return [word.replace("{hosts}", ",".join(self.hosts)) for word in shlex.split(command or "")]

    @property
    def begun(self) -> bool:
        return self.process is not None or self.check is not None

    def start(self) -> None:
        """Unless its nodes are to be looked at before; then `look` goes on."""
        self.begin = int(time.time())
        try:
            self.place.mkdir(parents=True, exist_ok=True) if self.folder.is_dir() else self.folder.stat()
            if (self.place / "closed").exists():  # the driver has given this attempt up, and perhaps begun another
                self.code = 0
                return
            for name in ("exit.json", "failed", "SIGUSR1", "SIGUSR2"):
                (self.place / name).unlink(missing_ok=True)
            if self.checking:
                self.check = Check(self.checking, self.folder, self.environ)
            else:
                self.launch()
        except OSError as error:
            self.fail(error)

    def launch(self) -> None:
        try:
            with open(self.place / "stdout", "wb") as out, open(self.place / "stderr", "wb") as err:
                self.process = subprocess.Popen(
                    self.command,
                    cwd=self.folder,
                    env=self.environ,
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=err,
                    preexec_fn=in_child,
                )
        except OSError as error:
            self.fail(error)

    def fail(self, error: OSError) -> None:
        """It could not be started, which is nothing to the others of its job."""
        say(error)
        self.leave(DISK if error.errno in FULL else FAILED)

    def tell(self, signum: int) -> None:
        self.told = self.told or signum != signal.SIGUSR2
        if self.process is not None and self.by_file:
            try:
                (self.place / signal.Signals(signum).name).touch()
            except OSError as error:
                say(error)  # it goes on until its time is over; others may still hear
        elif self.process is not None:
            self.process.send_signal(signum)

    def look(self) -> None:
        """Has it ended; and if one of its ranks has failed, do the others go on for ever?"""
        if self.process is None:
            self.look_at_nodes()
            return
        launched = self.process.poll()
        if launched is not None:
            self.end(launched if launched >= 0 else 128 - launched)
            return
        now = time.monotonic()
        if now - self.looked < LOOK:
            return
        self.looked = now
        code, _, _ = self.first_failure()
        if code in (None, STOPPED):
            return
        self.failed_at = self.failed_at or now
        for number, (after, how) in enumerate(((GRACE, signal.SIGTERM), (GRACE + MERCY, signal.SIGKILL)), 1):
            if self.ending < number and now - self.failed_at > after:
                self.ending = number
                self.process.send_signal(how)

    def look_at_nodes(self) -> None:
        if not self.check.over():
            return
        if sick := self.check.sick(self.hosts, self.per_node):
            self.leave(UNFIT, begun=False, sick=sick)
        elif self.told:
            self.leave(STOPPED, begun=False)
        else:
            self.launch()

    def first_failure(self) -> tuple[int | None, int | None, str]:
        try:
            code, rank, host = (self.place / "failed").read_text().split()
        except (OSError, ValueError):
            return None, None, ""
        return int(code), int(rank), host

    def end(self, launched: int) -> None:
        code, rank, host = self.first_failure()
        code = code if code is not None else STOPPED if self.told and launched in SWEPT else launched
        self.leave(code, rank, host, launched)

    def leave(
        self,
        code: int,
        rank: int | None = None,
        host: str = "",
        launched: int = 0,
        *,
        begun: bool = True,
        sick: dict[str, str] | None = None,
    ) -> None:
        self.code = code
        if not self.folder.is_dir():  # removed: nobody will look for how it ended
            return
        said = {
            "code": code,
            "rank": rank,
            "host": host,
            "launcher": launched,
            "job": self.job,
            "hosts": self.hosts,
            "begin": self.begin,
            "end": int(time.time()),
            "begun": begun,
            "sick": sick or {},
        }
        beside = self.place / ".exit.json"
        try:
            self.place.mkdir(parents=True, exist_ok=True)
            with open(beside, "w") as file:
                file.write(json.dumps(said) + "\n")
                file.flush()
                os.fsync(file.fileno())
            os.replace(beside, self.place / "exit.json")
        except OSError as error:
            say(error)


class Work:
    """All attempts of the job, and in which order they begin."""

    def __init__(self, attempts: list[Attempt], slots: int | None, gpus: tuple[str, int] | None = None):
        """`gpus`: how many there are for those that run side by side, and the variable that shows one of them to each."""
        self.attempts, self.slots, self.told = attempts, slots or len(attempts), False
        self.variable, count = gpus or ("", 0)
        given = os.environ.get(self.variable)  # by the scheduler, of a part of the node
        self.gpus = given.split(",") if given else [str(k) for k in range(count)]
        self.waiting = list(attempts)

    def begin(self) -> None:
        """Those whose turn it is."""
        for attempt in list(self.waiting):
            before = None if attempt.after is None else self.attempts[attempt.after]
            if before is not None and before.code is None:
                continue
            if before is not None and (before.code or not before.begun):  # what it needs was not done
                attempt.code = 0
            elif self.told:
                attempt.leave(STOPPED, begun=False)
            elif len(self.running()) < self.slots:
                attempt.environ |= self.own_gpu()
                attempt.start()
            else:
                continue
            self.waiting.remove(attempt)

    def own_gpu(self) -> dict[str, str]:
        """Else all would take the first."""
        if not self.gpus:
            return {}
        taken = Counter(attempt.environ[self.variable] for attempt in self.running())
        return {self.variable: min(self.gpus, key=lambda gpu: taken[gpu])}

    def running(self) -> list[Attempt]:
        return [attempt for attempt in self.attempts if attempt.code is None and attempt.begun]

    def tell(self, signum: int, _: object) -> None:
        """The time is nearly over; or, SIGUSR2, where are you?"""
        self.told = self.told or signum != signal.SIGUSR2
        for attempt in self.running():
            attempt.tell(signal.SIGUSR2 if signum == signal.SIGUSR2 else signal.SIGUSR1)


def main() -> int:
    plan = json.load(sys.stdin)
    job, hosts = (
        (os.environ["SLURM_JOB_ID"], slurm_hosts())
        if plan["scheduler"] == "slurm"
        else (os.environ["PBS_JOBID"], list(dict.fromkeys(Path(os.environ["PBS_NODEFILE"]).read_text().split())))
    )
    port = 10000 + int(re.sub(r"\D", "", job.split(".")[0]) or 0) % 20000
    meet = address(plan["interface"]) or hosts[0]
    attempts = [Attempt(each, job, hosts, meet, port + i) for i, each in enumerate(plan["stages"])]
    work = Work(attempts, plan["slots"], plan.get("gpus"))
    signals = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM, signal.SIGALRM)
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)  # until there is somebody to tell
    for signum in signals:
        signal.signal(signum, work.tell)
    signal.alarm(plan["seconds"] or 0)
    while work.waiting or work.running():
        work.begin()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, signals)
        time.sleep(NAP)
        signal.pthread_sigmask(signal.SIG_BLOCK, signals)  # what has begun is known to whom it is told
        for attempt in work.running():
            attempt.look()
    codes = {attempt.code for attempt in attempts}
    return max(codes - {0, STOPPED}, default=max(codes))


def say(error: OSError) -> None:
    """In job.out."""
    print(f"{error.filename}: {error.strerror}", file=sys.stderr)


def slurm_hosts() -> list[str]:
    command = ["scontrol", "show", "hostnames", os.environ["SLURM_JOB_NODELIST"]]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()


def address(interface: str | None) -> str | None:
    """Of this host, the first of the job, in the network on which ranks meet."""
    if interface is None:
        return None
    command = ["ip", "-4", "-o", "address", "show", "dev", interface]
    try:
        said = subprocess.run(command, capture_output=True, text=True).stdout
    except OSError:
        return None
    found = re.search(r"inet ([\d.]+)", said)
    return found[1] if found else None


if __name__ == "__main__":
    sys.exit(main())
