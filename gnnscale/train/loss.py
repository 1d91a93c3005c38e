"""The loss of a training: penalties of errors in units of the labels' rms, over the labels that there are."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from gnnscale.atoms.graph import AtomGraphs, Properties, atoms_per_structure
from gnnscale.contract.settings import OptimSettings
from gnnscale.models.potential import Normalised
from gnnscale.train.normalisation import Normalisation

PARTS = ("energy", "forces", "stress")  # the order of every vector (3,) here
# Of "huber", in units of the labels' rms: quadratic below, |error| - HUBER_BEND/2 above, so that weights mean the same.
HUBER_BEND = 0.01
PENALTIES: dict[str, Callable[..., Tensor]] = {
    "mae": F.l1_loss,
    "huber": partial(F.smooth_l1_loss, beta=HUBER_BEND),
    "l2": F.mse_loss,
}


def sum_penalties(
    potential: Callable[..., Normalised],
    normalisation: Normalisation,
    graphs: AtomGraphs,
    labels: Properties,
    optim: OptimSettings,
) -> Tensor:
    """Sum penalties over the labels of each kind, (3,) float64; NaN labels are left out. Sums add up over batches and ranks.

    Energy and virial are compared per atom, in eV/atom / energy scale, so one scale serves both; a stress error thus
    weighs as volume per atom, which evens out dense and open crystals.
    """
    stressed = optim.stress_weight > 0
    predicted = potential(graphs, stressed)
    natoms = atoms_per_structure(graphs)
    wanted = normalisation(graphs, labels, natoms)
    per_atom = 1 / natoms
    pairs = [(predicted.energy * per_atom, wanted.energy * per_atom), (predicted.forces, wanted.forces)]
    if stressed:
        assert predicted.virial is not None and wanted.virial is not None
        pairs.append((predicted.virial * per_atom[:, None, None], wanted.virial * per_atom[:, None, None]))
    sums = [torch.zeros((), dtype=torch.float64, device=natoms.device)] * len(PARTS)
    for k, (predicted_part, true) in enumerate(pairs):
        # a label that is NaN gives no error and no gradient
        true = torch.where(true.isfinite(), true.to(predicted_part.dtype), predicted_part.detach())
        sums[k] = PENALTIES[optim.loss](predicted_part, true, reduction="sum").double()
    return torch.stack(sums)


def part_weights(optim: OptimSettings) -> np.ndarray:
    """Return the weight of each part of the loss, (3,)."""
    return np.array([optim.energy_weight, optim.force_weight, optim.stress_weight])


def compute_loss(sums: np.ndarray, counts: np.ndarray, optim: OptimSettings) -> tuple[float, np.ndarray]:
    """Return the loss and its three parts before weighting: means over what was summed."""
    parts, weights = np.asarray(sums) / np.maximum(counts, 1), part_weights(optim)
    used = weights > 0  # an unused part may be anything
    return float((weights * parts)[used].sum()), parts


def compute_local_loss(sums: Tensor, counts: np.ndarray, optim: OptimSettings, ranks: int) -> Tensor:
    """Return a micro-batch's share of the loss over the *global* batch, which has `counts` labels.

    DeepSpeed averages gradients over ranks, so sums are divided by global counts and multiplied by the number of ranks; a
    mean of per-rank means would weigh atoms of small shares more (30 % in a measured case).
    """
    factors = ranks * part_weights(optim) / np.maximum(counts, 1)
    return torch.dot(torch.from_numpy(factors).to(sums.device), sums)
