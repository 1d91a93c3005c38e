"""How many bytes a rank needs at its fullest moment of training: arithmetic, for plans; no torch.

The terms of each ZeRO stage are DeepSpeed 0.19.8's, each found again in the tensors of real steps on 1 and 2 ranks
(tests/gnnscale/architectures/test_memory.py).
"""

from __future__ import annotations

from typing import NamedTuple

from gnnscale.architectures.registry import ModelConfig

NUMBER = 4  # weights, gradients and moments are fp32 always; `precision` is of what is kept for the backward pass
BUCKET = 50_000_000  # numbers that ZeRO reduces at a time; DeepSpeed's own 5e8 is a buffer of 2 GB


class Memory(NamedTuple):
    """Bytes of one rank. The interpreter with its libraries, half a GB, and the data come on top."""

    parameters: int
    gradients: int
    optimiser: int  # the moments; ZeRO's own copy of the weights that this rank updates; a running mean
    activations: int
    buffers: int  # for the reduction of the gradients; ZeRO 3: gathered weights too

    @property
    def peak(self) -> int:
        """Activations go while gradients come: one of the two moments is the fullest."""
        return self.parameters + self.optimiser + max(self.activations, self.gradients + self.buffers)


class MemoryLevers(NamedTuple):
    """The four settings that trade time for memory; the defaults spend memory freely."""

    zero_stage: int = 0
    micro_batch_edges: int | None = None  # edges of a rank at a time; None = its whole share
    edge_chunk: int | None = None  # edges of a message at a time; None = all
    activation_checkpointing: bool = False


def peak_bytes(
    config: ModelConfig,
    atoms: float,
    edges: float,
    levers: MemoryLevers,
    precision: str = "fp32",
    ranks: int = 1,
    sources: int = 1,
    ema: bool = False,
) -> Memory:
    """`atoms` and `edges` are those of a rank at a time: its share of a batch, or a micro-batch of that."""
    weights, zero = NUMBER * config.parameters(sources), levers.zero_stage
    part, bucket = -(-weights // ranks), min(weights, NUMBER * BUCKET)
    waiting = (weights - bucket) // ranks + bucket  # ZeRO 2 and 3: gradients that are reduced, and not yet
    activations = activation_bytes(config, atoms, edges, levers, precision)
    mean = weights if ema else 0
    if zero == 0:
        found = Memory(weights, weights, 2 * weights + mean, activations, weights)
    elif zero == 1:
        found = Memory(weights, weights, 3 * part + mean, activations, bucket)
    elif zero == 2:
        found = Memory(weights, waiting, 3 * part + mean, activations, bucket)
    else:  # keeps its bucket and the reduced gradients between steps, and gathers the weights
        found = Memory(part, waiting, 4 * part + bucket, activations + weights + waiting, weights)
    if levers.micro_batch_edges is not None:  # gradients of one are there while the activations of the next are
        kept = part if zero > 1 else weights
        found = found._replace(activations=found.activations + kept)
    return found


def activation_bytes(config: ModelConfig, atoms: float, edges: float, levers: MemoryLevers, precision: str) -> int:
    """Of a step. Layers that are computed again keep only what goes from one to the next."""
    bytes_per_number = 2 if precision == "bf16" else NUMBER
    if levers.activation_checkpointing and config.forces == "direct":  # of little use where forces are derivatives
        one = config.model_copy(update={"depth": 1})
        between = 2 * NUMBER * config.depth * atoms * config.width
        return int(between + one.activation_bytes(atoms, edges, levers.edge_chunk, bytes_per_number))
    return config.activation_bytes(atoms, edges, levers.edge_chunk, bytes_per_number)
