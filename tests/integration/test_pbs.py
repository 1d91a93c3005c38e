"""Jobs under the commands of PBS, as it is by default: no history, umask 077, signals to the shell around the job, no ssh.

The tests without a switch of the stand-in (tests/support/pbs/) also run on a real PBS, where one answers: `pytest -m pbs`.
"""

import itertools
import json
import os
import re
import signal
import subprocess
import time

import pytest

from tests.support.cluster import (
    BEFORE_TRAINING,
    FAILS_ON_N1,
    LONG,
    RUN,
    SHORT,
    SOME,
    RealPBS,
    Run,
    StandIn,
    explain_no_pbs,
    hold_training,
    make_study,
    measure_patience,
    require,
    spoil_module,
    wait_until,
)
from tests.support.corpus import ROOT
from workflow.scheduler.pbs import PBSScheduler

TWO = {"train": {"nodes": [2, 2]}}


@pytest.fixture(scope="module")
def standin(tmp_path_factory):
    standin = StandIn(tmp_path_factory.mktemp("pbs") / "home", bugs=["bad-json"])
    yield standin
    standin.empty()


@pytest.fixture(scope="module", params=["stand-in", pytest.param("real", marks=pytest.mark.pbs)])
def pbs(request, tmp_path_factory):
    if request.param == "stand-in":
        return request.getfixturevalue("standin")
    if why := explain_no_pbs():
        require("pbs", why)
    return RealPBS(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="module")
def data(standin, tmp_path_factory):
    """Return a run directory with all stages before a training."""
    run = Run(standin, tmp_path_factory.mktemp("data"), SHORT, standin.site())
    run.start("--until", BEFORE_TRAINING[-1])
    run.end()
    return run.root


@pytest.fixture
def start(data, tmp_path, monkeypatch):
    """Return a function that starts a driver on a cluster, whose jobs are deleted after the test."""
    begun = []

    def start(cluster, asked=SHORT, until="train", **site):
        for name, value in cluster.env.items():
            monkeypatch.setenv(name, value)
        run = Run(cluster, tmp_path, asked, cluster.site(**site), data)
        begun.append(run)
        run.start("--until", until)
        return run

    yield start
    for run in begun:
        run.stop()
        run.cluster.empty()


@pytest.fixture
def begin(start, pbs):
    return lambda *asked, **site: start(pbs, *asked, **site)


@pytest.fixture
def own(tmp_path):
    """Return a function that makes a stand-in of its own for a test, with other settings."""
    made = []

    def own(**conf):
        made.append(StandIn(tmp_path / "home", **conf))
        return made[0]

    yield own
    for each in made:
        each.set(down=False, hangs=False, silent=[])
        each.empty()


def ends(run):
    return [event["kind"] for event in run.events("ended")]


def attempt(run, number):
    return run.folder() / "attempts" / str(number)


# -------------------------------------------------------------------------------------- what is so on every PBS by default
def test_a_training_of_two_ranks_on_two_nodes(begin, pbs):
    """No history tells that the jobs have ended, and the stand-in's JSON is broken."""
    run = begin(SHORT, **TWO)
    run.end()
    made = attempt(run, 1)
    hosts = json.loads((made / "exit.json").read_text())["hosts"]
    assert len(set(hosts)) == 2 and "2 rank(s)" in (made / "stdout").read_text()
    script = (made / "job.sh").read_text()
    assert re.search("#PBS -l select=2:ncpus=[1-4]:mpiprocs=1\n", script) and "#PBS -l place=scatter" in script
    assert ends(run) == ["done"] and len(run.submitted()) == 1
    # PBS gives jobs the umask 077
    theirs = [
        path for path in run.folder().rglob("*") if path.name in ("exit.json", "result.json", "job.out", "stdout")
    ]
    assert len(theirs) == 4
    assert {path.stat().st_mode & 0o777 for path in theirs} == {(made / "job.sh").stat().st_mode & 0o777}
    assert {path.stat().st_mode for path in run.folder().rglob("*") if path.is_dir()} == {made.stat().st_mode}


