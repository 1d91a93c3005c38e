"""Reference energies per element by least squares, over data that are never in memory at once.

Only the triangular factor R of the QR decomposition of the rows [counts | energy] is kept: R^T R gives the normal equations
without squaring the condition number, and the factor of two parts is that of their factors stacked.
"""

from __future__ import annotations

import base64
from collections.abc import Collection, Iterable, Mapping

import numpy as np
from pydantic import Field

from gnnscale.atoms.atomic_energies import CRYSTAL_EV, FREE_ATOM_HARTREE
from gnnscale.atoms.units import HARTREE
from gnnscale.schema import Record

RELATIVE_ZERO = 1e-10  # of the largest singular value: below, a direction is not determined
MAX_BINDING_EV = 100.0  # of an atom; no bond comes near
MIN_SPREAD_EV = 0.1  # of a plausible energy
FREE_ATOM_EV = {z: HARTREE * energy for z, energy in FREE_ATOM_HARTREE.items()}


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


def fit_references(sums: EnergySums, known: Mapping[int, float] | None = None) -> tuple[dict[int, float], int]:
    """Return (atomic number -> eV, rank): what is known, and the rest by least squares of what the known leave.

    Narrow data leave some energies undetermined (in one oxide the counts of metal and oxygen are proportional). Of all
    solutions the one nearest to plausible energies is taken, also for an element that is not in training. The rank counts
    the known elements of the data, and the independent sums of the others that the data determine.
    """
    fixed = {z: energy for z, energy in (known or {}).items() if z in sums.elements}
    counts, energy, free = _unexplained(sums, fixed)
    plausible, spread = _plausible_energies(counts, energy, free) if sums.structures else (np.zeros(len(free)),) * 2
    solution, _, rank, _ = np.linalg.lstsq(counts, energy - counts @ plausible, rcond=RELATIVE_ZERO)
    if sums.structures and rank < len(free):
        open_directions = _undetermined_directions(counts).T  # (free, directions)
        step = np.linalg.lstsq(open_directions / spread[:, None], -solution / spread, rcond=RELATIVE_ZERO)[0]
        solution = solution + open_directions @ step
    fitted = dict(zip(free, map(float, plausible + solution)))
    return {z: fixed[z] if z in fixed else fitted[z] for z in sums.elements}, int(rank) + len(fixed)


def fit_shifts(sums: EnergySums, references: Mapping[int, float]) -> dict[int, float]:
    """Return atomic number -> eV by which binding changes an atom's energy: least squares of what the references leave.

    Where counts are collinear, the solution nearest to an equal share of all atoms is taken.
    """
    counts, energy = _counts_and_energy(sums)
    left = energy - counts @ np.array([references[z] for z in sums.elements])
    share = np.full(len(sums.elements), _mean_energy(counts, left))
    solution = np.linalg.lstsq(counts, left - counts @ share, rcond=RELATIVE_ZERO)[0]
    return dict(zip(sums.elements, map(float, share + solution)))


def find_undetermined(sums: EnergySums, known: Collection[int] = ()) -> list[tuple[int, ...]]:
    """Return sets of atomic numbers whose references cannot be distinguished: one may gain what the others lose."""
    counts, _, free_elements = _unexplained(sums, dict.fromkeys(set(known) & set(sums.elements), 0.0))
    free = _undetermined_directions(counts)
    coupled = np.abs(free.T @ free) > 1e-6
    sets, left = [], set(np.flatnonzero(coupled.diagonal()))
    while left:
        reached, waiting = set(), [min(left)]
        while waiting:
            reached.add(now := waiting.pop())
            waiting += set(np.flatnonzero(coupled[now])) - reached
        sets.append(tuple(free_elements[k] for k in sorted(reached)))
        left -= reached
    return sets


def find_wrong_unit(sums: EnergySums, known: Mapping[int, float]) -> str:
    """Return why known references cannot be of these energies, in words; "" if they can.

    Where the energies are those of all electrons, so are the references; else no atom binds by more than MAX_BINDING_EV.
    """
    if not sums.structures or not known:
        return ""
    counts, energy = _counts_and_energy(sums)
    of_atoms = _tabulated(FREE_ATOM_EV, sums.elements)
    if _explains(of_atoms, counts, energy):
        for z, expected in zip(sums.elements, of_atoms):
            if not 0.7 < known.get(z, expected) / expected < 1.4:
                return f"{known[z]:.6g} eV where {expected:.6g} is expected, as the energies are those of all electrons"
    _, left, free = _unexplained(sums, {z: energy for z, energy in known.items() if z in sums.elements})
    mean = _mean_energy(counts, left)
    if not free and abs(mean) > MAX_BINDING_EV:
        return f"they leave {mean:.5g} eV for each atom, of {_mean_energy(counts, energy):.5g}"
    return ""


def _unexplained(sums: EnergySums, fixed: Mapping[int, float]) -> tuple[np.ndarray, np.ndarray, tuple[int, ...]]:
    """Return counts of the elements that are not fixed, the energy that the fixed ones leave, and the former's numbers."""
    counts, energy = _counts_and_energy(sums)
    is_free = np.array([z not in fixed for z in sums.elements], bool)
    taken = np.array([fixed.get(z, 0.0) for z in sums.elements])
    return counts[:, is_free], energy - counts @ taken, tuple(z for z in sums.elements if z not in fixed)


def _plausible_energies(
    counts: np.ndarray, energy: np.ndarray, elements: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """Return an energy of each element that the data do not contradict, and how far from it the true one may be: eV."""
    for table in (FREE_ATOM_EV, CRYSTAL_EV):
        tabulated = _tabulated(table, elements)
        if _explains(tabulated, counts, energy):
            return tabulated, np.maximum(np.abs(tabulated), MIN_SPREAD_EV)
    return np.full(len(elements), _mean_energy(counts, energy)), np.ones(len(elements))


def _tabulated(table: Mapping[int, float], elements: tuple[int, ...]) -> np.ndarray:
    return np.array([table.get(z, np.nan) for z in elements])


def _explains(tabulated: np.ndarray, counts: np.ndarray, energy: np.ndarray) -> bool:
    """Tell whether energies are about those of the table; never if an element is not in it."""
    expected = counts @ tabulated
    return bool(0.7 < expected @ energy / max(expected @ expected, 1e-300) < 1.4)


def _mean_energy(counts: np.ndarray, energy: np.ndarray) -> float:
    """Return the energy of an atom by least squares, if all elements have the same: eV."""
    atoms = counts.sum(1)
    return float(atoms @ energy / max(atoms @ atoms, 1e-300))


def _undetermined_directions(counts: np.ndarray) -> np.ndarray:
    """Return an orthonormal basis of the changes of energies that no structure feels: (directions, E)."""
    _, sizes, vectors = np.linalg.svd(counts)
    directions: np.ndarray = vectors[sizes <= RELATIVE_ZERO * max(sizes.max(initial=0), 1e-300)]
    return directions


def _counts_and_energy(sums: EnergySums) -> tuple[np.ndarray, np.ndarray]:
    triangle = _square(sums.total, len(sums.elements) + 1)
    return triangle[:, :-1], triangle[:, -1]


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
