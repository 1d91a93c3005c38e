"""The time that the workflow itself takes: to plan, to find everything done, and over the sum of its stages."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

from tests.benchmarks.measure import ROOT, Table

RUN = [sys.executable, str(ROOT / "workflow" / "run.py")]
ROUNDS = 5


def main() -> Table:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        big = sweep(root / "sweep.yaml")
        rows = [
            {
                "what": "plan of a 10 x 10 sweep",
                **timed([*RUN, "plan", "--study", str(big), "--root", str(root / "big")]),
            },
            {"what": "--help", **timed([*RUN, "--help"])},
        ]
        smoke = [*RUN, "run", "--study", "smoke", "--root", str(root / "smoke")]
        began = time.perf_counter()
        subprocess.run(smoke, check=True, capture_output=True)
        wall = time.perf_counter() - began
        rows += [
            {"what": "smoke study, all stages", "median s": wall},
            {"what": "  of which the workflow", "median s": wall - busy(root / "smoke")},
            {"what": "smoke study again: nothing to do", **timed(smoke)},
            {"what": "status", **timed([*RUN, "status", "--study", "smoke", "--root", str(root / "smoke")])},
        ]
    return Table("Seconds of wall time that the workflow takes for itself", rows)


def timed(command: list[str]) -> dict[str, float]:
    seconds = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        seconds.append(time.perf_counter() - began)
    return {"median s": statistics.median(seconds), "min s": min(seconds), "max s": max(seconds)}


def busy(root: Path) -> float:
    """Seconds in which at least one stage was at work, from start to done in the events."""
    lines = [json.loads(line) for line in (root / "events.jsonl").read_text().splitlines()]
    total, running, since = 0.0, 0, 0.0
    for line in lines:
        if line["event"] == "start":
            since = line["time"] if not running else since
            running += 1
        elif line["event"] == "done":
            running -= 1
            total += line["time"] - since if not running else 0.0
    return total


def sweep(path: Path) -> Path:
    data = [{"name": "a", "dataset": "generated", "options": {"source": "bulk", "structures": 5000}}]
    over = {"model.width": list(range(8, 88, 8)), "structures": list(range(100, 1100, 100))}
    path.write_text(yaml.safe_dump({"title": "t", "data": data, "sweeps": [{"name": "s", "over": over}]}))
    return path
