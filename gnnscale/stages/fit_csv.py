"""Fit the scaling law of points in any CSV file: `gnnscale fit POINTS.csv` writes fit.json, a figure and a page.

Where columns tell models, depths or epochs apart, the result is what a study's own stages make: its laws and answers.
"""

from __future__ import annotations

import argparse
import math
import sys
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from gnnscale.contract import files
from gnnscale.contract.command_name import command_name
from gnnscale.contract.errors import UserError, print_error
from gnnscale.contract.exit_codes import DONE, USAGE
from gnnscale.contract.scaling_results import Fit, LawFit, Point
from gnnscale.contract.settings import ReportSettings, ScalingSettings
from gnnscale.report.figures.series import format_si
from gnnscale.report.figures.study_figures import draw_figures
from gnnscale.report.figures.style import (
    FAINT_COLOUR,
    INK_COLOUR,
    MATPLOTLIB_STYLE,
    OKABE_ITO,
    Axes,
    DrawnFigure,
    Figure,
    close_figure,
    export_figure,
    label_ends,
    make_panels,
    matplotlib,
    sequential_colours,
    set_logarithmic,
)
from gnnscale.report.html import render_document, render_prose, render_section, render_table
from gnnscale.report.law_tables import render_law_comparison
from gnnscale.report.study_page import render_bullets, render_figure, render_study_page
from gnnscale.report.study_results import StudyResults
from gnnscale.report.three_questions import answer_questions
from gnnscale.scaling.analysis import fit_study
from gnnscale.scaling.csv_points import STUDY_MARKERS, CsvPoints, read_csv_points, read_study_points
from gnnscale.scaling.fitting.laws import LAWS
from gnnscale.scaling.single_law import find_law, fit_single_law
from gnnscale.scaling.words import format_estimate, format_percent, with_greek_letters

MAX_CURVES = 6  # of constant N, which a reader can still distinguish


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"{command_name()} fit",
        description="Fit a scaling law to the points of a CSV file.",
        epilog=f"Laws: {', '.join(LAWS)}. Without --x, --y, --unique and --loss, columns are found by their usual names. "
        f"A file with a column {', '.join(STUDY_MARKERS[:-1])} or {STUDY_MARKERS[-1]} is read as a study, "
        "unless --law is given.",
    )
    parser.add_argument("points", type=Path)
    parser.add_argument("--law", help="which law to fit [Hoffmann]")
    parser.add_argument("--x", metavar="COLUMN", help="size of the model, N")
    parser.add_argument("--y", metavar="COLUMN", help="size of the data, D; with --unique, of the data seen")
    parser.add_argument("--unique", metavar="COLUMN", help="unique data, U (DataConstrained)")
    parser.add_argument("--loss", metavar="COLUMN")
    parser.add_argument("--flops", metavar="COLUMN", help="in place of --y: compute C, from which D = C/(6 N)")
    parser.add_argument("--drop-highest", type=int, default=0, metavar="K", help="leave out the K largest losses")
    parser.add_argument("--bootstrap", type=int, default=1000, metavar="B", help="resamples for the intervals [1000]")
    parser.add_argument("--confidence", type=float, default=0.95, metavar="P", help="of the intervals [0.95]")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("laws"), metavar="DIR", help="where to write [laws]")
    return parser


def main(argv: list[str]) -> int:
    options = build_parser().parse_args(argv)
    try:
        return fit_file(options)
    except (UserError, OSError) as error:
        print_error(error, "gnnscale fit")
        return USAGE


