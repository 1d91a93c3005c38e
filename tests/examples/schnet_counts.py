"""Counts of the custom model less what a real step takes; run in a checkout that has its two files."""

from contextlib import nullcontext

import torch
from gnnscale.architectures.schnet import SchNetConfig
from torch.utils.flop_counter import FlopCounterMode

from gnnscale.atoms.graph import AtomGraphs
from gnnscale.models.registry import build
from gnnscale.stages.memory_levers import measure_peak_bytes


class Everything(nullcontext):
    parents = {"Global"}


atoms, degree = 150, 20
config = SchNetConfig(width=96, depth=3)
model = build(config, 1, float(degree))
one = torch.zeros(atoms, dtype=torch.int64)
receivers = torch.arange(atoms).repeat_interleave(degree)
senders = receivers.roll(7)
graphs = AtomGraphs(
    one + 1,
    torch.rand(atoms, 3),
    one,
    30 * torch.eye(3)[None],
    one[:1],
    receivers,
    senders,
    torch.ones(len(senders), 3),
)


def step():
    out = model(graphs)
    (out.energy.square().sum() + out.forces.square().sum()).backward()


step()
model.zero_grad(set_to_none=True)
peak = measure_peak_bytes(step)
counter = FlopCounterMode(display=False)
counter.mod_tracker = Everything()
with counter:
    step()
edges = len(senders)
print("parameters", config.parameters(1) - sum(p.numel() for p in model.parameters()))
print("flops", config.flops(atoms, edges) - counter.get_total_flops())
print("memory", config.activation_bytes(atoms, edges) / peak)
