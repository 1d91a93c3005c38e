"""Figures of comparisons: loss at equal compute, learning rates, random subsets against prefixes, errors by source."""

from __future__ import annotations

import numpy as np

from gnnscale.report.figures.series import escape_dollars, in_figure_unit
from gnnscale.report.figures.style import (
    AXIS_LABELS,
    INK_COLOUR,
    MARKERS,
    OKABE_ITO,
    Axes,
    Figure,
    label_ends,
    make_panels,
    sequential_colours,
    set_logarithmic,
    set_title,
)
from gnnscale.report.study_results import TARGETS, StudyResults
from gnnscale.scaling.comparisons import contrasts, random_vs_prefix
from gnnscale.scaling.comparisons.contrasts import LineMinimum


def draw_equal_compute(study: StudyResults) -> tuple[Figure, str] | None:
    """Draw errors against size at equal compute: a panel for each target, a colour for each model, a line per budget."""
    if not contrasts.group_by_compute(study.points):
        return None
    figure, axes = make_panels(len(study.targets()), height=2.9)
    for ax, target in zip(axes, study.targets()):
        found = contrasts.group_by_compute(study.points, target)
        models = sorted({model for b in found for model in b.models})
        for k, model in enumerate(models):
            colour = OKABE_ITO[k % len(OKABE_ITO)]
            for b in found:
                if model in b.models:
                    draw_minimum(ax, b.models[model], "body_parameters", target, colour, MARKERS[k % len(MARKERS)])
            if ax is axes[0]:
                ax.plot([], [], marker=MARKERS[k % len(MARKERS)], color=colour, label=model)
        set_logarithmic(ax, xs=[p.body_parameters for p in study.points])
        ax.set_xlabel(AXIS_LABELS["body_parameters"])
        set_title(ax, target)
    figure.legend(loc="outside upper right", ncols=4, frameon=False, fontsize=7)
    budgets = ", ".join(f"{b.flops:.1e}" for b in contrasts.group_by_compute(study.points))
    return figure, (
        f"Held-out error against model size at equal compute ({budgets} FLOPs; lower lines have more). Rings: "
        "the best size of each, from a parabola through its runs."
    )


def draw_learning_rates(study: StudyResults) -> tuple[Figure, str] | None:
    """Draw the loss against learning rate: a panel for each model, a line for each width."""
    found = contrasts.find_best_rates(study.points)
    if not found:
        return None
    figure, axes = make_panels(len(found), height=2.9, sharey=True)
    for ax, one in zip(axes, found):
        ends = []
        for (width, b), colour in zip(one.widths.items(), sequential_colours(len(one.widths))):
            draw_minimum(ax, b, "learning_rate", "loss", colour, "o")
            ends.append((b.points[-1].learning_rate, in_figure_unit(b.points[-1], "loss"), f"W = {width}", colour))
        set_logarithmic(ax, xs=[p.learning_rate for b in one.widths.values() for p in b.points])
        ax.set_xlabel("learning rate at width 64")
        ax.set_title(one.model)
        label_ends(ax, ends)
    axes[0].set_ylabel(TARGETS["loss"][0])
    return figure, "Held-out loss against learning rate. Rings: the best rate of each width, from a parabola."


def draw_subset_bias(study: StudyResults) -> tuple[Figure, str] | None:
    """Draw random subsets (solid) and prefixes (dashed): a panel for each target, a colour for each width."""
    if not random_vs_prefix.find_subset_lines(study.points):
        return None
    figure, axes = make_panels(len(study.targets()), height=2.7)
    for ax, target in zip(axes, study.targets()):
        factor, ends, found = TARGETS[target][2], [], random_vs_prefix.find_subset_lines(study.points, target)
        for k, line in enumerate(found):
            colour = OKABE_ITO[k % len(OKABE_ITO)]
            for how, of, style in (("random", line.random, "-"), ("prefix", line.prefix, (0, (4, 2)))):
                sizes, marker = sorted(of), MARKERS[k % len(MARKERS)]
                means = [factor * float(np.exp(np.log(of[size]).mean())) for size in sizes]
                each = [(size, factor * value) for size in sizes for value in of[size]]
                ax.plot(*zip(*each), ".", color=colour, alpha=0.45, markersize=3)
                ax.plot(
                    sizes,
                    means,
                    marker=marker,
                    color=colour,
                    linewidth=1,
                    linestyle=style,
                    markerfacecolor=colour if how == "random" else "white",
                )
            ends.append(
                (
                    max(line.random),
                    factor * float(np.exp(np.log(line.random[max(line.random)]).mean())),
                    f"W = {line.width}",
                    colour,
                )
            )
        set_logarithmic(ax, xs=[size for line in found for size in (*line.random, *line.prefix)])
        ax.set_xlabel(AXIS_LABELS["structures"])
        set_title(ax, target)
        label_ends(ax, ends)
    for how, style, fill in (("random subsets", "-", INK_COLOUR), ("prefixes of the files", (0, (4, 2)), "white")):
        axes[0].plot([], [], color=INK_COLOUR, linestyle=style, marker="o", markerfacecolor=fill, label=how)
    figure.legend(loc="outside upper right", ncols=2, frameon=False, fontsize=7)
    return figure, (
        "Held-out error of models trained on random subsets (solid) and on prefixes of the files (dashed, hollow). Small "
        "markers: each seed; lines: their geometric mean."
    )


def draw_minimum(ax: Axes, b: LineMinimum, along: str, target: str, colour: object, marker: str) -> None:
    xs, ys = [getattr(p, along) for p in b.points], [in_figure_unit(p, target) for p in b.points]
    ax.plot(xs, ys, marker=marker, color=colour, linewidth=1, markeredgecolor="white", markeredgewidth=0.4, zorder=3)
    if b.inside:
        at = TARGETS[target][2] * b.loss
        ax.plot([b.at], [at], marker="o", markersize=7, markerfacecolor="none", markeredgecolor=INK_COLOUR, zorder=4)


def draw_sources(study: StudyResults) -> tuple[Figure, str] | None:
    """Draw the errors of the largest model on each source, against the data size."""
    grid = {p.run: p for p in study.grid_points()}
    largest = max((p.body_parameters for p in grid.values()), default=0)
    chosen = [e for e in study.evaluations.values() if e.run in grid and grid[e.run].body_parameters == largest]
    chosen.sort(key=lambda e: e.structures)
    names = sorted({name for e in chosen for name in e.sources})
    if not names or len({e.structures for e in chosen}) < 2:
        return None
    figure, axes = make_panels(2, height=2.5)
    for ax, target in zip(axes, ("energy_mae", "force_mae")):
        ends = []
        for k, name in enumerate(names):
            rows = [(e.structures, getattr(e.sources[name], target)) for e in chosen if name in e.sources]
            rows = [(x, TARGETS[target][2] * y) for x, y in rows if 0 < y < float("inf")]
            if rows:
                colour = OKABE_ITO[k % len(OKABE_ITO)]
                ax.plot(*zip(*rows), marker=MARKERS[k % len(MARKERS)], color=colour, linewidth=0.9)
                ends.append((*rows[-1], escape_dollars(name[:24]), colour))
        set_logarithmic(ax, xs=[e.structures for e in chosen], exact=True)
        ax.set_xlabel(AXIS_LABELS["structures"])
        set_title(ax, target)
        label_ends(ax, ends)
    return (
        figure,
        f"Held-out errors of the largest model (N = {largest:,}) on each source. D counts all sources together.",
    )
