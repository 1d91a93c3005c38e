"""Judgement of ended jobs, retries, refused submissions, and the jobs that a driver finds in a journal."""

import json
import os
import threading
import time

import pytest

from gnnscale.contract import files
from gnnscale.contract.results import StageError
from gnnscale.contract.stage_spec import Runtime
from tests.support import sweeps
from tests.support.cluster import PATIENCE, SHORT
from tests.support.corpus import TINY
from workflow.config import site_files, study_files
from workflow.jobs import batch, follow, launch, outcome, parsl_provider
from workflow.jobs.batch import BatchJobs
from workflow.jobs.follow import JobFollower
from workflow.jobs.outcome import RetryBudget, classify
from workflow.jobs.requests import Request, serial_requests
from workflow.jobs.run_context import RunContext
from workflow.jobs.submit import JobSubmitter
from workflow.plan import build, memory_fit
from workflow.run_directory import journal
from workflow.run_directory.attempt import AttemptOutcome, ExitRecord
from workflow.run_directory.journal import RecordedJob
from workflow.scheduler.interface import JobStatus, SchedulerUnreachable, Snapshot


def ended(code, **more):
    facts = {"rank": 0, "host": "n1", "launcher": code, "job": "1", "hosts": ["n1"], "begin": 1, "end": 2}
    return ExitRecord(code=code, **(facts | more))


def job(state, nodes="n[1-2]", code=None):
    return JobStatus("1", "gs-1", state, "None", nodes, code)


def error(kind, message="said"):
    return StageError(id="train/x", kind=kind, message=message, hint="do this")


@pytest.mark.parametrize(
    ("exit", "seen", "said", "words", "kind"),
    [
        (ended(75), job("COMPLETED"), None, "", "stopped"),
        (ended(75), job("PREEMPTED"), None, "", "preempted"),
        (ended(75), job("CANCELLED"), None, "", "cancelled"),
        (None, job("CANCELLED"), None, "", "cancelled"),
        (None, job("TIMEOUT"), None, "", "walltime"),
        (ended(1), job("NODE_FAIL"), None, "", "node"),
        (None, job("OUT_OF_MEMORY"), None, "", "out-of-memory"),
        (ended(137), job("FAILED"), None, "", "out-of-memory"),
        (ended(137), job("FAILED"), error("out-of-memory"), "", "out-of-memory"),
        (ended(1), job("FAILED"), None, "torch.OutOfMemoryError: CUDA out of memory", "out-of-memory"),
        (ended(1), job("FAILED"), error("application"), "RuntimeError: CUDA error: uncorrectable ECC error", "node"),
        (ended(1), job("FAILED"), None, "NCCL WARN Call to recv failed: unhandled system error", "node"),
        (ended(64), job("FAILED"), error("configuration"), "", "configuration"),
        (ended(64), job("FAILED"), error("configuration", "x is in use by n2 pid 5"), "", "busy"),
        (ended(64), job("FAILED"), error("data"), "", "data"),
        (ended(74), job("FAILED"), error("disk-full"), "", "disk-full"),
        (ended(74), job("FAILED"), None, "", "disk-full"),
        (ended(3), job("FAILED"), None, "a bug", "application"),
        (ended(0), job("COMPLETED"), None, "", "application"),
        (None, None, None, "", "lost"),
        (ended(1), None, None, "srun: error: Slurm job 2 has expired", "lost"),
        (ended(143), None, None, "", "lost"),
        (ended(1), job("FAILED"), error("application"), "srun: error: Slurm job 2 has expired", "application"),
        (ended(1), job("FAILED"), None, "srun: Job step aborted: Waiting up to 32 seconds", "application"),
        (ended(75, begun=False), job("COMPLETED"), None, "", "not-begun"),
        (ended(75, begun=False), job("TIMEOUT"), None, "", "not-begun"),
        (ended(76, begun=False, sick={"n2": "no driver"}), job("FAILED"), None, "", "node"),
        (ended(75), None, None, "=>> PBS: job killed: mem 9000kb exceeded limit 8000kb", "out-of-memory"),
        (None, None, None, "=>> PBS: job killed: walltime 130 exceeded limit 120", "walltime"),
        (ended(75), job("FAILED"), None, "=>> PBS: job killed: ncpus 3.1 exceeded limit 1 (sum)", "configuration"),
        (ended(137), None, None, "Cgroup memory limit exceeded: Killed process 3 (python)", "out-of-memory"),
    ],
)
def test_every_end_has_a_name(exit, seen, said, words, kind):
    found = classify(exit, seen, said, words, "no result")
    assert found.kind == kind and (found.message or kind == "done")
    assert classify(exit, seen, said, words, "").kind == "done", "a valid result is one, whatever else is told"


