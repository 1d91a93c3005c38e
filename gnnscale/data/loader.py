"""Structures in memory with their neighbours, and any selection of them as one batch of tensors."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from gnnscale import files
from gnnscale.data import shards, splits
from gnnscale.graph import AtomGraphs, Properties
from gnnscale.neighbors import edges
from gnnscale.specs import ShardCard

ATOM_COST, EDGE_COST = 3.0, 2.0  # predicted time of a training step, in arbitrary units, per atom and per edge


class Corpus(NamedTuple):
    """S structures of several sources; flat arrays throughout, so that a batch is a few gathers."""

    packed: shards.Packed
    ptr: np.ndarray  # (S + 1,) atoms of structure k
    source: np.ndarray  # (S,) index into `names`
    names: tuple[str, ...]
    cards: tuple[ShardCard, ...]
    receivers: np.ndarray  # (all edges,) int32, within the structure
    senders: np.ndarray  # (all edges,) int32
    shifts: np.ndarray  # (all edges, 3) int8
    edge_ptr: np.ndarray  # (S + 1,)

    def __len__(self) -> int:
        return len(self.source)

    @property
    def costs(self) -> np.ndarray:
        return ATOM_COST * np.diff(self.ptr) + EDGE_COST * np.diff(self.edge_ptr)  # (S,)


def load(
    directories: dict[str, Path], split: str, cutoff: float, structures: int | None = None, subset_seed: int = 0
) -> Corpus:
    """One split of several converted datasets, or a nested subset of it, with neighbours within `cutoff`."""
    cards, parts, owners = [], [], []
    for index, directory in enumerate(directories.values()):
        cards.append(files.read_model(directory / "card.json", ShardCard))
        packed = shards.read(directory / "shards")
        parts.append(select(packed, np.flatnonzero(packed.split == splits.NAMES.index(split))))
        owners.append(np.full(len(parts[-1].energy), index))
    packed = shards.Packed(*(np.concatenate(arrays) for arrays in zip(*parts)))
    source, names = np.concatenate(owners), tuple(directories)
    if structures is not None and structures < len(source):
        chosen = splits.subset(source, names, structures, subset_seed)
        packed, source = select(packed, chosen), source[chosen]
    return Corpus(packed, packed.ptr, source, names, tuple(cards), *neighbours(packed, cutoff))


def neighbours(packed: shards.Packed, cutoff: float) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Edges of all structures: (receivers, senders, shifts, edge_ptr)"""
    ptr, found = packed.ptr, []
    for k in range(len(packed.energy)):
        atoms = slice(ptr[k], ptr[k + 1])
        found.append(edges(packed.positions[atoms], packed.cell[k], packed.pbc[k].astype(bool), cutoff))
    if not found:
        return np.empty(0, np.int32), np.empty(0, np.int32), np.empty((0, 3), np.int8), np.zeros(1, np.int64)
    receivers, senders, shifts = (np.concatenate(arrays) for arrays in zip(*found))
    return receivers, senders, shifts, np.concatenate([[0], np.cumsum([len(f[0]) for f in found])])


def select(packed: shards.Packed, chosen: np.ndarray) -> shards.Packed:
    atoms = ranges(packed.ptr, chosen)
    per_atom = {"numbers", "positions", "forces"}
    return shards.Packed(*(a[atoms] if n in per_atom else a[chosen] for n, a in packed._asdict().items()))


def ranges(ptr: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """The concatenated ranges ptr[k] ... ptr[k + 1] of all chosen k, without a loop."""
    lengths = ptr[chosen + 1] - ptr[chosen]
    begins = np.cumsum(lengths) - lengths
    return np.arange(lengths.sum()) + np.repeat(ptr[chosen] - begins, lengths)


def batch(corpus: Corpus, chosen: np.ndarray) -> tuple[AtomGraphs, Properties]:
    """The chosen structures as one graph, with their labels in physical units (energy float64, the rest float32)."""
    packed, atoms, pairs = corpus.packed, ranges(corpus.ptr, chosen), ranges(corpus.edge_ptr, chosen)
    natoms, nedges = np.diff(corpus.ptr)[chosen], np.diff(corpus.edge_ptr)[chosen]
    offset = np.repeat(np.cumsum(natoms) - natoms, nedges)  # (E,) index of the structure's first atom
    graphs = AtomGraphs(
        numbers=torch.from_numpy(packed.numbers[atoms].astype(np.int64)),
        positions=torch.from_numpy(packed.positions[atoms]),
        structure=torch.from_numpy(np.repeat(np.arange(len(chosen)), natoms)),
        cell=torch.from_numpy(packed.cell[chosen]),
        source=torch.from_numpy(corpus.source[chosen]),
        receivers=torch.from_numpy(corpus.receivers[pairs] + offset),
        senders=torch.from_numpy(corpus.senders[pairs] + offset),
        shifts=torch.from_numpy(corpus.shifts[pairs].astype(np.float32)),
    )
    labels = Properties(
        energy=torch.from_numpy(packed.energy[chosen]),
        forces=torch.from_numpy(packed.forces[atoms]),
        stress=torch.from_numpy(packed.stress[chosen]),
    )
    return graphs, labels
