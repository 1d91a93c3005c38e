"""The stage `scaling`: errors.json of every evaluation -> points.csv and fit.json. Given a table, the law of its points."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

from gnnscale import files, stage
from gnnscale.scaling import points as rows
from gnnscale.scaling.fit import fit
from gnnscale.specs import Evaluation


def main(run: stage.Run) -> stage.Outputs:
    evaluations = [path for need, path in run.needs.items() if need.startswith("evaluate/")]
    if not evaluations:
        raise stage.Refusal(
            f"{run.spec.id} needs no evaluation, so there is nothing to fit", "add runs to the study's sweep"
        )
    points = [rows.point(files.read_model(path / "errors.json", Evaluation)) for path in evaluations]
    points.sort(key=lambda p: p.run)
    print(f"fitting {len(points)} runs; points.csv and fit.json go to {run.directory}", flush=True)
    found = fit(points, run.spec.settings)
    run.write("points.csv", rows.table(points))
    run.write("fit.json", found.model_dump_json(indent=1) + "\n")
    values = {"points": len(points), "diverged": sum(p.diverged for p in points)}
    law = next((law for law in found.laws if law.chosen and law.target == "loss"), None)
    if law:
        values |= {"law": law.formula} | {name: e.value for name, e in law.estimates.items()}
    return stage.Outputs(files=["points.csv", "fit.json"], values=values)


if __name__ == "__main__":
    if len(sys.argv) == 2 and Path(sys.argv[1]).is_dir():
        stage.run(main)
    # by name: the stage's result does not depend on it
    sys.exit(importlib.import_module("gnnscale.report.given").main(sys.argv[1:]))
