"""Reference energies per element by least squares, over data that are never in memory at once.

Only the triangular factor R of the QR decomposition of the rows [counts | energy] is kept: R^T R gives the normal equations
without squaring the condition number, and the factor of two parts is that of their factors stacked.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable

import numpy as np
from pydantic import Field

from gnnscale.schema import Record


class EnergySums(Record):
    """Sums over structures that suffice for a fit of reference energies and its residual."""

    elements: tuple[int, ...] = Field(description="the E atomic numbers that occur")
    structures: int = Field(description="number of structures with an energy")
    atoms: int
    energy: float = Field(description="eV, sum")
    energy_squared: float = Field(description="eV^2, sum")
    total: str = Field(
        description="R of the rows (atoms of each element | energy), E + 1 wide: base64 of its upper triangle, <f8"
    )
    per_atom: str = Field(description="the same, each row divided by its structure's number of atoms")


def sum_energies(elements: np.ndarray, counts: np.ndarray, energy: np.ndarray) -> EnergySums:
    """Return the sums over S structures: counts (S, E) atoms of each of `elements`, energy (S,) eV, finite."""
    rows = np.column_stack([counts, energy]).astype(np.float64)
    natoms = counts.sum(1)
    return EnergySums(
        elements=tuple(int(z) for z in elements),
        structures=len(energy),
        atoms=int(natoms.sum()),
        energy=float(energy.sum()),
        energy_squared=float((energy**2).sum()),
        total=_flat(_factor(rows)),
        per_atom=_flat(_factor(rows / natoms[:, None])),
    )


def add_energy_sums(parts: Iterable[EnergySums]) -> EnergySums:
    """Return the sums over the structures of all parts."""
    parts = list(parts)
    elements = sorted({z for part in parts for z in part.elements})
    return EnergySums(
        elements=tuple(elements),
        structures=sum(part.structures for part in parts),
        atoms=sum(part.atoms for part in parts),
        energy=sum(part.energy for part in parts),
        energy_squared=sum(part.energy_squared for part in parts),
        total=_flat(_merged(elements, [(part.elements, part.total) for part in parts])),
        per_atom=_flat(_merged(elements, [(part.elements, part.per_atom) for part in parts])),
    )


def fit_references(sums: EnergySums) -> tuple[dict[int, float], int]:
    """Return (atomic number -> eV, rank), by least squares around the mean energy of an atom.

    Narrow data leave some energies undetermined (in one oxide the counts of metal and oxygen are proportional). The
    solution of least norm *about the mean* keeps every energy near a real one, also of an element not in training.
    """
    if not sums.structures:
        return dict.fromkeys(sums.elements, 0.0), 0  # a source without energies
    triangle = _square(sums.total, len(sums.elements) + 1)
    counts, energy = triangle[:, :-1], triangle[:, -1]
    mean = sums.energy / sums.atoms
    solution, _, rank, _ = np.linalg.lstsq(counts, energy - mean * counts.sum(1), rcond=1e-10)
    return {z: float(mean + e) for z, e in zip(sums.elements, solution)}, int(rank)


def find_undetermined(sums: EnergySums) -> list[tuple[int, ...]]:
    """Return sets of atomic numbers whose references cannot be distinguished: one may gain what the others lose."""
    counts = _square(sums.total, len(sums.elements) + 1)[:, :-1]
    _, sizes, vectors = np.linalg.svd(counts)
    free = vectors[sizes <= 1e-10 * max(sizes.max(initial=0), 1e-300)]  # (directions, E)
    coupled = np.abs(free.T @ free) > 1e-6
    sets, left = [], set(np.flatnonzero(coupled.diagonal()))
    while left:
        reached, waiting = set(), [min(left)]
        while waiting:
            reached.add(now := waiting.pop())
            waiting += set(np.flatnonzero(coupled[now])) - reached
        sets.append(tuple(sums.elements[k] for k in sorted(reached)))
        left -= reached
    return sets


def residual_rms(sums: EnergySums, references: dict[int, float]) -> float:
    """Return the RMS of the energy per atom after subtracting the references; NaN without energies: eV/atom."""
    if not sums.structures:
        return float("nan")
    taken = np.array([-references[z] for z in sums.elements] + [1.0])
    left = _square(sums.per_atom, len(taken)) @ taken
    return float(np.sqrt(left @ left / sums.structures))


def _factor(rows: np.ndarray) -> np.ndarray:
    """Return the upper triangle (E + 1, E + 1) of rows (any, E + 1)."""
    wide = rows.shape[1]
    padded = np.concatenate([rows, np.zeros((max(0, wide - len(rows)), wide))])
    triangle: np.ndarray = np.linalg.qr(padded, mode="r")  # type: ignore[assignment]  # numpy's stubs lack mode "r"
    return triangle


def _merged(elements: list[int], parts: list[tuple[tuple[int, ...], str]]) -> np.ndarray:
    stacked = np.zeros((0, len(elements) + 1))
    for mine, flat in parts:
        spread = np.zeros((len(mine) + 1, len(elements) + 1))
        spread[:, [*np.searchsorted(elements, mine), len(elements)]] = _square(flat, len(mine) + 1)
        stacked = _factor(np.concatenate([stacked, spread]))
    return _factor(stacked)


def _flat(triangle: np.ndarray) -> str:
    return base64.b64encode(triangle[np.triu_indices(len(triangle))].astype("<f8").tobytes()).decode()


def _square(flat: str, wide: int) -> np.ndarray:
    triangle = np.zeros((wide, wide))
    triangle[np.triu_indices(wide)] = np.frombuffer(base64.b64decode(flat), "<f8")
    return triangle
