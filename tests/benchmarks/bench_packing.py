"""Work in equal parts: which structures go to which rank, by several rules, and the time to draw up a step's plan."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from gnnscale.data.loading import batch_plan
from gnnscale.data.loading.corpus import ATOM_COST, EDGE_COST
from tests.benchmarks.measure import Table

PER_RANK, STEPS, RANKS = 32, 5, (64, 1024)
Rule = Callable[[np.ndarray, np.ndarray, int], np.ndarray]  # costs, atoms, ranks -> the load of each rank


def main() -> Table:
    rng = np.random.default_rng(0)
    rows = []
    for ranks in RANKS:
        atoms, edges = mixture(rng, ranks * PER_RANK * STEPS)
        costs = ATOM_COST * atoms + EDGE_COST * edges
        for name, rule in RULES.items():
            steps = np.arange(len(costs)).reshape(STEPS, -1)
            even, seconds = [], []
            for chosen in steps:
                began = time.process_time()
                load = rule(costs[chosen], atoms[chosen], ranks)
                seconds.append(time.process_time() - began)
                even.append(load.mean() / load.max())
            rows.append(
                {
                    "ranks": ranks,
                    "rule": name,
                    "mean / greatest load": float(np.mean(even)),
                    "worst step": min(even),
                    "ms / step": 1e3 * float(np.median(seconds)),
                }
            )
        rows.append(plan(costs, edges, ranks))
    return Table(f"Equal work: {PER_RANK} structures a rank and step, of four kinds from 2 to 300 atoms", rows)


def mixture(rng: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Atoms and edges like those of ANI-1x, QM7-X, MPtrj and OC20 in one data set."""
    kind = rng.choice(4, count, p=[0.35, 0.3, 0.2, 0.15])
    atoms = np.choose(
        kind,
        [
            rng.integers(4, 30, count),
            rng.integers(6, 24, count),
            np.clip(rng.lognormal(3.2, 0.7, count), 2, 300).astype(int),
            rng.integers(30, 200, count),
        ],
    )
    degree = np.choose(
        kind,
        [
            rng.normal(14, 2, count),
            rng.normal(14, 2, count),
            np.clip(rng.normal(45, 15, count), 10, 90),
            rng.normal(35, 6, count),
        ],
    )
    return atoms, (atoms * np.maximum(degree, 1)).astype(int)


def ours(costs: np.ndarray, atoms: np.ndarray, ranks: int) -> np.ndarray:
    return np.bincount(batch_plan.assign_ranks(costs, ranks), weights=costs, minlength=ranks)


def fixed(costs: np.ndarray, atoms: np.ndarray, ranks: int) -> np.ndarray:
    """As many structures for each, as they come."""
    return costs.reshape(ranks, -1).sum(1)


def most_atoms(costs: np.ndarray, atoms: np.ndarray, ranks: int) -> np.ndarray:
    """Fill ranks with structures as they come, until the next one would exceed the atoms that a rank may have."""
    loads, limit, held = [0.0], atoms.sum() / ranks, 0
    for cost, size in zip(costs.tolist(), atoms.tolist()):
        if held + size > limit and held:
            loads, held = [*loads, 0.0], 0
        loads[-1], held = loads[-1] + cost, held + size
    return np.array(loads[:ranks])


RULES: dict[str, Rule] = {
    "longest first (ours)": ours,
    "fixed number": fixed,
    "greatest number of atoms": most_atoms,
}


def plan(costs: np.ndarray, edges: np.ndarray, ranks: int) -> dict:
    """All that a rank does for a step: its global batch, its share, and micro-batches of half a share each."""
    structures, batch, seconds = len(costs), ranks * PER_RANK, []
    budget = int(edges.sum() / STEPS / ranks / 2)
    batch_plan.permutation(structures, 0, 0)
    for step in range(STEPS):
        began = time.process_time()
        whole = batch_plan.global_batch(step, structures, batch, 0)
        batch_plan.micro_batches(edges[whole], batch_plan.divide_batch(costs[whole], ranks), budget, 0)
        seconds.append(time.process_time() - began)
    return {
        "ranks": ranks,
        "rule": "whole plan of a step, with micro-batches",
        "ms / step": 1e3 * float(np.median(seconds)),
    }
