"""Messages that are summed with nine weights, up to quadratic ones, and that see the vectors and tensors of the sender.

A traceless symmetric tensor is five numbers: its components along the quadratic forms Y_2 of a vector, whose squares have
the sum |v|^4. So the contraction of a tensor T with two vectors V is sum_k T_k Y_2k(V).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from gnnscale.atoms.graph import AtomGraphs
from gnnscale.models.edges import Edges, Patterns, build_patterns, embed_edges, sort_by_sender
from gnnscale.models.layers import Layout, Pattern, block, sparse_product

SUMS = 9  # the weight w, the three components of w u and the five of w Y_2(u)
ROOT_3 = math.sqrt(3)


class Carried(NamedTuple):
    """The vectors (3, A, K) and tensors (5, A, K) of atoms that go from layer to layer."""

    vectors: Tensor
    tensors: Tensor


class MomentEdges(NamedTuple):
    """Edges with nine scales (9, E), and the sparse matrix by which they see their senders."""

    edges: Edges
    seen: Pattern  # (2E, 8A): rows of vectors and of tensors in turn, of which three and five components are summed


def quadratic_forms(v: Tensor) -> Tensor:
    """Return five traceless quadratic forms of vectors (3, ...), whose squares have the sum |v|^4: (5, ...)."""
    x, y, z = v
    half = (x * x + y * y) / 2
    return torch.stack((ROOT_3 * x * y, ROOT_3 * y * z, ROOT_3 * z * x, ROOT_3 / 2 * (x * x - y * y), z * z - half))


@block
def contract_tensors(vectors: Tensor, tensors: Tensor) -> Tensor:
    """Return f(V^T T V) with f(p) = p (1 + p^2)^(-1/3), which grows as a length does: from (3|5, A, K) to (A, K)."""
    p = (tensors * quadratic_forms(vectors)).sum(0)
    return p * (1 + p * p) ** (-1 / 3)


@block
def make_moment_edges(graphs: AtomGraphs, vectors: Tensor, cutoff: float, radial: int, scale: Tensor) -> MomentEdges:
    """Embed the edges of a batch with the scales of nine sums."""
    edges = embed_edges(vectors, cutoff, radial, scale, build_patterns(graphs, SUMS))
    unit = (vectors / torch.linalg.vector_norm(vectors, dim=1, keepdim=True)).t()  # (3, E)
    scales = torch.cat((edges.scale, edges.scale[0] * quadratic_forms(unit)))
    return MomentEdges(edges._replace(scale=scales), build_view(graphs))


def build_view(graphs: AtomGraphs) -> Pattern:
    """Return the places of w u and w Y_2(u) in the matrix by which edges see the vectors and tensors of their senders."""
    j, atoms, count = graphs.senders, len(graphs.numbers), len(graphs.senders)
    by_sender, sender_starts = sort_by_sender(graphs)
    part = torch.arange(SUMS - 1, device=j.device)  # of eight, three are of vectors
    entry = torch.arange(count * len(part), device=j.device)
    rows = (2 * entry[:count, None] + (part >= 3)).view(-1)  # (8E,) all entries of an edge together
    columns = (j[:, None] + atoms * part).view(-1)
    order = (len(part) * by_sender + part[:, None]).view(-1)  # those of each component, by sender
    places = torch.empty_like(order).scatter_(0, order, entry)
    starts = torch.stack((len(part) * entry[:count], len(part) * entry[:count] + 3), dim=1).view(-1)
    matrix = Layout(rows, columns, starts, places)
    return Pattern(matrix, Layout(columns[order], rows[order], (sender_starts + count * part[:, None]).view(-1), order))


def see_senders(carried: Carried, count: int, seen: Pattern, scale: Tensor) -> Tensor:
    """Return w V_j.u of the first `count` channels, then w T_j:Y_2(u), for each edge: (E, 2 count)."""
    rows = torch.cat(carried)[..., :count].flatten(0, 1)  # (8A, count)
    return sparse_product(seen, scale[1:].t().reshape(-1), rows).view(-1, 2 * count)


@block
def moment_messages(
    table: Tensor,
    radial: Tensor,
    angles: Tensor | None,
    vectors: Tensor | None,
    tensors: Tensor | None,
    edges: MomentEdges,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return sums of messages with the scales w, w u and w Y_2(u): (A, W), (3, A, W) and (5, A, W).

    m_ij = SiLU(P_i + Q_j + W_r b(r_ij) + W_a [w V_j.u; w T_j:Y_2(u)]), the last term if there are `angles` W_a, (W, 2 count).
    The table (A, 2W) has P beside Q.
    """
    (basis, scale, graph), width = edges.edges, table.shape[1] // 2
    assert isinstance(graph, Patterns)
    rows = table.view(-1, 2, width).transpose(0, 1).reshape(-1, width)  # P above Q
    a = torch.addmm(sparse_product(graph.pair, None, rows), basis, radial.t())  # (E, W)
    if angles is not None:
        assert vectors is not None and tensors is not None
        carried = Carried(vectors, tensors)
        a = torch.addmm(a, see_senders(carried, angles.shape[1] // 2, edges.seen, scale), angles.t())
    sums = sparse_product(graph.moment, scale.view(-1), F.silu(a)).view(SUMS, -1, width)
    return sums[0], sums[1:4], sums[4:]
