"""Batches of atomistic graphs, and their labels or predictions, as immutable tensors. A atoms, E edges, B structures."""

from __future__ import annotations

from typing import NamedTuple, TypeVar

import torch
from torch import Tensor


class AtomGraphs(NamedTuple):
    """Several structures as one graph, without labels. Edges are sorted by receiver."""

    numbers: Tensor  # (A,) int64, atomic numbers
    positions: Tensor  # (A, 3) Angstrom
    structure: Tensor  # (A,) int64, ascending: index of the structure to which an atom belongs
    cell: Tensor  # (B, 3, 3) Angstrom, rows are the lattice vectors; zeros where there are none
    source: Tensor  # (B,) int64, index of the dataset from which a structure comes
    receivers: Tensor  # (E,) int64, ascending: the atom i that gathers
    senders: Tensor  # (E,) int64, the atom j that is gathered
    shifts: Tensor  # (E, 3) whole lattice translations of j's image, in units of the lattice vectors


class Properties(NamedTuple):
    """Labels or predictions; a label that a source lacks is NaN."""

    energy: Tensor  # (B,) eV
    forces: Tensor  # (A, 3) eV/Angstrom
    stress: Tensor | None = None  # (B, 3, 3) eV/Angstrom^3, positive in tension; None where a model gives none


T = TypeVar("T", AtomGraphs, Properties)


def to_device(tensors: T, device: torch.device) -> T:
    """Move a batch or its labels to a device, without waiting where their memory is pinned."""
    moved = (None if tensor is None else tensor.to(device, non_blocking=True) for tensor in tensors)
    return type(tensors)(*moved)  # type: ignore[arg-type] # None stays where it was allowed


def edge_vectors(graphs: AtomGraphs) -> Tensor:
    """Return x_j + shift - x_i for every edge: (E, 3) Angstrom."""
    cells = graphs.cell.index_select(0, graphs.structure.index_select(0, graphs.receivers))  # (E, 3, 3)
    shifts = graphs.shifts.to(cells.dtype)
    translation = sum(shifts[:, c : c + 1] * cells[:, c] for c in range(3))  # einsum doubles the time of this function
    x = graphs.positions
    return x.index_select(0, graphs.senders) - x.index_select(0, graphs.receivers) + translation


def atoms_per_structure(graphs: AtomGraphs) -> Tensor:
    return torch.bincount(graphs.structure, minlength=len(graphs.cell))  # (B,)