def test_a_container_that_does_not_start_is_told_in_its_own_words():
    """No rank began, so none could leave its own exit code; the launcher's last line says only that a task ended."""
    words = "Error: localhost/x:1: image not known\nsrun: error: n1: task 0: Exited with exit code 125"
    found = classify(ended(125, rank=None, host=""), job("FAILED"), None, words, "no result")
    assert found.message == "exit code 125: Error: localhost/x:1: image not known"


@pytest.mark.parametrize("state", ["CANCELLED", "PREEMPTED"])
def test_a_job_that_a_preemptible_queue_took_back(state):
    """PBS deletes the job and gives no reason."""
    assert classify(None, job(state), None, "", "x", preemptible=True).kind == "preempted"
    assert classify(ended(3), job("FAILED"), None, "a bug", "x", preemptible=True).kind == "application"


def test_a_dead_node_is_named():
    assert classify(None, job("NODE_FAIL", "n3"), None, "", "x").bad_hosts == ("n3",)
    assert classify(ended(1, host="n2"), None, None, "Bus error", "x").bad_hosts == ("n2",)
    unfit = classify(ended(76, begun=False, sick={"n2": "no driver", "n4": "disk"}), None, None, "", "x")
    assert unfit.bad_hosts == ("n2", "n4") and "n2: no driver" in unfit.message
    assert outcome.expand_hosts("n[1-2,07-08],x,y[3]") == ["n1", "n2", "n07", "n08", "x", "y3"]


def test_what_makes_progress_may_go_on_for_ever():
    budget = RetryBudget(0)
    for step in range(1, 100):
        assert budget.decide(AttemptOutcome("stopped", ""), step)[0] == "continue"
        assert budget.decide(AttemptOutcome("node", "", bad_hosts=("n1",)), step)[0] == "avoid"


def test_what_makes_none_is_ended():
    budget = RetryBudget(5)
    assert budget.decide(AttemptOutcome("stopped", "told to stop"), 5)[0] == "continue"
    action, told = budget.decide(AttemptOutcome("walltime", "ran into the end"), 5)
    assert action == "fail" and "2 jobs in a row" in told.message and told.hint
    for kind, times in (("node", 3), ("out-of-memory", 3), ("cancelled", 2), ("lost", 2), ("stalled", 1)):
        budget = RetryBudget(0)
        actions = [budget.decide(AttemptOutcome(kind, "so"), 0)[0] for _ in range(times + 1)]
        assert "fail" not in actions[:-1] and actions[-1] == "fail", kind
    for kind in ("configuration", "data", "application", "permission", "withdrawn"):
        assert RetryBudget(0).decide(AttemptOutcome(kind, "so"), 0) == ("fail", AttemptOutcome(kind, "so"))


def test_what_was_never_begun_costs_no_tries():
    """An unfit node is avoided, and a turn that never came comes in the next job; but not for ever."""
    budget, unfit = RetryBudget(0), AttemptOutcome("node", "not fit", bad_hosts=("n1",), begun=False)
    assert [budget.decide(unfit, 0)[0] for _ in range(5)] == ["avoid"] * 5
    assert budget.decide(AttemptOutcome("node", "died", bad_hosts=("n1",)), 0)[0] == "avoid"
    assert budget.decide(unfit, 0)[0] == "fail"
    assert RetryBudget(0).decide(AttemptOutcome("not-begun", "", begun=False), 0)[0] == "again"
    assert RetryBudget(0).decide(AttemptOutcome("stopped", "", begun=False), 0)[0] == "continue"


