"""A trained model as it was written, and its errors on labelled structures."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

from gnnscale.atoms.graph import to_device
from gnnscale.contract import stage_run
from gnnscale.contract.results import TrainedModel
from gnnscale.data.loading.corpus import Corpus, make_batch_of_share
from gnnscale.data.loading.prefetch import make_ahead
from gnnscale.models.potential import Potential, Predictor, predict
from gnnscale.models.registry import build

MAX_STRUCTURES, MAX_MESSAGE_NUMBERS = 64, 2**26  # of a batch; numbers of the messages along all of its edges
WIDEST_UNCHUNKED = 1024  # channels; above, and for gradient forces, messages are made in chunks
NUMBERS_PER_CHUNK = 2**23  # edges x channels


def restore(directory: Path, trained: TrainedModel) -> Potential:
    """Load a model as it was trained; it takes edges in chunks where they would need much memory."""
    chunked = trained.model.message_width > WIDEST_UNCHUNKED or trained.model.forces == "gradient"
    chunk = max(1, NUMBERS_PER_CHUNK // trained.model.message_width) if chunked else None
    model = build(trained.model, len(trained.sources), trained.average_degree, chunk)
    model.load_state_dict(load_file(directory / "model.safetensors"))
    model.eval().requires_grad_(False)
    return model


def measure_errors(model: Predictor, corpus: Corpus, edges: int, run: stage_run.Run) -> tuple[np.ndarray, np.ndarray]:
    """Return signed errors: energy per atom (S,) in eV, force components (A, 3) in eV/Angstrom."""
    device, energy, forces = model.references.device, [], []
    make = partial(make_batch_of_share, corpus, pin=device.type != "cpu")
    plan = ((chosen, [chosen]) for chosen in split_by_edges(corpus.nedges, edges))
    for chosen, (made,) in make_ahead(plan, make, run.spec.runtime.loader_workers):
        graphs, labels = made()
        with torch.no_grad():  # or gradient forces keep what a second derivative would need
            predicted = predict(model, to_device(graphs, device))
        natoms = torch.from_numpy(corpus.natoms[chosen])
        # a NaN that the model predicts is an infinite error; one in the labels is no label
        energy.append(((predicted.energy.cpu().nan_to_num(torch.inf) - labels.energy) / natoms).numpy())
        forces.append((predicted.forces.cpu().nan_to_num(torch.inf) - labels.forces).numpy())
        run.report_progress(int(chosen[-1]) + 1, len(corpus))
    return np.concatenate(energy), np.concatenate(forces)


def split_by_edges(edges: np.ndarray, most: int) -> Iterator[np.ndarray]:
    """Yield all structures in order: at most MAX_STRUCTURES of them and `most` edges, or one that alone has more."""
    before, begin = np.concatenate(([0], np.cumsum(edges, dtype=np.int64))), 0
    while begin < len(edges):
        fit = int(np.searchsorted(before, before[begin] + most, "right")) - 1
        end = max(begin + 1, min(begin + MAX_STRUCTURES, fit))
        yield np.arange(begin, end)
        begin = end
