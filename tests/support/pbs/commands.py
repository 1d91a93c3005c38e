"""The commands of the stand-in for PBS, one process each: they are counted, take their time, and fail as real ones do."""

from __future__ import annotations

import getopt
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tests.support.pbs import answers, submission
from tests.support.pbs.launching import mpiexec
from tests.support.pbs.mom import run_cycle, signal_job
from tests.support.pbs.store import FINISHED, SERVER, UNKNOWN_SIGNAL, VERSION, WRONG_STATE, PbsError, Store, full_id

Command = Callable[[Store, list[str]], int | None]
QDEL_USAGE = "usage:\n\tqdel [-W force|suppress_email=X] [-x] job_identifier...\n\tqdel --version"
QSIG_USAGE = "usage: qsig [-s signal] job_identifier...\n       qsig --version"


def qdel(store: Store, words: list[str]) -> int:
    _, ids = getopt.gnu_getopt(words, "W:x")
    return for_each("qdel", ids, lambda id: delete(store, id))


def delete(store: Store, id: str) -> None:
    """Remove a job that waits; send SIGTERM to one that runs, whose mom kills it after the delay."""
    with store.locked():
        job = store.load(id)
        if job["state"] == "F":
            raise PbsError("Job has finished", FINISHED)
        if job["state"] == "Q":
            store.finish(job, None)
            return
        job["deleted"] = time.time()
        store.save(job)
    signal_job(job, signal.SIGTERM)


def qsig(store: Store, words: list[str]) -> int:
    pairs, ids = getopt.getopt(words, "s:")
    if not ids:
        raise getopt.GetoptError("no job")
    return for_each("qsig", ids, lambda id: send(store, id, dict(pairs).get("-s", "SIGTERM")))


def send(store: Store, id: str, name: str) -> None:
    """Send a signal to all processes of a job, the top shell too, which does not expect it."""
    job = store.load(id)
    number = int(name) if name.isdigit() else getattr(signal, f"SIG{name.removeprefix('SIG')}", None)
    if number is None:
        raise PbsError("Unknown/illegal signal name", UNKNOWN_SIGNAL)
    if job["state"] != "R":
        raise PbsError("Request invalid for state of job", WRONG_STATE)
    signal_job(job, number)


def for_each(verb: str, ids: list[str], do: Callable[[str], None]) -> int:
    """Do something for each job, and return the exit code of the last failure."""
    code = 0
    for id in ids:
        try:
            do(id)
        except PbsError as error:
            said = str(error).removesuffix(f" {full_id(id)}")
            print(f"{verb}: {said} {full_id(id)}", file=sys.stderr)
            code = error.code
    return code


VERBS: dict[str, tuple[Command, str]] = {
    "qsub": (submission.qsub, submission.USAGE),
    "qstat": (answers.qstat, answers.QSTAT_USAGE),
    "qselect": (answers.qselect, answers.QSELECT_USAGE),
    "qdel": (qdel, QDEL_USAGE),
    "qsig": (qsig, QSIG_USAGE),
    "pbsnodes": (answers.pbsnodes, answers.PBSNODES_USAGE),
}


def main(home: str, verb: str, *words: str) -> int:
    store = Store(Path(home))
    try:
        return mpiexec(store, list(words)) if verb == "mpiexec" else ask_server(store, verb, list(words))
    except PbsError as error:
        print(f"{verb}: {error}", file=sys.stderr)
        return error.code


def ask_server(store: Store, verb: str, words: list[str]) -> int:
    store.log_command(verb, words)
    conf, (command, usage) = store.conf, VERBS[verb]
    if words == ["--version"]:
        print(f"pbs_version = {VERSION}")
        return 0
    time.sleep(conf["latency"])
    while conf["hangs"]:
        time.sleep(1)
    if conf["down"]:
        print(f"Connection refused\n{verb}: cannot connect to server {SERVER} (errno=111)", file=sys.stderr)
        return 255 if verb == "qstat" else 111
    if verb in conf["silent"]:
        return 0
    try:
        return command(store, words) or 0
    except getopt.GetoptError as error:
        option = f"{verb}: invalid option -- '{error.opt}'\n" if error.opt else ""
        print(f"{option}{usage}", file=sys.stderr)
        return 2
    finally:
        sys.stdout.flush()
        run_cycle(store)
