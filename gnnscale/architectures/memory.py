"""Bytes that a rank needs at its fullest moment of training: arithmetic for plans, without torch.

The terms of each ZeRO stage are DeepSpeed 0.19.8's, each found again in the tensors of real steps on 1 and 2 ranks
(tests/gnnscale/architectures/test_memory.py).
"""

from __future__ import annotations

from typing import NamedTuple

from gnnscale.architectures.base import Architecture

BYTES_PER_NUMBER = 4  # weights, gradients and moments are always fp32; `precision` is that of kept activations
BUCKET_NUMBERS = 50_000_000  # numbers that ZeRO reduces at a time; DeepSpeed's own 5e8 is a buffer of 2 GB


class Memory(NamedTuple):
    """The bytes of one rank, without the interpreter with its libraries, half a GB, and the data."""

    parameters: int
    gradients: int
    optimiser: int  # the moments; ZeRO's own copy of the weights that this rank updates; a running mean
    activations: int
    buffers: int  # for the reduction of the gradients; ZeRO 3: gathered weights too

    @property
    def peak(self) -> int:
        """Bytes at the fullest moment, of two: activations are freed while gradients are made."""
        return self.parameters + self.optimiser + max(self.activations, self.gradients + self.buffers)


class MemoryLevers(NamedTuple):
    """The four settings that trade time for memory; the defaults spend memory freely."""

    zero_stage: int = 0
    micro_batch_edges: int | None = None  # edges of a rank at a time; None = its whole share
    edge_chunk: int | None = None  # edges of a message at a time; None = all
    activation_checkpointing: bool = False


def peak_bytes(
    config: Architecture,
    atoms: float,
    edges: float,
    levers: MemoryLevers,
    precision: str = "fp32",
    ranks: int = 1,
    sources: int = 1,
    ema: bool = False,
) -> Memory:
    """Return the memory of a training; `atoms` and `edges` are of a rank at a time, so of its micro-batch if it has one."""
    weights, zero = BYTES_PER_NUMBER * config.parameters(sources), levers.zero_stage
    part, bucket = -(-weights // ranks), min(weights, BYTES_PER_NUMBER * BUCKET_NUMBERS)
    waiting = (weights - bucket) // ranks + bucket  # ZeRO 2 and 3: gradients that are reduced, and not yet
    activations = activation_bytes(config, atoms, edges, levers, precision)
    mean = weights if ema else 0
    if zero == 0:
        found = Memory(weights, weights, 2 * weights + mean, activations, weights)
    elif zero == 1:  # the bucket is there from the beginning of the backward pass, beside all activations
        found = Memory(weights, weights, 3 * part + mean, activations + bucket, bucket)
    elif zero == 2:
        found = Memory(weights, waiting, 3 * part + mean, activations + bucket, bucket)
    else:  # keeps its bucket and the reduced gradients between steps, and gathers the weights
        found = Memory(part, waiting, 4 * part + bucket, activations + weights + waiting, weights)
    if levers.micro_batch_edges is not None:  # gradients of one are there while the activations of the next are
        kept = part if zero > 1 else weights
        found = found._replace(activations=found.activations + kept)
    return found


def activation_bytes(config: Architecture, atoms: float, edges: float, levers: MemoryLevers, precision: str) -> int:
    """Return the bytes of a step. Layers that are computed again keep only what goes from one to the next."""
    bytes_per_number = 2 if precision == "bf16" else BYTES_PER_NUMBER
    if levers.activation_checkpointing and config.can_checkpoint_layers:
        one = config.model_copy(update={"depth": 1})
        between = 2 * BYTES_PER_NUMBER * config.depth * atoms * config.width
        return int(between + one.activation_bytes(atoms, edges, levers.edge_chunk, bytes_per_number))
    return config.activation_bytes(atoms, edges, levers.edge_chunk, bytes_per_number)
