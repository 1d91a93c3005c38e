"""Random examples are the same in every run, unless HYPOTHESIS_PROFILE=deep asks for more and new ones."""

import os

import pytest
import torch
from hypothesis import settings

from tests.support import cluster, corpus

settings.register_profile("fast", max_examples=25, derandomize=True, deadline=None, database=None)
settings.register_profile("deep", max_examples=500, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "fast"))

torch.set_num_threads(1)
os.environ["XDG_CONFIG_HOME"] = os.devnull  # sites are as they come, not as who runs the tests has them


@pytest.fixture
def environment():
    """As it was, once the test has ended: what one leaves there reaches all that others start."""
    told = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(told)


@pytest.fixture(scope="session")
def converted(tmp_path_factory):
    """convert/NAME -> directory, of two small datasets."""
    return corpus.convert(tmp_path_factory.mktemp("corpus"))


def pytest_configure(config):
    config.addinivalue_line(
        "markers", "slurm: on a private Slurm, which `tests/support/slurm.sh install` makes possible"
    )
    config.addinivalue_line("markers", "apptainer: in the image that `workflow/run.py image build` makes")
    config.addinivalue_line("markers", "faults: things that go wrong on a cluster, each brought about; some minutes")


@pytest.fixture(scope="session")
def slurm(tmp_path_factory):
    """Three nodes, without accounting; gone at the end, however the tests end."""
    if why := cluster.missing():
        cluster.require("slurm", why)
    with cluster.Cluster(tmp_path_factory.mktemp("slurm") / "up") as up:
        yield up
