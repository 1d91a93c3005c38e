"""Edges of a graph as a network sees them: their geometry, once for all layers, and the messages that they carry."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from gnnscale.atoms.graph import AtomGraphs
from gnnscale.models.kernels.chunked import Chunk, Weights, split_into_chunks
from gnnscale.models.kernels.messages import can_fuse, chunked_messages
from gnnscale.models.layers import Layout, Pattern, bessel, block, envelope, sparse_product


class Edges(NamedTuple):
    """The graph as sparse matrices and its geometry, shared by all layers."""

    basis: Tensor  # (E, R) radial functions of r_ij
    scale: Tensor  # (4, E) w_ij and the components of w_ij u_ij; w is the envelope / sqrt(average degree)
    graph: Patterns | list[Chunk]


class Patterns(NamedTuple):
    """The places of the entries of the two sparse matrices of a graph."""

    pair: Pattern  # (E, 2A): the row of an edge adds row i of P and row j of Q
    moment: Pattern  # (4A, E): four sums over the edges of each atom; or as many as there are scales


@block
def make_edges(
    graphs: AtomGraphs,
    vectors: Tensor,
    cutoff: float,
    radial: int,
    scale: Tensor,
    edge_chunk: int | None = None,
    stores_no_edges: bool = False,
) -> Edges:
    """Embed the edges of a batch, all at once or in chunks; `stores_no_edges` is true of a network whose kernels keep none."""
    if stores_no_edges and can_fuse(vectors):
        edge_chunk = len(vectors)
    graph = build_patterns(graphs) if edge_chunk is None else split_into_chunks(graphs, edge_chunk)
    return embed_edges(vectors, cutoff, radial, scale, graph)


def embed_edges(vectors: Tensor, cutoff: float, radial: int, scale: Tensor, graph: Patterns | list[Chunk]) -> Edges:
    r = torch.linalg.vector_norm(vectors, dim=1)  # (E,) Angstrom
    w = envelope(r, cutoff) * scale
    return Edges(bessel(r[:, None], cutoff, radial), torch.cat((w[None], vectors.t() * (w / r))), graph)


def sort_by_sender(graphs: AtomGraphs) -> tuple[Tensor, Tensor]:
    """Return the edges (E,) in the order of their senders, and where those of each sender begin (A,)."""
    by_sender = torch.argsort(graphs.senders, stable=True)
    atom = torch.arange(len(graphs.numbers), device=by_sender.device)
    return by_sender, torch.searchsorted(graphs.senders[by_sender], atom)


def build_patterns(graphs: AtomGraphs, sums: int = 4) -> Patterns:
    i, j = graphs.receivers, graphs.senders
    atoms, count = len(graphs.numbers), len(i)
    entry, atom = torch.arange(sums * count, device=i.device), torch.arange(atoms, device=i.device)
    starts = torch.searchsorted(i, atom)  # (A,) the first edge of each atom
    by_sender, sender_starts = sort_by_sender(graphs)

    rows, columns = entry[: 2 * count] // 2, torch.stack((i, j + atoms), dim=1).view(-1)  # (2E,)
    order = torch.cat((2 * entry[:count], 2 * by_sender + 1))  # the receivers' entries, then the senders'
    pair = Layout(rows, columns, entry[: 2 * count : 2].contiguous(), order)  # its `order` is unused: all values are 1
    pair_t = Layout(columns[order], rows[order], torch.cat((starts, sender_starts + count)), order)

    kind = torch.arange(sums, device=i.device)[:, None]
    rows, columns = (i + atoms * kind).view(-1), entry[:count].repeat(sums)  # (4E,)
    order = entry.view(sums, count).t().reshape(-1)  # all entries of each edge together
    moment = Layout(rows, columns, (starts + count * kind).view(-1), entry.view(count, sums).t().reshape(-1))
    moment_t = Layout(columns[order], rows[order], entry[::sums].contiguous(), order)
    return Patterns(Pattern(pair, pair_t), Pattern(moment, moment_t))


@block
def edge_messages(table: Tensor, weights: Weights, edges: Edges) -> tuple[Tensor, Tensor]:
    """Return s_i = sum_j w_ij m_ij (A, W) and, for fewer channels, v_i = sum_j w_ij u_ij W_v m_ij (3, A, K).

    m_ij = SiLU(P_i + Q_j + W_r b(r_ij)), then SiLU(W_2 m + b_2) if there is a `second`: equations 3 and 5 of the paper
    with the first matrix applied before the gather, to give P and Q, (A, 2W). All that is as large as edges x width is
    born and dies here; `chunked_messages` are the same numbers, without ever holding all of it.
    """
    if isinstance(edges.graph, list):
        return chunked_messages(edges.graph, table.view(-1, table.shape[1] // 2), edges.basis, edges.scale, weights)
    width = table.shape[1] // 2
    rows = table.view(-1, 2, width).transpose(0, 1).reshape(-1, width)  # P above Q
    pairs = sparse_product(edges.graph.pair, None, rows)  # (E, W)
    m = F.silu(torch.addmm(pairs, edges.basis, weights.radial.t()))
    if weights.second is not None:
        m = F.silu(F.linear(m, weights.second, weights.bias))
    sums = sparse_product(edges.graph.moment, edges.scale.view(-1), m).view(4, -1, width)  # (4, A, W)
    return sums[0], F.linear(sums[1:], weights.mix)
