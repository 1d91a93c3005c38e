"""The smoke study in the image of this checkout, here and on a Slurm: undisturbed, killed, stopped and moved.

The image is made beforehand, `python workflow/run.py image build`: it takes minutes, and only once.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from gnnscale.contract import places
from gnnscale.contract.errors import UserError
from tests.support import cluster
from tests.support.cluster import PATIENCE, Run, wait_until
from tests.support.corpus import ROOT
from workflow.config import site_files
from workflow.images import apptainer, checks, image_file, runtimes

pytestmark = pytest.mark.apptainer
RUN = [sys.executable, str(ROOT / "workflow" / "run.py")]
SMOKE = yaml.safe_load((ROOT / "workflow" / "studies" / "smoke.yaml").read_text())
TOKEN = "do-not-tell-2f1c"
# Where these choose among OpenBLAS's kernels, sums are rounded otherwise; the image does not see the environment of this machine.
BLAS = {name: value for name, value in os.environ.items() if name.startswith("OPENBLAS_")}
SAME_BLAS = [word for name, value in BLAS.items() for word in ("--set", f"env.{name}={value}")]


@pytest.fixture(scope="module")
def site():
    """Return the site of this machine with its image; skip without one, or fail where it is required."""
    if shutil.which("apptainer") is None:
        cluster.require("apptainer", "no apptainer: `tests/support/apptainer.sh install` brings it")
    try:
        found = image_file.with_image(site_files.load("local", ["container.use=true"]), [])
        checks.raise_if_faulty(found)
    except UserError as problem:
        cluster.require("apptainer", str(problem))
    return found


def environment(place):
    return os.environ | {
        "XDG_CONFIG_HOME": str(place / "config"),
        "GITHUB_TOKEN": TOKEN,
        "APPTAINERENV_MY_TOKEN": TOKEN,
    }


def call(*words, root, timeout=900, study="smoke"):
    verb, rest = (words[:1], words[1:]) if words and not words[0].startswith("-") else ([], words)
    same = () if verb else SAME_BLAS
    command = [*RUN, *verb, "--container", "--study", str(study), "--root", str(root), *same, *rest]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=timeout, cwd=root.parent, env=environment(root.parent)
    )


@pytest.fixture(scope="module")
def finished(site, tmp_path_factory):
    """Run the study in a directory whose name has every difficult character."""
    root = tmp_path_factory.mktemp('in an image; it\'s "so", $HOME') / "smoke"
    done = call(root=root)
    assert done.returncode == 0, done.stdout + done.stderr
    return root


def results(root):
    return {path.parent: json.loads(path.read_text()) for path in root.glob("*/*/result.json")}


def test_every_stage_ran_inside_and_says_so(site, finished):
    """The results show what only the image has: the id in it, its Python, its system."""
    found = results(finished)
    assert len(found) == 13
    for folder, result in found.items():
        said = result["provenance"]
        assert said["image"] == site.container.digest == json.loads((folder / "spec.json").read_text())["image"]
        assert (
            said["runtime"] == "apptainer"
            and said["python"] == image_file.read_record(image_file.locate_image(site)).content.python
        )
        bound = "of a checkout, over the image's" if site.container.checkout else "of the image"
        assert said["code"] == bound, folder
        head = subprocess.run(["git", "-C", ROOT, "rev-parse", "HEAD"], capture_output=True, text=True).stdout.strip()
        assert said["commit"] == (head or None) or not site.container.checkout


def test_no_path_of_the_image_and_no_secret_is_in_any_file(finished):
    """On another machine the image lies elsewhere, and another program runs it."""
    image = str(places.images_folder())
    for path in finished.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert TOKEN.encode() not in content, path
            if path.name not in ("command.sh", "site.yaml"):
                assert image.encode() not in content and b"/opt/" not in content, path


def test_it_comes_out_as_without_an_image(finished, tmp_path):
    """Same seeds and same versions of all libraries give the same errors, except for what another build of Python changes."""
    done = subprocess.run(
        [*RUN, "--study", "smoke", "--root", str(tmp_path / "plain")],
        capture_output=True,
        text=True,
        timeout=900,
        env=environment(tmp_path),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    inside, outside = (points(root) for root in (finished, tmp_path / "plain"))
    assert inside.keys() == outside.keys() and len(inside) == 4
    for run, loss in inside.items():
        assert loss == pytest.approx(outside[run], rel=1e-4)
    keys = [{r["id"]: r["key"] for r in results(root).values()} for root in (finished, tmp_path / "plain")]
    assert not set(keys[0].values()) & set(keys[1].values()), "a result knows the image that it is of"
    assert {"image", "runtime", "code"}.isdisjoint(next(iter(results(tmp_path / "plain").values()))["provenance"])


def points(root):
    header, *rows = ((root / "points.csv").read_text()).splitlines()
    names = header.split(",")
    return {row.split(",")[names.index("run")]: float(row.split(",")[names.index("loss")]) for row in rows}


def test_it_goes_on_wherever_the_image_lies(site, finished, tmp_path):
    """A copy of the run directory with a copy of the image keeps what is done, and makes what is missing."""
    done = call("image", "push", "--to", str(tmp_path), root=tmp_path / "none")
    assert done.returncode == 0, done.stderr
    copied = next(tmp_path.glob("*.sif"))
    root = tmp_path / "moved"
    shutil.copytree(finished, root, symlinks=True)
    there = (
        "--set",
        f"container.image={copied}",
        "--set",
        "container.checkout=true",
        "--set",
        f"container.scratch={tmp_path}",
    )
    assert "nothing to do" in call(*there, root=root).stdout
    gone = next((root / "evaluate").glob("w8-d2-n24-*"))
    before = json.loads((gone / "result.json").read_text())
    shutil.rmtree(gone)
    done = call(*there, root=root)
    assert done.returncode == 0 and "13 stages, 10 done" in done.stdout, done.stdout + done.stderr
    after = json.loads((gone / "result.json").read_text())
    assert all(after[name] == before[name] for name in ("id", "key", "digest", "inputs"))
    assert after["provenance"]["code"] == "of a checkout, over the image's", "bound in another way, and the same"
    assert after["provenance"]["image"] == before["provenance"]["image"]


def long(tmp_path, epochs=3000):
    study = SMOKE | {"data": SMOKE["data"][1:], "sweeps": [{"name": "one", "over": {"structures": [24]}}]}
    study["train"] = SMOKE["train"] | {"optim": {"epochs": epochs, "batch": 8}}
    path = tmp_path / "long.yaml"
    path.write_text(yaml.safe_dump(study))
    return path


def until(condition, process, seconds=PATIENCE):
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert process.poll() is None and time.monotonic() < deadline, process.communicate(timeout=5)
        time.sleep(0.05)
    return found


def inside(root):
    """List the processes of stages that still work in this directory."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            mine = entry.name.isdigit() and str(root) in os.readlink(entry / "cwd")
            if mine and b"gnnscale." in (entry / "cmdline").read_bytes():
                found.append(entry.name)
        except OSError:
            pass
    return found


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_no_stage_outlives_its_driver(site, tmp_path, how):
    """Stages end in their containers, if the driver is told to stop, and if it is killed and takes the runtime with it."""
    root = tmp_path / "run"
    command = [*RUN, "--container", "--study", str(long(tmp_path)), "--root", str(root), "--until", "train"]
    driver = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment(tmp_path)
    )
    try:
        until(lambda: list(root.glob("train/*/progress.json")), driver)
        assert inside(root)
        driver.send_signal(how)
        said = driver.communicate(timeout=PATIENCE)[0]
    finally:
        driver.kill()
    wait_until(lambda: not inside(root), "the stages to end with their driver")
    if how == signal.SIGINT:
        assert driver.returncode == 130 and "to continue: " in said and "container.use=true" in said


