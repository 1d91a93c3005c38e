"""Structures read at random, and the bytes they take: ours from the map, ADIOS2 as HydraGNN uses it, LMDB with pickles."""

from __future__ import annotations

import pickle
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import adios2
import lmdb
import numpy as np
import torch
from torch_geometric.data import Batch, Data

from gnnscale.atoms.structure import Structure
from gnnscale.contract.dataset_card import Split
from gnnscale.data.storage import adios
from gnnscale.data.storage.mapped import Shards, open_shards
from tests.benchmarks.measure import Table, in_turn
from tests.support import hydragnn_layout as layout

COUNT, SHARD = 12_000, 3000  # structures, and in each of our shards
FEW = 1500  # what the slow ones read
CUTOFF = 5.0  # Angstrom
KEYS = ("pos", "x", "energy", "cell", "pbc")  # what makes a structure; `x` has its atomic numbers and forces
RAW = ("numbers", "positions", "forces", "energy", "cell", "pbc")


def molecules(count: int, seed: int = 0) -> list[Structure]:
    """Make molecules of 10 to 30 atoms, 20 in the mean, about as dense as organic ones are."""
    rng, made = np.random.default_rng(seed), []
    for k in range(count):
        atoms = int(rng.integers(10, 31))
        sites = np.stack(np.meshgrid(*[np.arange(4)] * 3), -1).reshape(-1, 3)[rng.permutation(64)[:atoms]]
        made.append(
            Structure(
                rng.choice([1, 6, 7, 8], atoms),
                1.6 * sites + rng.normal(size=(atoms, 3)) * 0.1,
                np.zeros((3, 3)),
                np.zeros(3, bool),
                float(rng.normal()),
                rng.normal(size=(atoms, 3)),
                np.full((3, 3), np.nan),
                f"g{k}",
            )
        )
    return made


def write_ours(path: Path, structures: list[Structure]) -> Shards:
    path.mkdir()
    entries = [
        adios.write_shard(path / f"{start:05}.bp", structures[start : start + SHARD], Split(), CUTOFF)
        for start in range(0, len(structures), SHARD)
    ]
    adios.write_manifest(path, entries)
    return open_shards(path)


@contextmanager
def database(path: Path, values: list[bytes]) -> Iterator[lmdb.Transaction]:
    with lmdb.open(str(path), map_size=1 << 31) as environment:
        with environment.begin(write=True) as write:
            for k, value in enumerate(values):
                write.put(str(k).encode(), value)
        with environment.begin() as transaction:
            yield transaction


def used(path: Path) -> int:
    """LMDB's file is as large as its map; what counts are the blocks that it has."""
    files = [file.stat() for file in path.rglob("*") if file.is_file()]
    return sum(512 * file.st_blocks if path.suffix == ".lmdb" else file.st_size for file in files)


def as_data(s: Structure) -> Data:
    graph = layout.make_graph(s)
    return Data(**{key: torch.from_numpy(graph[key]) for key in (*KEYS, "atomic_numbers", "forces")})


def as_raw(s: Structure) -> bytes:
    """As tight as a record can be: an array's bytes behind the other's."""
    kinds = {"numbers": np.uint8, "energy": np.float64, "pbc": np.uint8}
    return b"".join(np.asarray(getattr(s, key), kinds.get(key, np.float32)).tobytes() for key in RAW)


def from_raw(value: bytes) -> tuple[np.ndarray, ...]:
    atoms = (len(value) - 8 - 36 - 3) // 25
    x, f, e = atoms, 13 * atoms, 25 * atoms
    return (
        np.frombuffer(value, np.uint8, atoms),
        np.frombuffer(value, np.float32, 3 * atoms, x).reshape(-1, 3),
        np.frombuffer(value, np.float32, 3 * atoms, f).reshape(-1, 3),
        np.frombuffer(value, np.float64, 1, e),
        np.frombuffer(value, np.float32, 9, e + 8),
        np.frombuffer(value, np.uint8, 3, e + 44),
    )


def by_key(stream: adios2.FileReader, chosen: np.ndarray, keys: tuple[str, ...]) -> Callable[[], None]:
    """HydraGNN's access from a file that it does not hold in memory: a read for each key of each sample, then a Data."""
    index = index_of(stream, keys)

    def run() -> None:
        for k in chosen:
            found = Data()
            for key in keys:
                shape, ragged, count, offset = index[key]
                start, length = [0] * len(shape), list(shape)
                start[ragged], length[ragged] = int(offset[k]), int(count[k])
                found[key] = torch.from_numpy(stream.read(f"trainset/{key}", start, length))

    return run


