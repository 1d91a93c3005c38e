"""The studies of arXiv 2504.08112 on its own data: what they lack, and the small one from end to end on real samples."""

import json
import os
import subprocess
import sys

import pytest
import yaml

from tests.support.corpus import ENV, ROOT
from tests.support.paper_samples import lay_out_samples
from workflow.run import main

SOURCES = {"oc20", "oc22", "ani1x", "qm7x", "mptrj"}
SHORT = {"optim.epochs": 1, "optim.warmup": 2}


def call(*words):
    command = [sys.executable, str(ROOT / "workflow" / "run.py"), *words]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=os.environ | ENV, timeout=300)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("published")
    lay_out_samples(folder)
    return folder


def plan(study, folder, root):
    done = call("plan", "--study", study, "--json", "--root", str(root), "--set", f"filesystems.data={folder}")
    assert done.returncode == 0, done.stderr
    return {stage["id"]: stage for stage in json.loads(done.stdout)["stages"]}


@pytest.mark.parametrize("study", ["paper", "paper-small"])
def test_a_plan_says_what_is_missing_and_the_command_that_gets_it(study, tmp_path, capsys):
    words = ["--study", study, "--set", f"filesystems.data={tmp_path}", "--root", str(tmp_path / "run")]
    assert main(["plan", *words]) == 0 and not (tmp_path / "run").exists()
    text = capsys.readouterr().out
    oc20 = "oc20/20M" if study == "paper" else "oc20/200K"
    (command,) = [line for line in text.splitlines() if "data fetch" in line]
    assert command.count(" data fetch ") == 1 and command.endswith(f"--set filesystems.data={tmp_path}")
    assert all(f" {name} " in command for name in SOURCES - {"oc20"} | {oc20})
    assert (
        "all 9 files of qm7x are missing" in text and "the file of mptrj is missing" in text and "stages done" in text
    )
    assert len(text.splitlines()) < 60, "a screen"
    assert main(["run", *words]) == 2
    refused = capsys.readouterr().err
    assert "nothing was started" in refused and "data fetch" in refused and len(refused.splitlines()) < 10


def test_a_set_that_is_here_in_part_is_not_taken_for_a_whole(data, tmp_path):
    (tmp_path / "qm7x").mkdir()
    for name in ("1000.hdf5", "DupMols.dat"):
        (tmp_path / "qm7x" / name).symlink_to(data / "qm7x" / name)
    (tmp_path / "ani1x").symlink_to(data / "ani1x")
    stages = plan("paper-small", tmp_path, tmp_path / "run")
    assert stages["convert/qm7x"]["state"] == "refused" and stages["convert/ani1x"]["state"] == "run"
    assert stages["convert/qm7x"]["reason"] == "7 of 9 files of qm7x are missing"


def test_the_small_study_from_raw_files_to_the_report(data, tmp_path):
    """Its data and form of the network as they are; its grid shortened to what these few structures can train."""
    study = yaml.safe_load((ROOT / "workflow" / "studies" / "paper-small.yaml").read_text())
    study["data"][0]["options"]["limit"] = 300  # of 886
    study["sweeps"] = [{"name": "short", "over": {"model.width": [8], "structures": [60, 250]}, "cases": [SHORT]}]
    (tmp_path / "short.yaml").write_text(yaml.safe_dump(study))
    settings = ["--root", str(tmp_path / "run"), "--set", f"filesystems.data={data}"]
    done = call("run", "--study", str(tmp_path / "short.yaml"), *settings)
    assert done.returncode == 0, done.stdout + done.stderr
    cards = {}
    for name in SOURCES:
        (path,) = (tmp_path / "run" / "data").glob(f"{name}-*/card.json")
        cards[name] = json.loads(path.read_text())
    counts = {name: sum(each["structures"] for each in card["counts"].values()) for name, card in cards.items()}
    assert counts["oc20"] == 300 and counts["ani1x"] == 8 and counts["mptrj"] >= 60 and counts["qm7x"] > 30
    assert all(each["structures"] for card in cards.values() for each in card["counts"].values())
    (errors,) = (tmp_path / "run" / "evaluate").glob("*n250-*/errors.json")
    assert json.loads(errors.read_text())["sources"].keys() == SOURCES
    assert (tmp_path / "run" / "report.html").exists()
