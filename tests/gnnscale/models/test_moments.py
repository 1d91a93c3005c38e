"""Tests of the network of moments alone: its layer by 3 x 3 matrices, its counts, and that every weight learns."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from gnnscale.architectures.moments import MomentsConfig
from gnnscale.atoms.graph import AtomGraphs, edge_vectors
from gnnscale.models.layers import bessel, envelope
from gnnscale.models.moment_edges import Carried, contract_tensors, make_moment_edges, quadratic_forms
from gnnscale.models.moments import MomentsLayer
from gnnscale.models.potential import Potential
from gnnscale.models.registry import build
from tests.support.structures import CUTOFF, make_batch, make_crystal, make_molecule

both_forces = pytest.mark.parametrize("forces", ["direct", "gradient"])
ROOT_3 = math.sqrt(3)
# The symmetric matrices M_k for which v^T M_k v are the five forms.
FORMS = torch.tensor(
    [
        [[0, ROOT_3 / 2, 0], [ROOT_3 / 2, 0, 0], [0, 0, 0]],
        [[0, 0, 0], [0, 0, ROOT_3 / 2], [0, ROOT_3 / 2, 0]],
        [[0, 0, ROOT_3 / 2], [0, 0, 0], [ROOT_3 / 2, 0, 0]],
        [[ROOT_3 / 2, 0, 0], [0, -ROOT_3 / 2, 0], [0, 0, 0]],
        [[-0.5, 0, 0], [0, -0.5, 0], [0, 0, 1]],
    ],
    dtype=torch.float64,
)


def mixture(dtype: torch.dtype = torch.float64) -> AtomGraphs:
    rng = np.random.default_rng(0)
    return make_batch([make_molecule(rng, 8), make_crystal(rng, 4), make_molecule(rng, 1)], dtype=dtype)


def make(forces: str, **fields) -> Potential:
    torch.manual_seed(0)
    config = MomentsConfig(**{"width": 16, "depth": 2, "cutoff": CUTOFF} | fields, forces=forces)
    potential = build(config, sources=2, average_degree=12.0)
    torch.nn.init.normal_(potential.backbone.readout.weight, std=0.25)
    return potential


def test_the_forms_are_traceless_and_of_one_length():
    v = torch.randn(3, 7, 5, dtype=torch.float64)
    torch.testing.assert_close(quadratic_forms(v), torch.einsum("iak,qij,jak->qak", v, FORMS, v))
    torch.testing.assert_close(quadratic_forms(v).square().sum(0), v.square().sum(0).square())
    assert not FORMS.diagonal(dim1=1, dim2=2).sum(1).any()


def test_a_contraction_is_that_of_matrices():
    v, t = torch.randn(3, 7, 5, dtype=torch.float64), torch.randn(5, 7, 5, dtype=torch.float64)
    p = torch.einsum("iak,qak,qij,jak->ak", v, t, FORMS, v)
    torch.testing.assert_close(contract_tensors(v, t), p / (1 + p * p).pow(1 / 3))


@pytest.mark.parametrize("width", [16, 80])
def test_a_layer_is_what_its_formula_says(width):
    """Edge by edge, with tensors as 3 x 3 matrices; at width 80 messages see eight of ten channels."""
    torch.manual_seed(0)
    config, graphs = MomentsConfig(width=width, depth=2, cutoff=CUTOFF), mixture()
    layer = MomentsLayer(config, is_first=False).double()
    atoms, k, scale = len(graphs.numbers), config.channels, 0.3
    h = torch.randn(atoms, width, dtype=torch.float64)
    before = Carried(*(torch.randn(n, atoms, k, dtype=torch.float64) for n in (3, 5)))
    edges = make_moment_edges(graphs, edge_vectors(graphs), CUTOFF, 8, torch.tensor(scale))
    found, carried = layer(h, before, edges)

    x = h / h.square().mean(1, keepdim=True).add(1e-6).sqrt()
    p, q = (x @ layer.project.weight.T).split(width, dim=1)
    s, v, t = torch.zeros(atoms, width).double(), torch.zeros(3, atoms, width).double(), torch.zeros(3, 3, atoms, width)
    t, seen = t.double(), config.channels_seen
    tensors = torch.einsum("qak,qij->aijk", before.tensors, FORMS)
    for i, j, d in zip(graphs.receivers, graphs.senders, edge_vectors(graphs), strict=True):
        r = d.norm()
        u, w = d / r, scale * envelope(r, CUTOFF)
        along = torch.einsum("ik,i->k", before.vectors[:, j], u)[:seen]
        across = torch.einsum("ijk,i,j->k", tensors[j], u, u)[:seen]
        angles = layer.angles @ torch.cat((w * along, w * across))
        m = F.silu(p[i] + q[j] + layer.radial @ bessel(r[None], CUTOFF, 8) + angles)
        s[i] += w * m
        v[:, i] += w * u[:, None] * m
        t[:, :, i] += w * u[:, None, None] * u[:, None] * m
    v = before.vectors + v @ layer.mix.weight.T
    t = before.tensors + torch.einsum("qij,ijaw,kw->qak", FORMS, t, layer.mix_tensors.weight)
    form = torch.einsum("iak,qak,qij,jak->ak", v, t, FORMS, v)
    lengths = (1 + v.square().sum(0)).sqrt(), (1 + t.square().sum(0)).sqrt()
    features = torch.cat((x, F.silu(layer.second(s)), *lengths, form * (1 + form**2) ** (-1 / 3)), dim=1)
    torch.testing.assert_close(carried.vectors, v)
    torch.testing.assert_close(carried.tensors, t)
    torch.testing.assert_close(found, h + layer.step * layer.update(F.silu(layer.hidden(features))))


@both_forces
@pytest.mark.parametrize("width, depth, radial", [(1, 1, 1), (7, 2, 8), (64, 3, 5), (15000, 3, 8)])
def test_parameters_are_counted_exactly(forces, width, depth, radial):
    config = MomentsConfig(width=width, depth=depth, radial=radial, forces=forces)
    with torch.device("meta"):
        potential = build(config, sources=3, average_degree=10.0)
    assert config.parameters(3) == sum(p.numel() for p in potential.parameters())


@both_forces
def test_every_parameter_learns(forces):
    potential = make(forces, depth=3).double()
    out = potential(mixture())
    (out.energy.square().sum() + out.forces.square().sum()).backward()
    assert [name for name, p in potential.named_parameters() if p.grad is None or not p.grad.any()] == []


@both_forces
def test_gradients_are_finite_differences(forces):
    """Also those of forces that are slopes themselves."""
    potential, graphs, random = make(forces).double(), mixture(), torch.Generator().manual_seed(1)
    parameters = list(potential.parameters())
    changes = [torch.randn(p.shape, generator=random, dtype=torch.float64) for p in parameters]

    def loss(step=0.0):
        for p, change in zip(parameters, changes, strict=True):
            p.data += step * change
        out = potential(graphs)
        for p, change in zip(parameters, changes, strict=True):
            p.data -= step * change
        return out.energy.square().sum() + out.forces.square().sum()

    gradients = torch.autograd.grad(loss(), parameters)
    slope = float((loss(1e-5) - loss(-1e-5)).detach()) / 2e-5
    assert slope == pytest.approx(sum(float((g * c).sum()) for g, c in zip(gradients, changes, strict=True)), rel=1e-6)


@both_forces
def test_float32_and_bfloat16_stay_near_float64(forces):
    potential = make(forces)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = potential(mixture(torch.float32))
    single, double = potential(mixture(torch.float32)), potential.double()(mixture())
    for field in ("energy", "forces"):
        exact = getattr(double, field)
        assert (getattr(single, field) - exact).norm() < 1e-5 * exact.norm()
        assert (getattr(half, field) - exact).norm() < 0.1 * exact.norm()


def test_a_chunk_of_edges_changes_nothing_as_there_are_no_chunks():
    torch.manual_seed(0)
    config = MomentsConfig(width=16, depth=2, cutoff=CUTOFF, forces="gradient")
    potential = build(config, 2, 10.0, edge_chunk=4)
    out = potential(mixture(torch.float32))
    (out.energy.sum() + out.forces.square().sum()).backward()
    assert not config.can_chunk_edges