def index_of(stream: adios2.FileReader, keys: tuple[str, ...]) -> dict:
    made = {}
    for key in keys:
        name = f"trainset/{key}"
        shape = [int(n) for n in stream.available_variables()[name]["Shape"].split(",")]
        count, offset = (stream.read(f"{name}/variable_{what}") for what in ("count", "offset"))
        made[key] = shape, int(stream.read_attribute(f"{name}/variable_dim")), count, offset
    return made


def main() -> Table:
    torch.set_num_threads(1)
    structures = molecules(COUNT)
    order = np.random.default_rng(1).permutation(COUNT)
    few = np.random.default_rng(2).permutation(FEW)
    with_edges = (*KEYS, "edge_index", "edge_attr", "edge_shifts")
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        mapped = write_ours(root / "ours", structures)
        for name, cutoff in (("bare.bp", None), ("hydragnn.bp", CUTOFF)):
            layout.write_bp(root / name, {"trainset": [layout.make_graph(s, cutoff) for s in structures[:FEW]]})
        pickles = [pickle.dumps(as_data(s)) for s in structures[:FEW]]
        raws = [as_raw(s) for s in structures]
        with (
            adios2.FileReader(str(root / "bare.bp")) as bare,
            adios2.FileReader(str(root / "hydragnn.bp")) as stream,
            database(root / "pickles.lmdb", pickles) as data,
            database(root / "raw.lmdb", raws) as records,
        ):
            check(mapped, records, data, structures)

            def ours(size: int) -> Callable[[], None]:
                return lambda: [mapped.select(order[a : a + size]) for a in range(0, COUNT, size)]

            def unpickled() -> None:
                for k in few:
                    pickle.loads(data.get(str(k).encode()))

            def batched() -> None:
                for a in range(0, FEW, 32):
                    Batch.from_data_list([pickle.loads(data.get(str(k).encode())) for k in few[a : a + 32]])

            def raw() -> None:
                for k in order:
                    [array.copy() for array in from_raw(records.get(str(k).encode()))]

            ways = {  # name -> (what is timed, structures, folder, structures in that folder)
                "ours, batches of 256": (ours(256), COUNT, "ours", COUNT),
                "ours, batches of 32": (ours(32), COUNT, "ours", COUNT),
                "LMDB of raw bytes": (raw, COUNT, "raw.lmdb", COUNT),
                "LMDB of pickled Data": (unpickled, FEW, "pickles.lmdb", FEW),
                "the same, batches of 32": (batched, FEW, "pickles.lmdb", FEW),
                "HydraGNN's .bp without edges": (by_key(bare, few, KEYS), FEW, "bare.bp", FEW),
                "HydraGNN's .bp with edges": (by_key(stream, few, with_edges), FEW, "hydragnn.bp", FEW),
            }
            timings = in_turn({name: way[0] for name, way in ways.items()})
        atoms = sum(len(s.numbers) for s in structures) / COUNT
        rows = []
        for name, (_, count, place, there) in ways.items():
            seconds, size = timings[name].seconds, used(root / place) / there
            rows.append(
                {"way": name, "structures/s": count / seconds.median, "low": count / seconds.high}
                | {"high": count / seconds.low, "bytes/structure": size, "bytes/atom": size / atoms}
                | {"times ours": size / (used(root / "ours") / COUNT)}
            )
    return Table(f"{atoms:.1f} atoms in the mean, at random from the page cache, one core", rows)


def check(mapped: Shards, records: lmdb.Transaction, data: lmdb.Transaction, structures: list[Structure]) -> None:
    """All ways give the same structure."""
    for k in (0, 7, FEW - 1):
        one, raw, two = (
            mapped.select(np.array([k])),
            from_raw(records.get(str(k).encode())),
            pickle.loads(data.get(str(k).encode())),
        )
        assert (one.numbers == raw[0]).all() and (one.numbers == structures[k].numbers).all()
        assert (one.positions == raw[1]).all() and (one.positions == two.pos.numpy()).all()
        assert (one.forces == raw[2]).all() and (one.forces == two.x[:, 4:].numpy()).all() and one.energy == raw[3]
