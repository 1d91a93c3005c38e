"""A recorded network under the compiled library: energies and forces, gradients, and what an optimiser does to flat arrays."""

from __future__ import annotations

import ctypes
import weakref
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from gnnscale.atoms.graph import AtomGraphs, Properties
from gnnscale.models.potential import Normalised, Potential, sum_by_structure
from gnnscale.models.recording import Program, record
from gnnscale.native.library import Batch, Labels, instruction_set, open_library, reason_not_available
from gnnscale.native.packing import Packing

REAL_FIELDS = ("positions", "cell", "shifts")  # of AtomGraphs; the others are whole numbers
LOSSES = {"mae": 0, "huber": 1, "l2": 2}  # as the library numbers them


class Scales(NamedTuple):
    """The references and units of labels, as `Normalisation` has them."""

    references: Tensor  # (sources, elements) float64, eV
    energy_scale: float  # eV per atom
    force_scale: float  # eV/Angstrom


class Compiled:
    """A program in the library's own form, for one precision; parameters are handed over as a flat array."""

    def __init__(self, program: Program, library: ctypes.CDLL, dtype: torch.dtype, threads: int = 1):
        self.program, self.library, self.dtype, self.threads = program, library, dtype, threads
        code = np.ascontiguousarray(program.code)
        self.handle = library.native_program_new(code.ctypes.data, len(code), program.cutoff, program.scale)
        if not self.handle:
            raise ValueError("the native library refuses the program of this network")
        self._free = weakref.finalize(self, library.native_program_free, self.handle)

    @property
    def packing(self) -> Packing:
        return self.program.packing

    @property
    def words(self) -> str:
        """Return what computes here, as logs and results say it."""
        return f"the native library for {instruction_set()}"

    @property
    def bytes(self) -> int:
        """Return the memory that the library holds for batches as large as those it has seen."""
        return self.library.native_program_bytes(self.handle)

    def evaluate(self, parameters: Tensor, graphs: AtomGraphs, force_factor: float, stress: bool = False) -> Normalised:
        """Predict as `Potential.forward` does; `force_factor` is energy scale / force scale."""
        graphs = convert_graphs(graphs, self.dtype)
        energies = torch.empty(len(graphs.numbers), dtype=self.dtype)
        forces = torch.empty(len(graphs.numbers), 3, dtype=self.dtype)
        virial = torch.empty(len(graphs.cell), 3, 3, dtype=self.dtype) if stress else None
        self.library.native_evaluate(
            *(self.handle, address(parameters), ctypes.byref(describe_batch(graphs)), force_factor, self.threads),
            *(address(energies), address(forces), address(virial)),
        )
        return Normalised(sum_by_structure(energies, graphs), forces, virial)

    def differentiate(
        self,
        parameters: Tensor,
        graphs: AtomGraphs,
        force_factor: float,
        by_energies: Tensor,
        by_forces: Tensor,
        by_virial: Tensor | None = None,
    ) -> Tensor:
        """Return the gradient, flat, of any loss from its derivatives by energies of atoms, forces and virial."""
        graphs, gradient = convert_graphs(graphs, self.dtype), self.packing.empty(self.dtype)
        given = [None if by is None else convert(by, self.dtype) for by in (by_energies, by_forces, by_virial)]
        self.library.native_gradient(
            *(self.handle, address(parameters), address(gradient), ctypes.byref(describe_batch(graphs))),
            *(force_factor, self.threads, *map(address, given)),
        )
        return gradient

    def learn(
        self,
        parameters: Tensor,
        gradient: Tensor | None,
        batch: tuple[AtomGraphs, Properties],
        scales: Scales,
        loss: str,
        factors: np.ndarray,
        add: bool = False,
    ) -> np.ndarray:
        """Sum the penalties of each kind (3,), and set or add to the gradient of their sum with `factors`, if one is given."""
        graphs, labels = convert_graphs(batch[0], self.dtype), convert_labels(batch[1], self.dtype)
        references, penalties = convert(scales.references, torch.float64), np.zeros(3)
        weights = np.ascontiguousarray(factors, dtype=np.float64)
        described = Labels(
            *map(address, (labels.energy, labels.forces, labels.stress, references)),
            *(scales.energy_scale, scales.force_scale),
        )
        self.library.native_learn(
            *(self.handle, address(parameters), address(gradient), add),
            *(ctypes.byref(describe_batch(graphs)), ctypes.byref(described)),
            *(LOSSES[loss], weights.ctypes.data, self.threads, penalties.ctypes.data),
        )
        return penalties


def compile_network(potential: Potential, dtype: torch.dtype, threads: int = 1) -> Compiled | str:
    """Return a network under the library, or the reason why there is none."""
    library = open_library(dtype)
    if library is None:
        return f"no native library: {reason_not_available()}"
    program = record(potential)
    return program if isinstance(program, str) else Compiled(program, library, dtype, threads)


# --------------------------------------------------------------------------------------------- tensors as the library wants them
def address(tensor: Tensor | None) -> int | None:
    """Return where the numbers of a tensor lie, which must be kept alive by the caller."""
    if tensor is None:
        return None
    assert tensor.is_contiguous() and tensor.is_cpu
    return tensor.data_ptr()


def convert(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a tensor itself if it is already as the library wants it."""
    if tensor.dtype == dtype and tensor.is_cpu and tensor.is_contiguous():
        return tensor
    return tensor.detach().to("cpu", dtype).contiguous()


def convert_graphs(graphs: AtomGraphs, dtype: torch.dtype) -> AtomGraphs:
    return AtomGraphs(*(convert(t, dtype if n in REAL_FIELDS else torch.int64) for n, t in zip(graphs._fields, graphs)))


def convert_labels(labels: Properties, dtype: torch.dtype) -> Properties:
    stress = None if labels.stress is None else convert(labels.stress, dtype)
    return Properties(convert(labels.energy, torch.float64), convert(labels.forces, dtype), stress)


def describe_batch(graphs: AtomGraphs) -> Batch:
    g = graphs
    sizes = g.numbers.shape[0], g.receivers.shape[0], g.cell.shape[0]
    whole, real = (g.numbers, g.structure, g.source, g.receivers, g.senders), (g.positions, g.shifts, g.cell)
    return Batch(*sizes, *map(address, whole + real))
