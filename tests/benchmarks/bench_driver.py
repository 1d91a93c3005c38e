"""The CPU time and memory of a driver that follows 30 trainings on a private Slurm of this machine; as root."""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path

from tests.benchmarks.measure import Table
from tests.support.cluster import Cluster, Run, explain_missing, make_study, wait_until

SECONDS = 180.0
POLL_SECONDS = 30.0
STRUCTURES, SEEDS = [20, 22, 24], 10
TICK = os.sysconf("SC_CLK_TCK")


def main() -> Table:
    title = f"A driver of {len(STRUCTURES) * SEEDS} trainings on Slurm, poll_seconds: {POLL_SECONDS:.0f}"
    if why := explain_missing():
        return Table(f"{title}: {why}", [])
    with tempfile.TemporaryDirectory() as folder, Cluster(Path(folder) / "up", 2) as cluster:
        run = Run(cluster, Path(folder), make_long_study(), {"scheduler": {"poll_seconds": POLL_SECONDS}})
        driver = run.start("--until", "train")
        wait_until(lambda: len(run.submitted()) > len(STRUCTURES) * SEEDS, "all jobs")
        began, before = time.monotonic(), cpu_seconds(driver.pid)
        time.sleep(SECONDS)
        used, hours = cpu_seconds(driver.pid) - before, (time.monotonic() - began) / 3600
        rows = [
            {"what": "CPU seconds until all jobs are submitted", "value": before},
            {"what": "CPU seconds an hour afterwards", "value": used / hours},
            *({"what": name, "value": value} for name, value in memory(driver.pid).items()),
        ]
        run.stop()
        cluster.empty()
    return Table(title, rows)


def make_long_study() -> dict:
    """Return a study whose trainings outlast the measurement."""
    seeds = {"structures": STRUCTURES, "seed": list(range(SEEDS))}
    return make_study(40000) | {"sweeps": [{"name": "grid", "over": seeds}]}


def cpu_seconds(pid: int) -> float:
    """Return the CPU time of a process and of its ended children."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(int(each) for each in fields[11:15]) / TICK


def memory(pid: int) -> dict[str, float]:
    """Return what the kernel says about its memory and threads."""
    lines = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    megabytes = {"most memory, MB": "VmHWM", "address space, MB": "VmPeak"}
    found = {name: int(lines[field].split()[0]) * 1024 / 1e6 for name, field in megabytes.items()}
    return found | {"threads": float(lines["Threads"])}
