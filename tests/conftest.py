"""Fixtures and settings of all tests. Random examples are the same in every run, but not with HYPOTHESIS_PROFILE=deep."""

import os

import pytest
import torch
from hypothesis import settings

from tests.support import cluster, corpus

settings.register_profile("fast", max_examples=25, derandomize=True, deadline=None, database=None)
settings.register_profile("deep", max_examples=500, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "fast"))

torch.set_num_threads(1)
os.environ["XDG_CONFIG_HOME"] = os.devnull  # sites are as the repository has them, without the layers of the user


@pytest.fixture
def environment():
    """Restore the environment after the test, as every process that a later test starts inherits it."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(scope="session")
def converted(tmp_path_factory):
    """Return convert/NAME -> directory, of two small datasets."""
    return corpus.convert_two_sources(tmp_path_factory.mktemp("corpus"))


def pytest_configure(config):
    config.addinivalue_line(
        "markers", "slurm: on a private Slurm, which `tests/support/slurm.sh install` makes possible"
    )
    config.addinivalue_line("markers", "apptainer: in the image that `workflow/run.py image build` makes")
    config.addinivalue_line("markers", "faults: faults of a cluster, each brought about on purpose; some minutes")


@pytest.fixture(scope="session")
def slurm(tmp_path_factory):
    """Return a Slurm with three nodes and without accounting, which ends with the tests however they end."""
    if why := cluster.explain_missing():
        cluster.require("slurm", why)
    with cluster.Cluster(tmp_path_factory.mktemp("slurm") / "up") as up:
        yield up
