"""Builds are refused before they begin if they cannot succeed; recipes and definitions are complete and pinned."""

import os
import re
import stat
import subprocess
import sys

import pytest

from tests.support.corpus import ROOT
from tests.support.errors import message_of
from workflow.config import site_files
from workflow.images import (
    build_checks,
    build_context,
    build_image,
    build_script,
    failed_commands,
    image_file,
    recipe,
    wheels,
)


def build_faults(tmp_path, base="registry", site="local"):
    settings, asked = ["container.runtime=apptainer"], recipe.read_recipe("cpu", base)
    found = build_checks.find_build_faults(
        site_files.load(site, settings), asked, tmp_path / "images", user="nobody-here"
    )
    return [f"{fault.message}; {fault.hint}" for fault in found]


def test_a_build_that_cannot_succeed_is_refused_before_it_begins(tmp_path, monkeypatch):
    monkeypatch.setitem(build_checks.BUILD_GIGABYTES, "cpu", 10**9)
    monkeypatch.setenv("PATH", "/nonexistent")
    other = "vista" if os.uname().machine == "x86_64" else "frontier"
    said = "\n".join(build_faults(tmp_path, "machine", other))
    assert "no apptainer on PATH" in said and "build on a machine like its nodes" in said and "needs mmdebstrap" in said
    assert "/etc/subuid gives nobody-here no subordinate ids" in said
    assert "usermod --add-subuids 100000-165535 nobody-here" in said
    assert re.search(r"images: [\d.]+ GB are free, a build needs 1000000000; make room; APPTAINER_TMPDIR", said)
    assert not (tmp_path / "images" / "build.log").exists()


def test_ids_are_found_by_name_and_by_number(tmp_path):
    for name in ("subuid", "subgid"):
        (tmp_path / name).write_text("somebody:100000:65536\n")
    assert list(build_checks.missing_subordinate_ids("somebody", tmp_path)) == []
    assert "subordinate ids" in next(build_checks.missing_subordinate_ids("some", tmp_path)).message
    (tmp_path / "subgid").write_text(f"{os.geteuid()}:100000:65536\n")
    assert list(build_checks.missing_subordinate_ids("somebody", tmp_path)) == []


def test_an_image_is_named_after_all_that_goes_into_it(monkeypatch, tmp_path):
    before = recipe.read_recipe("cpu", "registry")
    assert (
        before == recipe.read_recipe("cpu", "registry") and before.digest != recipe.read_recipe("cpu", "machine").digest
    )
    monkeypatch.setattr(image_file, "code_digests", lambda: before.code | {"gnnscale/new.py": "0"})
    assert recipe.read_recipe("cpu", "registry").digest != before.digest, "code"
    assert recipe.read_recipe("cpu", "registry").lock == before.lock, "for which no package is fetched again"
    monkeypatch.undo()
    monkeypatch.setattr(recipe, "python_requirements", lambda: (*before.requirements, "another"))
    assert recipe.read_recipe("cpu", "registry").lock != before.lock, "packages"


def test_what_is_copied_into_an_image_is_enough_to_run_and_no_more(tmp_path):
    made = recipe.read_recipe("cpu", "machine")
    build_context.write_context(made, tmp_path / "c")
    copied = {str(path.relative_to(tmp_path / "c")) for path in (tmp_path / "c").rglob("*") if path.is_file()}
    assert copied >= {*image_file.code_digests(), "setup.py", "constraints.txt", "recipe.json", "containers/post.sh"}
    assert not [
        name for name in copied if name.startswith(("workflow", "tests", ".git", "runs")) or name.endswith(".so")
    ]
    done = subprocess.run(
        [sys.executable, "-c", "import gnnscale.stages.convert, gnnscale; print(gnnscale.__file__)"],
        env={"PYTHONPATH": str(tmp_path / "c")},
        cwd="/",
        capture_output=True,
        text=True,
    )
    assert done.stdout.strip() == str(tmp_path / "c" / "gnnscale" / "__init__.py"), done.stderr