# ------------------------------------------------------------------------------------------------------- on a Slurm
def on_slurm(site, **more):
    container = {"runtime": "apptainer", "use": True, "image": str(image_file.locate_image(site))}
    return {"container": container, "train": {"nodes": [2, 2]}} | more


def test_the_smoke_study_on_two_nodes(site, slurm, finished, tmp_path):
    """Trainings of two ranks, each in a container of its own on a node of its own."""
    run = Run(slurm, tmp_path, SMOKE, on_slurm(site))
    run.start(GITHUB_TOKEN=TOKEN)
    assert "13 of 13 stages done" in run.end()
    for folder, result in results(run.root).items():
        assert result["provenance"]["image"] == site.container.digest, folder
    for folder in (run.root / "train").iterdir():
        told = json.loads((folder / "attempts" / "1" / "exit.json").read_text())
        assert told["code"] == 0 and len(set(told["hosts"])) == 2
        assert "2 rank(s)" in (folder / "attempts" / "1" / "stdout").read_text()
    keys = [{r["id"]: r["key"] for r in results(root).values()} for root in (run.root, finished)]
    assert keys[0].pop("report/all") and keys[1].pop("report/all"), "which say the name of the study, and differ in it"
    assert keys[0] == keys[1], "results of one image, wherever they were made"
    assert not [path for path in run.root.rglob("*") if path.is_file() and TOKEN.encode() in path.read_bytes()]


