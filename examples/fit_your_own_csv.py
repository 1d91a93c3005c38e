"""Fit a scaling law to your own CSV file and ask it for a size that you have not trained.

python examples/fit_your_own_csv.py [runs.csv]      columns: parameters, structures (or tokens), loss

`gnnscale fit runs.csv` does the same and writes a page with a figure.
"""

import sys
from pathlib import Path

import numpy as np

from gnnscale.contract.settings import ScalingSettings
from gnnscale.scaling.csv_points import read_csv_points
from gnnscale.scaling.fitting.laws import LAWS
from gnnscale.scaling.single_law import fit_single_law

path = Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).with_name("runs.csv"))
law = LAWS["Hoffmann"]  # L = E + A/N^alpha + B/D^beta

# Columns are found by their usual names; a dict such as {"N": "size", "loss": "val_loss"} names others.
points = read_csv_points(path, {}, None, law.axes, 0)
result = fit_single_law(points, law, ScalingSettings(bootstrap=200))

print(*result.findings, sep="\n")
for sentence in result.unsupported:
    print("Not supported:", sentence)

# The law at twice the largest model and twice the largest data, with the interval of its resamples.
chosen = result.laws[0]
values = np.array([[chosen.estimates[name].value for name in law.parameters]])
at = {"N": np.array([2 * points.at["N"].max()]), "D": np.array([2 * points.at["D"].max()])}
line = f"N = {at['N'][0]:,.0f}, D = {at['D'][0]:,.0f}: loss {law(values, **at)[0, 0]:.4g}"
if chosen.replicas:
    low, high = np.quantile(law(np.array(chosen.replicas), **at)[:, 0], [0.025, 0.975])
    line += f" [{low:.4g}, {high:.4g}]"
print(line)