STACKS = """\
[rank 1 on n2] Thread 0x00007f1 [python] (most recent call first):
[rank 0 on n1] no answer: T (stopped)
[rank 1 on n2]   File "/usr/lib/python3.11/threading.py", line 320 in wait
something that another thread printed
[rank 1 on n2] Current thread 0x00007f2 [python] (most recent call first):
[rank 1 on n2]   File "/x/gnnscale/.venv/lib/python3.11/torch/distributed/distributed_c10d.py", line 2810 in all_reduce
[rank 2 on n3] Current thread 0x00007f2 [python] (most recent call first):
[rank 1 on n2]   File "/y/gnnscale/train/loop.py", line 7 in <lambda>
[rank 1 on n2] Thread 0x00007f3 [python] (most recent call first):
[rank 1 on n2]   File "/usr/lib/python3.11/threading.py", line 324 in wait
"""


def test_where_ranks_hang_is_told():
    told = outcome.with_stacks(AttemptOutcome("stalled", "no sign of life"), STACKS)
    assert told.message == (
        "no sign of life; rank 0 on n1: no answer: T (stopped); rank 1 on n2: all_reduce "
        "(distributed/distributed_c10d.py:2810), called from <lambda> (gnnscale/train/loop.py:7); "
        "rank 2 on n3: nowhere in Python"
    )
    assert "rank 1 on n2: <lambda> (gnnscale/train/loop.py:7)" in told.tail and not any(
        "threading" in line for line in told.tail
    )
    silent = AttemptOutcome("stalled", "no sign of life")
    assert outcome.with_stacks(silent, "nothing of the kind") == silent


def test_less_memory_each_time():
    runtime, asked = Runtime(ranks=2), TINY
    first = memory_fit.with_less_memory(runtime, asked, edges=100.0)
    second = memory_fit.with_less_memory(first, asked, edges=100.0)
    assert first.edge_chunk and first.micro_batch_edges == 8 * 100 // 2 // 2 and second.micro_batch_edges == 100
    assert first.ranks == second.ranks == 2


def test_what_a_journal_says_of_jobs(tmp_path):
    log, here = journal.Journal(tmp_path / "events.jsonl"), {"root": str(tmp_path), "site": "s"}
    log.note("intend", name="a-1", stages={"train/x": ("train/x-1", 1), "train/y": ("train/y-1", 1)}, **here)
    log.note("submit", name="a-1", job="7")
    log.note("job", "train/x", name="a-1", state="RUNNING", reason="None", nodes="n1")
    log.note("ended", "train/x", name="a-1", kind="done")
    log.note("intend", name="b-1", stages={"train/z": ("train/z-1", 1)}, **here)
    log.note("intend", name="c-1", stages={"train/w": ("train/w-1", 1)}, **here)
    log.note("ended", "train/w", name="c-1", kind="lost")
    log.note("intend", name="d-1", stages={"train/v": ("train/v-1", 1)}, root="of/which/this/is/a/copy", site="s")
    first, second = journal.unfinished_jobs(tmp_path)
    assert (first.id, first.ended, first.last_status) == ("7", {"train/x"}, ("RUNNING", "None", "n1"))
    assert (second.name, second.id) == ("b-1", None)
    assert not first.is_stale({"train/y-1"}) and first.is_stale({"train/x-1", "train/z-1"})


def test_names_are_of_a_directory(tmp_path):
    name = journal.job_name(tmp_path, ["k1", "k2"], 3)
    assert name == journal.job_name(tmp_path, ["k2", "k1"], 3) and len(name) <= 15
    assert len({name, journal.job_name(tmp_path / "copy", ["k1", "k2"], 3), journal.job_name(tmp_path, ["k1"], 3)}) == 3


