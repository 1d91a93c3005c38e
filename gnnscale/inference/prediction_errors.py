"""TODO: say what a reader finds here."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

from gnnscale.atoms.graph import AtomGraphs
from gnnscale.contract import stage_run
from gnnscale.contract.results import TrainedModel
from gnnscale.data.loading import corpus as loader
from gnnscale.data.loading.prefetch import ahead
from gnnscale.models.potential import predict
from gnnscale.models.registry import build

BATCH, NUMBERS = 64, 2**26  # structures at a time, and numbers in what is said along all of their edges


WIDE, CHUNK = 1024, 2**23  # above this width, and for gradient forces, so many of these numbers at once


def restore(directory: Path, trained: TrainedModel) -> torch.nn.Module:
    """As it was trained; edges in chunks where they would need much memory."""
    chunked = trained.model.width > WIDE or trained.model.forces == "gradient"
    chunk = max(1, CHUNK // trained.model.width) if chunked else None
    model = build(trained.model, len(trained.sources), trained.average_degree, chunk)
    model.load_state_dict(load_file(directory / "model.safetensors"))
    return model.eval().requires_grad_(False)


def errors(
    model: torch.nn.Module, corpus: loader.Corpus, edges: int, run: stage_run.Run
) -> tuple[np.ndarray, np.ndarray]:
    """Signed errors: energy per atom (S,) in eV, force components (A, 3) in eV/Angstrom."""
    device, energy, forces = next(model.parameters()).device, [], []
    make = partial(loader.share_of_rank, corpus, pin=device.type != "cpu")
    plan = ((chosen, [chosen]) for chosen in batches(corpus.nedges, edges))
    for chosen, (made,) in ahead(plan, make, run.spec.runtime.loader_workers):
        graphs, labels = made()
        with torch.no_grad():  # or gradient forces keep what a second derivative would need
            predicted = predict(model, on(graphs, device))
        natoms = torch.from_numpy(corpus.natoms[chosen])
        # a NaN that the model says is an infinite error; one in the labels is none at all
        energy.append(((predicted.energy.cpu().nan_to_num(torch.inf) - labels.energy) / natoms).numpy())
        forces.append((predicted.forces.cpu().nan_to_num(torch.inf) - labels.forces).numpy())
        run.progress(int(chosen[-1]) + 1, len(corpus))
    return np.concatenate(energy), np.concatenate(forces)


def batches(edges: np.ndarray, most: int) -> Iterator[np.ndarray]:
    """All structures in their order; at most `BATCH` of them and `most` edges, or one that alone has more."""
    before, begin = np.concatenate(([0], np.cumsum(edges, dtype=np.int64))), 0
    while begin < len(edges):
        fit = int(np.searchsorted(before, before[begin] + most, "right")) - 1
        end = max(begin + 1, min(begin + BATCH, fit))
        yield np.arange(begin, end)
        begin = end


def on(graphs: AtomGraphs, device: torch.device) -> AtomGraphs:
    return AtomGraphs(*(t.to(device, non_blocking=True) for t in graphs))
