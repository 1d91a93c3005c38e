"""The measurements of all benchmarks: candidates in turn within one process, medians, ratios with their range, peak bytes."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[2]
RESULTS = Path(__file__).parent / "results"
MALLOC = {  # as sites/local.yaml: fresh pages cost eager PyTorch a fifth of its time, of all candidates alike
    "MALLOC_MMAP_THRESHOLD_": "1073741824",
    "MALLOC_TRIM_THRESHOLD_": "1073741824",
    "MALLOC_TOP_PAD_": "268435456",
    "OMP_NUM_THREADS": "1",
}


class Table(NamedTuple):
    """A table as `main()` of every bench_*.py returns it: one sentence, and rows with the same keys."""

    title: str
    rows: list[dict[str, Any]]

    def __str__(self) -> str:
        keys = list(dict.fromkeys(key for row in self.rows for key in row))
        lines = [keys, *([_text(row.get(key)) for key in keys] for row in self.rows)]
        widths = [max(len(line[k]) for line in lines) for k in range(len(keys))]
        body = ("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in lines)
        return "\n".join([self.title, *body])


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"
    return "" if value is None else str(value)


class Spread(NamedTuple):
    median: float
    low: float
    high: float


class Timing(NamedTuple):
    seconds: Spread
    ratio: Spread  # to the first candidate, round by round


def in_turn(candidates: Mapping[str, Callable[[], Any]], rounds: int = 5) -> dict[str, Timing]:
    """CPU seconds of each; the first is the baseline. The machine may be shared, so never compare across calls."""
    for run in candidates.values():
        run()
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(rounds):
        for name, run in candidates.items():
            start = time.process_time()
            run()
            seconds[name].append(time.process_time() - start)
    base = next(iter(seconds.values()))
    return {
        name: Timing(_spread(times), _spread([t / b for t, b in zip(times, base, strict=True)]))
        for name, times in seconds.items()
    }


def _spread(values: list[float]) -> Spread:
    return Spread(statistics.median(values), min(values), max(values))


def with_tuned_allocator() -> None:
    """Start this program again if its environment lacks MALLOC."""
    if any(os.environ.get(key) != value for key, value in MALLOC.items()):
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, **MALLOC})


def save(name: str, table: Table) -> Path:
    RESULTS.mkdir(exist_ok=True)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    changed = subprocess.run(["git", "status", "--porcelain", "gnnscale"], cwd=ROOT, capture_output=True, text=True)
    record = {
        "title": table.title,
        "date": date.today().isoformat(),
        "commit": commit.stdout.strip() + ("+" if changed.stdout.strip() else ""),
        "machine": {"processor": _processor(), "cores": os.cpu_count(), "system": platform.system()},
        "versions": {"python": platform.python_version()} | {p: version(p) for p in ("torch", "numpy")},
        "rows": table.rows,
    }
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(record, indent=1) + "\n")
    return path


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())