POLICY = (
    "\nsbatch: error: Batch job submission failed: Job violates accounting/QOS policy (job submit limit, user's size "
    "and/or time limits)"
)


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        ("sbatch: error: Unable to contact slurm controller (connect failure)", SchedulerUnreachable),
        (
            "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation",
            SchedulerUnreachable,
        ),
        ("sbatch: error: slurm_receive_msg: Zero Bytes were transmitted or received", SchedulerUnreachable),
        ("qsub: cannot connect to server pbs (errno=111)", SchedulerUnreachable),
        (
            "sbatch: error: AssocMaxSubmitJobLimit\nsbatch: error: Batch job submission failed: Job violates accounting/QOS "
            "policy (job submit limit, user's size and/or time limits)",
            parsl_provider.JobLimitReached,
        ),
        ("sbatch: error: QOSMaxSubmitJobPerUserLimit", parsl_provider.JobLimitReached),
        ("sbatch: error: AssocGrpCPUMinutesLimit" + POLICY, parsl_provider.JobLimitReached),
        (
            "sbatch: error: Batch job submission failed: Job violates accounting/QOS policy (job submit limit, user's size "
            "and/or time limits)",
            parsl_provider.JobLimitReached,
        ),
        ("sbatch: error: QOSMaxWallDurationPerJobLimit" + POLICY, parsl_provider.JobRefused),
        ("sbatch: error: AssocMaxNodePerJobLimit" + POLICY, parsl_provider.JobRefused),
        ("sbatch: error: QOSMinGRES" + POLICY, parsl_provider.JobRefused),
        ("qsub: would exceed queue generic's per-user limit of jobs in 'Q' state", parsl_provider.JobLimitReached),
        (
            "sbatch: error: Batch job submission failed: Invalid account or account/partition combination",
            parsl_provider.JobRefused,
        ),
        ("sbatch: error: invalid partition specified: nope", parsl_provider.JobRefused),
        (
            "sbatch: error: Batch job submission failed: Requested node configuration is not available",
            parsl_provider.JobRefused,
        ),
        (
            "sbatch: error: Batch job submission failed: Requested time limit is invalid (missing or exceeds some limit)",
            parsl_provider.JobRefused,
        ),
        ("qsub: Job violates queue and/or server resource limits", parsl_provider.JobRefused),
        ("qsub: Unknown queue", parsl_provider.JobRefused),
        ("", parsl_provider.JobRefused),
    ],
)
def test_what_a_submission_was_answered(said, kind):
    found = parsl_provider.submission_error(site_files.load("slurm"), said)
    assert type(found) is kind
    if kind is parsl_provider.JobRefused:
        assert found.hint


@pytest.mark.parametrize(
    ("reason", "hint"),
    [
        ("QOSMaxWallDurationPerJobLimit", "max_walltime"),
        ("AssocMaxWallDurationPerJobLimit", "max_walltime"),
        ("QOSMaxNodePerJobLimit", "of that size"),
        ("AssocMaxCpuPerJobLimit", "of that size"),
    ],
)
def test_what_no_time_will_lift_is_told_as_what_it_is(reason, hint):
    """The hint speaks of the size, and not of a wrong account or queue, which Slurm's sentence also mentions."""
    assert hint in parsl_provider.submission_error(site_files.load("slurm"), f"sbatch: error: {reason}{POLICY}").hint


# --------------------------------------------------------------------------------------- with a scheduler of small scripts
@pytest.fixture
def commands(tmp_path, monkeypatch):
    """Return a function that installs scripts as commands; they find their directory in $HERE."""
    made = tmp_path / "bin"
    made.mkdir()

    def write(**scripts):
        for name, text in scripts.items():
            (made / name).write_text(f"#!/bin/bash\nHERE={made}\n{text}\n")
            (made / name).chmod(0o755)
        return made

    monkeypatch.setenv("PATH", f"{made}:{os.environ['PATH']}")
    return write


