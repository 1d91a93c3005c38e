"""The smoke study through the real command line, Parsl, DeepSpeed and ADIOS2: undisturbed, killed, and with damaged files."""

import contextlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest
import yaml

from gnnscale.contract.exit_codes import BUSY
from tests.support.cluster import PATIENCE, measure_patience, wait_until
from tests.support.corpus import ROOT
from workflow.run_directory import journal

RUN = [sys.executable, str(ROOT / "workflow" / "run.py")]
SMOKE = yaml.safe_load((ROOT / "workflow" / "studies" / "smoke.yaml").read_text())


def call(*words, root, study="smoke", timeout=900):
    verb, rest = (words[:1], words[1:]) if words else ([], [])
    command = [*RUN, *verb, "--site", "local", "--study", str(study), "--root", str(root), *rest]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, cwd=root.parent)


def start(root, study="smoke"):
    command = [*RUN, "--site", "local", "--study", str(study), "--root", str(root)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=root.parent)


def events(root):
    return journal.read_events(root / "events.jsonl")


def variant(tmp_path, name="mine", **changes):
    path = tmp_path / f"{name}.yaml"
    path.write_text(yaml.safe_dump(SMOKE | changes))
    return path


def wait_for_driver(condition, process):
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert process.poll() is None and time.monotonic() < deadline, process.stdout.read()
        time.sleep(0.02)


def survivors(root):
    """List the processes that still work in this run directory."""
    listed = subprocess.run(["ps", "-eo", "pid,args"], capture_output=True, text=True).stdout.splitlines()
    folders = []
    for line in listed:
        pid = line.split()[0]
        try:
            if pid.isdigit() and "gnnscale." in line and str(root) in os.readlink(f"/proc/{pid}/cwd"):
                folders.append(line)
        except OSError:
            pass
    return folders


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    root = tmp_path_factory.mktemp("undisturbed") / "smoke"
    done = call(root=root)
    assert done.returncode == 0, done.stdout + done.stderr
    return root, done


def test_one_command_makes_everything(finished):
    root, done = finished
    assert "13 of 13 stages done" in done.stdout and "Traceback" not in done.stdout + done.stderr
    assert done.stderr == ""
    for name in ("report.html", "fit.json", "points.csv", "study.yaml", "site.yaml", "plan.json"):
        assert (root / name).stat().st_size > 0, name
    figures = {path.stem for path in (root / "figures").iterdir()}
    assert all((root / "figures" / f"{figure}.{kind}").exists() for figure in figures for kind in ("png", "svg"))
    assert len((root / "points.csv").read_text().splitlines()) == 5
    assert not list(root.rglob("*.tmp"))


def test_again_there_is_nothing_to_do(finished):
    root, _ = finished
    before = len(events(root))
    done = call(root=root)
    assert done.returncode == 0 and "nothing to do" in done.stdout
    assert len(events(root)) == before, "the driver did not even start Parsl"


def test_verbs_tell_what_they_should(finished):
    root, _ = finished
    planned = json.loads(call("plan", "--json", root=root).stdout)
    assert {s["state"] for s in planned["stages"]} == {"done"} and planned["wall_seconds"] == 0
    told = json.loads(call("status", "--json", root=root).stdout)
    assert told["driver"] is None and {row["state"] for row in told["stages"]} == {"done"}
    assert "convert 2/2  audit 1/1  train 4/4  evaluate 4/4" in call("status", root=root).stdout
    assert re.search(r"[0-9],[0-9]{3} parameters, +48 structures", call("plan", root=root).stdout)
    assert call("report", root=root).stdout.strip() == str(root / "report.html")
    assert "parameters, 48 structures" in call("logs", "train/w8-d2-n48", root=root).stdout
    assert "done" in call("explain", "train/w8-d2-n48", root=root).stdout
    assert "nothing to remove" in call("clean", root=root).stdout
    wrong = call("logs", "train/w8-d2-n49", root=root)
    assert wrong.returncode == 2 and "did you mean 'train/w8-d2-n48'" in wrong.stderr


def test_the_edges_of_the_graph_are_kept(finished):
    """No stage starts before all that it needs is done."""
    root, _ = finished
    needs = {s["id"]: s["needs"] for s in json.loads((root / "plan.json").read_text())["stages"]}
    done = set()
    for event in events(root):
        if event["event"] == "start":
            assert set(needs[event["stage"]]) <= done, event["stage"]
        elif event["event"] == "done":
            done.add(event["stage"])
    assert done == set(needs)


def test_a_command_run_by_hand_does_the_same(finished, tmp_path):
    root, _ = finished
    copy = tmp_path / "copy"
    shutil.copytree(root, copy, symlinks=True)
    folder = next((copy / "evaluate").glob("w8-d2-n48-*"))
    before = json.loads((folder / "result.json").read_text())
    (folder / "result.json").unlink()
    subprocess.run(["sh", str(folder / "command.sh")], check=True, capture_output=True)
    assert json.loads((folder / "result.json").read_text())["digest"] == before["digest"]


