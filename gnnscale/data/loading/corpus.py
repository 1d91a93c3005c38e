"""Structures of several sources by number, and any selection of them as one batch of tensors with its neighbours.

Nothing of a structure is held but a few numbers: atoms are gathered from where they lie (see PLACES) when a batch is
made, and edges are found then, which is faster than to read them.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

import numpy as np
import torch

from gnnscale.atoms import neighbors
from gnnscale.atoms.graph import AtomGraphs, Properties
from gnnscale.contract import files
from gnnscale.contract.dataset_card import ShardCard
from gnnscale.contract.results import StageResult
from gnnscale.data.storage import mapped, splits
from gnnscale.data.storage.packed import HAS_STRESS, PER_ATOM, Packed, concatenate
from gnnscale.machine.rank_env import ranks

ATOM_COST, EDGE_COST = 3.0, 2.0  # predicted time of a training step, in arbitrary units, per atom and per edge
BLOCK = 8192  # structures that are looked through at a time
Data = Literal["map", "memory", "store"]


class Place(Protocol):
    """Where the structures of one source are: shards on disk, arrays in memory, or the memory of several nodes."""

    def select(self, chosen: np.ndarray) -> Packed: ...


class Held(NamedTuple):
    """Structures in the memory of this process."""

    packed: Packed
    ptr: np.ndarray  # (S + 1,)

    def select(self, chosen: np.ndarray) -> Packed:
        return select(self.packed, chosen, self.ptr)


class Corpus(NamedTuple):
    """S structures of one split, subset or all, numbered through all sources; some 20 bytes of each are held here."""

    places: tuple[Place, ...]  # one a source
    row: np.ndarray  # (S,) which structure of its place; this and the next are as narrow as their values allow
    source: np.ndarray  # (S,) index into `names` and `places`
    names: tuple[str, ...]
    cards: tuple[ShardCard, ...]
    cutoff: float  # Angstrom
    natoms: np.ndarray  # (S,) int32
    nedges: np.ndarray  # (S,) uint32, at this cutoff
    labels: np.ndarray  # (S, 3) unsigned: how many there are of energy, forces, stress

    def __len__(self) -> int:
        return len(self.source)

    @property
    def atoms(self) -> int:
        return int(self.natoms.sum(dtype=np.int64))

    @property
    def edges(self) -> int:
        return int(self.nedges.sum(dtype=np.int64))

    def costs(self, chosen: np.ndarray) -> np.ndarray:
        return ATOM_COST * self.natoms[chosen] + EDGE_COST * self.nedges[chosen].astype(float)

    def select(self, chosen: np.ndarray) -> Packed:
        """The chosen structures in the order asked for, whichever sources they are of."""
        chosen = np.asarray(chosen, np.int64)
        order = np.argsort(self.source[chosen], kind="stable")
        of, row = self.source[chosen][order], self.row[chosen][order].astype(np.int64)
        present = np.unique(of)
        found = [self.places[index].select(row[of == index]) for index in present]
        if len(found) <= 1:
            return found[0] if found else self.places[0].select(row)
        back = np.empty(len(order), np.int64)
        back[order] = np.arange(len(order))
        return select(concatenate(found), back)


def load(
    directories: dict[str, Path],
    split: str,
    cutoff: float,
    structures: int | None = None,
    subset_seed: int = 0,
    data: Data = "map",
    threads: int = 1,
    subset: Literal["random", "prefix"] = "random",
) -> Corpus:
    """One split of several converted datasets, or a nested subset of it."""
    names, cards, found, rows = tuple(directories), [], [], []
    for directory in directories.values():
        cards.append(files.read_model(directory / "card.json", ShardCard))
        found.append(mapped.open(directory / "shards", check=ranks().rank == 0 and not unchanged(directory)))
        rows.append(np.flatnonzero(found[-1].split == splits.NAMES.index(split)))
    source = np.repeat(np.arange(len(names)), [len(row) for row in rows])
    if structures is not None and structures < len(source):
        chosen = splits.subset(source, names, structures, subset_seed, subset)
        source, row = source[chosen], np.concatenate(rows)[chosen]
        rows = [row[source == index] for index in range(len(names))]
    places, new_rows, columns = [], [], []
    for there, card, row in zip(found, cards, rows):
        nedges = there.nedges[row] if card.cutoff == cutoff else count(there, row, cutoff, threads)
        columns.append((there.natoms[row], nedges, labelled(there, row)))
        places.append(PLACES[data](there, row))
        new_rows.append(row if data == "map" else np.arange(len(row)))
    natoms, nedges, labels = (np.concatenate(column) for column in zip(*columns))
    row, source, labels = narrow(np.concatenate(new_rows)), narrow(source), narrow(labels)
    return Corpus(tuple(places), row, source, names, tuple(cards), cutoff, natoms, nedges, labels)


def narrow(values: np.ndarray) -> np.ndarray:
    return values.astype(np.min_scalar_type(values.max(initial=0)))


def _store(there: mapped.Shards, row: np.ndarray) -> Place:
    from gnnscale.data.storage.node_store import Store

    return Store(there, row)


PLACES = {
    "map": lambda there, row: there,
    "memory": lambda there, row: Held((packed := there.select(row)), packed.ptr),
    "store": _store,
}


def leave(*corpora: Corpus) -> None:
    """Give back what is held together with other ranks; all of them must do so, and need no batch any more."""
    stores = [place for corpus in corpora for place in corpus.places if hasattr(place, "close")]
    for store in stores:
        store.close()
    if stores:
        from gnnscale.data.storage import node_store as mpi

        mpi.leave()


def unchanged(directory: Path) -> bool:
    """Whether the stage's result.json vouches for the shards: sizes and times are as they were when it was written."""
    try:
        outputs = files.read_model(directory / "result.json", StageResult).outputs
        return all((directory / name).stat().st_mtime_ns == file.mtime_ns for name, file in outputs.items())
    except (OSError, files.BadFile):
        return False


