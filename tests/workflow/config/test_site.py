"""Every file in sites/ is valid and renders the scripts in stored/jobs/; every mistake is reported with its place.

GNNSCALE_RENEW=1 writes the scripts again: look at the difference before you commit it.
"""

import os
import re
import subprocess
from pathlib import Path

import pytest

from gnnscale.contract import places
from tests.support.corpus import ROOT
from tests.support.errors import message_of
from tests.support.sweeps import make_stage, make_training
from tests.workflow.cli.test_commands import call
from workflow.config import site_files
from workflow.config.scheduler_kinds import KINDS
from workflow.config.walltime import to_seconds
from workflow.doctor import trial_job
from workflow.jobs import launch, render
from workflow.jobs import requests as queueing

STORED = ROOT / "tests" / "stored" / "jobs"
BATCH = [name for name in site_files.list_sites() if site_files.load(name).has_scheduler]
CLUSTERS = [name for name in BATCH if name not in KINDS]  # the file of a scheduler's name is for any cluster with it
GOOD = """title: t
host: ^login
arch: x86_64
scheduler:
  kind: slurm
  directives: ["-C gpu"]
account_rule: {required: true, pattern: '[a-z]{3}[0-9]{3}', example: abc123}
queues:
  normal: {nodes: [1, 10], max_walltime: "12:00:00"}
  debug: {nodes: [1, 2], max_walltime: "00:30:00", production: false}
launch:
  command: srun
  ranks_per_node: 4
  flags: ["-n{ranks}"]
train: {nodes: [1, 4]}
serial: {queue: normal, walltime: "01:00:00"}
verified: {level: docs, date: "2026-11-21"}
"""