def test_a_recipe_covers_all_that_a_build_reads(monkeypatch, tmp_path):
    """Whichever of the copied and executed files changes, the image is another one."""
    before = recipe.read_recipe("cpu", "machine").digest
    hashed = recipe.files.sha256
    for name in ("oci.Containerfile", "post.sh", "identity.py", "check.py", "setup.py", "pyproject.toml"):
        monkeypatch.setattr(recipe.files, "sha256", lambda path, n=name: hashed(path) + "x" * (path.name == n))
        assert recipe.read_recipe("cpu", "machine").digest != before, name


def test_two_builds_do_not_meet(tmp_path):
    with build_image.hold_build_lock(tmp_path):
        assert "another build is running here" in message_of(lambda: build_image.hold_build_lock(tmp_path).__enter__())


def test_a_shim_of_a_python_is_no_python(tmp_path, monkeypatch):
    """It is on PATH, and ends with 127; a later one on PATH is taken, and without any the user is told what to type."""
    shim, real = tmp_path / "shims" / "python3.99", tmp_path / "real" / "python3.99"
    for path, text in ((shim, "exit 127"), (real, "echo 3.99")):
        path.parent.mkdir()
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{shim.parent}:{real.parent}:/usr/bin:/bin")
    assert wheels.find_interpreter("3.99") == str(real)
    monkeypatch.setenv("PATH", f"{shim.parent}:/usr/bin:/bin")
    said = message_of(lambda: wheels.find_interpreter("3.99"))
    assert "no python3.99 with pip runs here" in said and "conda create -y -p ~/python3.99 python=3.99 pip" in said
    monkeypatch.setattr(build_checks, "find_interpreter", lambda version: wheels.find_interpreter("3.99"))
    assert any("no python3.99 with pip" in fault for fault in build_faults(tmp_path)), "before anything is fetched"


def test_a_base_that_is_none_is_refused_at_the_door(tmp_path):
    assert any(
        "--base there: no such file; expected registry, machine" in fault for fault in build_faults(tmp_path, "there")
    )


