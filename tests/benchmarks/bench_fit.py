"""Bootstraps of a law: 4,000 resamples of the 240 Chinchilla points where they are there, else of as many planted ones."""

from __future__ import annotations

import time

import numpy as np

from gnnscale.scaling.fitting.laws import LAWS
from gnnscale.scaling.fitting.optimum import find_optimum, fit_resamples
from tests.benchmarks.measure import Table
from tests.support.published import SHARED, read_chinchilla

RESAMPLES = 4000


def points() -> tuple[str, dict[str, np.ndarray], np.ndarray]:
    if (SHARED / "chinchilla_epoch").exists():
        return "Chinchilla", *read_chinchilla(dropped=5)
    rng = np.random.default_rng(0)
    at = {"N": np.exp(rng.uniform(17, 23, 240)), "D": np.exp(rng.uniform(20, 26, 240))}
    loss = LAWS["Hoffmann"](np.array([1.8, 480.0, 0.35, 2100.0, 0.37]), **at)[0]
    return "planted", at, loss * np.exp(0.005 * rng.normal(size=240))


def main() -> Table:
    whose, at, loss = points()
    rng, rows = np.random.default_rng(1), []
    for name in ("Hoffmann", "OverTraining", "Kaplan", "KaplanFloor"):
        law = LAWS[name]
        exponents = np.exp(rng.uniform(np.log(0.03), np.log(2.5), (200, len(law.exponents))))
        start = time.process_time()
        found = find_optimum(law, at, loss, exponents=exponents)
        fitted, wall = time.process_time(), time.perf_counter()
        fit_resamples(law, at, loss, found, rng.multinomial(len(loss), np.full(len(loss), 1 / len(loss)), RESAMPLES))
        rows.append(
            {
                "law": name,
                "points": whose,
                "200 starts, CPU s": fitted - start,
                "at the optimum, %": 100 * found.at_optimum,
                f"{RESAMPLES} resamples, CPU s": time.process_time() - fitted,
                "wall s": time.perf_counter() - wall,
            }
        )
    return Table(f"Fits of joint laws to {len(loss)} points: from random starts, and resampled.", rows)
