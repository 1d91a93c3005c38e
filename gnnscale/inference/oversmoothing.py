"""Over-smoothing: how alike the features of atoms become from layer to layer, measured on held-out structures.

Two measures of scalar node features h (A, W), taken before the first layer and after each; neither knows their scale.

Cosine distance, the mean of 1 - cos(h_i, h_j) over all pairs of different atoms, as MAD of Chen et al. (AAAI 2020): within
a structure, then averaged over structures; and over all pairs of the sample. It is computed as the variance of directions,
half the mean |u_i - u_j|^2, and an atom whose features are all zero has the direction zero. 0: all alike; 1: unrelated.

Dirichlet energy, sum |h_i - h_j|^2 / sum (|h_i|^2 + |h_j|^2) over the edges of a structure, averaged over structures: the
energy of Rusch et al. (arXiv 2303.10993) as the Rayleigh quotient h'Lh / h'Dh, which is that of Cai and Wang (arXiv
2006.13318) for sqrt(D) h. 0: neighbours are alike; 1: unrelated; 2: opposite. Features that are all zero have none: 0.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from gnnscale.atoms.graph import AtomGraphs, atoms_per_structure
from gnnscale.contract.results import LayerFeatures
from gnnscale.models.potential import Potential

TILE_NUMBERS = 2**22  # numbers of differences over edges held at once


def measure_features(potential: Potential, batches: Iterable[AtomGraphs]) -> tuple[LayerFeatures, ...]:
    """Measure before the first layer and after each, over all batches; NaN where no structure has two atoms, or an edge."""
    layers: list[_LayerSums] = []
    for graphs in batches:
        found = collect_layer_features(potential, graphs)
        layers = layers or [_LayerSums() for _ in found]
        for sums, h in zip(layers, found, strict=True):
            sums.add(h.double(), graphs)
    return tuple(sums.means() for sums in layers)


def collect_layer_features(potential: Potential, graphs: AtomGraphs) -> list[Tensor]:
    """Return the features of atoms (A, W) before the first layer and after each."""
    found: list[Tensor] = []
    layers = potential.backbone.layers
    handles = [layers[0].register_forward_pre_hook(lambda _, given: found.append(given[0].detach()))]
    handles += [layer.register_forward_hook(lambda _, given, made: found.append(made[0].detach())) for layer in layers]
    try:
        with torch.no_grad():
            potential(graphs)
    finally:
        for handle in handles:
            handle.remove()
    return found


class _LayerSums:
    """The sums of one layer over the batches so far."""

    def __init__(self) -> None:
        self.distance, self.energy = (0.0, 0), (0.0, 0)  # sum over structures, and how many there are
        self.origin: Tensor | None = None  # direction of the first atom: all others are taken relative to it
        self.atoms = 0
        self.total, self.squares = torch.zeros(()), torch.zeros(())

    def add(self, h: Tensor, graphs: AtomGraphs) -> None:
        u = directions(h)
        self.distance = add_known(self.distance, cosine_distances(u, graphs))
        self.energy = add_known(self.energy, dirichlet_energies(h, graphs))
        self.origin = u[0] if self.origin is None else self.origin
        w = u - self.origin
        self.atoms, self.total, self.squares = (
            self.atoms + len(w),
            self.total + w.sum(0),
            self.squares + w.square().sum(),
        )

    def means(self) -> LayerFeatures:
        spread = float(self.squares - self.total.square().sum() / max(self.atoms, 1))
        sample = max(spread, 0.0) / (self.atoms - 1) if self.atoms > 1 and math.isfinite(spread) else math.nan
        return LayerFeatures(distance=mean(self.distance), sample_distance=sample, dirichlet=mean(self.energy))


def directions(h: Tensor) -> Tensor:
    """Return unit vectors (A, W), zero where h is."""
    length = torch.linalg.vector_norm(h, dim=1, keepdim=True)
    return h / torch.where(length == 0, 1.0, length)


def cosine_distances(u: Tensor, graphs: AtomGraphs) -> Tensor:
    """Return the mean cosine distance of the pairs of each structure, (B,); NaN where it has a single atom."""
    atoms, of = atoms_per_structure(graphs), graphs.structure
    w = u - u[(atoms.cumsum(0) - atoms)[of]]  # relative to the first atom, so that equal ones are exactly so
    centre = sum_by_structure(w, graphs) / atoms[:, None]
    return sum_by_structure((w - centre[of]).square().sum(1), graphs) / (atoms - 1)


def dirichlet_energies(h: Tensor, graphs: AtomGraphs) -> Tensor:
    """Return the normalised Dirichlet energy of each structure, (B,); NaN where it has no edges."""
    i, j = graphs.receivers, graphs.senders
    tiles = zip(i.split(max(1, TILE_NUMBERS // h.shape[1])), j.split(max(1, TILE_NUMBERS // h.shape[1])), strict=True)
    apart = [(h.index_select(0, a) - h.index_select(0, b)).square().sum(1) for a, b in tiles]
    squares, of = h.square().sum(1), graphs.structure[i]
    top, bottom, edges = (
        squares.new_zeros(len(graphs.cell)).index_add(0, of, each)
        for each in (torch.cat(apart), squares[i] + squares[j], torch.ones_like(squares[i]))
    )
    return torch.where(edges > 0, top / torch.where(bottom == 0, 1.0, bottom), math.nan)


def sum_by_structure(x: Tensor, graphs: AtomGraphs) -> Tensor:
    return x.new_zeros(len(graphs.cell), *x.shape[1:]).index_add(0, graphs.structure, x)


def add_known(so_far: tuple[float, int], each: Tensor) -> tuple[float, int]:
    """Add what is known: NaN stands for a structure without pairs or edges, or for all if the network overflowed."""
    known = each[~each.isnan()]
    return so_far[0] + float(known.sum()), so_far[1] + len(known)


def mean(sums: tuple[float, int]) -> float:
    return sums[0] / sums[1] if sums[1] else math.nan
