"""Structures and their edges in the memory of a rank, from which batches are copied.

To gather atoms from shards and to search edges takes as long as the training step of a small network, and every epoch
would only find the same again.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from gnnscale.atoms.graph import AtomGraphs, Properties
from gnnscale.data.storage.packed import concatenate_ranges

MOST_BYTES = 1 << 28  # of a split on each rank; a larger one is not held
BYTES_PER_STRUCTURE, BYTES_PER_ATOM, BYTES_PER_EDGE = 120, 36, 16
BLOCK = 128  # structures that are read at a time; measured


class HeldStructures:
    """S structures with A atoms and E edges in all, in order."""

    def __init__(self, natoms: np.ndarray, nedges: np.ndarray, source: np.ndarray):
        self.natoms, self.nedges, self.source = (array.astype(np.int64) for array in (natoms, nedges, source))
        self.first_atom, self.first_edge = (np.cumsum(n) - n for n in (self.natoms, self.nedges))
        structures, atoms, edges = len(natoms), int(self.natoms.sum()), int(self.nedges.sum())
        self.cell, self.stress = np.empty((structures, 3, 3), np.float32), np.empty((structures, 3, 3), np.float32)
        self.energy = np.empty(structures, np.float64)
        self.numbers = np.empty(atoms, np.int64)
        self.positions, self.forces = np.empty((atoms, 3), np.float32), np.empty((atoms, 3), np.float32)
        self.degree = np.empty(atoms, np.int32)  # edges of which the atom is the receiver
        self.senders = np.empty(edges, np.int32)  # counted from the first atom of the structure
        self.shifts = np.empty((edges, 3), np.float32)

    def fill(self, read: Callable[[np.ndarray], tuple[AtomGraphs, Properties]]) -> None:
        """Read all structures with the function that makes a batch of them."""
        for begin in range(0, len(self.natoms), BLOCK):
            chosen = np.arange(begin, min(begin + BLOCK, len(self.natoms)))
            self._keep(chosen, *read(chosen))

    def _keep(self, chosen: np.ndarray, graphs: AtomGraphs, labels: Properties) -> None:
        natoms, nedges = self.natoms[chosen], self.nedges[chosen]
        atom, edge = self.first_atom[chosen[0]], self.first_edge[chosen[0]]
        atoms, edges = slice(atom, atom + natoms.sum()), slice(edge, edge + nedges.sum())
        self.cell[chosen], self.energy[chosen], self.stress[chosen] = graphs.cell, labels.energy, labels.stress
        self.numbers[atoms], self.positions[atoms], self.forces[atoms] = graphs.numbers, graphs.positions, labels.forces
        self.degree[atoms] = np.bincount(graphs.receivers.numpy(), minlength=len(graphs.numbers))
        self.senders[edges] = graphs.senders.numpy() - np.repeat(np.cumsum(natoms) - natoms, nedges)
        self.shifts[edges] = graphs.shifts

    def make_batch(self, chosen: np.ndarray) -> tuple[AtomGraphs, Properties]:
        """Return the chosen structures as one graph, with their labels."""
        natoms, nedges, begin = self.natoms[chosen], self.nedges[chosen], self.first_edge[chosen]
        atoms = concatenate_ranges(self.first_atom[chosen], natoms)
        # faster than an index of each of the many edges
        edges = [slice(first, end) for first, end in zip(begin.tolist(), (begin + nedges).tolist())]
        senders = np.concatenate([self.senders[part] for part in edges])
        graphs = AtomGraphs(
            numbers=torch.from_numpy(self.numbers[atoms]),
            positions=torch.from_numpy(self.positions[atoms]),
            structure=torch.from_numpy(np.repeat(np.arange(len(chosen)), natoms)),
            cell=torch.from_numpy(self.cell[chosen]),
            source=torch.from_numpy(self.source[chosen]),
            receivers=torch.from_numpy(np.repeat(np.arange(len(atoms)), self.degree[atoms])),
            senders=torch.from_numpy(senders + np.repeat(np.cumsum(natoms) - natoms, nedges)),
            shifts=torch.from_numpy(np.concatenate([self.shifts[part] for part in edges])),
        )
        labels = Properties(
            energy=torch.from_numpy(self.energy[chosen]),
            forces=torch.from_numpy(self.forces[atoms]),
            stress=torch.from_numpy(self.stress[chosen]),
        )
        return graphs, labels


def count_bytes(natoms: np.ndarray, nedges: np.ndarray) -> int:
    """Return the memory that structures take when they are held."""
    atoms, edges = int(natoms.sum(dtype=np.int64)), int(nedges.sum(dtype=np.int64))
    return BYTES_PER_STRUCTURE * len(natoms) + BYTES_PER_ATOM * atoms + BYTES_PER_EDGE * edges
