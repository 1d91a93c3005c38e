"""Random molecules: a bond graph grown by valence, embedded in space by springs, relaxed and displaced thermally."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import scipy.linalg
import scipy.optimize
from ase import Atoms
from ase.data import covalent_radii
from ase.units import kB

from gnnscale.data.generate.potentials import Label, Unlabelled

VALENCE = {1: 1, 6: 4, 7: 3, 8: 2, 16: 2, 17: 1}
FRAGILE = {8, 16, 17}  # two of these bonded (peroxides, hypochlorites) mostly fall apart when relaxed
SHORTER = np.array([0.0, 1.0, 0.87, 0.79])  # length of a double or triple bond, in single bonds
BONDED = 1.25  # atoms closer than this many sums of covalent radii have a bond
STIFFNESS = {1: 40.0, 2: 12.0, 3: 2.0}  # eV/Angstrom^2 of a spring across this many bonds
ANCHOR = 1.0  # eV/Angstrom^2 on every atom: without it 1500 K reaches 4.7 eV/atom


class Molecule(NamedTuple):
    """A bond graph."""

    numbers: np.ndarray  # (A,)
    orders: np.ndarray  # (A, A) bond orders, 0 where there is no bond


# --------------------------------------------------------------------------------------------------------- bond graph
def grow(rng: np.random.Generator, shares: dict[int, float], heavy: int) -> Molecule:
    """Grow a connected molecule of `heavy` atoms drawn by `shares`, with some rings or multiple bonds, all valences met."""
    elements, weights = list(shares), np.array(list(shares.values()))
    grown = [int(rng.choice(elements, p=weights / weights.sum()))]
    orders = np.zeros((heavy, heavy), dtype=int)
    while len(grown) < heavy:
        free = _free(grown, orders)
        new = int(rng.choice(elements, p=weights / weights.sum()))
        sites = [i for i in np.flatnonzero(free) if not {new, grown[i]} <= FRAGILE]
        if not sites:
            break
        site = int(rng.choice(sites))
        orders[site, len(grown)] = orders[len(grown), site] = 1
        grown.append(new)
    numbers, orders = np.array(grown), orders[: len(grown), : len(grown)]
    ring = np.zeros(len(numbers), dtype=bool)
    for _ in range(rng.integers(0, 4)):
        change = _raise_order if rng.random() < 0.6 else _close_ring
        change(rng, numbers, orders, ring)
    return _add_hydrogens(numbers, orders)


def _free(numbers: Sequence[int] | np.ndarray, orders: np.ndarray) -> np.ndarray:
    """Return how many more bonds each atom may have."""
    return np.array([VALENCE[int(z)] for z in numbers]) - orders.sum(0)[: len(numbers)]


def _raise_order(rng: np.random.Generator, numbers: np.ndarray, orders: np.ndarray, ring: np.ndarray) -> None:
    """Make a random bond a double or triple one, where valences allow it."""
    free = _free(numbers, orders)
    # in a ring no atom may become linear, so none may get a second double or a triple bond
    full = ring & (orders.max(0, initial=0) > 1)
    pairs = [
        (i, j)
        for i, j in zip(*np.nonzero(np.triu(orders)))
        if free[i] and free[j] and orders[i, j] < 3 and not (full[i] or full[j])
    ]
    if pairs:
        i, j = pairs[rng.integers(len(pairs))]
        orders[i, j] = orders[j, i] = orders[i, j] + 1


def _close_ring(rng: np.random.Generator, numbers: np.ndarray, orders: np.ndarray, ring: np.ndarray) -> None:
    """Add a bond between two atoms 2 to 5 bonds apart, which makes a ring of 3 to 6 atoms, none of them linear."""
    apart, free = bonds_apart(orders), _free(numbers, orders)
    linear = (orders == 3).any(0) | ((orders == 2).sum(0) > 1)
    pairs = []
    for i, j in zip(*np.nonzero(np.triu((apart > 1) & (apart < 6)))):
        path = apart[i] + apart[j] == apart[i, j]  # on a shortest path from i to j
        if free[i] and free[j] and not {int(numbers[i]), int(numbers[j])} <= FRAGILE and not linear[path].any():
            pairs.append((i, j, path))
    if pairs:
        i, j, path = pairs[rng.integers(len(pairs))]
        orders[i, j] = orders[j, i] = 1
        ring |= path


def _add_hydrogens(numbers: np.ndarray, orders: np.ndarray) -> Molecule:
    owners = np.repeat(np.arange(len(numbers)), _free(numbers, orders))
    total = len(numbers) + len(owners)
    full = np.zeros((total, total), dtype=int)
    full[: len(numbers), : len(numbers)] = orders
    hydrogens = np.arange(len(numbers), total)
    full[owners, hydrogens] = full[hydrogens, owners] = 1
    return Molecule(np.concatenate([numbers, np.ones(len(owners), dtype=int)]), full)


def bonds_apart(orders: np.ndarray) -> np.ndarray:
    """Count the bonds on the shortest path from atom to atom: (A, A)."""
    apart = np.where(orders > 0, 1, len(orders) + 1)  # longer than any path in a connected molecule
    np.fill_diagonal(apart, 0)
    for middle in range(len(orders)):
        apart = np.minimum(apart, apart[:, middle, None] + apart[None, middle])
    return apart


def identify(molecule: Molecule) -> str:
    """Return formula and Weisfeiler-Lehman hash, which do not depend on the numbering of the atoms.

    Two molecules rarely share one; they then count as one, which only loses a molecule.
    """
    colours = [str(z) for z in molecule.numbers]
    neighbours = [[(j, molecule.orders[i, j]) for j in np.flatnonzero(row)] for i, row in enumerate(molecule.orders)]
    for _ in range(len(colours)):
        around = ["".join(sorted(f"({order}{colours[j]})" for j, order in near)) for near in neighbours]
        colours = [hashlib.sha256((c + a).encode()).hexdigest()[:12] for c, a in zip(colours, around)]
    digest = hashlib.sha256("".join(sorted(colours)).encode()).hexdigest()[:10]
    return f"{Atoms(molecule.numbers).get_chemical_formula()}-{digest}"


# ------------------------------------------------------------------------------------------------------------ geometry
def embed(molecule: Molecule, rng: np.random.Generator) -> Atoms:
    """Find positions with approximate bond lengths and angles; Unlabelled if the springs do not find the bond graph."""
    near, far, stiffness = _lengths(molecule)
    upper = np.triu_indices(len(molecule.numbers), 1)
    near, far, stiffness = near[upper], far[upper], stiffness[upper]

    def energy(flat: np.ndarray) -> tuple[float, np.ndarray]:
        x = flat.reshape(-1, 3)
        vectors = x[upper[0]] - x[upper[1]]
        r = np.sqrt((vectors**2).sum(1) + 1e-12)
        # a spring to the nearest of two lengths (cis and trans); where `far` is infinite only `near` repels
        target = np.where(np.isinf(far), np.maximum(near, r), np.where(2 * r < near + far, near, far))
        stretch = r - target
        pull = (2 * stiffness * stretch / r)[:, None] * vectors
        gradient = np.zeros_like(x)
        np.add.at(gradient, upper[0], pull)
        np.add.at(gradient, upper[1], -pull)
        return float((stiffness * stretch**2).sum()), gradient.ravel()

    start = _project(1.2 * bonds_apart(molecule.orders) ** 0.9) + rng.normal(0, 0.3, (len(molecule.numbers), 3))
    found = scipy.optimize.minimize(energy, start.ravel(), jac=True, method="L-BFGS-B", options={"maxiter": 150})
    atoms = Atoms(molecule.numbers, positions=found.x.reshape(-1, 3))
    if not has_bonds_of(atoms, molecule):
        raise Unlabelled("molecule could not be embedded")
    return atoms


def _lengths(molecule: Molecule) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return target distance, its alternative (or infinity: no upper limit) and stiffness of each spring: (A, A) each."""
    numbers, orders = molecule
    radii = covalent_radii[numbers]
    bond = (radii[:, None] + radii[None]) * SHORTER[orders]
    near = radii[:, None] + radii[None] + 1.4  # Angstrom; atoms that are not bonded repel up to here
    far = np.full_like(near, np.inf)
    stiffness = np.full_like(near, 0.3)
    double = np.argwhere(np.triu(orders) == 2)
    for m, n in double:  # planar: substituents at both ends are cis or trans
        for i in np.flatnonzero(orders[m]):
            for j in np.flatnonzero(orders[n]):
                if len({i, j, m, n}) == 4:
                    along = bond[i, m] / 2 + bond[m, n] + bond[n, j] / 2
                    across = np.sqrt(3) / 2 * np.array([bond[i, m] - bond[n, j], bond[i, m] + bond[n, j]])
                    near[i, j] = near[j, i] = np.hypot(along, across[0])
                    far[i, j] = far[j, i] = np.hypot(along, across[1])
                    stiffness[i, j] = stiffness[j, i] = 0.5
    for m in range(len(numbers)):
        angle = _angle(int(numbers[m]), orders[m])
        neighbours = np.flatnonzero(orders[m])
        for i in neighbours:
            for j in neighbours[neighbours != i]:
                near[i, j] = far[i, j] = np.sqrt(
                    bond[m, i] ** 2 + bond[m, j] ** 2 - 2 * bond[m, i] * bond[m, j] * np.cos(angle)
                )
                stiffness[i, j] = 1.0
    joined = orders > 0
    near[joined] = far[joined] = bond[joined]
    stiffness[joined] = 4.0
    return near, far, stiffness


