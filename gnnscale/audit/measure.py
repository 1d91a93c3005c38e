"""Measurements of every structure that the checks need, made in one pass over the shards; about 90 bytes a structure."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
from ase.data import covalent_radii

from gnnscale.atoms import neighbors
from gnnscale.audit import duplicates
from gnnscale.contract import files
from gnnscale.contract.dataset_card import ShardCard
from gnnscale.data.storage import mapped
from gnnscale.data.storage.manifest import composition
from gnnscale.data.storage.mapped import Shards
from gnnscale.data.storage.packed import Packed

CONTACT_REACH_ANGSTROM = 3.0  # every bond is shorter, and so is half the sum of any two covalent radii
ATOMS_PER_PIECE = 1 << 13  # whose neighbours are found together, as they fit into the cache
FIRST_UNKNOWN_COMPOSITION = np.uint64(
    1 << 63
)  # structures that cannot be described have compositions from here on, each its own
MIN_LATTICE_RANK_ANGSTROM = 1e-3  # lattice vectors nearer to a plane than this span no volume
EDGES_PER_ATOM_GUESS = 24  # edges of an atom within the reach; a list that is too short is made again
CONTACT_BINS = np.linspace(0, 4, 401)  # of distance / sum of covalent radii
COVALENT_RADII_ANGSTROM = np.asarray(covalent_radii, np.float32)
BAD_GEOMETRY, BAD_ENERGY, BAD_FORCES, BAD_STRESS, NO_FORCES = 1, 2, 4, 8, 16


class Measurements(NamedTuple):
    """Measurements of S structures."""

    defects: np.ndarray  # (S,) uint8, bits as above
    described: duplicates.Descriptors  # zeros where the geometry is bad
    force: np.ndarray  # (S,) float32, eV/Angstrom, largest on an atom; NaN without forces
    net: np.ndarray  # (S,) float32, eV/Angstrom, |sum of forces| / atoms; NaN without forces
    unmoved: np.ndarray  # (S,) int32, atoms whose force is exactly zero
    contact: (
        np.ndarray
    )  # (S,) float32, smallest distance / sum of covalent radii; inf if there is none within CONTACT_REACH_ANGSTROM
    isolated: np.ndarray  # (S,) int32, atoms with no neighbour within the cutoff
    gaps: np.ndarray  # (S, 3) float32, Angstrom, widest empty layer along each vector of the cell; NaN without cell
    volume: np.ndarray  # (S,) float32, Angstrom^3 per atom; NaN without cell


class MeasuredSource(NamedTuple):
    """One converted dataset with its measurements."""

    name: str
    shards: Shards
    measured: Measurements
    nearest: (
        np.ndarray
    )  # (bins,) atoms by distance to the nearest / sum of covalent radii; the last: none within the reach
    elements: np.ndarray  # (E,) atomic numbers
    formulas: np.ndarray  # (F, E) float32, shares of the elements in each composition that occurs
    formula: np.ndarray  # (S,) index into formulas
    card: ShardCard | None = None  # of the conversion; shards that were made otherwise have none

    @property
    def per_atom(self) -> np.ndarray:
        return self.shards.energy / self.shards.natoms  # (S,) eV

    def origin(self, structure: int) -> str:
        return self.shards.origin(structure)


def measure_source(name: str, path: Path, progress: Callable[[int], None] = lambda done: None) -> MeasuredSource:
    """Measure all structures of one dataset; `progress` is called with the number of structures of each block."""
    shards = mapped.open_shards(path)
    elements = np.array(sorted(shards.manifest.total.elements), np.int64)
    parts, nearest, rows, keys = [], np.zeros(len(CONTACT_BINS), np.int64), [], []
    for start in range(0, len(shards), duplicates.STRUCTURES_PER_BLOCK):
        chosen = np.arange(start, min(start + duplicates.STRUCTURES_PER_BLOCK, len(shards)))
        measured, near, key, row = _measure_block(shards, chosen, shards.manifest.cutoff, elements)
        parts.append(measured)
        nearest += near
        keys.append(key)
        rows.append(row)
        progress(len(chosen))
    key, first = np.unique(np.concatenate(keys), return_index=True)
    described = duplicates.concatenate_descriptors([part.described for part in parts])
    joined = {f: np.concatenate([getattr(p, f) for p in parts]) for f in Measurements._fields if f != "described"}
    return MeasuredSource(
        name,
        shards,
        Measurements(described=described, **joined),
        nearest,
        elements,
        np.concatenate(rows)[first],
        np.searchsorted(key, described.composition),
        read_card(path.parent),
    )


def read_card(folder: Path) -> ShardCard | None:
    path = folder / "card.json"
    return files.read_model(path, ShardCard) if path.exists() else None


def _measure_block(shards: Shards, chosen: np.ndarray, cutoff: float, elements: np.ndarray) -> tuple:
    packed = shards.select(chosen)
    defects = _find_defects(packed)
    sound = np.flatnonzero(defects & BAD_GEOMETRY == 0)
    whole = len(sound) == len(chosen)
    geometry = packed if whole else shards.select(chosen[sound])
    described = duplicates.describe_structures(geometry)
    contact, isolated, nearest = _measure_contacts(geometry, cutoff)
    force, net, unmoved = _measure_forces(packed, defects)
    gaps, volume = _measure_cells(geometry)
    measured = Measurements(defects, described, force, net, unmoved, contact, isolated, gaps, volume)
    if not whole:
        filled = {
            name: _scatter(getattr(measured, name), sound, len(chosen), empty) for name, empty in _UNMEASURED.items()
        }
        described = duplicates.Descriptors(*(_scatter(array, sound, len(chosen), 0) for array in described))
        described.composition[defects & BAD_GEOMETRY > 0] = FIRST_UNKNOWN_COMPOSITION + chosen[
            defects & BAD_GEOMETRY > 0
        ].astype(np.uint64)
        measured = measured._replace(described=described, **filled)
    present, counts = composition(packed)
    row = np.zeros((len(chosen), len(elements)), np.float32)
    row[:, np.searchsorted(elements, present)] = counts / packed.natoms[:, None]
    key, first = np.unique(measured.described.composition, return_index=True)
    return measured, nearest, key, row[first]


_UNMEASURED = {
    "contact": np.inf,
    "isolated": 0,
    "gaps": np.nan,
    "volume": np.nan,
}  # of a geometry that cannot be measured


def _scatter(values: np.ndarray, where: np.ndarray, length: int, empty: float) -> np.ndarray:
    made = np.full((length, *values.shape[1:]), empty, values.dtype)
    made[where] = values
    return made


def _find_defects(packed: Packed) -> np.ndarray:
    """Return the defect bits of each structure, (S,) uint8.

    A missing label is NaN throughout. A label that is NaN in part, or infinite, is a defect.
    """
    ptr, found = packed.ptr, np.zeros(len(packed.natoms), np.uint8)
    bad = ~np.isfinite(packed.cell).all((1, 2)) | _any_atom(~np.isfinite(packed.positions).all(1), ptr)
    repeated = np.where(packed.pbc[:, :, None] & ~bad[:, None, None], packed.cell, 0)  # lattice vectors that count
    rank = (np.linalg.svd(repeated, compute_uv=False) > MIN_LATTICE_RANK_ANGSTROM).sum(1)
    found[bad | (rank < packed.pbc.sum(1))] |= BAD_GEOMETRY
    found[np.isinf(packed.energy)] |= BAD_ENERGY
    unknown = np.isnan(packed.forces).all(1)
    none = ~_any_atom(~unknown, ptr)
    found[none] |= NO_FORCES
    found[_any_atom(~np.isfinite(packed.forces).all(1), ptr) & ~none] |= BAD_FORCES
    stress = packed.stress.reshape(-1, 9)
    found[~np.isfinite(stress).all(1) & ~np.isnan(stress).all(1)] |= BAD_STRESS
    return found


def _any_atom(of_atoms: np.ndarray, ptr: np.ndarray) -> np.ndarray:
    return np.logical_or.reduceat(of_atoms, ptr[:-1])  # (S,); no structure is without atoms


def _measure_forces(packed: Packed, defects: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    begin, forces = packed.ptr[:-1], packed.forces.astype(np.float64)
    squared = (forces**2).sum(1)
    largest = np.sqrt(np.maximum.reduceat(squared, begin))
    net = np.sqrt((np.add.reduceat(forces, begin) ** 2).sum(1)) / packed.natoms
    unmoved = np.add.reduceat((squared == 0).astype(np.int32), begin)
    unknown = defects & (NO_FORCES | BAD_FORCES) > 0
    largest[unknown] = net[unknown] = np.nan
    return largest.astype(np.float32), net.astype(np.float32), unmoved.astype(np.int32)


# ------------------------------------------------------------------------------------------------------- neighbours
def _measure_contacts(packed: Packed, cutoff: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the smallest contact and the isolated atoms of each structure, and a histogram of contacts over atoms."""
    ptr, reach = packed.ptr, min(CONTACT_REACH_ANGSTROM, cutoff)
    contact = np.full(len(packed.natoms), np.inf, np.float32)
    isolated, nearest = np.zeros(len(packed.natoms), np.int32), np.zeros(len(CONTACT_BINS), np.int64)
    for first, last in split_by_atoms(ptr):
        share, lonely = _find_nearest(packed, ptr, first, last, reach)
        begin = ptr[first:last] - ptr[first]
        contact[first:last] = np.minimum.reduceat(share, begin)
        if reach < cutoff:  # the longer list takes time, so only structures with an atom that has no neighbour get it
            for k in np.flatnonzero(np.logical_or.reduceat(lonely, begin)) + first:
                isolated[k] = _find_nearest(packed, ptr, int(k), int(k) + 1, cutoff)[1].sum()
        else:
            isolated[first:last] = np.add.reduceat(lonely.astype(np.int32), begin)
        nearest += np.bincount(
            np.minimum(np.searchsorted(CONTACT_BINS, share, side="right") - 1, len(CONTACT_BINS) - 1),
            minlength=len(CONTACT_BINS),
        )
    return contact, isolated, nearest


