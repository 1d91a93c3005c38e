"""What a batch job does: python -m gnnscale.job, with a plan on its standard input, as workflow/launch.py writes it.

It starts the ranks of its stage, or of several side by side on hosts of their own, passes on to them that the time is
nearly over, ends those that wait in vain for a fellow, and leaves attempts/N/exit.json of each, whole. Standard library
only: it may run outside of the container in which the ranks are.

It is not a shell script because it was one: bash forgets the status of a process that ends while a trap interrupts
`wait`, and then waits for ever.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

from gnnscale.rank import STOPPED, in_child

DISK = 74
GRACE, MERCY = 5.0, 30.0  # s from the first failure to SIGTERM for the launcher, and from there to SIGKILL
NAP = 0.1  # s
SWEPT = (128 + signal.SIGUSR1, 128 + signal.SIGTERM, 255)  # of a launcher that does not pass a signal on


class Attempt:
    """One stage: the launcher's process, and what became of it."""

    def __init__(self, plan: dict, job: str, hosts: list[str], address: str, port: int):
        self.job, self.hosts = job, hosts[plan["first"] :][: plan["nodes"]]
        self.folder = Path(plan["folder"])
        self.place = self.folder / "attempts" / str(plan["number"])
        meet = "127.0.0.1" if len(self.hosts) == 1 else address if plan["first"] == 0 else self.hosts[0]
        self.environ = os.environ | {"MASTER_ADDR": meet, "MASTER_PORT": str(port)}
        self.command = [word.replace("{hosts}", ",".join(self.hosts)) for word in shlex.split(plan["command"])]
        self.process: subprocess.Popen | None = None
        self.code: int | None = None
        self.told, self.ending, self.failed_at, self.begin = False, 0, 0.0, int(time.time())

    def start(self) -> None:
        try:
            self.place.mkdir(parents=True, exist_ok=True) if self.folder.is_dir() else self.folder.stat()
            if (self.place / "closed").exists():  # the driver has given this attempt up, and perhaps begun another
                self.code = 0
                return
            for name in ("exit.json", "failed"):
                (self.place / name).unlink(missing_ok=True)
            with open(self.place / "stdout", "wb") as out, open(self.place / "stderr", "wb") as err:
                self.process = subprocess.Popen(self.command, cwd=self.folder, env=self.environ, stdin=subprocess.DEVNULL,
                                                stdout=out, stderr=err, preexec_fn=in_child)  # fmt: skip
        except OSError as error:
            print(f"{error.filename}: {error.strerror}", file=sys.stderr)
            self.code = DISK

    def tell(self) -> None:
        self.told = True
        if self.process is not None:
            self.process.send_signal(signal.SIGUSR1)

    def look(self) -> None:
        """Has it ended; and if one of its ranks has failed, do the others go on for ever?"""
        launched = self.process.poll()
        if launched is not None:
            self.end(launched if launched >= 0 else 128 - launched)
            return
        code, _, _ = self.first_failure()
        if code in (None, STOPPED):
            return
        now = time.monotonic()
        self.failed_at = self.failed_at or now
        for number, (after, how) in enumerate(((GRACE, signal.SIGTERM), (GRACE + MERCY, signal.SIGKILL)), 1):
            if self.ending < number and now - self.failed_at > after:
                self.ending = number
                self.process.send_signal(how)

    def first_failure(self) -> tuple[int | None, int | None, str]:
        try:
            code, rank, host = (self.place / "failed").read_text().split()
        except (OSError, ValueError):
            return None, None, ""
        return int(code), int(rank), host

    def end(self, launched: int) -> None:
        code, rank, host = self.first_failure()
        self.code = code if code is not None else STOPPED if self.told and launched in SWEPT else launched
        said = {"code": self.code, "rank": rank, "host": host, "launcher": launched, "job": self.job, "hosts": self.hosts,
                "begin": self.begin, "end": int(time.time())}  # fmt: skip
        beside = self.place / ".exit.json"
        try:
            with open(beside, "w") as file:
                file.write(json.dumps(said) + "\n")
                file.flush()
                os.fsync(file.fileno())
            os.replace(beside, self.place / "exit.json")
        except OSError as error:
            print(f"{error.filename}: {error.strerror}", file=sys.stderr)


def main() -> int:
    plan = json.load(sys.stdin)
    job, hosts = (os.environ["SLURM_JOB_ID"], slurm_hosts()) if plan["scheduler"] == "slurm" else (
        os.environ["PBS_JOBID"], list(dict.fromkeys(Path(os.environ["PBS_NODEFILE"]).read_text().split()))
    )  # fmt: skip
    port = 10000 + int(re.sub(r"\D", "", job.split(".")[0]) or 0) % 20000
    meet = address(plan["interface"]) or hosts[0]
    attempts = [Attempt(each, job, hosts, meet, port + i) for i, each in enumerate(plan["stages"])]

    def tell(*_: object) -> None:
        for attempt in attempts:
            if attempt.code is None:
                attempt.tell()

    signals = (signal.SIGUSR1, signal.SIGTERM, signal.SIGALRM)
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)  # until there is somebody to tell
    for attempt in attempts:
        attempt.start()
    for signum in signals:
        signal.signal(signum, tell)
    signal.alarm(plan["seconds"] or 0)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, signals)
    while running := [attempt for attempt in attempts if attempt.code is None]:
        for attempt in running:
            attempt.look()
        time.sleep(NAP)
    codes = {attempt.code for attempt in attempts}
    return max(codes - {0, STOPPED}, default=max(codes))


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