def test_killed_and_cancelled(begin, pbs):
    run = begin(LONG)
    job = run.wait(run.running, "the training to run")
    run.kill()
    run.start("--until", "train")
    run.wait(lambda: run.events("adopt"), "the driver to find it")
    patience, began = measure_patience(lambda: run.call("status")), time.monotonic()
    run.driver.send_signal(signal.SIGINT)
    assert "1 job keeps running" in run.end(130) and time.monotonic() - began < patience
    assert run.submitted() == [job] and job.split(".")[0] in [id.split(".")[0] for id in pbs.active()]
    assert f"cancelled  job {job}" in run.call("cancel").stdout
    wait_until(lambda: not pbs.active(), "the job to end")


def test_a_driver_that_dies_before_it_notes_the_number_of_its_job(start, pbs, tmp_path):
    """The next one finds the job by its name, while it lives."""
    run = start(pbs, until="audit", setup=hold_training(tmp_path))
    run.end()
    run.start("--until", "train", GNNSCALE_DIE_AT="after-submit")
    run.end(-signal.SIGKILL)
    assert len(pbs.active()) == 1 and not run.submitted()
    run.start("--until", "train")
    run.wait(lambda: run.events("adopt"), "the driver to find it")
    (tmp_path / "go").touch()
    run.end()
    assert ends(run) == ["done"] and len(list(run.folder().glob("attempts/*"))) == 1


def test_a_job_that_ends_while_no_driver_looks(begin, pbs, tmp_path):
    """The server knows nothing of it any more, and its files say that it did its work."""
    run = begin(SHORT, setup=hold_training(tmp_path))
    job = run.wait(run.running, "the training to run")
    run.kill()
    (tmp_path / "go").touch()
    wait_until(lambda: not pbs.active(), "the job to end")
    run.start("--until", "train")
    run.end()
    assert run.submitted() == [job]


def test_a_training_that_hangs_is_asked_where_it_is(begin, pbs, tmp_path):
    """A signal through PBS would reach the shell around the job, which would end with all others."""
    run = begin(SOME, setup=hold_training(tmp_path), **TWO)
    run.wait(run.running, "the training to run")
    run.kill()
    # patience is short only while it hangs: a start may take longer
    run.layer(**run.cluster.site(scheduler={"stall_seconds": 5.0, "late_seconds": 0.5}, **TWO))
    run.start("--until", "train")
    run.wait(lambda: run.events("ended"), "the end of the job")
    assert ends(run) == ["stalled"]
    assert (attempt(run, 1) / "stderr").read_text().count("in main") == 2, "the stacks of both ranks"


@pytest.mark.parametrize(("history", "preemptible", "kind"), [(False, False, "lost"), (True, True, "preempted")])
def test_deleted_by_somebody_else(start, standin, tmp_path, history, preemptible, kind):
    """All its processes are killed with the shell around them. A preemptible queue deletes too, which uses up no retry."""
    queues = standin.site()["queues"]
    queues["default"]["preemptible"] = preemptible
    standin.set(history=history)
    try:
        run = start(standin, queues=queues, setup=hold_training(tmp_path))
        job = run.wait(run.running, "the training to run")
        standin.call("qdel", job)
        (tmp_path / "go").touch()
        run.end()
    finally:
        standin.set(history=False)
    assert ends(run) == [kind, "done"]
    assert {each["id"]: each["status"] for each in standin.ended()}[job] == 256 + signal.SIGTERM


def test_the_end_of_the_walltime(begin, tmp_path):
    """PBS sends no signal before it, so the job's script watches the time: here 80 s, which are over after a step."""
    over = f"""
import glob, signal, threading
begun, alarm = time.time(), signal.alarm
def watch(seconds):
    assert seconds == 80
    threading.Thread(target=ring, daemon=True).start()
def ring():
    while not any(os.stat(path).st_mtime > begun for path in glob.glob({str(tmp_path / "run/train/*/progress.json")!r})):
        time.sleep(0.05)
    alarm(1)
signal.alarm = watch
"""
    queues = {"default": {"max_walltime": "00:30:00"}}
    run = begin(
        make_study(30000),
        scheduler={"signal_seconds": 1720},
        setup=spoil_module(tmp_path, over, "gnnscale.job.batch_job"),
        queues=queues,
        serial={"queue": "default", "walltime": "00:30:00"},
    )
    later = run.wait(
        lambda: [p for p in run.root.glob("train/*/attempts/[2-9]/stdout") if "going on from step" in p.read_text()],
        "another job to go on",
    )
    assert later and set(ends(run)) == {"stopped"}


