"""The stage `report`: everything that a study found, as report.html and figures/."""

from __future__ import annotations

from gnnscale import stage
from gnnscale.report import figures
from gnnscale.report.page import page
from gnnscale.report.study import read


def main(run: stage.Run) -> stage.Outputs:
    if not any(need.startswith("scaling/") for need in run.needs):
        raise stage.Refusal(f"{run.spec.id} needs the stage scaling, and was given {', '.join(run.needs) or 'nothing'}")
    study = read(run.needs, run.spec.settings)
    drawn = figures.draw(study)
    names = []
    for f in drawn:
        for name, content in ((f"figures/{f.name}.svg", f.svg), (f"figures/{f.name}.png", f.png)):
            run.write(name, content)
            names.append(name)
    run.write("report.html", page(study, drawn))
    print(f"{run.directory / 'report.html'}: {len(study.points)} runs, {len(drawn)} figures", flush=True)
    return stage.Outputs(files=["report.html", *names], values={"runs": len(study.points), "figures": len(drawn)})


if __name__ == "__main__":
    stage.run(main)
