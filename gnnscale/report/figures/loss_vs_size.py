"""Figures of errors against data and model size, with the selected law."""

from __future__ import annotations

import numpy as np

from gnnscale.contract.scaling_results import LawFit
from gnnscale.report.figures.series import (
    format_si,
    format_size,
    in_figure_unit,
    is_accurate,
    predict_target,
    tabulate_grid,
)
from gnnscale.report.figures.style import (
    AXIS_LABELS,
    INK_COLOUR,
    Axes,
    ColorType,
    Figure,
    label_ends,
    make_panels,
    matplotlib,
    sequential_colours,
    set_logarithmic,
    set_title,
)
from gnnscale.report.study_results import TARGETS, StudyResults
from gnnscale.scaling.fitting.laws import LAWS
from gnnscale.scaling.words import TARGET_NAMES, format_percent, with_greek_letters


def draw_loss_curves(study: StudyResults, along: str, across: str) -> tuple[Figure, str] | None:
    """Draw each target against D for each N, or against N for each D, with the selected law."""
    grid = study.grid_points()
    if len({getattr(p, along) for p in grid}) < 2:
        return None
    figure, axes = make_panels(len(study.targets()))
    groups = sorted({getattr(p, across) for p in grid})
    colours = sequential_colours(len(groups))
    for ax, target in zip(axes, study.targets()):
        law, ends = study.chosen_law(target), []
        alike = law is not None and AXIS_LABELS[across][-1] not in LAWS[law.law].axes  # all lines share one law
        for value, colour in zip(groups, colours):
            x, y = draw_measured_line(ax, study, target, along, across, value, colour, joined=not is_accurate(law))
            fine = np.geomspace(min(getattr(p, along) for p in grid), max(getattr(p, along) for p in grid), 60)
            ink = INK_COLOUR if alike else colour
            end = draw_law(ax, law, target, {along: fine, across: np.full(60, float(value))}, ink)
            ends.append((x, end if end is not None and is_accurate(law) else y, format_size(across, value), colour))
        set_logarithmic(ax, xs=[getattr(p, along) for p in grid], exact=along == "structures")
        ax.set_xlabel(AXIS_LABELS[along])
        set_title(ax, target)
        label_ends(ax, ends)
    what = (
        "data, one line for each model size N" if along == "structures" else "model size, one line for each data size D"
    )
    seeds = (
        " Large markers: geometric mean over seeds; small markers: each seed."
        if len({p.seed for p in study.grid_runs()}) > 1
        else ""
    )
    return figure, f"Held-out error against {what}.{seeds} {describe_laws(study)}"


def draw_measured_line(
    ax: Axes,
    study: StudyResults,
    target: str,
    along: str,
    across: str,
    value: float,
    colour: ColorType,
    joined: bool,
) -> tuple[float, float]:
    """Draw the runs of one size, with lines if no accurate law guides the eye; return the last point."""
    members = sorted((p for p in study.grid_points() if getattr(p, across) == value), key=lambda p: getattr(p, along))
    xs, ys = [getattr(p, along) for p in members], [in_figure_unit(p, target) for p in members]
    others = [p for p in study.grid_runs() if getattr(p, across) == value]  # of all seeds
    if len(others) > len(members):
        each = [getattr(p, along) for p in others], [in_figure_unit(p, target) for p in others]
        ax.plot(*each, ".", color=colour, markersize=3, alpha=0.6)
    style = "o-" if joined else "o"
    ax.plot(xs, ys, style, color=colour, linewidth=1, zorder=3, markeredgecolor="white", markeredgewidth=0.4)
    return xs[-1], ys[-1]


def draw_surface(study: StudyResults) -> tuple[Figure, str] | None:
    """Draw the measured grid as a coloured table, with the deviation of each run from the selected law."""
    grid = study.grid_points()
    models, sizes, _ = tabulate_grid(grid, "loss")
    if len(models) < 2 or len(sizes) < 2 or len(models) * len(sizes) > 2 * len(grid) or len(models) > 8:
        return None
    figure, axes = make_panels(len(study.targets()), height=2.6)
    laws = [study.chosen_law(t) for t in study.targets()]
    for ax, target, law in zip(axes, study.targets(), laws):
        values = tabulate_grid(grid, target)[2]
        norm = matplotlib.colors.LogNorm(np.nanmin(values), np.nanmax(values))
        ax.pcolormesh(range(len(models)), range(len(sizes)), values, cmap="viridis_r", norm=norm)
        for i, j in np.argwhere(np.isfinite(values)):
            text = f"{values[i, j]:.3g}"
            if law:
                here = TARGETS[target][2] * predict_target(law, np.array([models[j]]), np.array([sizes[i]]))[0, 0]
                text += f"\n{round(100 * (values[i, j] / here - 1)):+d} %".replace("+0", "0")
            dark = norm(values[i, j]) > 0.45
            ax.text(
                j,
                i,
                text,
                ha="center",
                va="center",
                fontsize=6.5,
                color="white" if dark else INK_COLOUR,
                linespacing=1.3,
            )
        ax.set_xticks(range(len(models)), [format_si(v, 2) for v in models])
        ax.set_yticks(range(len(sizes)), [format_si(v) for v in sizes])
        ax.tick_params(length=0)
        ax.spines[:].set_visible(False)
        ax.set_xlabel(AXIS_LABELS["body_parameters"])
        set_title(ax, target)
    axes[0].set_ylabel(AXIS_LABELS["structures"])
    below = " Below each value: its deviation from the law of the other figures." if any(laws) else ""
    return figure, f"The measured grid; dark colours are large values.{below}"


def draw_law(ax: Axes, law: LawFit | None, target: str, at: dict[str, np.ndarray], colour: ColorType) -> float | None:
    """Draw the selected law along one line of the grid, with a bootstrap band if it is accurate; return its last value."""
    if law is None:
        return None
    n, d, factor = at["body_parameters"], at["structures"], TARGETS[target][2]
    x = n if n[0] != n[-1] else d
    line = factor * predict_target(law, n, d)[0]
    ax.plot(x, line, color=colour, linestyle="-" if is_accurate(law) else (0, (4, 2)), linewidth=1.1, zorder=2)
    if law.replicas and is_accurate(law):
        band = factor * np.quantile(LAWS[law.law](np.array(law.replicas), N=n, D=d), [0.025, 0.975], axis=0)
        ax.fill_between(x, *band, color=colour, alpha=0.18, linewidth=0)
    return float(line[-1])


def describe_laws(study: StudyResults) -> str:
    laws = [law for law in (study.chosen_law(t) for t in study.targets()) if law]
    if not laws:
        return "The runs do not determine a law; lines join the runs."
    each = [
        f"{with_greek_letters(law.formula)} for {TARGET_NAMES[law.target]} (rms residual {format_percent(law.log_rms)})"
        for law in laws
    ]
    text = f"Laws: {', '.join(each)}."
    if any(map(is_accurate, laws)):
        text += " Solid: a law that describes the runs to within 5 %, with the 95 % band of its resamples."
    if not all(map(is_accurate, laws)):
        text += " Dashed: a law that does not; thin lines join its measured runs."
    return text
