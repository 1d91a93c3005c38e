"""The stand-in for PBS itself: what the tests of jobs rely on is as the source of OpenPBS 23.06 has it."""

import json

import pytest

from tests.support.cluster import StandIn, wait_until


@pytest.fixture(scope="module")
def pbs(tmp_path_factory):
    standin = StandIn(tmp_path_factory.mktemp("pbs") / "home", nodes=2)
    yield standin
    standin.empty()


@pytest.fixture
def submit(pbs, tmp_path, monkeypatch):
    """Return a function that submits a script, and waits until its job runs."""
    monkeypatch.setenv("SECRET_OF_MINE", "1")

    def submit(*lines, runs=True):
        (tmp_path / "job.sh").write_text("#!/bin/bash\n" + "\n".join(lines) + "\n")
        id = pbs.call("qsub", "job.sh", cwd=tmp_path).strip()
        if runs:
            wait_until(lambda: "session_id" in pbs.job(id), "the job to run")
        return id

    yield submit
    pbs.empty()


def status_of(pbs, id):
    wait_until(lambda: id not in pbs.active(), "the job to end")
    return next(each["status"] for each in pbs.ended() if each["id"] == id)


@pytest.mark.parametrize(
    ("command", "status"), [(["qsig", "-s", "USR2"], 268), (["qsig", "-s", "SIGKILL"], 265), (["qdel"], 271)]
)
def test_a_signal_reaches_the_shell_around_the_job(pbs, submit, tmp_path, command, status):
    """The script hears it and would go on; it is killed as soon as that shell has ended."""
    id = submit("trap 'echo heard' USR2 TERM", "touch begun", "while true; do sleep 0.1; done")
    wait_until(lambda: (pbs.state / "user" / "begun").exists(), "the script to begin")
    (pbs.state / "user" / "begun").unlink()
    pbs.call(*command, id)
    assert status_of(pbs, id) == status == 256 + (status & 127)
    done = pbs.run(*command, id)
    assert done.returncode == 153 and f"Unknown Job Id {id}" in done.stderr


def test_jobs_and_the_forms_in_which_they_are_listed(pbs, submit):
    first, second = submit("sleep 60"), submit("sleep 60")
    gone = "99.standin"

    def listed(*words):
        done = pbs.run("qstat", "-f", *words)
        if "json" in words:
            return list(json.loads(done.stdout).get("Jobs", {})), done.returncode, done.stderr
        return (
            [line[8:] for line in done.stdout.splitlines() if line.startswith("Job Id: ")],
            done.returncode,
            done.stderr,
        )

    assert listed("-F", "json", first, second) == ([first], 0, "")
    assert listed("-E", "-F", "json", gone, first, second) == ([first, second], 0, "")
    assert listed("-E", "-F", "json", gone) == ([], 153, f"qstat: Unknown Job Id {gone}\n")
    assert listed(first, gone, second) == ([first, second], 153, f"qstat: Unknown Job Id {gone}\n")
    note = "PBS is not configured to maintain job history"
    assert listed("-x", first) == ([], 0, f"qstat: {note} {first}\n")
    done = pbs.run("qselect", "-x")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", f"qselect: {note}\n")
    assert pbs.call("qselect", "-N", "job.sh", "-s", "R").split() == [first, second]
    for verb in ("qstat", "qselect", "qsub", "qdel", "qsig", "pbsnodes"):
        done = pbs.run(verb, "--nonsense")
        assert done.returncode == 2 and f"{verb}: invalid option" in done.stderr and "usage:" in done.stderr


@pytest.mark.parametrize(("option", "mode"), [("", 0o600), ("#PBS -W umask=022", 0o644)])
def test_what_a_job_inherits(pbs, submit, tmp_path, option, mode):
    """It begins in the home directory with a login shell's environment, and none of the submitter's."""
    id = submit(option, "#PBS -j oe", "#PBS -o out", "#PBS -l select=1:ncpus=2", "pwd; env; exit 3", runs=False)
    assert status_of(pbs, id) == 3
    said = (tmp_path / "out").read_text().splitlines()
    assert said[0] == str(pbs.state / "user") and f"PBS_JOBID={id}" in said and "OMP_NUM_THREADS=2" in said
    assert f"PBS_O_WORKDIR={tmp_path}" in said and "SECRET_OF_MINE=1" not in said
    assert (tmp_path / "out").stat().st_mode & 0o777 == mode


def test_where_jobs_run_and_why_they_wait(pbs, submit):
    """The first free node is given again and again."""

    def told(id):
        return pbs.job(id)["comment"]

    whole = "#PBS -l select=1:ncpus=8"
    first = submit(whole, "sleep 60")
    assert pbs.job(first)["exec_host"].startswith(("n1/", "127.0.1.1/"))
    both = submit("#PBS -l select=2:ncpus=8 -l place=scatter", "sleep 60", runs=False)
    assert told(both) == "Not Running: Insufficient amount of resource: ncpus (R: 8 A: 0 T: 8)"
    never = submit("#PBS -l select=3:ncpus=1", "#PBS -l place=scatter", "true", runs=False)
    assert told(never) == "Can Never Run: Not enough total nodes available"
    pbs.call("qdel", first, never)
    wait_until(lambda: pbs.job(both)["job_state"] == "R", "the other job to run")
    pbs.call("qdel", both)
    again = submit(whole, "sleep 60")
    assert pbs.job(again)["exec_host"].startswith(("n1/", "127.0.1.1/"))
    done = pbs.run("qsig", "-s", "NONSENSE", again)
    assert done.returncode == 165 and "Unknown/illegal signal name" in done.stderr
