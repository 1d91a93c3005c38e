"""Fixtures: one training on a private Slurm, with and without a data base of accounts."""

import pytest

from tests.support.cluster import BEFORE_TRAINING, SHORT, SOME, Cluster, Run, explain_missing, require


@pytest.fixture(scope="session")
def data(slurm, make_once):
    """Return a run directory in which a job has converted the data."""

    def convert(folder):
        run = Run(slurm, folder, SHORT)
        run.start("--until", BEFORE_TRAINING[-1])
        run.end()

    return make_once("converted_by_a_job", convert) / "run"


@pytest.fixture
def begin(slurm, data, tmp_path):
    """Return a function that starts a driver of the training; end all that is left of it afterwards."""
    begun = []

    def start(study=SOME, env=None, cluster=slurm, until="train", before=lambda root: None, **site):
        run = Run(cluster, tmp_path, study, site, data)
        before(run.root)
        begun.append((run, cluster))
        run.start("--until", until, **(env or {}))
        return run

    yield start
    for run, cluster in begun:
        run.stop()
        cluster.empty()


@pytest.fixture(scope="module")
def accounted(tmp_path_factory):
    """Start a Slurm with a data base, which knows accounts and their limits."""
    if why := explain_missing("slurmdbd", "mariadbd"):
        require("slurm", why)
    with Cluster(tmp_path_factory.mktemp("accounted") / "up", 1, ACCOUNTING=1) as cluster:
        yield cluster