def test_a_training_in_an_image_is_told_that_its_time_is_over(site, slurm, tmp_path):
    """The signal reaches both ranks of a node through srun and the runtime; the next job continues from there."""
    study = yaml.safe_load(long(tmp_path).read_text())
    run = Run(slurm, tmp_path, study, on_slurm(site, train={"nodes": [1, 1]}, launch={"ranks_per_node": 2}))
    try:
        run.start("--until", "train")
        run.wait(lambda: list(run.root.glob("train/*/progress.json")), "the training")
        slurm.call("scancel", "--signal=USR1", "--batch", trainings(run)[0]["job"])
        run.wait(lambda: len(trainings(run)) > 1, "another job")
        exit = json.loads(next(run.root.glob("train/*/attempts/1/exit.json")).read_text())
        assert exit["code"] == 75 and len(exit["hosts"]) == 1
        assert "2 rank(s)" in next(run.root.glob("train/*/attempts/1/stdout")).read_text()
        assert list(run.root.glob("train/*/checkpoints/step-*"))
    finally:
        run.stop()
        slurm.empty()


def trainings(run):
    """List the submissions of trainings."""
    names = {e["name"] for e in run.events("intend") if any(id.startswith("train/") for id in e["stages"])}
    return [e for e in run.events("submit") if e["name"] in names]


# ------------------------------------------------------------------------------------------------------- the image
def test_it_says_what_it_is(site):
    done = subprocess.run([*RUN, "image", "inspect", "--json"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    said, record = json.loads(done.stdout), image_file.read_record(image_file.locate_image(site)).content
    assert said["content"] == json.loads(record.model_dump_json())
    for name in ("id", "version", "commit", "lock", "recipe", "accelerator"):
        assert said["labels"][f"gnnscale.{name}"] == str(said["content"][name]), name
    pinned = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
    installed = dict(line.split("==") for line in record.packages if "==" in line)
    named = {name: version for name, version in installed.items() if name in pinned}
    assert len(named) > 15 and all(version.split("+")[0] == pinned[name] for name, version in named.items())


def test_it_is_verified(site):
    done = subprocess.run([*RUN, "image", "verify"], capture_output=True, text=True, timeout=900)
    assert done.returncode == 0 and ": whole, for " in done.stdout, done.stderr


def in_the_image(site, *command):
    prefix = runtimes.wrap_stage(site, "probe", None).prefix
    return subprocess.run([*prefix, *command], capture_output=True, text=True, timeout=300, cwd="/")


def test_it_has_no_compiler_and_nothing_of_the_machine_that_built_it(site):
    for tool in ("gcc", "g++", "cc", "make", "ld"):
        assert in_the_image(site, "which", tool).returncode != 0, tool
    bare = [
        "apptainer",
        "exec",
        *apptainer.user_namespace_flags(),
        "--contain",
        image_file.locate_image(site),
        "sh",
        "-c",
    ]
    looked = subprocess.run(
        [*bare, "cat /etc/pip.conf ~/.config/pip/pip.conf ~/.netrc 2>/dev/null; ls -A /mnt /tmp; env"],
        capture_output=True,
        text=True,
    )
    assert not re.search(r"index|find-links|password|\.whl", looked.stdout), looked.stdout
    paths = in_the_image(
        site, "grep", "-rlE", "(^|[^a-z])/(root|work)/", "/opt/gnnscale", "--include=*.txt", "--include=*.json"
    )
    assert paths.stdout == "", "no path of that machine"


def test_it_cannot_be_written_to_and_sees_no_home(site):
    assert in_the_image(site, "touch", "/opt/gnnscale/x").returncode != 0
    home = Path.home()
    assert in_the_image(site, "ls", str(home / ".config")).returncode != 0


def test_its_run_script_is_a_stage(site, tmp_path):
    done = subprocess.run(
        [
            "apptainer",
            "run",
            *apptainer.user_namespace_flags(),
            image_file.locate_image(site),
            "convert",
            str(tmp_path),
        ],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 64 and f"{tmp_path}/spec.json: missing" in done.stderr


def test_a_kernel_that_gives_no_namespaces(site, tmp_path):
    """The test runs in a namespace of its own, in which the limit of further ones is zero."""
    words = " ".join(f"'{word}'" for word in [*RUN, "--container", "--study", "smoke", "--root", str(tmp_path / "run")])
    script = f"echo 0 > /proc/sys/user/max_user_namespaces && exec {words}"
    done = subprocess.run(
        ["unshare", "--user", "--map-root-user", "sh", "-c", script],
        capture_output=True,
        text=True,
        timeout=300,
        env=environment(tmp_path),
    )
    assert done.returncode == 2 and "nothing runs in" in done.stderr, done.stdout + done.stderr
    assert "user.max_user_namespaces above 0" in done.stderr and not (tmp_path / "run" / "data").exists()
