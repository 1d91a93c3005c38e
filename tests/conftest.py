"""Fixtures and settings of all tests. Random examples are the same in every run, but not with HYPOTHESIS_PROFILE=deep."""

import fcntl
import os
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import settings

from gnnscale.machine import native_build
from tests.support import cluster, corpus, native_builds

settings.register_profile("fast", max_examples=25, derandomize=True, deadline=None, database=None)
settings.register_profile("deep", max_examples=500, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "fast"))

TESTS = Path(__file__).parent
# Files of a minute and more, the longest first: begun last, one of them would run on alone while all other workers wait.
LONGEST_FILES = (
    "integration/test_ranks.py",
    "integration/test_failures.py",
    "integration/test_faults.py",
    "integration/test_pbs.py",
    "integration/test_apptainer.py",
    "integration/test_podman.py",
    "integration/test_workflow.py",
    "integration/test_slurm.py",
    "integration/test_doctor.py",
    "integration/test_sharing.py",
    "examples/test_examples.py",
    "gnnscale/models/kernels/test_triton.py",
    "gnnscale/stages/test_train.py",
    "gnnscale/stages/test_memory_levers.py",
    "integration/test_third_architecture.py",
    "integration/test_store.py",
    "gnnscale/scaling/test_analysis.py",
    "gnnscale/stages/test_convert.py",
)

torch.set_num_threads(1)
os.environ["XDG_CONFIG_HOME"] = os.devnull  # sites are as the repository has them, without the layers of the user


@pytest.fixture
def environment():
    """Restore the environment after the test, as every process that a later test starts inherits it."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(params=native_builds.compiled_sets())
def instruction_set(request, monkeypatch):
    """Run the test with every build of the native library that this processor can run, one after another."""
    monkeypatch.setenv(native_build.VARIABLE, request.param)
    return request.param


@pytest.fixture(scope="session")
def make_once(tmp_path_factory, worker_id):
    """Return a function that lets the first worker of this session make a folder, which all others then read."""

    def made(name, make):
        base = tmp_path_factory.getbasetemp()
        folder = (base if worker_id == "master" else base.parent) / name
        with open(folder.with_suffix(".lock"), "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not (folder / "made").exists():
                shutil.rmtree(folder, ignore_errors=True)  # another worker may have failed half way
                folder.mkdir()
                make(folder)
                (folder / "made").touch()
        return folder

    return made


@pytest.fixture(scope="session")
def converted(make_once):
    """Return convert/NAME -> directory, of two small datasets."""
    folder = make_once("corpus", corpus.convert_two_sources)
    return {f"convert/{name}": folder / "convert" / name for name in ("bulk", "organic")}


def pytest_configure(config):
    config.addinivalue_line(
        "markers", "slurm: on a private Slurm, which `tests/support/slurm.sh install` makes possible"
    )
    config.addinivalue_line("markers", "apptainer: in the image that `workflow/run.py image build` makes")
    config.addinivalue_line(
        "markers", "podman: in the image of podman-hpc, which `tests/support/podman.sh install` makes possible"
    )
    config.addinivalue_line("markers", "pbs: on the real PBS of this machine, by a user who may submit jobs")
    config.addinivalue_line("markers", "faults: faults of a cluster, each brought about on purpose; some minutes")


def pytest_xdist_auto_num_workers(config):
    """Return a worker for each of up to eight cores, and with `-n auto` three more, as the longest files mostly wait.

    With more than eight, the longest file alone would take longer than all others.
    """
    return min(len(os.sched_getaffinity(0)), 8) + (3 if config.option.numprocesses == "auto" else 0)


@pytest.hookimpl(tryfirst=True)  # before pytest leaves out what -m does not name
def pytest_collection_modifyitems(items):
    """Mark integration tests as slow, and order files, the longest first: xdist hands them out in this order."""

    def place(item):
        name = str(item.path.relative_to(TESTS))
        return LONGEST_FILES.index(name) if name in LONGEST_FILES else len(LONGEST_FILES)

    for item in items:
        if item.path.parent == TESTS / "integration":
            item.add_marker(pytest.mark.slow)
    items.sort(key=place)


@pytest.fixture(scope="session")
def slurm(tmp_path_factory):
    """Return a Slurm with three nodes and without accounting, which ends with the tests however they end."""
    if why := cluster.explain_missing():
        cluster.require("slurm", why)
    with cluster.Cluster(tmp_path_factory.mktemp("slurm") / "up") as up:
        yield up