def test_the_script_of_a_context_builds_a_file_by_apptainer(tmp_path, monkeypatch):
    """With a stand-in that writes what it was asked: the definition from beside the context, wheels and /tmp bound, a test."""
    build_script.write_folder(site_files.load("local", ["container.runtime=apptainer"]), tmp_path / "out", print)
    program = tmp_path / "bin" / "apptainer"
    program.parent.mkdir()
    program.write_text(
        '#!/bin/sh\necho "$PWD: $*" >>"$SAID"; for word; do case $word in *.part) touch "$word";; esac; done\n'
    )
    program.chmod(0o755)
    (tmp_path / "out" / "wheels").mkdir()
    (tmp_path / "out" / "wheels" / "complete").touch()
    environment = {"PATH": f"{program.parent}:/usr/bin:/bin", "SAID": str(tmp_path / "said")}
    words = ["sh", tmp_path / "out" / "build.sh", "apptainer"]
    done = subprocess.run(words, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    build, check = (tmp_path / "said").read_text().splitlines()
    out = tmp_path / "out"
    assert build.startswith(f"{out}/context: build --force --fakeroot") and build.endswith(f"{out}/cpu.def")
    assert f"--bind {out}/wheels:/mnt --bind {out}/tmp:/tmp" in build and (out / "cpu.def").is_file()
    assert check.endswith("/opt/venv/bin/python /opt/gnnscale/containers/check.py cpu")
    assert [path.suffix for path in out.glob("cpu-*")] == [".sif"]
    assert "is not empty" in message_of(
        lambda: build_script.write_folder(site_files.load("local", ["container.runtime=apptainer"]), out, print)
    )


@pytest.mark.parametrize(
    ("line", "hint"),
    [
        ("Error: writing blob: no space left on device", "disk or your quota is full"),
        ("requested access to the resource is denied: unauthorized", "podman login HOST"),
        ("reading manifest 1 in host/me/x: manifest unknown", "no image of this name"),
        ("dial tcp: lookup nowhere: no such host", "no host of this name"),
        ("http: server gave HTTP response to HTTPS client", "insecure = true"),
        ("dial tcp 10.0.0.1:443: i/o timeout", "try a login node"),
        ("exec container process: Exec format error", "another architecture"),
    ],
)
def test_a_failed_command_is_told_with_its_cause(line, hint):
    (said,) = failed_commands.explain_failure("/usr/bin/podman", ["Trying ...", line])
    assert hint in said
    assert failed_commands.explain_failure("podman", ["something else"]) == []


# ----------------------------------------------------------------------------------------------------- definitions
DEFINITIONS = sorted((ROOT / "containers").glob("*.def"))


def test_one_definition_for_each_kind_of_processor():
    assert {path.stem for path in DEFINITIONS} == {"cpu", *image_file.ACCELERATORS.values()}


@pytest.mark.parametrize("path", DEFINITIONS, ids=lambda path: path.stem)
def test_definitions_differ_in_their_heads_alone(path):
    """cpu.def, which is built and run here, stands for all: they have the same steps in the same order."""
    text, cpu = path.read_text(), (ROOT / "containers" / "cpu.def").read_text()
    assert text[text.index("\n%files") :] == cpu[cpu.index("\n%files") :]
    arguments = dict(recipe.ARGUMENT_LINE.findall(text[text.index("%arguments") : text.index("%files")]))
    assert arguments.keys() == {"bootstrap", "base", "accelerator", "python"} and arguments["accelerator"] == path.stem
    assert re.fullmatch(r"[a-z0-9-]+(/[a-z0-9.-]+)?:[\w.-]+", arguments["base"]), "a name and a pinned tag, no host"
    assert re.search(r":.*\d|bookworm", arguments["base"])


def test_the_containerfile_takes_the_same_steps_as_the_definitions():
    """The heads of the definitions choose base and accelerator for both."""
    file, cpu = (ROOT / "containers" / recipe.CONTAINERFILE).read_text(), (ROOT / "containers" / "cpu.def").read_text()
    assert "RUN sh /opt/gnnscale/containers/post.sh ${accelerator}" in file
    assert "sh /opt/gnnscale/containers/post.sh {{ accelerator }}" in cpu
    for setting in (
        "PYTHONPATH=/opt/gnnscale",
        "PYTHONNOUSERSITE=1",
        "PYTHONDONTWRITEBYTECODE=1",
        "PATH=/opt/venv/bin:",
    ):
        assert setting in file and setting in cpu
    assert re.findall("^ARG .*$", file, re.M) == ["ARG base", "ARG accelerator"], "without a base of its own"


def test_scripts_of_the_build_are_sound():
    for path in (ROOT / "containers").iterdir():
        text = path.read_text() if path.is_file() else ""
        assert not re.search(r"https?://|index-url\b(?!.*EXTRA)|\b[\w-]+\.(org|com|io|net)/", text), (
            f"{path}: names a host"
        )
        for line in text.splitlines():
            removed = re.search(r"\brm -\w+ (.*)", line)
            # A build has the /tmp, and may have the home, of the machine that builds: an `rm` there is everybody's loss.
            assert not removed or not re.search(r"(^|\s)\"?(/tmp|/home|/root|/mnt|/scratch|~|\$HOME)", removed[1]), line
    subprocess.run(["sh", "-n", ROOT / "containers" / "post.sh"], check=True)
    assert "--no-index" in (ROOT / "containers" / "post.sh").read_text(), (
        "versions are decided out here, by constraints.txt"
    )


def test_everything_that_is_needed_is_pinned():
    """Every requirement of pyproject.toml has a version, so that an image that is built next year is the same."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = {line.split("==")[0].lower().replace("_", "-") for line in lines if "==" in line}
    assert not {name.lower() for name in recipe.python_requirements()} - pinned - {"setuptools"}


def test_the_image_leaves_no_mode_open():
    assert not any(stat.S_IMODE(path.stat().st_mode) & stat.S_IWOTH for path in (ROOT / "containers").iterdir())
