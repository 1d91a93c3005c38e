"""dE/dv_ij of a backbone as a value to train on, without a graph of its derivation (Pearlmutter, Neural Comp. 6, 147).

The gradient of a loss of e and dE/dv by the weights is that of one sum: sum_i g_i e_i + d/dt E(v + t u) at t = 0, where
g and u are what the loss gives. The second is a tangent, carried along by forward-mode differentiation; so one more
pass, of values with tangents, forward and back replaces the graph of a backward pass and its backward pass.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.autograd.forward_ad import dual_level, make_dual, unpack_dual
from torch.autograd.function import once_differentiable
from torch.func import functional_call

from gnnscale.atoms.graph import AtomGraphs


class EnergiesAndSlopes(torch.autograd.Function):
    """The function (backbone, graphs, vectors, names and values of its parameters) -> e (A,), dE/dv (E, 3)."""

    @staticmethod
    def forward(ctx, backbone: nn.Module, graphs: AtomGraphs, vectors: Tensor, names: list[str], *parameters: Tensor):
        ctx.backbone, ctx.graphs, ctx.names, device = backbone, graphs, names, vectors.device.type
        ctx.autocast = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
        ctx.save_for_backward(vectors, *parameters)
        fixed = {name: value.detach() for name, value in zip(names, parameters, strict=True)}
        with torch.enable_grad():
            vectors = vectors.detach().requires_grad_()
            energies, _ = functional_call(backbone, fixed, (graphs, vectors))
            (slope,) = torch.autograd.grad(energies.sum(), vectors)
        return energies.detach(), slope

    @staticmethod
    @once_differentiable
    def backward(ctx, g: Tensor, u: Tensor):
        vectors, *parameters = ctx.saved_tensors
        leaves = {name: value.detach().requires_grad_() for name, value in zip(ctx.names, parameters, strict=True)}
        autocast = torch.autocast(vectors.device.type, ctx.autocast, enabled=ctx.autocast is not None)
        with torch.enable_grad(), autocast:
            with dual_level():
                out, _ = functional_call(ctx.backbone, leaves, (ctx.graphs, make_dual(vectors, u)))
                energies, tangents = unpack_dual(out)
            total = (energies * g).sum() + (tangents.sum() if tangents is not None else 0)
            gradients = torch.autograd.grad(total, list(leaves.values()), allow_unused=True)
        return None, None, None, None, *gradients


def energies_and_slopes(backbone: nn.Module, graphs: AtomGraphs, vectors: Tensor) -> tuple[Tensor, Tensor]:
    """Return energies of atoms (A,) and dE/dv_ij (E, 3), to be trained on by tangents."""
    names, parameters = zip(*backbone.named_parameters(), strict=True)
    return EnergiesAndSlopes.apply(backbone, graphs, vectors, names, *parameters)