@pytest.mark.parametrize(
    ("history", "resource", "status", "kind"),
    [(False, "mem", -27, "out-of-memory"), (True, "walltime", -29, "walltime")],
)
def test_killed_by_the_mom_for_what_it_used(start, own, tmp_path, history, resource, status, kind):
    """Too much memory makes the next job smaller; the end of the walltime, seen by PBS alone, does not."""
    pbs = own(history=history)
    run = start(pbs, setup=hold_training(tmp_path))
    job = run.wait(run.running, "the training to run")
    pbs.set(kill={job.split(".")[0]: resource})
    run.wait(pbs.ended, "the end of the job")
    (tmp_path / "go").touch()
    run.end()
    assert ends(run) == [kind, "done"] and [each["status"] for each in pbs.ended()] == [status, 0]
    smaller = json.loads((run.folder() / "spec.json").read_text())["runtime"]["micro_batch_edges"]
    assert bool(smaller) == (resource == "mem")


# ---------------------------------------------------------------------------------- what is refused, and what waits for ever
@pytest.mark.parametrize(
    ("conf", "site", "message", "hint"),
    [
        ({}, {"queues": {"default": {"partition": "prod"}}}, "Unknown queue", "--set train.queue=NAME"),
        ({"account": "science"}, {"account": "other"}, "account not valid", "--set account=ACCOUNT"),
        ({"filesystems": ["home"]}, {}, "filesystems is required", ""),
        ({"queues": {"workq": {"nodes": [2, 3]}}}, {}, "resource limits", "resources_min of `qstat -Qf`"),
        ({"queues": {"workq": {"acl_users": ["alice"]}}}, {}, "Unauthorized Request", "acl_users"),
        ({"acl_roots": False}, {}, "Bad UID for job execution", "not as root"),
    ],
)
def test_what_it_refuses_is_told_once(start, own, conf, site, message, hint):
    if "acl_roots" in conf and os.geteuid():
        pytest.skip("only jobs of root are refused so")
    said = (run := start(own(**conf), **site)).end(1)
    assert (
        message in said and hint in said and said.count("qsub refuses the job") == 1 and len(run.events("intend")) == 1
    )


@pytest.mark.parametrize(
    ("site", "comment"),
    [
        ({"node": {"cores": 64}}, "Insufficient amount of resource: ncpus (R: 64 A: 8 T: 8)"),
        ({"train": {"nodes": [3, 3]}}, "Not enough total nodes available"),
    ],
)
def test_what_can_never_run_is_told(start, own, site, comment):
    """PBS takes it, and it would wait for ever."""
    pbs = own(nodes=2, queues={"workq": {}})
    said = (run := start(pbs, **site)).end(1)
    assert f"Can Never Run: {comment}" in said and "site's file" in said and len(run.submitted()) == 1
    assert not pbs.active()


def test_what_passes_is_waited_for(start, own):
    """A queue is disabled for maintenance, then it takes jobs and starts none, and then others have the cores."""
    pbs = own(queues={"workq": {"enabled": False}})
    run = start(pbs)
    run.wait(lambda: "Queue is not enabled" in told(run), "it to wait for the queue")
    pbs.set(queues={"workq": {"started": False}})
    run.wait(lambda: "Queue not started" in told(run), "the job to wait")
    pbs.set(queues={"workq": {"max_run_ncpus": 2}})
    run.wait(lambda: "would exceed user" in told(run), "the job to wait for cores")
    pbs.set(queues={"workq": {}})
    run.end()
    assert ends(run) == ["done"] and len(run.submitted()) == 1


def told(run):
    return " ".join(event["reason"] for event in run.events("job"))


# --------------------------------------------------------------------------------------------------- servers and nodes
def test_a_server_that_comes_and_goes(start, own, tmp_path):
    """It loses the answer to qsub, then prints nothing, then is restarted: there is one job all the same."""
    pbs = own(lost_answers=1)
    run = start(pbs, setup=hold_training(tmp_path))
    run.wait(run.running, "the training to run")
    for trouble in ({"silent": ["qstat", "qselect"]}, {"down": True}):
        pbs.set(silent=[], down=False)
        asked = pbs.commands("qstat")
        pbs.set(**trouble)
        wait_until(lambda asked=asked: pbs.commands("qstat") > asked + 3, "the driver to ask again")
    pbs.set(silent=[], down=False)
    (tmp_path / "go").touch()
    run.end()
    assert ends(run) == ["done"] and len(run.submitted()) == 1 and pbs.commands("qsub") == 1