QUICK = ["scheduler.poll_seconds=0.1", "scheduler.late_seconds=0.1"]
# Silent, but for those who submit it again and again.
TAKES = 'echo "taken" >>"$HERE/asked"; [ "$(wc -l <"$HERE/asked")" -lt 4 ] || echo'
SILENT = {
    "slurm": {
        "sbatch": f"{TAKES} Submitted batch job 9",
        "sacct": "exit 1",
        "squeue": '[ ! -e "$HERE/asked" ] || echo "7|RUNNING|None|n1|gs-1"',
    },
    "pbs": {
        "qsub": f"{TAKES} 9.server",
        "qselect": '[ ! -e "$HERE/asked" ] || echo 7.server',
        "qstat": """echo '{"Jobs": {"7.server": {"Job_Name": "gs-1", "job_state": "R"}}}'""",
    },
}


@pytest.mark.parametrize(
    ("kind", "more"),
    [("slurm", ""), ("slurm", "; echo Thank you"), ("slurm", "; echo 7"), ("pbs", ""), ("pbs", "; echo Thank you")],
)
def test_a_job_whose_number_was_not_told_is_found_by_its_name(kind, more, tmp_path, commands):
    """Options or a wrapper hide the number that sbatch and qsub print; the job is still submitted once."""
    verb = {"slurm": "sbatch", "pbs": "qsub"}[kind]
    place = commands(**SILENT[kind] | {verb: SILENT[kind][verb] + more})
    site, log = site_files.load(kind, QUICK), journal.Journal(tmp_path / "events.jsonl")
    submitter = JobSubmitter(RunContext(tmp_path, site, kind, log, lambda *told: None), {})
    request = Request(("train/x",), next(iter(site.queues)), 1, 1, 1, 1, 600, 1, 1.0)
    asked = parsl_provider.JobScript(request, "gs-1", tmp_path, "true")
    id = submitter.submit_script(asked, RecordedJob("gs-1", str(tmp_path), kind, {}), [])
    assert id.split(".")[0] == "7" and (place / "asked").read_text() == "taken\n"


def make_submitter(tmp_path, kind, *settings):
    site, log = site_files.load(kind, [*QUICK, *settings]), journal.Journal(tmp_path / "events.jsonl")
    return JobSubmitter(RunContext(tmp_path, site, kind, log, lambda *told: None), {})


def training(nodes, **more):
    return Request(("train/x",), "default", nodes, nodes, 1, 1, 600, 1, 1.0, **more)


@pytest.mark.parametrize(
    ("kind", "settings", "asked", "nodes", "avoid"),
    [
        ("pbs", [], training(2), 4, ["n1", "n2"]),
        ("pbs", ["queues.default.nodes=[1, 3]"], training(2), 3, ["n1", "n2"]),
        ("pbs", ["launch.command=none"], training(1), 1, ["n1", "n2"]),
        ("pbs", [], training(1, slots=4), 1, ["n1", "n2"]),
        ("slurm", [], training(2), 2, None),
    ],
)
def test_nodes_that_failed_are_avoided(tmp_path, kind, settings, asked, nodes, avoid):
    """PBS cannot leave nodes out, so there are spare ones, and the job knows which not to use."""
    submitter = make_submitter(tmp_path, kind, *settings)
    place = launch.StageAttempt("train/x", "train", tmp_path, 1)
    submitter.learn_from(None, ("n1", "n2"))
    made = submitter.make_script(asked, "gs-1", [place])
    plan = json.loads(made.body.partition("<<'PLAN'\n")[2].rpartition("PLAN")[0])
    assert (made.request.nodes, plan.get("avoid"), plan["stages"][0]["nodes"]) == (nodes, avoid, asked.nodes)
    text = parsl_provider.render_script(made, submitter.context.site)
    assert (f"select={nodes}:" in text) if kind == "pbs" else ("--exclude=n1,n2" in text)
    assert ("{hosts}" in plan["stages"][0]["command"]) == (nodes > asked.nodes)