def fit_file(options: argparse.Namespace) -> int:
    """Fit the points of a file: as a study if its columns allow it and no law is asked for, otherwise to one law."""
    law, settings = find_law(options.law or "Hoffmann"), read_settings(options)
    named_columns = {"N": options.x, "D": options.y, "U": options.unique, "loss": options.loss}
    if not (options.law or options.flops or options.unique):
        study_points = read_study_points(options.points, named_columns)
        if study_points:
            return fit_as_study(options.points, study_points, settings, options.out)
    points = read_csv_points(options.points, named_columns, options.flops, law.axes, options.drop_highest)
    result = fit_single_law(points, law, settings)
    drawn = draw_law(points, result)
    write_figure(options.out, drawn)
    files.write(options.out / "report.html", render_page(points, result, drawn))
    files.write_model(options.out / "fit.json", result)
    print_findings(result, options.out)
    return DONE


def read_settings(options: argparse.Namespace) -> ScalingSettings:
    for name, value, is_valid in (
        ("bootstrap", options.bootstrap, options.bootstrap >= 0),
        ("confidence", options.confidence, 0 < options.confidence < 1),
        ("drop-highest", options.drop_highest, options.drop_highest >= 0),
        ("seed", options.seed, options.seed >= 0),
    ):
        if not is_valid:
            raise UserError(f"--{name}: found {value}, which is out of range")
    return ScalingSettings(
        bootstrap=options.bootstrap,
        confidence=options.confidence,
        seed=options.seed,
        drop_highest=options.drop_highest,
    )


def write_figure(folder: Path, drawn: DrawnFigure) -> None:
    files.write(folder / f"{drawn.name}.svg", drawn.svg)
    files.write(folder / f"{drawn.name}.png", drawn.png)


def print_findings(result: Fit, out: Path) -> None:
    unsupported = (f"Not supported: {sentence}" for sentence in result.unsupported)
    print("\n".join([*result.findings, *unsupported, f"{out}/report.html"]))


def fit_as_study(path: Path, points: list[Point], settings: ScalingSettings, out: Path) -> int:
    """Fit and report the points as the stages `scaling` and `report` do, without facts about trainings and data."""
    targets = tuple(t for t in settings.targets if any(math.isfinite(getattr(p, t)) for p in points))
    if not targets:
        raise UserError(f"{path}: no row has a loss that is a number")
    result = fit_study(points, settings.model_copy(update={"targets": targets}))
    about = ReportSettings(title=path.name, study=path.stem)
    study = StudyResults(about, points, result, evaluations={}, metrics={}, cards={}, results={}, runtimes={})
    drawings = draw_figures(study)
    for drawn in drawings:
        write_figure(out / "figures", drawn)
    files.write(out / "report.html", render_study_page(study, drawings))
    files.write_model(out / "fit.json", result)
    for a in answer_questions(study):
        print(f"{a.question}\n  {a.answer}")
        print(
            "".join(f"  - {text}\n" for text in a.evidence)
            + "".join(f"  - Not supported: {text}\n" for text in a.unsupported)
        )
    print_findings(result, out)
    return DONE


# --------------------------------------------------------------------------------------------------------------- figure
def draw_law(points: CsvPoints, result: Fit) -> DrawnFigure:
    with matplotlib.rc_context(MATPLOTLIB_STYLE):
        figure, caption = draw_curves(points, result.laws[0], result.confidence)
        drawn = DrawnFigure("law", caption, True, *export_figure(figure))
        close_figure(figure)
    return drawn


class Curve(NamedTuple):
    """One curve of a law: sizes by axis, and how it is drawn."""

    at: dict[str, np.ndarray]
    colour: Any  # whatever Matplotlib takes for a colour
    label: str


