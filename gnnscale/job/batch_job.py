"""The program of a batch job: python -m gnnscale.job.batch_job, with a job plan on standard input.

It starts the ranks of one stage or of several: side by side on hosts of their own, some at a time on one host, or one after
another where the second needs the first. It checks the nodes before a training, forwards signals to the ranks, ends ranks
that wait in vain for one that has failed, and leaves attempts/N/exit.json of each stage. Standard library only: it may run
outside of the container in which the ranks are.

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
import string
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from gnnscale.contract import exit_codes
from gnnscale.contract.errors import describe_os_error
from gnnscale.contract.job_plan import AllocationPlan, JobPlan, StagePlan
from gnnscale.job.rank_wrapper import SIGNALS_BY_FILE, Process, tie_to_parent
from gnnscale.machine.warm_parent import FORKED_KINDS, WarmParent

DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
CHECK_SECONDS = 30.0  # within which every node must have answered that it is fit
SECONDS_TO_SIGTERM = 5.0  # from the first failure of a rank to SIGTERM for the launcher
SECONDS_TO_SIGKILL = 30.0  # from SIGTERM to SIGKILL
POLL_SECONDS = 0.1
SECONDS_BETWEEN_LOOKS = 2.0  # for a rank that has failed: they load a file system that many jobs share
LAUNCHER_KILLED_CODES = (128 + signal.SIGUSR1, 128 + signal.SIGTERM, 255)  # of launchers that do not forward signals
RANK_WORDS = 3  # of the command of one rank that nothing launches: PYTHON -m gnnscale.job.rank_wrapper ATTEMPT KIND
FIRST_PORT, PORTS = 10000, 20000  # by the number of the job, so that two jobs on a node rarely meet


class NodeCheck:
    """A check of all nodes of a training, launched in the way in which the training will be launched."""

    def __init__(self, command: list[str], folder: Path, environ: Mapping[str, str]):
        self.output, self.began = tempfile.TemporaryFile(), time.monotonic()
        self.process = subprocess.Popen(
            command,
            cwd=folder,
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=self.output,
            stderr=subprocess.DEVNULL,
            preexec_fn=tie_to_parent,
        )

    def is_over(self) -> bool:
        """Return whether the check has ended; end it after CHECK_SECONDS."""
        if self.process.poll() is None and time.monotonic() - self.began < CHECK_SECONDS:
            return False
        self.process.kill()
        return True

    def find_sick(self, hosts: list[str], ranks: int) -> dict[str, str]:
        """Return host -> fault. If no node has answered the nodes are not to blame: the training will report why."""
        self.output.seek(0)
        text = self.output.read().decode(errors="replace")
        fit = Counter(short_name(host) for host in re.findall(r"\bfit (\S+)$", text, re.M))
        faults: dict[str, str] = dict(re.findall(r"\bsick (\S+): (.+)$", text, re.M))
        known = {short_name(host): host for host in hosts}  # a node may report its full name
        sick = {known.get(short_name(host), host): fault for host, fault in faults.items()}
        if (fit.keys() | {short_name(host) for host in faults}) & known.keys():
            for short, host in known.items():
                if fit[short] < ranks and host not in sick:
                    who = f"{ranks - fit[short]} of {ranks} ranks" if fit[short] else "it"
                    sick[host] = f"{who} did not answer"
        return sick


class Attempt:
    """One attempt of a stage: its node check, then the process of its launcher, then its exit code."""

    def __init__(
        self,
        plan: StagePlan,
        job: str,
        hosts: list[str],
        address: str,
        port: int,
        warm_parent: WarmParent | None = None,
    ):
        self.warm_parent = warm_parent  # of a job whose stages are forked where they can be
        self.job, self.hosts = job, hosts[plan["first"] :][: plan["nodes"]]
        self.folder, self.after, self.ranks_per_node = Path(plan["folder"]), plan["after"], plan["per_node"]
        self.attempt_folder = self.folder / "attempts" / str(plan["number"])
        master = "127.0.0.1" if len(self.hosts) == 1 else address if plan["first"] == 0 else self.hosts[0]
        self.environ = os.environ | {"MASTER_ADDR": master, "MASTER_PORT": str(port)}
        self.command, self.check_command = self.split(plan["command"]), self.split(plan["check"] or "")
        self.check: NodeCheck | None = None
        self.process: Process | None = None
        self.code: int | None = None
        self.signalled = False
        self.signals_sent = 0  # to a launcher whose ranks wait for one that failed: 1 = SIGTERM, 2 = SIGKILL
        self.failed_at = self.looked = 0.0  # on the monotonic clock
        self.is_asked = False  # by its driver, for the stacks of its ranks
        self.begin = int(time.time())
        # A launcher's signal reaches every process of a step, also the one that serves an image, which would end.
        self.by_file = plan.get("by_file", False)
        self.environ |= {SIGNALS_BY_FILE: "1"} if self.by_file else {}

    def split(self, command: str) -> list[str]:
        return [word.replace("{hosts}", ",".join(self.hosts)) for word in shlex.split(command)]

    @property
    def must_wait(self) -> bool:
        """True while the process from which this stage is to be forked loads its libraries."""
        return self.warm_parent is not None and is_forkable(self.command) and self.warm_parent.is_starting()

    @property
    def has_begun(self) -> bool:
        return self.process is not None or self.check is not None

    def start(self) -> None:
        """Start the node check where there is one, otherwise the launcher."""
        self.begin = int(time.time())
        try:
            if self.folder.is_dir():
                self.attempt_folder.mkdir(parents=True, exist_ok=True)
            else:
                self.folder.stat()  # raises what keeps us from it
            if (self.attempt_folder / "closed").exists():  # the driver has given this attempt up, and may have another
                self.code = exit_codes.DONE
                return
            for name in ("exit.json", "failed", "SIGUSR1", "SIGUSR2"):
                (self.attempt_folder / name).unlink(missing_ok=True)
            if self.check_command:
                self.check = NodeCheck(self.check_command, self.folder, self.environ)
            else:
                self.launch()
        except OSError as error:
            self.fail(error)

    def launch(self) -> None:
        try:
            with (
                open(self.attempt_folder / "stdout", "wb") as out,
                open(self.attempt_folder / "stderr", "wb") as err,
            ):
                if self.warm_parent is not None and is_forkable(self.command):
                    words = self.command[RANK_WORDS:]
                    self.process = self.warm_parent.fork("rank", words, self.folder, self.environ, out, err)
                self.process = self.process or subprocess.Popen(
                    self.command,
                    cwd=self.folder,
                    env=self.environ,
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=err,
                    preexec_fn=tie_to_parent,
                )
        except OSError as error:
            self.fail(error)

    def fail(self, error: OSError) -> None:
        """End an attempt that could not be started; the others of the job continue."""
        log_error(error)
        self.end(exit_codes.DISK if error.errno in DISK_FULL else exit_codes.FAILED)

    def forward_signal(self, signum: int) -> None:
        self.signalled = self.signalled or signum != signal.SIGUSR2
        if self.process is None:
            return
        if not self.by_file:
            self.process.send_signal(signum)
            return
        try:
            (self.attempt_folder / signal.Signals(signum).name).touch()
        except OSError as error:
            log_error(error)  # this stage runs until its time is over; the others may still get the signal

    def poll(self) -> None:
        """Note whether the attempt has ended, and end ranks that wait for one that has failed."""
        if self.process is None:
            self.poll_check()
            return
        launcher_code = self.process.poll()
        if launcher_code is not None:
            self.end_as_launcher(exit_codes.to_exit_code(launcher_code))
            return
        now = time.monotonic()
        if now - self.looked < SECONDS_BETWEEN_LOOKS:
            return
        self.looked = now
        self.forward_request()
        code, _, _ = self.read_first_failure()
        if code in (None, exit_codes.STOPPED):
            return
        self.failed_at = self.failed_at or now
        deadlines = (
            (SECONDS_TO_SIGTERM, signal.SIGTERM),
            (SECONDS_TO_SIGTERM + SECONDS_TO_SIGKILL, signal.SIGKILL),
        )
        for number, (seconds, signum) in enumerate(deadlines, 1):
            if self.signals_sent < number and now - self.failed_at > seconds:
                self.signals_sent = number
                self.process.send_signal(signum)

    def forward_request(self) -> None:
        """Signal the launcher, once, if the driver asks for stacks by a file, unless the ranks look for files themselves."""
        request = self.attempt_folder / signal.SIGUSR2.name
        if self.by_file or self.is_asked or self.process is None or not request.exists():
            return
        self.is_asked = True
        self.process.send_signal(signal.SIGUSR2)

    def poll_check(self) -> None:
        """Launch the stage after its node check, unless a node is sick or the job is to stop."""
        if self.check is None or not self.check.is_over():
            return
        if sick := self.check.find_sick(self.hosts, self.ranks_per_node):
            self.end(exit_codes.UNFIT, begun=False, sick=sick)
        elif self.signalled:
            self.end(exit_codes.STOPPED, begun=False)
        else:
            self.launch()

    def read_first_failure(self) -> tuple[int | None, int | None, str]:
        """Read (code, rank, host) of the rank that failed first; a launcher reports only how it ended the others."""
        try:
            code, rank, host = (self.attempt_folder / "failed").read_text().split()
        except (OSError, ValueError):
            return None, None, ""
        return int(code), int(rank), host

    def end_as_launcher(self, launcher_code: int) -> None:
        code, rank, host = self.read_first_failure()
        if code is None:
            stopped = self.signalled and launcher_code in LAUNCHER_KILLED_CODES
            code = exit_codes.STOPPED if stopped else launcher_code
        self.end(code, rank, host, launcher_code)

    def end(
        self,
        code: int,
        rank: int | None = None,
        host: str = "",
        launcher_code: int = 0,
        *,
        begun: bool = True,
        sick: dict[str, str] | None = None,
    ) -> None:
        """Note the exit code and write exit.json."""
        self.code = code
        if not self.folder.is_dir():  # removed: nobody will look for how it ended
            return
        record = {
            "code": code,
            "rank": rank,
            "host": host,
            "launcher": launcher_code,
            "job": self.job,
            "hosts": self.hosts,
            "begin": self.begin,
            "end": int(time.time()),
            "begun": begun,
            "sick": sick or {},
        }
        beside = self.attempt_folder / ".exit.json"
        try:
            self.attempt_folder.mkdir(parents=True, exist_ok=True)
            with open(beside, "w") as file:
                file.write(json.dumps(record) + "\n")
                file.flush()
                os.fsync(file.fileno())
            os.replace(beside, self.attempt_folder / "exit.json")
        except OSError as error:
            log_error(error)


class Work:
    """All attempts of the job, and the order in which they begin."""

    def __init__(self, attempts: list[Attempt], slots: int | None, gpus: tuple[str, int] | None = None):
        """Take the attempts; `gpus` are the variable that shows GPUs to a stage, and how many to share out."""
        self.attempts, self.slots, self.signalled = attempts, slots or len(attempts), False
        self.variable, count = gpus or ("", 0)
        visible = os.environ.get(self.variable)  # set by the scheduler to a part of the node
        self.gpus = visible.split(",") if visible else [str(k) for k in range(count)]
        self.waiting = list(attempts)

    def begin(self) -> None:
        """Start the attempts whose turn it is, and end those that cannot be started any more."""
        for attempt in list(self.waiting):
            before = None if attempt.after is None else self.attempts[attempt.after]
            if before is not None and before.code is None:
                continue
            if before is not None and (before.code or not before.has_begun):  # what it needs was not done
                attempt.code = exit_codes.DONE
            elif self.signalled:
                attempt.end(exit_codes.STOPPED, begun=False)
            elif len(self.list_running()) < self.slots and not attempt.must_wait:
                attempt.environ |= self.choose_gpu()
                attempt.start()
            else:
                continue
            self.waiting.remove(attempt)

    def choose_gpu(self) -> dict[str, str]:
        """Return the variable that shows one GPU, the least used; otherwise every stage would take the first."""
        if not self.gpus:
            return {}
        taken = Counter(attempt.environ[self.variable] for attempt in self.list_running())
        return {self.variable: min(self.gpus, key=lambda gpu: taken[gpu])}

    def list_running(self) -> list[Attempt]:
        return [attempt for attempt in self.attempts if attempt.code is None and attempt.has_begun]

    def forward_signal(self, signum: int, _: object) -> None:
        """Forward SIGUSR2 (print your stacks) as it is, and any other signal as SIGUSR1 (the time is nearly over)."""
        self.signalled = self.signalled or signum != signal.SIGUSR2
        for attempt in self.list_running():
            attempt.forward_signal(signal.SIGUSR2 if signum == signal.SIGUSR2 else signal.SIGUSR1)

    def exit_code(self) -> int:
        """Return the code of the worst failure, else STOPPED if one was stopped, else DONE."""
        codes = {attempt.code for attempt in self.attempts if attempt.code is not None}
        return max(codes - {exit_codes.DONE, exit_codes.STOPPED}, default=max(codes, default=exit_codes.DONE))


def main() -> int:
    plan: JobPlan = json.load(sys.stdin)
    job, given = describe_allocation(plan["allocation"])
    avoided = find_avoided(given, plan)
    hosts = given if avoided else leave_out(given, plan)
    port = FIRST_PORT + int(re.sub(r"\D", "", job.split(".")[0]) or 0) % PORTS
    address = (find_address(plan["interface"]) if hosts[0] == given[0] else None) or hosts[0]
    forkable = sum(is_forkable(shlex.split(stage["command"])) for stage in plan["stages"])
    warm_parent = WarmParent(os.environ, own_session=False) if forkable > 1 else None
    attempts = [Attempt(stage, job, hosts, address, port + i, warm_parent) for i, stage in enumerate(plan["stages"])]
    if avoided:
        return refuse_hosts(attempts, avoided)
    work = Work(attempts, plan["slots"], plan.get("gpus"))
    signals = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM, signal.SIGALRM)
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)  # until there are attempts to forward them to
    for signum in signals:
        signal.signal(signum, work.forward_signal)
    signal.alarm(plan["seconds"] or 0)
    while work.waiting or work.list_running():
        work.begin()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, signals)
        time.sleep(POLL_SECONDS)
        signal.pthread_sigmask(signal.SIG_BLOCK, signals)  # no signal comes between a start and its place in the list
        for attempt in work.list_running():
            attempt.poll()
    if warm_parent is not None:
        warm_parent.close()
    return work.exit_code()


def is_forkable(command: list[str]) -> bool:
    """Return whether a command is that of a single rank on this very interpreter, of a stage that may be forked."""
    head, rest = command[:RANK_WORDS], command[RANK_WORDS:]
    return head == [sys.executable, "-m", "gnnscale.job.rank_wrapper"] and len(rest) == 2 and rest[1] in FORKED_KINDS


def describe_allocation(plan: AllocationPlan) -> tuple[str, list[str]]:
    """Return the id of this job and the names of its hosts."""
    id, hosts = (read_words(plan[name]) for name in ("id", "hosts"))
    return id[0], list(dict.fromkeys(hosts))


def read_words(command: list[str]) -> list[str]:
    """Run a command of the plan, and return the words that it prints."""
    filled = [string.Template(word).substitute(os.environ) for word in command]
    return subprocess.run(filled, check=True, stdout=subprocess.PIPE, text=True).stdout.split()


def leave_out(given: list[str], plan: JobPlan) -> list[str]:
    """Return the hosts of the job without those that it avoids; the scheduler was asked for as many more."""
    avoid = {short_name(host) for host in plan.get("avoid", ())}
    return [host for host in given if short_name(host) not in avoid]


def find_avoided(given: list[str], plan: JobPlan) -> list[str]:
    """Return the hosts that the job avoids, if too few others are left for its stages."""
    left, needed = leave_out(given, plan), max(stage["first"] + stage["nodes"] for stage in plan["stages"])
    return [host for host in given if host not in left] if len(left) < needed else []


def refuse_hosts(attempts: list[Attempt], avoided: list[str]) -> int:
    """End all attempts before they begin, so that the driver tries other hosts."""
    for attempt in attempts:
        sick = dict.fromkeys(avoided, "it failed before, and there were too few other nodes")
        attempt.end(exit_codes.UNFIT, begun=False, sick=sick)
    return exit_codes.UNFIT


def find_address(interface: str | None) -> str | None:
    """Return the address of this host, the first of the job, in the network in which ranks meet."""
    if interface is None:
        return None
    command = ["ip", "-4", "-o", "address", "show", "dev", interface]
    try:
        output = subprocess.run(command, capture_output=True, text=True).stdout
    except OSError:
        return None
    found = re.search(r"inet ([\d.]+)", output)
    return found[1] if found else None


def short_name(host: str) -> str:
    return host.split(".")[0]


def log_error(error: OSError) -> None:
    """Print an error into job.out."""
    print(describe_os_error(error), file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
