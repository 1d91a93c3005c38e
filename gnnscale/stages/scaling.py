"""The stage `scaling`: the points of all evaluations, and the laws fitted to them, as points.csv and fit.json."""

from __future__ import annotations

from gnnscale.contract import errors, files, stage_run
from gnnscale.contract.results import Evaluation
from gnnscale.contract.settings import Scalar, ScalingSettings
from gnnscale.job import stage_process
from gnnscale.scaling.analysis import fit_study
from gnnscale.scaling.points import to_csv, to_point


def main(run: stage_run.Run) -> stage_run.Outputs:
    evaluations = [path for need, path in run.needs.items() if need.startswith("evaluate/")]
    if not evaluations:
        raise errors.UserError(
            f"{run.spec.id} needs no evaluation, so there is nothing to fit", "add runs to the study's sweep"
        )
    points = [to_point(files.read_model(path / "errors.json", Evaluation)) for path in evaluations]
    points.sort(key=lambda p: p.run)
    print(f"fitting {len(points)} runs; points.csv and fit.json go to {run.directory}", flush=True)
    result = fit_study(points, run.require_settings(ScalingSettings))
    run.write("points.csv", to_csv(points))
    run.write("fit.json", result.model_dump_json(indent=1) + "\n")
    values: dict[str, Scalar] = {"points": len(points), "diverged": sum(p.diverged for p in points)}
    law = next((law for law in result.laws if law.chosen and law.target == "loss"), None)
    if law:
        values |= {"law": law.formula} | {name: e.value for name, e in law.estimates.items()}
    return stage_run.Outputs(files=["points.csv", "fit.json"], values=values)


if __name__ == "__main__":
    stage_process.run(main)
