"""What an audit says of real sets as they are, and with faults of forces, energies or stress planted in them."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np

from gnnscale.atoms.structure import Structure
from gnnscale.audit import measure
from gnnscale.audit.check_results import Coverage, Report
from gnnscale.audit.checks import label_agreement
from gnnscale.contract.dataset_card import Split
from gnnscale.contract.settings import AuditSettings
from gnnscale.data.storage import adios
from tests.benchmarks.measure import Table
from tests.support.real_labels import ENERGY_FAULTS, FORCE_FAULTS, SETS, STRESS_FAULTS, read_set

CUTOFF = 5.0
MOST = 600  # structures of a set
SUBSETS = 4  # random subsets, of which the share of false alarms is counted
COLUMNS = {f"forces {fault}": ("slope", change) for fault, change in FORCE_FAULTS.items()}
COLUMNS |= {f"energies {fault}": ("totals", change) for fault, change in ENERGY_FAULTS.items()}
COLUMNS |= {f"stress {fault}": ("stress", change) for fault, change in STRESS_FAULTS.items()}


def main() -> Table:
    rows = []
    for name in SETS:
        known = read_set(name, MOST)
        right = judge(known)
        row = {"set": name, "structures": len(known)} | {
            f"{check} as it is": verdict for check, verdict in right.items()
        }
        for column, (check, change) in COLUMNS.items():
            row[column] = "" if right[check] == "no" else judge([change(s) for s in known])[check]
        rows.append(row | {"false alarms": count_false_alarms(known)})
    return Table("Labels of real sets: in order, found, or no where they could not be checked", rows)


def judge(known: list[Structure]) -> dict[str, str]:
    """Return check -> in order, found, or no if it could not be made."""
    found = {}
    for report in check(known):
        if isinstance(report, Coverage):
            found[report.check] = "in order" if report.examined else "no"
        else:
            found[report.finding.check] = "found"
    return found


def check(known: list[Structure]) -> list[Report]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "shards"
        adios.write(path, known, Split(), CUTOFF)
        return list(label_agreement.check_agreement(measure.measure_source("one", path), AuditSettings()))


def count_false_alarms(known: list[Structure]) -> str:
    """Count the subsets of right labels in which an error or a warning is found."""
    rng, alarms = np.random.default_rng(0), 0
    for _ in range(SUBSETS):
        size = int(rng.integers(min(30, len(known)), min(200, len(known)) + 1))
        alarms += "found" in judge([known[k] for k in rng.choice(len(known), size, replace=False)]).values()
    return f"{alarms} of {SUBSETS}"
