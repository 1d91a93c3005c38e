"""python -m gnnscale.stages.fit_csv POINTS.csv: the law of anyone's points, as fit.json, a figure and a page; or, where columns
tell models, depths or epochs apart, the laws and answers of a study, the same that its own stages give."""

from __future__ import annotations

import argparse
import math
import sys
from html import escape
from pathlib import Path

import numpy as np

from gnnscale.contract import files
from gnnscale.contract.scaling_results import Fit, LawFit, Point
from gnnscale.contract.settings import ReportSettings, ScalingSettings
from gnnscale.report.figures import study_figures as figures
from gnnscale.report.figures.series import si
from gnnscale.report.figures.style import (
    FAINT,
    INK,
    OKABE_ITO,
    STYLE,
    Drawn,
    Figure,
    close,
    label_ends,
    logarithmic,
    matplotlib,
    panels,
    rendered,
    sequence,
)
from gnnscale.report.html import document, section, table
from gnnscale.report.study_page import bullets, figure, prose
from gnnscale.report.study_page import page as study_page
from gnnscale.report.study_results import Study
from gnnscale.report.three_questions import answers, compared
from gnnscale.scaling import csv_points
from gnnscale.scaling.analysis import fit
from gnnscale.scaling.fitting.laws import LAWS
from gnnscale.scaling.words import greek, percent, shown

LINES = 6  # curves of constant N that can be told apart


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="python -m gnnscale.stages.fit_csv",
        description="Fit a scaling law to the points of a CSV file.",
        epilog=f"Laws: {', '.join(LAWS)}. Without --x, --y, --unique and --loss, columns are found by their usual names. A file "
        f"with a column {', '.join(csv_points.STUDIED[:-1])} or {csv_points.STUDIED[-1]} is read as a study, unless --law is given.",
    )
    made.add_argument("points", type=Path)
    made.add_argument("--law", help="default: Hoffmann")
    made.add_argument("--x", metavar="COLUMN", help="size of the model, N")
    made.add_argument("--y", metavar="COLUMN", help="size of the data, D; with --unique, of what was seen")
    made.add_argument("--unique", metavar="COLUMN", help="unique data, U (DataConstrained)")
    made.add_argument("--loss", metavar="COLUMN")
    made.add_argument("--flops", metavar="COLUMN", help="instead of --y: compute C, where D = C/(6 N)")
    made.add_argument("--drop-highest", type=int, default=0, metavar="K", help="leave out the K largest losses")
    made.add_argument("--bootstrap", type=int, default=1000, metavar="B", help="resamples for the intervals; 1000")
    made.add_argument("--confidence", type=float, default=0.95, metavar="P", help="of the intervals; 0.95")
    made.add_argument("--seed", type=int, default=0)
    made.add_argument("--out", type=Path, default=Path("laws"), metavar="DIR", help="where to write; laws")
    return made


def main(argv: list[str]) -> int:
    asked = parser().parse_args(argv)
    try:
        law = csv_points.law_named(asked.law or "Hoffmann")
        for name, good in (
            ("bootstrap", asked.bootstrap >= 0),
            ("confidence", 0 < asked.confidence < 1),
            ("drop-highest", asked.drop_highest >= 0),
            ("seed", asked.seed >= 0),
        ):
            if not good:
                raise csv_points.Wrong(
                    f"--{name}: found {getattr(asked, name.replace('-', '_'))}, which is out of range"
                )
        settings = ScalingSettings(
            bootstrap=asked.bootstrap, confidence=asked.confidence, seed=asked.seed, drop_highest=asked.drop_highest
        )
        named = {"N": asked.x, "D": asked.y, "U": asked.unique, "loss": asked.loss}
        if not (asked.law or asked.flops or asked.unique) and (rows := csv_points.study_points(asked.points, named)):
            return studied(asked.points, rows, settings, asked.out)
        points = csv_points.read(asked.points, named, asked.flops, law.axes, asked.drop_highest)
        found = csv_points.fit(points, law, settings)
        drawn = draw(points, found)
        for suffix, content in (("svg", drawn.svg), ("png", drawn.png)):
            files.write(asked.out / f"{drawn.name}.{suffix}", content)
        files.write(asked.out / "report.html", page(points, found, drawn))
        files.write_model(asked.out / "fit.json", found)
    except csv_points.Wrong as wrong:
        print(f"gnnscale.stages.fit_csv: {wrong}", file=sys.stderr)
        return 2
    except OSError as error:
        print(
            f"gnnscale.stages.fit_csv: {error.filename or asked.out}: {(error.strerror or str(error)).lower()}",
            file=sys.stderr,
        )
        return 2
    print("\n".join([*found.findings, *(f"Not supported: {s}" for s in found.unsupported), f"{asked.out}/report.html"]))
    return 0