def test_a_node_that_comes_although_it_is_avoided_is_taken(tmp_path):
    """There are too few others. One that is met for the first time, or by another job, is avoided."""
    submitter, job = make_submitter(tmp_path, "pbs"), RecordedJob("gs-1", str(tmp_path), "pbs", {})
    submitter.learn_from(job, ("n1",))
    submitter.make_script(training(1), "gs-2", [launch.StageAttempt("train/x", "train", tmp_path, 1)])
    submitter.learn_from(job, ("n1",))
    assert submitter.avoid == ("n1",)
    submitter.learn_from(job._replace(name="gs-2"), ("n1",))
    assert submitter.avoid == ()


def test_a_refused_job_is_tried_without_spare_nodes(tmp_path, commands):
    place = commands(qsub='grep -q "select=1:" job.sh && echo 9.server || { echo "qsub: too large" >&2; exit 1; }')
    submitter, job = make_submitter(tmp_path, "pbs"), RecordedJob("gs-1", str(tmp_path), "pbs", {})
    submitter.learn_from(None, ("n1",))
    (tmp_path / "attempts" / "1").mkdir(parents=True)
    attempts = [launch.StageAttempt("train/x", "train", tmp_path, 1)]
    assert place and submitter.submit_attempts(training(1), job, attempts, []) == "9.server"


@pytest.mark.parametrize("left", ["nothing", "exit.json", "exit.json and a trace"])
def test_a_job_that_ended_before_its_number_was_written_down(left, tmp_path, commands):
    """The driver was killed between sbatch and its journal entry, and the next one starts after the job's end."""
    commands(sacct="exit 1", squeue='echo "1|COMPLETED|None|n1|gs-1"' if "trace" in left else "")
    site, log = site_files.load("slurm", QUICK), journal.Journal(tmp_path / "events.jsonl")
    (tmp_path / "study.yaml").write_text(json.dumps(SHORT))
    name, asked = study_files.load(str(tmp_path / "study.yaml"))
    stages = build.build_stages(name, asked, site, tmp_path)
    stage = next(stage for stage in stages.values() if stage.kind == "train")
    log.note("intend", name="gs-1", root=str(tmp_path), site="slurm", stages={stage.id: (stage.folder, 1)})
    if "exit.json" in left:
        files.write_model(tmp_path / stage.folder / "attempts" / "1" / "exit.json", ended(75))
    jobs = BatchJobs(tmp_path, site, "slurm", stages, {}, log, lambda *told: None)
    try:
        job = jobs.adopt(stage)
        if left == "nothing":
            (end,) = [e for e in journal.read_events(log.path) if e["event"] == "ended"]
            assert job is None and end["kind"] == "lost" and not journal.unfinished_jobs(tmp_path)
            return
        assert job.id == "1" and journal.unfinished_jobs(tmp_path)[0].id == "1"
        assert JobFollower(jobs.context, jobs.poller, stage, job).wait_for_end().kind == "stopped"
    finally:
        jobs.stop()


class Answers:
    """A poller whose snapshots are given, and which asks for no more of them."""

    def __init__(self, *snapshots):
        self.snapshots = iter(snapshots)

    def follow(self, id):
        pass

    def hurry(self):
        pass

    def wait_for_snapshot(self, moment, seconds):
        return next(self.snapshots)._replace(began=time.time())


@pytest.fixture
def followed(tmp_path):
    """Return a function that follows a job of a training with such snapshots."""
    site, log = site_files.load("pbs", [*QUICK, "scheduler.late_seconds=0"]), journal.Journal(tmp_path / "events.jsonl")
    stage = sweeps.make_stage("train", "x", 60.0)
    (tmp_path / stage.folder / "attempts" / "1").mkdir(parents=True)
    context = RunContext(tmp_path, site, "pbs", log, lambda *told: None)
    recorded = RecordedJob("gs-1", str(tmp_path), "pbs", {stage.id: (stage.folder, 1)}, "7.pbs")
    return lambda *snapshots: JobFollower(context, Answers(*snapshots), stage, recorded)