@pytest.fixture(autouse=True)
def nobodys_settings(monkeypatch, tmp_path):
    """Keep the files of the user, and those that another test has written, away from every test."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))


# ---------------------------------------------------------------------------------------------- the files in sites/
@pytest.mark.parametrize("name", site_files.list_sites())
def test_no_more_is_claimed_than_was_done(name):
    site = site_files.load(name)
    assert site.verified.level == ("live" if name == "local" else "docs")
    assert site.account is None, "an account is yours and not the site's"


@pytest.mark.parametrize("name", CLUSTERS)
def test_a_cluster_says_where_its_facts_are_from(name):
    site = site_files.load(name)
    assert all(page.startswith("https://") for page in site.docs) and site.docs
    assert all(quirk.source.startswith("https://") for quirk in site.quirks)
    assert site.arch is not None and site.account_rule.required and site.account_rule.example


@pytest.mark.parametrize("name", BATCH)
def test_its_own_example_of_an_account_is_one(name):
    rule = site_files.load(name).account_rule
    if rule.example:
        assert site_files.load(name, [f"account={rule.example}"]).account == rule.example


@pytest.mark.parametrize("name", BATCH)
def test_the_scripts_are_as_they_were(name, tmp_path):
    """Return a conversion, a training on two nodes with its evaluation, and four on one node; one if they share no job."""
    site = site_files.load(name)
    site = site.model_copy(update={"account": site.account_rule.example or None})
    more = 2 if site.train.nodes[1] > 1 else 1
    stages = [make_stage("convert", "bulk", 60), make_training(site, "large", 2, more, shorter=("train/a",))]
    stages += [make_training(site, letter, 1) for letter in "abcd"]
    stages += [make_stage("evaluate", name, 60, needs=(f"train/{name}",)) for name in ("large", "b", "c", "d")]
    requests = queueing.schedule(stages, site)
    made = render.render_scripts(
        requests, {s.id: s for s in stages}, site, Path("/scratch/me/runs/mine"), "python", Path("/scratch/me/gnnscale")
    )
    shown = [file for file in made if file not in ("train-b.sh", "train-c.sh", "train-d.sh")]
    text = "\n".join(f"#-------- {file}\n{made[file]}" for file in shown)
    for file, script in made.items():
        (tmp_path / file).write_text(script)
        checked = subprocess.run(["bash", "-n", tmp_path / file], capture_output=True, text=True)
        assert checked.returncode == 0, checked.stderr
    stored = STORED / f"{name}.txt"
    text = re.sub(r"umask=[0-7]{3}", "umask=022", text)  # that of whoever tests
    if os.environ.get("GNNSCALE_RENEW"):
        stored.write_text(text)
    assert text == stored.read_text(), f"if that is wanted: GNNSCALE_RENEW=1 pytest {__file__}"


def test_no_stored_script_is_of_a_site_that_is_no_more():
    assert {path.stem for path in STORED.glob("*.txt")} == set(BATCH)


# --------------------------------------------------------------------------------------------------- what is refused
@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            'max_walltime: "12:00:00"',
            "max_walltime: 12:00:00",
            'f.yaml:9: 12:00:00 is unquoted, which YAML reads as the number 43200; write "12:00:00"',
        ),
        (
            'max_walltime: "12:00:00"',
            'max_walltime: "12 h"',
            "f.yaml:9: queues.normal.max_walltime: found '12 h': expected quoted hours",
        ),
        (
            'max_walltime: "12:00:00"',
            'max_walltime: "00:00:30"',
            "f.yaml:9: queues.normal.max_walltime: found '00:00:30': shorter than a minute",
        ),
        (
            'max_walltime: "12:00:00"',
            'max_walltime: "00:05:00"',
            "f.yaml:9: queues.normal.max_walltime: 00:05:00 is not longer than",
        ),
        (
            'max_walltime: "12:00:00"',
            'max_waltime: "12:00:00"',
            "f.yaml:9: unknown name 'max_waltime'; did you mean 'max_walltime'?",
        ),
        ("nodes: [1, 10]", "nodes: [0, 10]", "f.yaml:9: queues.normal.nodes: found [0, 10]: expected [fewest, most]"),
        (
            'walltime: "01:00:00"',
            'walltime: "13:00:00"',
            "f.yaml:16: serial.walltime: found 13:00:00, queue normal allows 12:00:00",
        ),
        ("queue: normal", "queue: norml", "f.yaml:16: serial.queue: no queue 'norml'; did you mean 'normal'?"),
        (
            "nodes: [1, 4]",
            "nodes: [11, 20]",
            "f.yaml:15: train.nodes: found 11 or more, but no queue takes more than 10",
        ),
        (
            "nodes: [1, 4]",
            "nodes: [1, 4], queue: debgu",
            "f.yaml:15: train.queue: no queue 'debgu'; did you mean 'debug'?",
        ),
        (
            '"-C gpu"',
            '"-C gpu", "-t 10"',
            "f.yaml:6: scheduler.directives.1: '-t 10' does not belong here: --time is decided by the planner",
        ),
        (
            '"-C gpu"',
            '"--account=x"',
            "f.yaml:6: scheduler.directives.0: '--account=x' does not belong here: --account is decided by account:",
        ),
        (
            '"-C gpu"',
            '"-N4"',
            "f.yaml:6: scheduler.directives.0: '-N4' does not belong here: --nodes is decided by train.nodes",
        ),
        (
            '"-C gpu"',
            '"#SBATCH -C gpu"',
            "f.yaml:6: scheduler.directives.0: found '#SBATCH -C gpu', expected an option",
        ),
        (
            '"-C gpu"]',
            '"-w n1"]\n  forbidden: {--nodelist: jobs by name are deleted}',
            "f.yaml:6: scheduler.directives.0: '-w n1': jobs by name are deleted",
        ),
        (
            '"-C gpu"]',
            '"-C gpu"]\n  forbidden: {--ntasks: never}',
            "f.yaml:15: launch.flags.0: '-n{ranks}': never; remove it",
        ),
        (
            "kind: slurm",
            "kind: slrm",
            "f.yaml:5: scheduler.kind: found 'slrm', expected one of none, flux, lsf, pbs, slurm; did you mean 'slurm'?",
        ),
        ("kind: slurm", "kind: pbs", "f.yaml:12: launch.command: srun belongs to Slurm, this site has PBS"),
        ("command: srun", "command: none", "f.yaml:12: launch.command: none starts one rank"),
        ("{ranks}", "{rank}", "f.yaml:14: launch.flags.0: '-n{rank}': {rank} is not known; did you mean 'ranks'?"),
        (
            "arch: x86_64",
            "arch: x86",
            "f.yaml:3: arch: found 'x86', expected one of x86_64, aarch64; did you mean 'x86_64'?",
        ),
        (
            "account_rule:",
            "account: abcd\naccount_rule:",
            "f.yaml:7: account: found 'abcd', which is no account of this site",
        ),
        (
            '"-C gpu"',
            '"--parsable"',
            "f.yaml:6: scheduler.directives.0: '--parsable' does not belong here: --parsable is decided",
        ),
        (
            '"-C gpu"',
            '"-Q"',
            "f.yaml:6: scheduler.directives.0: '-Q' does not belong here: --quiet is decided by the driver",
        ),
        ('"-C gpu"', '"--test-only"', "f.yaml:6: scheduler.directives.0: '--test-only' does not belong here"),
        (
            '"-C gpu"',
            '"-H"',
            "f.yaml:6: scheduler.directives.0: '-H' does not belong here: --hold is decided by the driver",
        ),
        ("-n{ranks}", "{", "f.yaml:14: launch.flags.0: '{': "),
        ("-n{ranks}", "{nodes:zz}", "f.yaml:14: launch.flags.0: '{nodes:zz}': "),
        ("-n{ranks}", "{}", "f.yaml:14: launch.flags.0: '{}': Format string contains positional fields"),
        ("-n{ranks}", "{nodes.x}", "f.yaml:14: launch.flags.0: '{nodes.x}': 'int' object has no attribute 'x'"),
        ("-n{ranks}", "{nodes[0]}", "f.yaml:14: launch.flags.0: '{nodes[0]}': 'int' object is not subscriptable"),
        (
            "title: t",
            "title: t\nmodule_paths: [soft]",
            "f.yaml:2: module_paths.0: found 'soft': expected an absolute path",
        ),
        ("host: ^login", 'host: "^login("', "f.yaml:2: host: found '^login(': not a regular expression"),
        ("production: false", "production: false, qos: [x]", "f.yaml:10: queues.debug.qos"),
        (
            '{nodes: [1, 10], max_walltime: "12:00:00"}',
            '{nodes: [1, 10], max_walltime: "12:00:00", production: false}',
            "f.yaml:8: queues: none is for production",
        ),
    ],
)
def test_a_mistake_is_reported_with_its_line(tmp_path, old, new, message):
    assert GOOD.count(old) >= 1
    path = tmp_path / "f.yaml"
    path.write_text(GOOD.replace(old, new))
    lines = message_of(lambda: site_files.load_file(path, "f.yaml")).splitlines()
    assert any(line.startswith(message) for line in lines), lines


@pytest.mark.parametrize("flag", ["-z", "-I", "-h"])
def test_what_would_keep_a_job_of_pbs_from_running(flag):
    said = message_of(lambda: site_files.load("polaris", [f'scheduler.directives=["{flag}"]']))
    assert f"{flag!r} does not belong here: {flag} is decided by the driver" in said


@pytest.mark.parametrize("setting", ["train.queue=debug", "serial.queue=debug"])
@pytest.mark.parametrize(("limit", "signal"), [("00:05:00", 300), ("00:05:00", 296), ("00:05:05", 297)])
def test_a_queue_is_longer_than_the_notice_of_its_end(setting, limit, signal):
    """A job in a shorter queue would have no time to work, and no number of jobs would be enough."""
    asked = [f"queues.debug.max_walltime={limit}", f"scheduler.signal_seconds={signal}", "serial.walltime=00:05:00"]
    said = message_of(lambda: site_files.load("polaris", [*asked, setting]))
    assert f"queues.debug.max_walltime: {limit} is not longer than scheduler.signal_seconds ({signal})" in said
    assert site_files.load("polaris", asked).queues["debug"].max_walltime == limit, "nobody uses it"


def test_the_good_one_is_good(tmp_path):
    path = tmp_path / "f.yaml"
    path.write_text(GOOD)
    assert site_files.load_file(path).ranks_per_node == 4
    assert call("sites", "validate", str(path)).stdout == f"{path}: valid\n"


# ------------------------------------------------------------------------------------------------------------ layers
def users(name, text):
    path = site_files.user_file(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_what_is_said_last_counts_name_by_name():
    plain = site_files.load("polaris")
    users("polaris", "account: mine\nqueues: {debug: {production: true}}\nenv: {NCCL_CROSS_NIC: '0'}\n")
    site = site_files.load("polaris", ["train.nodes=[2, 8]", "queues.debug.max_walltime=00:45:00"])
    assert site.account == "mine" and site.train.nodes == (2, 8)
    assert site.queues["debug"].production and site.queues["debug"].max_walltime == "00:45:00"
    assert site.queues["debug"].nodes == plain.queues["debug"].nodes
    assert site.env == plain.env | {"NCCL_CROSS_NIC": "0"}
    assert site_files.load("polaris", ["account=other"]).account == "other"


@pytest.mark.parametrize(
    ("setting", "found"), [("account=012345", "012345"), ("account=1e5", "1e5"), ("account=12:00:00", "12:00:00")]
)
def test_text_stays_text(setting, found):
    assert site_files.load("slurm", [setting]).account == found


def test_numbers_and_words_of_settings_are_what_they_are():
    site = site_files.load("slurm", ["env.X=1", "node.memory_gb=1e2", "scheduler.exclusive=true", "title=a=b"])
    assert site.env == {"X": "1"} and site.node.memory_gb == 100 and site.scheduler.exclusive and site.title == "a=b"


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("acount=x", "--set acount=x: unknown name 'acount'; did you mean 'account'?"),
        ("train.hours=soon", "--set train.hours=soon: train.hours: found 'soon'"),
        ("queues.debug.max_walltime=5", "--set queues.debug.max_walltime=5: queues.debug.max_walltime: found '5'"),
        (
            "serial.walltime=900:00:00",
            "--set serial.walltime=900:00:00: serial.walltime: found 900:00:00, queue capacity allows",
        ),
        ("account", "--set account: expected NAME=VALUE"),
    ],
)
def test_a_wrong_setting_is_reported_as_it_was_typed(setting, message):
    assert message_of(lambda: site_files.load("polaris", [setting])).startswith(message)


def test_a_mistake_is_reported_in_the_file_that_makes_it():
    path = users("polaris", "# mine\naccount: x\nqueues:\n  debug: {nodes: [3, 1]}\n")
    assert message_of(lambda: site_files.load("polaris")).startswith(f"{path}:4: queues.debug.nodes")
    users("polaris", "account: x\ntrian: {}\n")
    assert message_of(lambda: site_files.load("polaris")) == f"{path}:2: unknown name 'trian'; did you mean 'train'?"


# ------------------------------------------------------------------------------------------------------ before a run
def test_a_missing_account_is_reported_with_what_to_type(tmp_path):
    done = call("run", "--site", "polaris", "--study", "smoke", "--root", str(tmp_path), "--set", "host=.")
    assert done.returncode == 2
    assert "--set account=YourProject" in done.stderr and "polaris.yaml" in done.stderr


def test_a_driver_on_another_host_is_refused(tmp_path):
    done = call("run", "--site", "frontier", "--study", "smoke", "--root", str(tmp_path), "--set", "account=abc123")
    assert done.returncode == 2
    assert (
        "must be run from a host that matches" in done.stderr
        and "--set host=" in done.stderr
        and "(sites/frontier.yaml:6)" in done.stderr
    )
    assert call("plan", "--site", "frontier", "--study", "smoke", "--root", str(tmp_path)).returncode == 0


def test_a_machine_of_another_kind_is_refused(monkeypatch):
    """Jobs use the driver's own interpreter unless the site names another."""
    site = site_files.load("slurm", ["arch=aarch64"])
    monkeypatch.setattr(site_files.platform, "machine", lambda: "x86_64")
    said = message_of(lambda: site_files.check_arch("slurm", site, ["arch=aarch64"]))
    assert said.startswith("the nodes of site slurm are aarch64 (--set arch=aarch64), this machine is x86_64")
    site_files.check_arch("slurm", site.model_copy(update={"python": "/opt/arm/bin/python"}))
    for same in ("aarch64", "arm64"):  # as Linux and as others call it
        monkeypatch.setattr(site_files.platform, "machine", lambda same=same: same)
        site_files.check_arch("slurm", site)