def _find_nearest(
    packed: Packed, ptr: np.ndarray, first: int, last: int, reach: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return per atom the distance to the nearest over the sum of radii (inf if there is none), and if there is none."""
    atoms = slice(int(ptr[first]), int(ptr[last]))
    x, cell = packed.positions[atoms], packed.cell[first:last]
    begin = ptr[first : last + 1] - atoms.start
    edges = neighbors.batch_edges(x, begin, cell, packed.pbc[first:last], reach, capacity=EDGES_PER_ATOM_GUESS * len(x))
    vectors = x[edges.senders] - x[edges.receivers]
    across = np.flatnonzero(edges.shifts.any(1))  # the few edges that cross a face of the cell
    box = cell[np.searchsorted(edges.ptr, across, side="right") - 1]
    vectors[across] += np.einsum("ei,eij->ej", edges.shifts[across], box)
    radii = COVALENT_RADII_ANGSTROM[packed.numbers[atoms]]
    share = np.sqrt(np.einsum("ej,ej->e", vectors, vectors)) / (radii[edges.senders] + radii[edges.receivers])
    found = np.full(len(x), np.inf, np.float32)
    starts = np.searchsorted(edges.receivers, np.arange(len(x) + 1))
    has = np.diff(starts) > 0
    if has.any():
        found[has] = np.minimum.reduceat(share, starts[:-1][has])
    return found, ~has


def split_by_atoms(ptr: np.ndarray) -> Iterator[tuple[int, int]]:
    cuts = np.unique([0, *np.searchsorted(ptr, np.arange(ATOMS_PER_PIECE, ptr[-1], ATOMS_PER_PIECE)), len(ptr) - 1])
    return pairwise(int(cut) for cut in cuts)


# --------------------------------------------------------------------------------------------------------------- box
def _measure_cells(packed: Packed) -> tuple[np.ndarray, np.ndarray]:
    """Return the widest empty layer along each lattice vector, and the volume per atom; NaN without a cell."""
    cell = packed.cell.astype(np.float64)
    volume = np.abs(np.linalg.det(cell))
    has = volume > 1e-3
    gaps, per_atom = np.full((len(cell), 3), np.nan, np.float32), np.full(len(cell), np.nan, np.float32)
    if not has.any():
        return gaps, per_atom
    per_atom[has] = volume[has] / packed.natoms[has]
    inverse = np.linalg.inv(cell[has])
    heights = 1 / np.linalg.norm(inverse, axis=1)  # (H, 3) distance between opposite faces
    natoms = packed.natoms[has]
    owner = np.repeat(np.arange(len(natoms)), natoms)
    positions = packed.positions[np.repeat(has, packed.natoms)].astype(np.float64)
    fractional = np.einsum("ai,aij->aj", positions, inverse[owner])
    ends = np.cumsum(natoms)
    begin = ends - natoms
    for axis in range(3):
        along = fractional[:, axis] % 1.0
        along[along >= 1.0] = 0.0
        order = np.sort(owner + along)  # the integer part is the structure, so each is sorted by itself
        widths = np.diff(order, append=0.0)
        widths[ends - 1] = order[begin] + 1 - order[ends - 1]  # from the last atom to the image of the first
        gaps[has, axis] = np.maximum.reduceat(widths, begin) * heights[:, axis]
    return gaps, per_atom
