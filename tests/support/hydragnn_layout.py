"""A .bp file in the layout of HydraGNN's AdiosWriter, for tests and benchmarks: by ADIOS2 itself, as one rank writes it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import adios2
import numpy as np

from gnnscale.atoms import neighbors
from gnnscale.atoms.structure import Structure

Graph = dict[str, np.ndarray]


def make_graph(s: Structure, cutoff: float | None = None) -> Graph:
    """Return the keys that HydraGNN's examples give a graph, with its edges if there is a cutoff."""
    numbers, positions, forces = (np.asarray(a, np.float32) for a in (s.numbers, s.positions, s.forces))
    periodic = np.asarray(s.pbc, bool)
    histogram = np.bincount(s.numbers, minlength=119)[1:119]
    made = {
        "dataset_name": np.zeros(1, np.int32),
        "natoms": np.array([len(numbers)], np.int32),
        "pos": positions,
        "cell": np.asarray(s.cell, np.float32) if periodic.any() else np.eye(3, dtype=np.float32),
        "pbc": periodic.astype(np.int32),  # bool is not accepted
        "atomic_numbers": numbers[:, None],
        "chemical_composition": histogram.astype(np.float32)[:, None],
        "x": np.concatenate([numbers[:, None], positions, forces], axis=1),
        "energy": np.array([[s.energy]], np.float32),
        "energy_per_atom": np.array([[s.energy / len(numbers)]], np.float32),
        "forces": forces,
        "y": np.array([[s.energy]], np.float32),
    }
    if cutoff is not None:
        receivers, senders, shifts = neighbors.find_edges(s.positions, s.cell, periodic, cutoff)
        vectors = s.positions[senders] + shifts @ s.cell - s.positions[receivers]
        made["edge_index"] = np.stack([senders, receivers]).astype(np.int64)
        made["edge_attr"] = np.asarray(vectors, np.float32)
        made["edge_shifts"] = np.asarray(shifts @ s.cell, np.float32)
    return made


def write_bp(path: Path, splits: Mapping[str, Sequence[Graph]]) -> None:
    """Write a .bp file. One dimension of a key may be ragged; empty splits have no variables."""
    with adios2.Stream(str(path), "w") as stream:
        stream.begin_step()
        for label, graphs in splits.items():
            if not graphs:
                continue
            keys = [key for key in graphs[0] if key != "dataset_name"]
            stream.write_attribute(f"{label}/ndata", np.array(len(graphs)))
            stream.write_attribute(f"{label}/keys", keys)
            for key in sorted(keys):
                arrays = [g[key] for g in graphs]
                ragged = [d for d in range(arrays[0].ndim) if len({a.shape[d] for a in arrays}) > 1]
                assert len(ragged) < 2
                along = ragged[0] if ragged else 0
                counts = np.array([a.shape[along] for a in arrays])
                offsets = np.cumsum(counts) - counts
                parts = {
                    "": np.ascontiguousarray(np.concatenate(arrays, axis=along)),
                    "/variable_count": counts,
                    "/variable_offset": offsets,
                }
                for suffix, array in parts.items():
                    stream.write(
                        f"{label}/{key}{suffix}", array, list(array.shape), [0] * array.ndim, list(array.shape)
                    )
                stream.write_attribute(f"{label}/{key}/variable_dim", np.array(along))
        stream.write_attribute("total_ndata", np.array(sum(map(len, splits.values()))))
        stream.write_attribute("dataset_name", "made for a test")
        stream.end_step()