def test_where_something_is_said():
    users("polaris", "account: mine\n# later\ntrain: {hours: 3}\n")
    path = site_files.user_file("polaris")
    assert site_files.locate("polaris", [], ["train", "hours"]) == f"{path}:3"
    assert site_files.locate("polaris", ["train.hours=4"], ["train", "hours"]) == "--set train.hours=4"
    line = site_files.locate("polaris", [], ["queues", "debug", "nodes"])
    assert line.startswith("sites/polaris.yaml:") and "debug: {" in line_of("polaris", line)
    assert site_files.locate("polaris", [], ["queues", "debug", "qos"]) == line, "what is not said, at what holds it"


def line_of(name, where):
    return (places.SITES / f"{name}.yaml").read_text().splitlines()[int(where.rsplit(":", 1)[1]) - 1]


def test_trainings_in_a_queue_of_other_nodes_are_planned_for_those():
    plain, other = site_files.load("stampede3"), site_files.load("stampede3", ["train.queue=pvc"])
    assert (plain.ranks_per_node, other.ranks_per_node) == (4, 8)
    assert other.node.gpus.vendor == "intel" and other.rank_bytes == 64e9 and other.queues["pvc"].node is None
    assert other.queues["h100"].node == plain.node and other.queues["skx"].node == plain.queues["skx"].node


