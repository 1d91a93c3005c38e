"""Studies in containers of Podman and podman-hpc, as released, with Perlmutter's own flags: by hand, and on a Slurm.

The image is made beforehand, as .ci/run does, in a store below .cache/podman. Every node of the Slurm has a store of its own,
and sees only what was migrated, as at NERSC.
"""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from gnnscale.contract.errors import UserError
from tests.support import cluster
from tests.support.cluster import LONG, PATIENCE, SHORT, Run, find_processes, wait_until
from tests.support.corpus import ROOT
from workflow.config import site_files
from workflow.images import checks, image_file, image_store

pytestmark = pytest.mark.podman
RUN = [sys.executable, str(ROOT / "workflow" / "run.py")]
SCRIPT = ROOT / "tests" / "support" / "podman.sh"
PERLMUTTER = yaml.safe_load((ROOT / "sites" / "perlmutter.yaml").read_text())["container"]
SECONDS_TO_END = 10.0  # of every stage, once its driver is gone; 1.3 on a machine that has nothing else to do


@pytest.fixture(scope="module")
def store():
    """Give this process the variables with which Podman keeps its files below .cache/podman."""
    said = subprocess.run(
        [SCRIPT, "env", ROOT / ".cache" / "podman"], capture_output=True, text=True, check=True
    ).stdout
    names = [word.partition("=")[0] for line in said.splitlines() for word in shlex.split(line)[1:]]
    script = f"{said}\nfor name in {' '.join(names)}; do printf '%s=%s\\0' $name \"${{!name}}\"; done"
    shown = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True).stdout
    with pytest.MonkeyPatch.context() as patch:
        for line in shown.rstrip("\0").split("\0"):
            patch.setenv(*line.split("=", 1))
        patch.setenv("PODMANHPC_WAIT_TIMEOUT", "60")  # for a container to start, beside other tests
        yield


@pytest.fixture(scope="module")
def site(store):
    """Return this machine with podman-hpc and the image; skip without one, or fail where it is required."""
    try:
        found = image_file.with_image(
            site_files.load("local", ["container.use=true", "container.runtime=podman-hpc"]), []
        )
        checks.raise_if_faulty(found)
    except UserError as problem:
        cluster.require("podman", str(problem))
    return found


def settings(site, *more):
    """Return the options with which a run takes the image of podman-hpc."""
    words = [f"container.runtime={site.container.runtime}", *more]
    return ["--container", *(word for each in words for word in ("--set", each))]


def call(*words, root, study="smoke", timeout=300):
    command = [*RUN, *words, "--study", str(study), "--root", str(root)]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, cwd=root.parent)


def stages_below(root):
    """List the processes of stages in a run directory; a process that has ended has no command line."""
    modules = ("gnnscale.job.rank_wrapper", "gnnscale.stages.train", "gnnscale.stages.convert")
    return [pid for module in modules for pid, place in find_processes(module) if place.startswith(str(root))]


def containers():
    """List the supervisors of containers in the store of these tests, which outlive whatever started them."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_text().split("\0")
        except OSError:
            continue
        if words[0].endswith("conmon") and any(str(ROOT / ".cache" / "podman") in word for word in words):
            found.append(words)
    return found


def results(root):
    return {path.parent: json.loads(path.read_text()) for path in root.glob("*/*/result.json")}


# ------------------------------------------------------------------------------------------------------------ by hand
def kill_driver(root, command, study):
    """Start a run, and kill its driver as soon as a training takes steps."""
    driver = subprocess.Popen([*command, "--study", str(study), "--root", str(root)], stdout=subprocess.DEVNULL)
    try:
        wait_until(lambda: driver.poll() is not None or list(root.glob("train/*/progress.json")), "a training")
        assert driver.poll() is None
    finally:
        driver.kill()
        driver.wait()


@pytest.mark.parametrize("runtime", ["podman", "podman-hpc"])
def test_no_stage_outlives_its_driver(site, tmp_path, runtime):
    study = tmp_path / "long.yaml"
    study.write_text(json.dumps(cluster.make_study(1_000_000)))
    image = (f"container.image={site.container.image}", f"container.digest={site.container.digest}")
    kill_driver(tmp_path / "run", [*RUN, *settings(site, *image, f"container.runtime={runtime}")], study)
    assert stages_below(tmp_path)
    deadline = time.monotonic() + SECONDS_TO_END
    while stages_below(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not stages_below(tmp_path)
    wait_until(lambda: not containers(), "their containers to end")


def test_the_smoke_study_is_killed_and_goes_on(site, tmp_path):
    """The same command does what is left to do, with Perlmutter's own flags, and with the keys of Apptainer."""
    root = tmp_path / 'in an image; it\'s "so", $HOME' / "smoke"
    root.parent.mkdir()
    flags = f"container.rank_flags=[{', '.join(PERLMUTTER['rank_flags']['podman-hpc'])}]"
    kill_driver(root, [*RUN, *settings(site, flags)], "smoke")
    done = call(*settings(site, flags), root=root)
    assert done.returncode == 0 and "13 of 13 stages done" in done.stdout, done.stdout + done.stderr
    found = results(root)
    for folder, result in found.items():
        said = result["provenance"]
        assert said["image"] == site.container.digest and said["runtime"] == "podman", folder
    assert {result["id"]: result["key"] for result in found.values()} == keys_of_apptainer(root)