def _angle(number: int, orders: np.ndarray) -> float:
    if (orders == 3).any() or (orders == 2).sum() > 1:
        return np.pi
    if (orders == 2).any():
        return np.deg2rad(120)
    return np.deg2rad({8: 106, 16: 97}.get(number, 109.5))


def _project(distances: np.ndarray) -> np.ndarray:
    """Return the positions in three dimensions that fit (A, A) distances best, by classical scaling.

    Signs, and mixtures of equal eigenvalues, depend on the processor's arithmetic: the same molecule is mirrored or turned.
    """
    squares = distances**2
    gram = -0.5 * (squares - squares.mean(0) - squares.mean(1)[:, None] + squares.mean())
    values, vectors = np.linalg.eigh(gram)
    top = np.zeros((len(distances), 3))
    top[:, : min(3, len(values))] = (vectors * np.sqrt(np.maximum(values, 0)))[:, ::-1][:, :3]
    return top


def has_bonds_of(atoms: Atoms, molecule: Molecule) -> bool:
    """Tell by distance whether the atoms have exactly the intended bonds."""
    radii = covalent_radii[atoms.numbers]
    close = atoms.get_all_distances() < BONDED * (radii[:, None] + radii[None])
    np.fill_diagonal(close, False)
    return bool((close == (molecule.orders > 0)).all())


