"""What training minimises: penalties of errors in units of the labels' rms, over those labels that there are."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from gnnscale.atoms.graph import AtomGraphs, Properties, atoms_per_structure
from gnnscale.contract.settings import OptimSettings
from gnnscale.train.normalisation import Normalisation

PARTS = ("energy", "forces", "stress")  # the order of every vector (3,) here
BEND = (
    0.01  # of "huber", in units of the labels' rms: quadratic below, |error| - BEND/2 above, so weights mean the same
)
PENALTIES: dict[str, Callable[..., Tensor]] = {
    "mae": F.l1_loss,
    "huber": partial(F.smooth_l1_loss, beta=BEND),
    "l2": F.mse_loss,
}


def penalties(
    potential: Callable, normalisation: Normalisation, graphs: AtomGraphs, labels: Properties, optim: OptimSettings
) -> Tensor:
    """Summed over all labels of a kind: these add up over batches and ranks. A NaN counts for nothing.  # (3,) float64

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
        pairs.append((predicted.virial * per_atom[:, None, None], wanted.virial * per_atom[:, None, None]))
    sums = [torch.zeros((), dtype=torch.float64, device=natoms.device)] * len(PARTS)
    for k, (said, true) in enumerate(pairs):
        true = torch.where(true.isfinite(), true.to(said.dtype), said.detach())  # no error, and no gradient
        sums[k] = PENALTIES[optim.loss](said, true, reduction="sum").double()
    return torch.stack(sums)


def weights(optim: OptimSettings) -> np.ndarray:
    return np.array([optim.energy_weight, optim.force_weight, optim.stress_weight])  # (3,)


def objective(sums: np.ndarray, counts: np.ndarray, optim: OptimSettings) -> tuple[float, np.ndarray]:
    """(loss, its three parts before weighting): means over whatever was summed."""
    parts = np.asarray(sums) / np.maximum(counts, 1)
    used = weights(optim) > 0  # an unused part may be anything
    return float((weights(optim) * parts)[used].sum()), parts


def share(sums: Tensor, counts: np.ndarray, optim: OptimSettings, ranks: int) -> Tensor:
    """This micro-batch's share of the objective over the *global* batch, of which `counts` tells the labels.

    DeepSpeed averages gradients over ranks, so sums are divided by global counts and multiplied by the number of ranks; a
    mean of per-rank means would weigh atoms of small shares more (30 % in a measured case).
    """
    factors = ranks * weights(optim) / np.maximum(counts, 1)
    return torch.dot(torch.from_numpy(factors).to(sums.device), sums)