def snapshot(state=None, name="gs-1", unknown=()):
    jobs = {"7.pbs": JobStatus("7.pbs", name, state)} if state else {}
    return Snapshot(0.0, jobs, frozenset(unknown))


SILENCE, DENIAL, RUNNING = snapshot(), snapshot(unknown=["7.pbs"]), snapshot("RUNNING")


def test_an_answer_without_the_job_ends_nothing(followed):
    """However often: a server without a history answers so, or one that has just started. Its own words end the job."""
    answers = [RUNNING, *[SILENCE] * 20, RUNNING, DENIAL, DENIAL]
    follower = followed(*answers)
    assert follower.wait_for_end().kind == "lost" and not list(follower.poller.snapshots)


@pytest.mark.parametrize(
    ("comment", "hint"),
    [
        ("Can Never Run: Insufficient amount of resource: ncpus (R: 64 A: 8 T: 8)", "node.cores"),
        ("Can Never Run: Insufficient amount of resource: ngpus (R: 4 A: 0 T: 0)", "select"),
        ("Can Never Run: Not enough total nodes available", "train.nodes"),
        ("job held, too many failed attempts to run", "doctor"),
        ("PartitionTimeLimit", "queues"),
    ],
)
def test_what_would_wait_for_ever_is_ended_and_told(followed, monkeypatch, comment, hint):
    """Not at the first sight of it, as the scheduler may only be looking."""
    status = JobStatus("7.pbs", "gs-1", "PENDING", comment, is_hopeless=True)
    waiting = Snapshot(0.0, {"7.pbs": status})
    follower, cancelled = followed(waiting, waiting, DENIAL, DENIAL), []
    monkeypatch.setattr(follower, "cancel_job", lambda: cancelled.append(True))
    end = follower.wait_for_end()
    assert (end.kind, cancelled) == ("configuration", [True]) and comment in end.message and hint in end.hint


def test_a_job_that_was_suspended_is_not_silent(followed, monkeypatch):
    """PBS suspends jobs for those of higher priority, for as long as it takes."""
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    follower = followed()
    follower.note_status(RUNNING.jobs["7.pbs"])
    for _ in range(5):
        clock[0] += 1000.0
        follower.note_status(snapshot("PENDING").jobs["7.pbs"])
    clock[0] += 1000.0
    follower.note_status(RUNNING.jobs["7.pbs"])
    assert follower.forced is None and not (follower.attempt / "SIGUSR2").exists()
    clock[0] += 1000.0
    follower.note_status(RUNNING.jobs["7.pbs"])
    assert follower.forced.kind == "stalled" and (follower.attempt / "SIGUSR2").exists()


def test_a_number_that_was_given_again_ends_the_job(followed):
    other = snapshot("RUNNING", name="another")
    assert followed(other, other).wait_for_end().kind == "lost"


def test_files_decide_where_the_scheduler_is_silent(followed):
    follower = followed(RUNNING, SILENCE, SILENCE)
    files.write_model(follower.attempt / "exit.json", ended(75))
    assert follower.wait_for_end().kind == "stopped"


def test_a_training_that_hangs_is_asked_by_a_file(followed, monkeypatch):
    """A signal through PBS would reach the shell around the job, and end it."""
    monkeypatch.setattr(follow, "STACK_DUMP_SECONDS", 0.0)
    follower = followed(RUNNING, RUNNING, DENIAL, DENIAL)
    cancelled = []
    monkeypatch.setattr(follower, "is_stalled", lambda: True)
    monkeypatch.setattr(follower, "cancel_job", lambda: cancelled.append((follower.attempt / "SIGUSR2").exists()))
    assert follower.wait_for_end().kind == "stalled" and cancelled == [True, True]