def draw_curves(points: CsvPoints, law: LawFit, confidence: float) -> tuple[Figure, str]:
    """Draw the loss along the last size of the law, one curve for each value of the first, and the residuals."""
    form = LAWS[law.law]
    values = np.array([[law.estimates[name].value for name in form.parameters]])
    replicas = np.array(law.replicas) if law.replicas else values
    along = "N" if form.axes == "N" else "D"
    figure, (left, right) = make_panels(2, height=2.9)
    fine = np.geomspace(points.at[along].min(), points.at[along].max(), 80)
    if len(form.axes) == 1:
        left.plot(points.at[along], points.loss, "o", color=OKABE_ITO[0], zorder=3)
    else:
        left.scatter(points.at[along], points.loss, s=14, c=colour_by_size(points.at["N"]), zorder=3, linewidths=0)
    set_logarithmic(left, xs=points.at[along])
    ends = []
    for curve in choose_curves(points, form.axes, along, fine):
        line = form(values, **curve.at)[0]
        left.plot(fine, line, color=curve.colour, linewidth=1.1)
        if len(replicas) > 1:
            band = np.quantile(form(replicas, **curve.at), [(1 - confidence) / 2, (1 + confidence) / 2], axis=0)
            left.fill_between(fine, *band, color=curve.colour, alpha=0.18, linewidth=0)
        ends.append((float(fine[-1]), float(line[-1]), curve.label, curve.colour))
    set_logarithmic(left, xs=points.at[along])
    label_ends(left, ends)
    left.set_title("Loss")
    draw_residuals(right, points.at[along], 100 * (points.loss / form(values, **points.at)[0] - 1))
    for ax in (left, right):
        ax.set_xlabel(f"{along}: {points.columns.get(along, 'C/(6 N)')}".replace("$", r"\$"))
    unique = " at the median of unique data" if "U" in form.axes else ""
    return figure, (
        f"Points and the law L = {with_greek_letters(law.formula)}{unique}; bands: {format_percent(confidence)} of its "
        "resamples. "
        "Right: the distance of each point from the law."
    )


def colour_by_size(sizes: np.ndarray) -> np.ndarray:
    logs = np.log(sizes)
    span = max(logs.max() - logs.min(), 1e-9)
    return np.asarray(matplotlib.colormaps["viridis"](0.82 - 0.77 * (logs - logs.min()) / span))


def choose_curves(points: CsvPoints, axes: str, along: str, fine: np.ndarray) -> list[Curve]:
    """Return the curves to draw: one, or one for each of at most MAX_CURVES sizes of the model."""
    if len(axes) == 1:
        return [Curve({along: fine}, INK_COLOUR, "")]
    sizes = np.unique(points.at["N"])
    sizes = sizes if len(sizes) <= MAX_CURVES else np.geomspace(sizes[0], sizes[-1], MAX_CURVES)
    curves = []
    for size, colour in zip(sizes, sequential_colours(len(sizes))):
        at = {"N": np.full(len(fine), size), "D": fine}
        if "U" in axes:
            at["U"] = np.minimum(fine, np.median(points.at["U"]))
        curves.append(Curve(at, colour, f"N = {format_si(float(size), 2)}"))
    return curves


def draw_residuals(ax: Axes, sizes: np.ndarray, residuals: np.ndarray) -> None:
    ax.axhline(0, color=FAINT_COLOUR, linewidth=0.8)
    ax.plot(sizes, residuals, "o", color=OKABE_ITO[0], markersize=3)
    ax.set_xscale("log")
    ax.set_title("Loss over the law, in %")


# ----------------------------------------------------------------------------------------------------------------- page
def render_page(points: CsvPoints, result: Fit, drawn: DrawnFigure) -> str:
    law = result.laws[0]
    title = f"{law.law}: {points.path.name}"
    body = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="lead">{render_prose(result.findings[0])}</p>',
        render_section("What the points show", render_bullets(result.findings[1:])),
        render_section(
            "What they do not support",
            f'<div class="limits">{render_bullets(result.unsupported)}</div>' * bool(result.unsupported),
        ),
        render_section("Figure", render_figure(drawn).replace("<code>figures/", "<code>")),
        render_section(
            "Parameters",
            render_table(
                ["parameter", "value and interval"], [[n, format_estimate(e)] for n, e in law.estimates.items()]
            ),
        ),
        render_section("Laws compared", render_law_comparison(result.laws)),
        render_section(
            "Points left out",
            render_table(["line", "rule"], [[line, why] for line, why in law.excluded.items()], None, 2),
        ),
    ]
    return render_document(title, body)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
