"""Conversion to and from torch_geometric.data.Data, which other software reads; the only file that imports torch_geometric."""

from __future__ import annotations

import torch
from torch_geometric.data import Data

from gnnscale.atoms.graph import AtomGraphs, Properties, atoms_per_structure


def to_pyg(graphs: AtomGraphs, labels: Properties | None = None) -> list[Data]:
    """Return one Data per structure: z, pos, cell, source, edge_index (sender, receiver), edge_shift; energy, forces, stress."""
    natoms = atoms_per_structure(graphs)
    first = natoms.cumsum(0) - natoms
    owner = graphs.structure[graphs.receivers]  # (E,)
    made = []
    for k in range(len(natoms)):
        atoms, edges = slice(int(first[k]), int(first[k] + natoms[k])), owner == k
        pair = torch.stack((graphs.senders[edges], graphs.receivers[edges])) - first[k]
        data = Data(
            z=graphs.numbers[atoms],
            pos=graphs.positions[atoms],
            cell=graphs.cell[k : k + 1],
            source=graphs.source[k : k + 1],
            edge_index=pair,
            edge_shift=graphs.shifts[edges],
        )
        if labels is not None:
            data.energy, data.forces = labels.energy[k : k + 1], labels.forces[atoms]
            if labels.stress is not None:
                data.stress = labels.stress[k : k + 1]
        made.append(data)
    return made


def from_pyg(listed: list[Data]) -> tuple[AtomGraphs, Properties]:
    """Return several Data as one batch with edges sorted by receiver; a label that one of them lacks is NaN there."""
    natoms = torch.tensor([len(data.pos) for data in listed])
    first = natoms.cumsum(0) - natoms
    senders = torch.cat([data.edge_index[0] + begin for data, begin in zip(listed, first)])
    receivers = torch.cat([data.edge_index[1] + begin for data, begin in zip(listed, first)])
    order = torch.argsort(receivers, stable=True)
    zero = torch.zeros(1, dtype=torch.int64)
    graphs = AtomGraphs(
        numbers=torch.cat([data.z for data in listed]),
        positions=torch.cat([data.pos for data in listed]),
        structure=torch.repeat_interleave(torch.arange(len(listed)), natoms),
        cell=torch.cat([lattice_or_zero(data) for data in listed]),
        source=torch.cat([data.get("source", zero) for data in listed]),
        receivers=receivers[order],
        senders=senders[order],
        shifts=torch.cat([shifts_or_zero(data) for data in listed])[order],
    )
    missing = torch.full((1, 3, 3), torch.nan)
    return graphs, Properties(
        energy=torch.cat([data.get("energy", torch.full((1,), torch.nan)).reshape(1).double() for data in listed]),
        forces=torch.cat([data.get("forces", torch.full_like(data.pos, torch.nan)) for data in listed]),
        stress=torch.cat([data.get("stress", missing) for data in listed]),
    )


def lattice_or_zero(data: Data) -> torch.Tensor:
    return data.get("cell", data.pos.new_zeros(3, 3)).reshape(1, 3, 3)


def shifts_or_zero(data: Data) -> torch.Tensor:
    """Return the whole lattice translations; without them, edges stay in the cell."""
    return data.get("edge_shift", data.pos.new_zeros(data.edge_index.shape[1], 3))