@pytest.mark.parametrize("name", BATCH)
def test_the_doctors_job_is_one_that_a_queue_takes(name, tmp_path):
    """In every queue of every site it has two ranks or more, respects the limits, and is a script that a shell can read."""
    site = site_files.load(name)
    site = site.model_copy(update={"account": site.account_rule.example or None})
    from workflow.jobs import parsl_provider

    assert trial_job.suitable_queues(site), "there is a queue for it"
    for queue in trial_job.suitable_queues(site):
        asked = trial_job.trial_request(site, queue)
        low, high = site.queues[queue].nodes
        assert low <= asked.nodes <= high and asked.seconds <= to_seconds(site.queues[queue].max_walltime)
        assert asked.ranks >= 2 or high == 1
        attempt = launch.StageAttempt("doctor", "rank_report", Path("/scratch/me/runs/mine/doctor/1234"), 1)
        text = parsl_provider.render_script(
            parsl_provider.JobScript(
                asked, "gnnscale-doctor", attempt.folder, launch.render_job_body(asked, [attempt], site)
            ),
            site,
        )
        (tmp_path / "job.sh").write_text(text)
        assert subprocess.run(["bash", "-n", tmp_path / "job.sh"]).returncode == 0
        assert "gnnscale.job.rank_wrapper attempts/1 rank_report" in text and site.launch.command in text
    assert trial_job.trial_request(site, trial_job.suitable_queues(site)[0]).nodes <= 2, "and it is a small one"