def keys_of_apptainer(root):
    """Return the keys of a plan for the image file of Apptainer, which has the same id."""
    done = call("plan", "--container", "--json", root=root)
    assert done.returncode == 0, done.stderr
    return {each["id"]: each["key"] for each in json.loads(done.stdout)["stages"]}


def test_an_image_that_is_not_as_it_should_be_is_told_before_anything_starts(site, tmp_path):
    """The message names what to type, in seconds; no registry is asked, and no stage fails."""
    name, digest = site.container.image, f"container.digest={site.container.digest}"
    subprocess.run(["podman-hpc", "tag", name, "localhost/gnnscale:not-migrated"], check=True, timeout=60)
    for more, told in (
        (["container.image=localhost/no:such", digest], "podman-hpc has no image localhost/no:such"),
        (["container.digest=" + "f" * 64, f"container.image={name}"], "ffffffffffff is expected"),
        (["container.rank_flags=[--cuda-mpj]"], "no option or module --cuda-mpj; its modules here: "),
        (["arch=" + ("aarch64" if site_files.load("local").arch != "aarch64" else "x86_64")], ""),
    ):
        done = call("run", *settings(site, *more), root=tmp_path / "run")
        assert done.returncode == 2 and told in done.stderr and len(done.stderr.splitlines()) < 8, done.stderr
        assert "registry" not in done.stderr and not list((tmp_path / "run").glob("*/*/attempts"))
    on_nodes = site_files.load("slurm", ["container.use=true", "container.runtime=podman-hpc"])
    image = {"image": "localhost/gnnscale:not-migrated", "digest": site.container.digest}
    if not image_store.find_stored(on_nodes, image["image"]).is_migrated:
        container = on_nodes.container.model_copy(update=image)
        (fault,) = checks.find_faults(on_nodes.model_copy(update={"container": container}))
        assert "not migrated" in fault.message and fault.hint.startswith("podman-hpc migrate localhost/gnnscale:not-")


# --------------------------------------------------------------------------------------------------------- on a Slurm
def on_slurm(site, ranks, **more):
    """Return the layer of a site with Perlmutter's section on containers."""
    container = PERLMUTTER | {"use": True, "image": site.container.image, "digest": site.container.digest}
    roots = [f"{name}={os.environ[name]}-$SLURMD_NODENAME" for name in ("PODMANHPC_GRAPH_ROOT", "PODMANHPC_RUN_ROOT")]
    own_store = [f"export {root}" for root in roots]
    launch = {"ranks_per_node": ranks, "before_rank": own_store}
    nodes = {"train": {"nodes": [1, 1]}, "setup": own_store}
    return {"container": container | more.pop("container", {}), "launch": launch} | nodes | more


def test_a_study_on_nodes_with_the_flags_of_perlmutter(site, slurm, tmp_path):
    """Stages side by side in one job have containers of their own; the two ranks of a training share one."""
    run = Run(slurm, tmp_path, SHORT, on_slurm(site, ranks=2))
    run.start()
    said = run.end()
    assert f"{len(results(run.root))} of {len(results(run.root))} stages done" in said
    for result in results(run.root).values():
        assert result["provenance"]["image"] == site.container.digest and result["provenance"]["runtime"] == "podman"
    assert "2 rank(s)" in (run.folder() / "attempts" / "1" / "stdout").read_text()
    wait_until(lambda: not containers(), "the container that the ranks shared to end")


def training_job(run):
    """Return the id of the last job of the training, once it takes steps; "" before."""
    names = {e["name"] for e in run.events("intend") if any(id.startswith("train/") for id in e["stages"])}
    ids = [e["job"] for e in run.events("submit") if e["name"] in names]
    return ids[-1] if ids and stages_below(run.root) and list(run.root.glob("train/*/progress.json")) else ""


def test_signals_reach_ranks_and_no_container_outlives_its_job(site, slurm, tmp_path):
    """Each end of a job is tried: signalled as its time is over, and all of its processes killed."""
    run = Run(slurm, tmp_path, LONG, on_slurm(site, ranks=2))
    try:
        run.start("--until", "train")
        first = run.wait(lambda: training_job(run), "the training")
        run.kill()
        run.start("--until", "train")
        slurm.call("scancel", "--signal=USR1", "--batch", first)
        exit_file = run.folder() / "attempts" / "1" / "exit.json"
        run.wait(exit_file.exists, "the end of its job")
        assert json.loads(exit_file.read_text()) | {"code": 75, "launcher": 0} == json.loads(exit_file.read_text())
        assert list(run.root.glob("train/*/checkpoints/step-*"))
        second = run.wait(lambda: (id := training_job(run)) != first and id, "another job")
        run.kill()
        programs = [pid for pid, place in find_processes("gnnscale.job.batch_job") if place.startswith(str(tmp_path))]
        assert programs
        for pid in programs:
            os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not stages_below(run.root), "the ranks to end")
        wait_until(lambda: second not in slurm.active() and not containers(), "their container to end")
    finally:
        run.stop()
        slurm.empty()


def test_doctor_shows_the_words_of_the_runtime(site, slurm, tmp_path):
    """The launcher's last line says that a task ended, and not why."""
    broken = {"container": {"binds": ["/no/such/directory"]}}
    run = Run(slurm, tmp_path, SHORT, on_slurm(site, ranks=1, **broken))
    run.env["PODMANHPC_WAIT_TIMEOUT"] = "5"  # as podman-hpc notices so late that it has not started
    done = run.call("doctor", "--queue", "default", timeout=PATIENCE)
    said = done.stdout + done.stderr
    assert done.returncode and "/no/such/directory" in said and "Terminating" not in said, said
