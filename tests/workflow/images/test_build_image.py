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
from workflow.images import build_checks, build_context, build_image, image_file, recipe


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
    assert re.search(r"images: [\d.]+ GB are free, a build needs 1000000000; make room, or set APPTAINER_TMPDIR", said)
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


def test_two_builds_do_not_meet(tmp_path):
    with build_image.hold_build_lock(tmp_path):
        assert "another build is running here" in message_of(lambda: build_image.hold_build_lock(tmp_path).__enter__())


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