# ------------------------------------------------------------------------------------------------- a job that stages share
@pytest.fixture
def sharing(tmp_path, monkeypatch):
    """Jobs of three conversions, which are recorded and not submitted; `begin` starts the thread of one."""
    stages = {f"convert/{name}": sweeps.make_stage("convert", name, 60.0) for name in "abc"}
    site, sent, begun, results = site_files.load("slurm", [*QUICK, "node.cores=2"]), [], [], {}
    requests = {id: serial_requests([stage], site)[0] for id, stage in stages.items()}
    log = journal.Journal(tmp_path / "events.jsonl")
    jobs = BatchJobs(tmp_path, site, "slurm", stages, requests, log, lambda *told: None, lambda: set(jobs.ready))
    jobs.ready, jobs.sent, jobs.results = set(stages), sent, results

    def send(request, its):
        sent.append([stage.id for stage in its])
        number = str(len(sent))
        return RecordedJob(f"gs-{number}", str(tmp_path), "slurm", dict.fromkeys(request.stages, ("", 1)), number)

    def begin(name):
        id = f"convert/{name}"
        begun.append(threading.Thread(target=lambda: results.update({id: jobs.submit(stages[id])})))
        begun[-1].start()

    def finish():
        for thread in begun:
            thread.join(timeout=PATIENCE)

    monkeypatch.setattr(batch, "FILE_POLL_SECONDS", 0.01)
    monkeypatch.setattr(jobs, "send", send)
    jobs.begin, jobs.finish = begin, finish
    yield jobs
    jobs.stop()
    finish()


def test_a_job_waits_for_all_that_are_ready(sharing):
    """However slow some stages are, and whichever comes first, the job is the planned one."""
    looks = threading.Semaphore(0)
    sharing.find_ready = lambda: looks.release() or set(sharing.ready)
    for name in "cba":
        sharing.begin(name)
        if name != "a":  # until it has looked several times whether all have come
            assert all(looks.acquire(timeout=PATIENCE) for _ in range(3)) and not sharing.sent
    sharing.finish()
    assert sharing.sent == [["convert/a", "convert/b", "convert/c"]]
    assert len({job.id for job in sharing.results.values()}) == 1 and len(sharing.results) == 3


def test_a_job_waits_for_no_other(sharing, monkeypatch):
    """A stage that never comes, for a reason that is not known, is not waited for endlessly."""
    sharing.ready = {"convert/a", "convert/c"}
    sharing.begin("a"), sharing.begin("c")
    sharing.finish()
    assert sharing.sent == [["convert/a", "convert/c"]]
    sharing.ready = {"convert/b"}
    monkeypatch.setattr(batch, "LATE_SECONDS", 0.0)
    sharing.begin("a")
    sharing.finish()
    sharing.begin("b")
    sharing.finish()
    assert sharing.sent[1:] == [["convert/a"], ["convert/b"]]


@pytest.fixture
def shared(sharing):
    """Return the job of all three conversions, once it is recorded."""
    for name in "abc":
        sharing.begin(name)
    sharing.finish()
    job = sharing.results["convert/a"]._replace(stages={id: (s.folder, 1) for id, s in sharing.stages.items()})
    sharing.enter(job)
    return job


def test_stages_of_a_job_that_was_ended_share_the_next(sharing, shared):
    """The first to hear of the end waits for the other that is not done either."""
    a, b, c = sharing.stages.values()
    sharing.ready.discard("convert/a")
    sharing.end(a, shared, AttemptOutcome("done", ""), is_job_over=True)
    sharing.end(b, shared, AttemptOutcome("cancelled", ""), is_job_over=True)
    sharing.begin("b")
    assert sharing.find_missing(b) == {"convert/c"}
    sharing.end(c, shared, AttemptOutcome("cancelled", ""), is_job_over=True)
    sharing.begin("c")
    sharing.finish()
    assert sharing.sent[1:] == [["convert/b", "convert/c"]]


@pytest.mark.parametrize(("kind", "is_job_over"), [("out-of-memory", False), ("done", True)])
def test_a_stage_that_leaves_its_job_waits_for_none_of_those_that_stay(sharing, shared, kind, is_job_over):
    b = sharing.stages["convert/b"]
    sharing.end(b, shared, AttemptOutcome(kind, ""), is_job_over)
    assert not sharing.find_missing(b)