def count(there: Place, row: np.ndarray, cutoff: float, threads: int = 1) -> np.ndarray:
    """Edges of each structure, at another cutoff than that of the conversion.  # (S,) uint32"""
    blocks = [row[begin : begin + BLOCK] for begin in range(0, len(row), BLOCK)]
    with ThreadPoolExecutor(max(1, threads)) as pool:
        found = list(pool.map(partial(_count, there, cutoff), blocks))
    return np.concatenate([np.empty(0, np.uint32), *found])


def _count(there: Place, cutoff: float, row: np.ndarray) -> np.ndarray:
    packed = there.select(row)
    return neighbors.count(packed.positions, packed.ptr, packed.cell, packed.pbc, cutoff).astype(np.uint32)


def labelled(there: mapped.Shards, row: np.ndarray) -> np.ndarray:
    """How many known labels of energy, forces and stress each structure has; a stress needs a cell.  # (S, 3) int32

    Structures are read only where what is known of all does not tell: in a source with forces of some atoms only, and
    those with a stress.
    """
    natoms, total = there.natoms[row], there.manifest.total
    train = there.split[row] == splits.NAMES.index("train")
    known = np.zeros((len(row), 3), np.int32)
    known[:, 0] = np.isfinite(there.energy[row])
    whole = train.all() and total.forces == 3 * total.counts["train"].atoms
    known[:, 1] = 3 * natoms if whole else 0
    unsure = (there.flags[row] & HAS_STRESS > 0) | ~(whole or (train.all() and not total.forces))
    asked = np.flatnonzero(unsure)
    for begin in range(0, len(asked), BLOCK):
        block = asked[begin : begin + BLOCK]
        known[block] = labels_of(there.select(row[block]))
    return known


def labels_of(packed: Packed) -> np.ndarray:
    """How many known labels of each kind: what the sums of penalties are divided by.  # (S, 3)"""
    forces = np.concatenate([[0], np.cumsum(np.isfinite(packed.forces).sum(1))])  # (A + 1,)
    stress = np.isfinite(packed.stress) & (np.linalg.det(packed.cell) != 0)[:, None, None]
    return np.stack([np.isfinite(packed.energy), np.diff(forces[packed.ptr]), stress.sum((1, 2))], axis=1)


def select(packed: Packed, chosen: np.ndarray, ptr: np.ndarray | None = None) -> Packed:
    atoms = ranges(packed.ptr if ptr is None else ptr, chosen)
    return Packed(*(a[atoms] if n in PER_ATOM else a[chosen] for n, a in packed._asdict().items()))


def ranges(ptr: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """The concatenated ranges ptr[k] ... ptr[k + 1] of all chosen k, without a loop."""
    lengths = ptr[chosen + 1] - ptr[chosen]
    begins = np.cumsum(lengths) - lengths
    return np.arange(lengths.sum()) + np.repeat(ptr[chosen] - begins, lengths)


def batch(corpus: Corpus, chosen: np.ndarray) -> tuple[AtomGraphs, Properties]:
    """The chosen structures as one graph, with their labels in physical units (energy float64, the rest float32)."""
    packed, room = corpus.select(chosen), int(corpus.nedges[chosen].sum(dtype=np.int64))
    found = neighbors.batch(packed.positions, packed.ptr, packed.cell, packed.pbc, corpus.cutoff, room)
    graphs = AtomGraphs(
        numbers=torch.from_numpy(packed.numbers.astype(np.int64)),
        positions=torch.from_numpy(packed.positions),
        structure=torch.from_numpy(np.repeat(np.arange(len(chosen)), packed.natoms)),
        cell=torch.from_numpy(packed.cell),
        source=torch.from_numpy(corpus.source[chosen].astype(np.int64)),
        receivers=torch.from_numpy(found.receivers),
        senders=torch.from_numpy(found.senders),
        shifts=torch.from_numpy(found.shifts),
    )
    labels = Properties(
        energy=torch.from_numpy(packed.energy),
        forces=torch.from_numpy(packed.forces),
        stress=torch.from_numpy(packed.stress),
    )
    return graphs, labels


def share_of_rank(corpus: Corpus, chosen: np.ndarray, pin: bool = False) -> tuple[AtomGraphs, Properties]:
    """As `batch`, also of an empty share: that rank takes part in what all do together, with nothing to learn."""
    graphs, labels = batch(corpus, chosen if len(chosen) else np.zeros(1, np.int64))
    if not len(chosen):
        labels = Properties(*(torch.full_like(label, torch.nan) for label in labels))
    if pin:
        graphs, labels = AtomGraphs(*(t.pin_memory() for t in graphs)), Properties(*(t.pin_memory() for t in labels))
    return graphs, labels
