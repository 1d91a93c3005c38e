"""Whether kernels may take the place of the chunked path: not before they have given the same numbers on this very device.

A compiler, a driver or a kind of GPU that nobody has tried them on would else spoil a training, or stop it.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from gnnscale.atoms.graph import AtomGraphs
from gnnscale.models.kernels.chunked import Chunk, Sums, chunks

DEGREES = (
    0,
    1,
    17,
    3,
    0,
    2,
    16,
    1,
    40,
    0,
)  # neighbours of each atom: none, few, and more than a kernel takes at a time
WIDTH, RADIAL, OUT, AT_ONCE = 48, 8, 6, 30
ENOUGH = {torch.float32: 5e-3, torch.bfloat16: 3e-2}  # of the norm; a GPU may round what it multiplies to ten bits


def disagreement(function: type[torch.autograd.Function], device: torch.device) -> str:
    """Why they may not, or "". `function` takes and gives what `Sums` does."""
    with torch.enable_grad(), torch.autocast(device.type, enabled=False):
        for form, (dtype, enough) in itertools.product(("deferred", "edge"), ENOUGH.items()):
            try:
                got, expected = outcome(function, form, device, dtype), outcome(Sums, form, device, dtype)
            except Exception as error:  # whatever a compiler may say
                return (
                    f"{type(error).__name__}: {str(error).splitlines()[0][:200] if str(error) else 'no more is said'}"
                )
            worst = max(distance(a, b) for a, b in zip(got, expected, strict=True))
            if worst >= enough:
                return f"their numbers in {str(dtype).removeprefix('torch.')} are off by {worst:.2g}"
    return ""


def distance(a: Tensor, b: Tensor) -> float:
    """Relative; what is not a number is far."""
    found = float((a - b).norm() / b.norm())
    return found if found == found else float("inf")


def outcome(
    function: type[torch.autograd.Function], form: str, device: torch.device, dtype: torch.dtype
) -> list[Tensor]:
    """Values and all gradients, on a small graph with a chunk in which an atom has no neighbours; `dtype` is of what is
    told to each atom, as autocast has it, and so of what the kernels store."""
    random = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=random).to(device)

    parts, atoms, edges = graph(device, random), len(DEGREES), sum(DEGREES)
    second = (draw(WIDTH, WIDTH) / WIDTH**0.5, draw(WIDTH)) if form == "edge" else (None, None)
    given = [
        draw(2 * atoms, WIDTH),
        draw(edges, RADIAL),
        draw(4, edges) / 6,
        draw(WIDTH, RADIAL) / RADIAL**0.5,
        *second,
        draw(OUT, WIDTH) / WIDTH**0.5,
    ]
    learning = [x.requires_grad_() for x in given if x is not None]
    values = function.apply(parts, given[0].to(dtype), *given[1:])
    gradients = torch.autograd.grad(sum((x.float() * draw(*x.shape)).sum() for x in values), learning)
    return [x.detach().float() for x in (*values, *gradients)]


def graph(device: torch.device, random: torch.Generator) -> list[Chunk]:
    """Only who is whose neighbour matters."""
    receivers = torch.repeat_interleave(torch.arange(len(DEGREES)), torch.tensor(DEGREES))
    senders = torch.randint(len(DEGREES), receivers.shape, generator=random)
    none = torch.zeros(len(DEGREES), dtype=torch.int64)
    made = AtomGraphs(none, none[:, None], none, none[:1], none[:1], receivers, senders, none[:1])
    return chunks(AtomGraphs(*(x.to(device) for x in made)), AT_ONCE)
