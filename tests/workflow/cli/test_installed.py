"""The installed package: the command `gnnscale` in an empty directory, without the checkout."""

import os
import re
import shutil
import subprocess
import sys

import pytest

from gnnscale.contract import places
from gnnscale.contract.command_name import command_name
from gnnscale.machine.native_build import instruction_sets
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


def pip(*words, **variables):
    """Call pip without network, and without what the package depends on, which is here already."""
    command = [sys.executable, "-m", "pip", *words, "--quiet", "--no-build-isolation", "--no-deps", "--no-index"]
    subprocess.run(command, check=True, timeout=600, env=os.environ | variables)


@pytest.fixture(scope="module")
def site_packages(source, tmp_path_factory):
    """Install the copy as where there is no compiler, which would take half a minute."""
    target = tmp_path_factory.mktemp("site-packages")
    pip("install", "--target", target, source, CC="/bin/false", CXX="/bin/false")
    return target


@pytest.fixture(scope="module")
def wheel(source, tmp_path_factory):
    if not shutil.which("g++"):
        pytest.skip("needs g++")
    folder = tmp_path_factory.mktemp("wheel")
    pip("wheel", "--wheel-dir", folder, source)
    return next(folder.iterdir())


@pytest.fixture(scope="module")
def from_wheel(wheel, tmp_path_factory):
    """Install the wheel."""
    target = tmp_path_factory.mktemp("from-wheel")
    pip("install", "--target", target, wheel)
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


ASK = """
import torch
from gnnscale.atoms import neighbors
from gnnscale.machine.native_build import open_fastest
from gnnscale.native.library import open_library
assert neighbors.compiled_library() and open_fastest("double").library and open_library(torch.float32), open_fastest()
print(open_fastest().instruction_set)
"""


@pytest.mark.slow
def test_one_wheel_brings_the_libraries_to_every_python_of_machines_without_a_compiler(wheel, from_wheel, tmp_path):
    assert re.fullmatch(r"gnnscale-[\d.]+-py3-none-linux_\w+\.whl", wheel.name)
    env = {"PYTHONPATH": str(from_wheel), "PATH": "/nonexistent"}
    done = subprocess.run(
        [sys.executable, "-c", ASK], env=env, cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0 and done.stdout.strip() == instruction_sets()[0], done.stderr


@pytest.mark.slow
def test_the_native_libraries_need_no_recent_system(from_wheel):
    """Every library of GCC 6 or later will do, as will a glibc of 2019."""
    made = sorted((from_wheel / "gnnscale" / "native").glob("*.so"))
    assert len(made) == (6 if os.uname().machine == "x86_64" else 2)
    for path in made:
        content = path.read_bytes()
        for name, newest in ((b"GLIBCXX", (3, 4, 22)), (b"GLIBC", (2, 29))):
            found = {tuple(map(int, each.split(b"."))) for each in re.findall(rb"\b%s_([\d.]+)" % name, content)}
            assert found and max(found) <= newest, (path.name, name, max(found))
        needed = {each.decode() for each in re.findall(rb"lib[\w+]+\.so\.\d+", content)}
        assert needed <= {"libstdc++.so.6", "libm.so.6", "libgcc_s.so.1", "libc.so.6", "libpthread.so.0"}, path.name


@pytest.mark.slow
def test_without_a_compiler_trainings_are_pytorchs(call, site_packages):
    assert not list(site_packages.rglob("*.so"))
    planned = call("plan", "--study", "smoke")
    warning = "trainings will be several times slower without the native library: it was not compiled when gnnscale was"
    assert planned.returncode == 0 and planned.stdout.count(warning) == 1
    assert "bad          it was not compiled" in (said := call("doctor", "--no-job").stdout), said


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
