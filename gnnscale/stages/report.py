"""The stage `report`: the findings of a study as report.html and figures/."""

from __future__ import annotations

from gnnscale.contract import errors, stage_run
from gnnscale.contract.settings import ReportSettings
from gnnscale.job import stage_process
from gnnscale.report.beside_published import list_rows, write_rows
from gnnscale.report.figures.study_figures import draw_figures
from gnnscale.report.study_page import render_study_page
from gnnscale.report.study_results import read_study


def main(run: stage_run.Run) -> stage_run.Outputs:
    if not any(need.startswith("scaling/") for need in run.needs):
        raise errors.UserError(
            f"{run.spec.id} needs the stage scaling, and was given {', '.join(run.needs) or 'nothing'}"
        )
    study = read_study(run.needs, run.require_settings(ReportSettings))
    drawn = draw_figures(study)
    names = []
    for f in drawn:
        for name, content in ((f"figures/{f.name}.svg", f.svg), (f"figures/{f.name}.png", f.png)):
            run.write(name, content)
            names.append(name)
    if rows := list_rows(study):
        run.write("beside_published.csv", write_rows(rows))
        names.append("beside_published.csv")
    run.write("report.html", render_study_page(study, drawn))
    print(f"{run.directory / 'report.html'}: {len(study.points)} runs, {len(drawn)} figures", flush=True)
    return stage_run.Outputs(files=["report.html", *names], values={"runs": len(study.points), "figures": len(drawn)})


if __name__ == "__main__":
    stage_process.run(main)
