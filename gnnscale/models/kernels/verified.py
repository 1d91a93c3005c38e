"""A check of kernels against the chunked path on the device that will use them.

Otherwise a compiler, a driver or a kind of GPU that nobody has tried could spoil a training, or stop it.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from gnnscale.atoms.graph import AtomGraphs
from gnnscale.models.kernels.chunked import Chunk, Sums, split_into_chunks

# Neighbours of each atom: none, few, and more than a kernel takes at a time.
DEGREES = (0, 1, 17, 3, 0, 2, 16, 1, 40, 0)
WIDTH, RADIAL, VECTORS, EDGES_PER_CHUNK = 48, 8, 6, 30
MAX_RELATIVE_ERROR = {torch.float32: 5e-3, torch.bfloat16: 3e-2}  # a GPU may round what it multiplies to ten bits


def reason_not_to_use(function: type[torch.autograd.Function], device: torch.device) -> str:
    """Run kernels once against the plain implementation; return why they must not be used, or ""."""
    with torch.enable_grad(), torch.autocast(device.type, enabled=False):
        for form, (dtype, enough) in itertools.product(("deferred", "edge"), MAX_RELATIVE_ERROR.items()):
            try:
                got, expected = run_once(function, form, device, dtype), run_once(Sums, form, device, dtype)
            except Exception as error:  # whatever a compiler may say
                return f"{type(error).__name__}: {str(error).splitlines()[0][:200] if str(error) else 'no message'}"
            worst = max(relative_error(a, b) for a, b in zip(got, expected, strict=True))
            if worst >= enough:
                return (
                    f"relative error {worst:.2g} in {str(dtype).removeprefix('torch.')}, expected less than {enough:g}"
                )
    return ""


def relative_error(a: Tensor, b: Tensor) -> float:
    """Return |a - b| / |b|; NaN counts as infinite."""
    error = float((a - b).norm() / b.norm())
    return error if error == error else float("inf")


def run_once(
    function: type[torch.autograd.Function], form: str, device: torch.device, dtype: torch.dtype
) -> list[Tensor]:
    """Return values and all gradients on a small graph with a chunk in which an atom has no neighbours.

    `dtype` is that of the table, as autocast has it, and so of what the kernels store.
    """
    random = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=random).to(device)

    parts, atoms, edges = small_graph(device, random), len(DEGREES), sum(DEGREES)
    second = (draw(WIDTH, WIDTH) / WIDTH**0.5, draw(WIDTH)) if form == "edge" else (None, None)
    given = [
        draw(2 * atoms, WIDTH),
        draw(edges, RADIAL),
        draw(4, edges) / 6,
        draw(WIDTH, RADIAL) / RADIAL**0.5,
        *second,
        draw(VECTORS, WIDTH) / WIDTH**0.5,
    ]
    learning = [x.requires_grad_() for x in given if x is not None]
    values = function.apply(parts, given[0].to(dtype), *given[1:])
    gradients = torch.autograd.grad(sum((x.float() * draw(*x.shape)).sum() for x in values), learning)
    return [x.detach().float() for x in (*values, *gradients)]


def small_graph(device: torch.device, random: torch.Generator) -> list[Chunk]:
    """Return the chunks of a graph in which only neighbourship matters."""
    receivers = torch.repeat_interleave(torch.arange(len(DEGREES)), torch.tensor(DEGREES))
    senders = torch.randint(len(DEGREES), receivers.shape, generator=random)
    none = torch.zeros(len(DEGREES), dtype=torch.int64)
    made = AtomGraphs(none, none[:, None], none, none[:1], none[:1], receivers, senders, none[:1])
    return split_into_chunks(AtomGraphs(*(x.to(device) for x in made)), EDGES_PER_CHUNK)
