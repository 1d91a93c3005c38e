"""The store on four real MPI ranks, as one node and as two: every rank gets every structure as the shards have it."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from gnnscale.job.local_launcher import find_free_port
from tests.support.corpus import ENV, ROOT
from tests.support.training import prepare_training, read_losses, read_weights

pytest.importorskip("mpi4py")
MPIEXEC = shutil.which("mpiexec", path=str(Path(sys.executable).parent)) or shutil.which("mpiexec")
pytestmark = pytest.mark.skipif(MPIEXEC is None, reason="no mpiexec")

# Each rank asks for other structures at other times than the rest, from two threads, and some never ask.
PROGRAM = """
import os, sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
import numpy as np
from gnnscale.data.storage import mapped
from gnnscale.data.storage.node_store import NodeStore, communicators_of_ranks

there = mapped.open_shards(Path(sys.argv[1]))
row = np.flatnonzero(there.split != 1)
held = NodeStore(there, row)
world, node = communicators_of_ranks()
nodes = world.size // int(os.environ.get("GNNSCALE_RANKS_PER_NODE", world.size))
assert node.size == world.size // nodes

def look(seed):
    chosen = np.random.default_rng(seed).integers(0, len(row), 23)
    for a, b in zip(held.select(chosen), there.select(row[chosen])):
        assert a.tobytes() == b.tobytes()
    return len(chosen)

with ThreadPoolExecutor(2) as pool:
    seen = sum(pool.map(look, range(100 * world.rank, 100 * world.rank + 20 * world.rank)))
assert seen == 23 * 20 * world.rank
away = len(row) - (held.local[1] - held.local[0])
assert (away > 0) == (nodes > 1)
total = node.allreduce(held.bytes_here) / node.size
everything = world.allreduce(held.bytes_here) / node.size
assert everything == held.begin[-1] * 8, "each structure is held by one node"
assert abs(total - everything / nodes) < 0.1 * everything, "in equal parts"
held.close()
print("rank", world.rank, "of", world.size, "saw", seen, flush=True)
"""


def mpi(ranks: int, *command: str, **environ: str) -> subprocess.CompletedProcess:
    env = os.environ | ENV | environ
    return subprocess.run(
        [MPIEXEC, "-n", str(ranks), sys.executable, *command],
        env=env,
        cwd=ROOT,
        text=True,
        capture_output=True,
        timeout=300,
    )


@pytest.mark.parametrize("nodes", [1, 2, 4])
def test_every_rank_gets_every_structure(converted, nodes):
    for need in converted.values():
        done = mpi(4, "-c", PROGRAM, str(need / "shards"), GNNSCALE_RANKS_PER_NODE=str(4 // nodes))
        assert done.returncode == 0, done.stdout + done.stderr
        assert done.stdout.count("saw") == 4


def test_a_training_from_the_store_is_the_training_from_the_map(converted, tmp_path):
    """Two ranks act as two nodes, with micro-batches, so that some structures arrive while others are in use."""
    made = {}
    for data in ("map", "store"):
        made[data] = prepare_training(tmp_path, converted, data, {"data": data, "micro_batch_edges": 300})
        done = mpi(
            2,
            "-m",
            "gnnscale.stages.train",
            str(made[data]),
            GNNSCALE_RANKS_PER_NODE="1",
            MASTER_ADDR="127.0.0.1",
            MASTER_PORT=str(find_free_port()),
        )
        assert done.returncode == 0, done.stdout + done.stderr
    assert read_losses(made["map"]) == read_losses(made["store"])
    for name, tensor in read_weights(made["map"]).items():
        assert (read_weights(made["store"])[name] == tensor).all(), name


def test_ranks_that_mpi_does_not_know_of_are_refused_in_words(converted, tmp_path):
    """Their launcher calls two processes ranks, while MPI sees each alone."""
    made = prepare_training(tmp_path, converted, "alone", {"data": "store"})
    env = os.environ | ENV | {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    done = subprocess.run(
        [sys.executable, "-m", "gnnscale.stages.train", str(made)],
        env=env,
        cwd=ROOT,
        text=True,
        capture_output=True,
        timeout=120,
    )
    assert done.returncode == 64 and "Traceback" not in done.stderr
    assert "MPI sees rank 0 of 1" in done.stderr and "set data: map" in done.stderr
