"""The installed package: the command `gnnscale` in an empty directory, without the checkout."""

import os
import shutil
import subprocess
import sys

import pytest

from gnnscale.contract import places
from gnnscale.contract.command_name import command_name
from tests.support.corpus import ROOT

SOURCES = ("gnnscale", "workflow", "datasets", "sites", "containers")
BUILD_FILES = ("setup.py", "pyproject.toml", "constraints.txt", "README.md", "LICENSE")


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Copy what a checkout holds, with the build folder of an earlier version."""
    source = tmp_path_factory.mktemp("source")
    for name in SOURCES:
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
    for name in BUILD_FILES:
        shutil.copy(ROOT / name, source / name)
    moved = source / "build" / "lib" / "gnnscale" / "moved_since.py"
    moved.parent.mkdir(parents=True)
    moved.write_text("")
    (source / "setup.cfg").write_text("[build]\nbuild_lib = build/lib\n")
    return source


@pytest.fixture(scope="module")
def site_packages(source, tmp_path_factory):
    """Install the copy, without network and without what it depends on, which is here already."""
    target = tmp_path_factory.mktemp("site-packages")
    install = ["-m", "pip", "install", "--quiet", "--no-build-isolation", "--no-deps", "--no-index", "--target", target]
    subprocess.run([sys.executable, *install, source], check=True, timeout=300)
    return target


@pytest.fixture
def call(site_packages, tmp_path):
    def run(*words, **variables):
        """Type a command in an empty directory."""
        (tmp_path / "empty").mkdir(exist_ok=True)
        env = {**os.environ, "PYTHONPATH": str(site_packages), "OMP_NUM_THREADS": "1", **variables}
        return subprocess.run(
            [site_packages / "bin" / "gnnscale", *words],
            cwd=tmp_path / "empty",
            env=env,
            capture_output=True,
            text=True,
            timeout=300,
        )

    return run


@pytest.mark.slow
def test_the_wheel_holds_what_lies_beside_the_packages(site_packages):
    assert {"gnnscale", "workflow", "bin"} <= {path.name for path in site_packages.iterdir()}
    assert not (site_packages / "datasets").exists(), "it would shadow Hugging Face's package"
    share = site_packages / places.SHARE
    for folder in ("datasets", "sites", "containers"):
        files = {path.name for path in (ROOT / folder).iterdir() if path.is_file()}
        assert {path.name for path in (share / folder).iterdir() if path.is_file()} == files
    assert not (site_packages / "gnnscale" / "moved_since.py").exists()
    if shutil.which("g++"):
        assert list((site_packages / "gnnscale" / "atoms").glob("_neighbors.*so"))


def test_plans_and_sites_from_anywhere(call, tmp_path):
    plan = call("plan", "--study", "smoke")
    assert plan.returncode == 0 and f"\n{tmp_path}/empty/runs/smoke\n" in plan.stdout
    listed = call("sites", "list")
    assert listed.returncode == 0 and "perlmutter" in listed.stdout
    assert not list((tmp_path / "empty").iterdir()), "plans write nothing"


@pytest.mark.slow
def test_a_stage_runs_in_the_current_directory(call, source, site_packages, tmp_path):
    done = call("--study", "smoke", "--until", "convert")
    assert done.returncode == 0, done.stdout + done.stderr
    results = list((tmp_path / "empty" / "runs" / "smoke" / "data").glob("*/result.json"))
    assert len(results) == 2, "one for each source"
    command = (results[0].parent / "command.sh").read_text()
    assert f"PYTHONPATH={site_packages}" in command and str(source) not in command
    again = call("--study", "smoke", "--until", "convert")
    assert again.returncode == 0 and "nothing to do" in again.stdout


def test_keys_are_the_same_as_in_a_checkout(call, source, tmp_path):
    """So a run directory of one may be continued by the other."""
    words = ["plan", "--study", "smoke", "--root", str(tmp_path / "run"), "--json"]
    checkout = [sys.executable, str(source / "workflow" / "run.py"), *words]
    there = subprocess.run(checkout, capture_output=True, text=True, timeout=120, cwd=tmp_path)
    assert there.returncode == 0 and call(*words).stdout == there.stdout


def test_messages_name_the_command_as_it_was_typed(call, tmp_path):
    said = call("status").stderr
    assert said.endswith("start one with: gnnscale\n")
    typed = [sys.executable, str(ROOT / "workflow" / "run.py"), "status", "--root", str(tmp_path / "none")]
    said = subprocess.run(typed, capture_output=True, text=True, timeout=120).stderr
    assert said.endswith("start one with: python workflow/run.py\n")


def test_fit_is_the_program_for_csv_files(call):
    done = call("fit", "--help")
    assert done.returncode == 0 and done.stdout.startswith("usage: gnnscale fit ") and "--bootstrap" in done.stdout
    done = call("fit", "nowhere.csv", "--law", "Hoffmann")
    assert done.returncode == 2 and done.stderr.startswith("gnnscale fit: nowhere.csv: no such file")


@pytest.mark.parametrize(
    ("started_as", "named"),
    [
        ("/opt/venv/bin/gnnscale", "gnnscale"),
        ("workflow/run.py", "python workflow/run.py"),
        ("/somewhere/gnnscale/stages/train.py", "python workflow/run.py"),
    ],
)
def test_the_name_of_the_command(monkeypatch, started_as, named):
    monkeypatch.setattr(sys, "argv", [started_as])
    assert command_name() == named


def test_a_new_site_lies_with_the_user(call, site_packages, tmp_path):
    """Not in site-packages, where the next installation would remove it."""
    folder, programs = tmp_path / "config" / "gnnscale", tmp_path / "programs"
    programs.mkdir()
    for name, text in (
        ("sinfo", "echo 'batch*|up|1-00:00:00|8|64|256000|(null)'"),
        ("scontrol", "echo PartitionName=batch MinNodes=1 MaxNodes=8"),
    ):
        (programs / name).write_text(f"#!/bin/sh\n{text}\n")
        (programs / name).chmod(0o755)
    where = {"XDG_CONFIG_HOME": str(folder.parent), "PATH": f"{programs}:{os.environ['PATH']}"}
    made = call("sites", "new", "mine", **where)
    assert made.returncode == 0 and str(folder / "mine.yaml") in made.stdout, made.stderr
    assert "gnnscale sites validate mine" in made.stdout
    assert call("sites", "validate", "mine", **where).returncode == 0
    assert "mine " in call("sites", "list", **where).stdout
    assert not (site_packages / places.SHARE / "sites" / "mine.yaml").exists()