@pytest.mark.slow
def test_a_budget_is_kept(tmp_path):
    words = ["run", "--site", "slurm", "--study", "smoke", "--root", str(tmp_path), "--max-node-hours"]
    for odd in ("nan", "-1", "many"):
        done = call(*words, odd)
        assert done.returncode == 2 and "--max-node-hours" in done.stderr and "Traceback" not in done.stderr
    words.append("0.001")
    done = call(*words)
    assert done.returncode == 2 and "--max-node-hours allows 0.0; nothing was submitted" in done.stderr


@pytest.mark.slow
def test_render_writes_the_scripts_of_a_study(tmp_path):
    done = call("sites", "render", "frontier", "smoke", "--out", str(tmp_path / "out"), "--root", str(tmp_path / "run"))
    assert done.returncode == 0, done.stderr
    made = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert made == ["audit-all.sh", "convert-bulk.sh", *(f"train-w{w}-d2-n{n}.sh" for w in (12, 8) for n in (24, 48))]
    text = (tmp_path / "out" / "train-w8-d2-n24.sh").read_text()
    assert "#SBATCH --account=abc123" in text and "#SBATCH --partition=batch" in text and "srun -N1 -n8" in text
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("null", ["null", "~"])
@pytest.mark.parametrize("path", ["launch.interface", "host", "python", "account", "train.queue"])
def test_null_is_nothing_where_there_may_be_nothing(path, null):
    """`null` does not mean a network interface called null."""
    found = site_files.load("slurm", [f"{path}=x"] * (path in ("python", "account")) + [f"{path}={null}"])
    for part in path.split("."):
        found = getattr(found, part)
    assert found is None


def test_null_is_a_word_where_there_must_be_one():
    site = site_files.load("slurm", ["title=null", "env.X=~"])
    assert site.title == "null" and site.env["X"] == "~"


@pytest.mark.parametrize("text", ["", "# account: mine\n\n  # paths\n", "---\n# nothing yet\n"])
def test_a_file_of_yours_that_says_nothing_is_as_none(text):
    users("polaris", text)
    assert site_files.load("polaris") == site_files.load_file(places.SITES / "polaris.yaml")


def test_who_has_no_home_has_no_file(monkeypatch):
    for name in ("HOME", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name)
    monkeypatch.setattr(os, "getuid", lambda: 54321)
    assert not site_files.user_file("local").exists() and site_files.load("local").title == "this machine"


@pytest.mark.parametrize("value", ["&a [*a]", "{[a]: 1}", "2026-13-45", 3000 * "["])
def test_a_setting_that_is_no_yaml_is_reported(value):
    assert message_of(lambda: site_files.load("slurm", [f"train.nodes={value}"])).startswith("--set train.nodes=")