# ------------------------------------------------------------------------------------------------ springs: relax, shake
def spring_hessian(positions: np.ndarray, apart: np.ndarray) -> np.ndarray:
    """Return the Hessian of springs at rest between all atoms: a guess, always positive definite: (3A, 3A) eV/Angstrom^2."""
    count = len(positions)
    vectors = positions[:, None] - positions[None]
    r = np.linalg.norm(vectors, axis=-1) + np.eye(count)
    springs = np.exp(-((r / 3.0) ** 2))
    for bonds, stiffness in STIFFNESS.items():
        springs[apart == bonds] = stiffness
    np.fill_diagonal(springs, 0)
    blocks = -np.einsum("ij,ija,ijb->ijab", springs / r**2, vectors, vectors)  # (A, A, 3, 3)
    blocks[np.arange(count), np.arange(count)] = -blocks.sum(1)
    return blocks.transpose(0, 2, 1, 3).reshape(3 * count, 3 * count) + ANCHOR * np.eye(3 * count)


def relax(atoms: Atoms, molecule: Molecule, label: Callable[[Atoms], Label], steps: int, fmax: float = 0.05) -> Atoms:
    """Relax by BFGS from the springs' Hessian (17 steps to 0.05 eV/A, not 23); Unlabelled if a bond breaks or forms."""
    atoms = atoms.copy()
    hessian = spring_hessian(atoms.positions, bonds_apart(molecule.orders))
    forces = label(atoms).forces.ravel()
    for _ in range(steps):
        if np.abs(forces).max() < fmax:
            break
        step = scipy.linalg.solve(hessian, forces, assume_a="pos")
        step *= min(1.0, 0.2 / np.abs(step).max())  # Angstrom
        atoms.positions += step.reshape(-1, 3)
        before, forces = forces, label(atoms).forces.ravel()
        change = before - forces
        if change @ step > 1e-6:  # else the update would not stay positive definite
            pushed = hessian @ step
            hessian += np.outer(change, change) / (change @ step) - np.outer(pushed, pushed) / (step @ pushed)
    if not has_bonds_of(atoms, molecule):
        raise Unlabelled("molecule changed its bonds while relaxing")
    return atoms


class Shaker:
    """Thermal displacements about one geometry, drawn from the springs' Boltzmann distribution."""

    def __init__(self, atoms: Atoms, molecule: Molecule):
        self.atoms = atoms
        # H = L L^T; x = sqrt(kT) L^-T z has covariance kT H^-1. Unlike eigenvectors, L is unique.
        self.factor = np.linalg.cholesky(spring_hessian(atoms.positions, bonds_apart(molecule.orders)))

    def draw(self, rng: np.random.Generator, temperature: float) -> Atoms:
        noise = rng.normal(size=3 * len(self.atoms)) * np.sqrt(kB * temperature)
        shift = scipy.linalg.solve_triangular(self.factor, noise, trans="T", lower=True)
        shaken = self.atoms.copy()
        shaken.positions += shift.reshape(-1, 3)
        return shaken