def test_killed_at_random_it_ends_where_an_undisturbed_run_ends(finished, tmp_path):
    """Driver and trainings get SIGKILL up to five times; no finished stage runs again."""
    undisturbed, _ = finished
    root, rng = tmp_path / "smoke", random.Random(1)
    for kill in range(5):
        already = sum(e["event"] == "done" for e in events(root)) if kill else 0
        if already > 10:  # of 13: a fast machine is nearly through, and the last stages may end before they are seen
            break
        process = start(root)
        wait_for_driver(lambda: (root / "plan.json").exists() and survivors(root), process)
        wait_for_driver(lambda already=already: sum(e["event"] == "done" for e in events(root)) > already, process)
        time.sleep(rng.uniform(0.1, 2.0))
        if kill % 2:
            victims = [line.split()[0] for line in survivors(root)]
            for pid in victims[:1]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
            time.sleep(0.3)
        process.kill()
        process.communicate()
        wait_until(lambda: not survivors(root), "the stages to end with their driver")
    done = call(root=root)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (root / "fit.json").read_bytes() == (undisturbed / "fit.json").read_bytes()
    assert (root / "points.csv").read_bytes() == (undisturbed / "points.csv").read_bytes()
    ended = set()
    for event in events(root):
        if event["event"] == "start":
            assert event["stage"] not in ended, f"{event['stage']} was done and ran again"
        elif event["event"] in ("done", "found"):
            ended.add(event["stage"])
    assert len(ended) == 13


def test_ctrl_c_stops_at_once_and_says_how_to_go_on(tmp_path):
    root = tmp_path / "smoke"
    process = start(root)
    wait_for_driver(lambda: (root / "plan.json").exists() and survivors(root), process)
    patience, began = measure_patience(lambda: call("status", root=root)), time.monotonic()
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=PATIENCE)
    assert time.monotonic() - began < patience, "two seconds, on a machine that has them"
    assert process.returncode == 130
    assert f"to continue: python workflow/run.py --site local --study smoke --root {root}" in said
    assert "Traceback" not in said
    wait_until(lambda: not survivors(root), "the stages to end with their driver")


def test_one_failure_stops_only_what_depends_on_it(tmp_path):
    """A source too small to split fails, and the other one is converted."""
    data = [SMOKE["data"][0], {"name": "bulk", "dataset": "generated", "options": {"source": "bulk", "structures": 2}}]
    study = variant(tmp_path, data=data)
    root = tmp_path / "run"
    done = call(root=root, study=study)
    assert done.returncode == 1
    assert re.search(r"failed: convert/bulk: bulk: 2 structures of \d groups? are too few for 3 splits", done.stdout)
    assert "ask for more structures" in done.stdout
    assert "wait for what failed. When it is fixed: python workflow/run.py --site local" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr
    states = {
        row["id"]: row["state"] for row in json.loads(call("status", "--json", root=root, study=study).stdout)["stages"]
    }
    assert states["convert/organic"] == "done" and states["convert/bulk"] == "failed"
    assert states["report/all"] == "waiting"


def test_a_second_driver_is_refused_and_a_dead_ones_place_is_taken(tmp_path):
    root = tmp_path / "smoke"
    first = start(root)
    wait_for_driver(lambda: (root / "plan.json").exists() and survivors(root), first)
    second = call(root=root)
    assert second.returncode == BUSY
    assert f"pid {first.pid}" in second.stderr and os.uname().nodename in second.stderr
    first.kill()
    first.communicate()
    third = start(root)
    wait_for_driver(lambda: any(e["event"] == "driver" and e["pid"] == third.pid for e in events(root)), third)
    third.send_signal(signal.SIGINT)
    third.communicate(timeout=PATIENCE)


def test_a_run_directory_of_another_version_is_left_alone(finished, tmp_path):
    root = tmp_path / "old"
    root.mkdir()
    (root / "plan.json").write_text('{"format": 99}')
    for verb in ([], ["plan"], ["status"]):
        done = call(*verb, root=root)
        assert done.returncode == 2 and "another version" in done.stderr and "--root" in done.stderr
    assert [p.name for p in root.iterdir()] == ["plan.json"]


def in_namespace(script, **env):
    """Return the command of a shell that may mount, in a namespace of its own."""
    return subprocess.run(
        ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script],
        capture_output=True,
        text=True,
        timeout=900,
        env=os.environ | env,
    )


def may_mount():
    return shutil.which("unshare") and in_namespace("mount -t tmpfs tmpfs /mnt").returncode == 0


@pytest.mark.parametrize(("options", "message"), [("size=500k", "no space left"), ("ro", "read-only file system")])
def test_a_disk_that_takes_no_more(tmp_path, options, message):
    if not may_mount():
        assert "mount" not in os.environ.get("GNNSCALE_REQUIRE", ""), "this machine cannot mount, but was required to"
        pytest.skip("no user namespaces: cannot mount a small disk")
    command = " ".join([*RUN, "--study", "smoke", "--root", "disk/run"])
    done = in_namespace(f"cd {tmp_path} && mkdir disk && mount -t tmpfs -o {options} tmpfs disk && {command}")
    said = done.stdout + done.stderr
    assert done.returncode in (1, 2), said
    assert message in said and "Traceback" not in said
    assert len(said.splitlines()) < 40, "one screen"