@pytest.mark.parametrize("bugs", [[], ["no-express", "bad-json"]])
def test_one_command_asks_for_all_jobs(start, own, bugs):
    """The queue is stopped, so all wait; in the JSON of qstat there would be the first alone."""
    pbs = own(bugs=bugs, queues={"workq": {"started": False}})
    study = make_study(2)
    study["sweeps"][0]["over"] = {"structures": [24, 20, 16]}
    run = start(pbs, study)
    run.wait(lambda: len(run.submitted()) == 3, "all jobs")
    before = len(pbs.called())
    run.wait(lambda: len(pbs.called()) >= before + 6, "more queries")
    later = pbs.called()[before + 2 :]  # the first ones may have been on their way, or refused for their form
    assert all(words[0] == "qstat" and set(run.submitted()) <= set(words) for _, words in later), later
    pauses = [after - before for (before, _), (after, _) in itertools.pairwise(later)]
    assert min(pauses) > 0.45, "one command each time, twice a second"
    run.driver.send_signal(signal.SIGINT)
    assert "3 jobs keep running" in run.end(130)


def test_a_node_that_lies_is_not_used_again(start, own, tmp_path):
    """PBS gives the first free node again, and cannot leave one out: the next job asks for a spare node."""
    pbs = own()
    if not json.loads((pbs.state / "conf.json").read_text())["named"]:
        pytest.skip("nodes have no names of their own here")
    run = start(pbs, setup=spoil_module(tmp_path, FAILS_ON_N1))
    run.end()
    assert ends(run) == ["node", "done"]
    assert "#PBS -l select=2:" in (attempt(run, 2) / "job.sh").read_text()
    assert json.loads((attempt(run, 2) / "exit.json").read_text())["hosts"] == ["n2"]


def test_a_launcher_that_needs_ssh(start, standin):
    """The site's file says how mpiexec uses PBS instead, as `site` of the stand-in does."""
    launch = standin.site()["launch"]
    comment = (ROOT / "sites" / "pbs.yaml").read_text()
    said = json.loads(re.search(r"#\s+MPICH: flags: (\[.*\])", comment)[1])
    assert [word.rpartition("/")[2] for word in launch["flags"]] == said
    run = start(standin, launch=launch | {"flags": launch["flags"][4:]}, **TWO)
    said = run.end(1)
    assert "ssh: connect to host" in said and set(ends(run)) == {"application"}


def test_a_new_site_where_another_scheduler_is_dead(standin, tmp_path):
    """The commands of Slurm are there, and no slurmctld answers."""
    for name in ("sinfo", "squeue", "scontrol", "sacctmgr"):
        path = tmp_path / name
        path.write_text("#!/bin/sh\necho 'slurm_load_partitions: Unable to contact slurm controller' >&2\nexit 1\n")
        path.chmod(0o755)
    env = os.environ | {"PATH": f"{tmp_path}:{standin.env['PATH']}", "XDG_CONFIG_HOME": str(tmp_path / "config")}
    done = subprocess.run([*RUN, "sites", "new"], capture_output=True, text=True, env=env, cwd=tmp_path)
    assert done.returncode == 0 and "kind: pbs" in done.stdout, done.stdout + done.stderr


@pytest.mark.parametrize("history", [False, True])
def test_jobs_are_found_by_name_and_number(own, tmp_path, monkeypatch, history):
    """Without a history the server denies jobs that have ended, and says nothing else about them."""
    pbs = own(history=history, bugs=["bad-json"])
    monkeypatch.setenv("PATH", pbs.env["PATH"])
    (tmp_path / "job.sh").write_text("#PBS -N gs-one\n#PBS -l select=1:ncpus=1\nexit 7\n")
    ids = [pbs.call("qsub", "job.sh", cwd=tmp_path).strip() for _ in range(3)]
    wait_until(lambda: not pbs.active(), "the jobs to end")
    scheduler = PBSScheduler()
    found = scheduler.find_by_id([*ids, "99999.standin"], 60)
    known = dict.fromkeys(ids, ("FAILED", 7)) if history else {}
    assert {id: (job.state, job.code) for id, job in found.jobs.items()} == known
    assert found.unknown == {*ids, "99999.standin"} - known.keys()
    assert {job.id for job in scheduler.find_by_name({"gs-one"}, 60)} == known.keys()
