"""A trained potential under the compiled library: the same predictions without PyTorch's overhead and without a graph."""

from __future__ import annotations

from torch import Tensor

from gnnscale.atoms.graph import AtomGraphs
from gnnscale.models.compiled import Compiled, compile_network
from gnnscale.models.potential import NO_STRESS, Normalised, Potential, Predictor


class NativePotential:
    """A potential with fixed weights, called as `Potential` is."""

    references: Tensor  # (sources, elements) eV
    energy_scale: Tensor  # eV per atom
    force_scale: Tensor  # eV/Angstrom

    def __init__(self, potential: Potential, compiled: Compiled):
        self.references, self.energy_scale = potential.references, potential.energy_scale
        self.force_scale, self.compiled = potential.force_scale, compiled
        self.parameters = compiled.packing.pack(dict(potential.named_parameters()), compiled.dtype)
        self.force_factor = float(potential.energy_scale / potential.force_scale)

    def __call__(self, graphs: AtomGraphs, stress: bool = False) -> Normalised:
        if stress and not self.compiled.program.gradient:
            raise ValueError(NO_STRESS)
        return self.compiled.evaluate(self.parameters, graphs, self.force_factor, stress)


def use_library(potential: Potential, threads: int = 1) -> tuple[Predictor, str]:
    """Return the potential under the library where it can be, and in words what computes its predictions."""
    weight = next(potential.parameters())
    found = "on a GPU" if weight.device.type != "cpu" else compile_network(potential, weight.dtype, threads)
    if isinstance(found, str):
        return potential, f"PyTorch ({found})"
    return NativePotential(potential, found), found.words