def studied(path: Path, points: list[Point], settings: ScalingSettings, out: Path) -> int:
    """What the stages `scaling` and `report` make of these points; of trainings and data there is nothing to tell."""
    targets = tuple(t for t in settings.targets if any(math.isfinite(getattr(p, t)) for p in points))
    if not targets:
        raise csv_points.Wrong(f"{path}: no row has a loss that is a number")
    found = fit(points, settings.model_copy(update={"targets": targets}))
    about = ReportSettings(title=path.name, study=path.stem)
    study = Study(about, points, found, evaluations={}, metrics={}, cards={}, results={}, runtimes={})
    drawings = figures.draw(study)
    for drawn in drawings:
        for suffix, content in (("svg", drawn.svg), ("png", drawn.png)):
            files.write(out / "figures" / f"{drawn.name}.{suffix}", content)
    files.write(out / "report.html", study_page(study, drawings))
    files.write_model(out / "fit.json", found)
    for a in answers(study):
        print(f"{a.question}\n  {a.answer}")
        print(
            "".join(f"  - {text}\n" for text in a.evidence)
            + "".join(f"  - Not supported: {text}\n" for text in a.unsupported)
        )
    print("\n".join([*found.findings, *(f"Not supported: {text}" for text in found.unsupported), f"{out}/report.html"]))
    return 0


# --------------------------------------------------------------------------------------------------------------- figure
def draw(points: csv_points.Table, found: Fit) -> Drawn:
    with matplotlib.rc_context(STYLE):
        made, caption = curves(points, found.laws[0], found.confidence)
        drawn = Drawn("law", caption, True, *rendered(made))
        close(made)
    return drawn


def curves(points: csv_points.Table, law: LawFit, confidence: float) -> tuple[Figure, str]:
    """Loss along the last size of the law, one curve a value of the first; and what is left over."""
    form = LAWS[law.law]
    values = np.array([[law.estimates[name].value for name in form.parameters]])
    replicas = np.array(law.replicas) if law.replicas else values
    along = "N" if form.axes == "N" else "D"
    made, (left, right) = panels(2, height=2.9)
    fine = np.geomspace(points.at[along].min(), points.at[along].max(), 80)
    if len(form.axes) == 1:
        left.plot(points.at[along], points.loss, "o", color=OKABE_ITO[0], zorder=3)
        shown_at = [({along: fine}, INK, "")]
    else:
        logs = np.log(points.at["N"])
        low, high = logs.min(), logs.max()
        colours = matplotlib.colormaps["viridis"](0.82 - 0.77 * (logs - low) / max(high - low, 1e-9))
        left.scatter(points.at[along], points.loss, s=14, c=colours, zorder=3, linewidths=0)
        sizes = np.unique(points.at["N"])
        sizes = sizes if len(sizes) <= LINES else np.geomspace(sizes[0], sizes[-1], LINES)
        shown_at = []
        for n, colour in zip(sizes, sequence(len(sizes))):
            at = {"N": np.full(80, n), "D": fine}
            if "U" in form.axes:
                at["U"] = np.minimum(fine, np.median(points.at["U"]))
            shown_at.append((at, colour, f"N = {si(float(n), 2)}"))
    ends = []
    logarithmic(left, xs=points.at[along])
    for at, colour, label in shown_at:
        line = form(values, **at)[0]
        left.plot(fine, line, color=colour, linewidth=1.1)
        if len(replicas) > 1:
            band = np.quantile(form(replicas, **at), [(1 - confidence) / 2, (1 + confidence) / 2], axis=0)
            left.fill_between(fine, *band, color=colour, alpha=0.18, linewidth=0)
        ends.append((fine[-1], line[-1], label, colour))
    logarithmic(left, xs=points.at[along])
    label_ends(left, ends)
    residual = 100 * (points.loss / form(values, **points.at)[0] - 1)
    right.axhline(0, color=FAINT, linewidth=0.8)
    right.plot(points.at[along], residual, "o", color=OKABE_ITO[0], markersize=3)
    right.set_xscale("log")
    left.set_title("Loss")
    right.set_title("Loss over the law, in %")
    for ax in (left, right):
        ax.set_xlabel(f"{along}: {points.columns.get(along, 'C/(6 N)')}".replace("$", r"\$"))
    unique = " at the median of unique data" if "U" in form.axes else ""
    return made, (
        f"Points and the law L = {greek(law.formula)}{unique}; bands: {percent(confidence)} of its resamples. "
        "Right: how far each point lies from it."
    )


# ----------------------------------------------------------------------------------------------------------------- page
def page(points: csv_points.Table, found: Fit, drawn: Drawn) -> str:
    law = found.laws[0]
    title = f"{law.law}: {points.path.name}"
    body = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="lead">{prose(found.findings[0])}</p>',
        section("What the points say", bullets(found.findings[1:])),
        section(
            "What they do not support",
            f'<div class="limits">{bullets(found.unsupported)}</div>' * bool(found.unsupported),
        ),
        section("Figure", figure(drawn).replace("<code>figures/", "<code>")),
        section(
            "Parameters", table(["parameter", "value and interval"], [[n, shown(e)] for n, e in law.estimates.items()])
        ),
        section("Laws compared", compared(found.laws)),
        section(
            "Points left out", table(["line", "rule"], [[line, why] for line, why in law.excluded.items()], None, 2)
        ),
    ]
    return document(title, body)
