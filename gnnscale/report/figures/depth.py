"""Figures of width against depth: errors at equal size, and the similarity of features from layer to layer."""

from __future__ import annotations

import numpy as np

from gnnscale.report.figures.series import format_si, in_figure_unit, select_near_depths
from gnnscale.report.figures.style import (
    AXIS_LABELS,
    FAINT_COLOUR,
    HALF_INCHES,
    INK_COLOUR,
    MARKERS,
    OKABE_ITO,
    WIDE_INCHES,
    Axes,
    Figure,
    FixedLocator,
    FuncFormatter,
    MaxNLocator,
    NullLocator,
    label_ends,
    make_panels,
    sequential_colours,
    set_logarithmic,
    set_title,
)
from gnnscale.report.study_results import TARGETS, StudyResults, is_drawable, run_name
from gnnscale.scaling.comparisons.width_vs_depth import PAPER_DEPTH, DepthLine, find_depth_lines, find_pairs

SMALLEST_DRAWN = 1e-8  # smaller values are rounding of float32
DISSIMILARITY_NAMES = {"distance": "cosine distance in a structure", "dirichlet": "Dirichlet energy"}


def draw_depths(study: StudyResults) -> tuple[Figure, str] | None:
    """Draw errors against depth: a panel for each target, a colour for each model, a line for each size."""
    lines = find_depth_lines(study.points)
    if not lines:
        return None
    models = sorted({x.model for x in lines})
    figure, axes = make_panels(len(study.targets()), height=2.8)
    for ax, target in zip(axes, study.targets()):
        factor, ends = TARGETS[target][2], []
        for x in lines:
            k = models.index(x.model)
            colour, marker = OKABE_ITO[k % len(OKABE_ITO)], MARKERS[k % len(MARKERS)]
            means = x.means(target)
            each = [(d, factor * getattr(p, target)) for d, runs in x.runs.items() for p in runs]
            ax.plot(*zip(*each), ".", color=colour, alpha=0.45, markersize=3, zorder=2)
            ax.plot(
                list(means), [factor * v for v in means.values()], marker=marker, color=colour, linewidth=1, zorder=3
            )
            ends.append((max(means), factor * means[max(means)], f"{x.model}, {format_si(x.size, 2)}", colour))
        set_logarithmic(ax, xs=[d for x in lines for d in x.runs], exact=True)
        set_depth_ticks(ax, sorted({d for x in lines for d in x.runs}))
        ax.axvline(PAPER_DEPTH, color=FAINT_COLOUR, linewidth=0.7, linestyle=(0, (2, 2)), zorder=1)
        ax.set_xlabel("layers")
        set_title(ax, target)
        label_ends(ax, ends)
    sizes = max(x.seeds for x in lines)
    return figure, (
        f"Held-out error against depth at equal parameters, one line for each form and size N. Small: each of {sizes} seeds; "
        f"lines: their geometric mean. Dashed: the {PAPER_DEPTH} layers past which arXiv 2504.08112 prefers width."
        if sizes > 1
        else "Held-out error against depth at equal parameters, one line for each form and size N; one seed for each run. "
        f"Dashed: the {PAPER_DEPTH} layers past which arXiv 2504.08112 prefers width."
    )


def draw_layers(study: StudyResults) -> tuple[Figure, str] | None:
    """Draw the dissimilarity of features: a row for each measure, a column for each model, a line for each depth.

    Each model is shown at the largest size that has several depths.
    """
    largest: dict[str, DepthLine] = {}
    for x in find_depth_lines(study.points):
        largest[x.model] = max(x, largest.get(x.model, x), key=lambda line: line.size)
    known = {run_name(name): e.layers for name, e in study.evaluations.items()}
    models = [
        m for m in sorted(largest) if any(run_name(p.run) in known for runs in largest[m].runs.values() for p in runs)
    ]
    if not models:
        return None
    width = WIDE_INCHES if len(models) > 1 else HALF_INCHES * 1.35
    figure, axes = make_panels(len(models), width=width, height=4.4, sharey="row", rows=len(DISSIMILARITY_NAMES))
    for row, (field, words) in enumerate(DISSIMILARITY_NAMES.items()):
        for column, model in enumerate(models):
            ax = axes[row * len(models) + column]
            draw_dissimilarity(ax, largest[model], field, known)
            if row == 0:
                ax.set_title(f"{model}, N ≈ {format_si(largest[model].size, 2)}")
            else:
                ax.set_xlabel("layer; 0 is the input of the first")
            if column == 0:
                ax.set_ylabel(words)
    return figure, (
        "Dissimilarity of the features of atoms after each layer of the trained networks, by depth: mean pairwise cosine "
        "distance within a structure, and Dirichlet energy over edges, normalised (0: identical, 1: unrelated); "
        f"means over held-out structures and seeds. Smaller values are drawn at {SMALLEST_DRAWN:g}."
    )


def draw_dissimilarity(ax: Axes, line: DepthLine, field: str, known: dict) -> None:
    for (depth, runs), colour in zip(line.runs.items(), sequential_colours(len(line.runs))):
        rows = [[getattr(layer, field) for layer in known[run_name(p.run)]] for p in runs if run_name(p.run) in known]
        if not rows:
            continue
        mean = np.maximum(np.mean(rows, axis=0), SMALLEST_DRAWN)
        ax.plot(range(len(mean)), mean, "o-", color=colour, linewidth=1, markersize=2.6, zorder=3)
        ax.annotate(
            f"{depth}",
            (len(mean) - 1, mean[-1]),
            (3, 0),
            textcoords="offset points",
            va="center",
            fontsize=7,
            color=colour,
            zorder=4,
        )
    set_logarithmic(ax, xs=())
    ax.set_xscale("linear")
    ax.set_xlim(-0.4, max(line.runs) + 0.9)
    ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
    ax.axhline(1, color=FAINT_COLOUR, linewidth=0.6, zorder=1)
    ax.tick_params(labelcolor=INK_COLOUR)


def set_depth_ticks(ax: Axes, values: list[int]) -> None:
    """Set ticks at the depths."""
    ax.xaxis.set_major_locator(FixedLocator(values))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
    ax.xaxis.set_minor_locator(NullLocator())


def draw_width_against_depth(study: StudyResults) -> tuple[Figure, str] | None:
    """Draw targets against size for each depth, at the largest data size with several; `draw_depths` draws depth lines."""
    if find_depth_lines(study.points):
        return None
    size, points = select_near_depths([p for p in study.points if is_drawable(p) and p.subset == "random"])
    if not points:
        return None
    depths = sorted({p.depth for p in points})
    figure, axes = make_panels(len(study.targets()))
    for ax, target in zip(axes, study.targets()):
        for k, depth in enumerate(depths):
            members = sorted((p for p in points if p.depth == depth), key=lambda p: p.body_parameters)
            colour = OKABE_ITO[k % len(OKABE_ITO)]
            xs, ys = [p.body_parameters for p in members], [in_figure_unit(p, target) for p in members]
            ax.plot(xs, ys, marker=MARKERS[k % len(MARKERS)], color=colour, linewidth=0.9)
            side = 1 if len(xs) > 1 else -1  # the label of a single point on its left, where the others' line is higher
            ax.annotate(
                f"depth {depth}",
                (xs[-1], ys[-1]),
                (7 * side, 0),
                textcoords="offset points",
                va="center",
                ha="left" if side > 0 else "right",
                fontsize=7,
                color=colour,
            )
        for pair in find_pairs(points):  # an arrow from the wide to the deep network
            (x, y), end = ((p.body_parameters, in_figure_unit(p, target)) for p in pair)
            arrow = {"arrowstyle": "->", "color": FAINT_COLOUR, "linewidth": 0.8, "shrinkA": 4, "shrinkB": 4}
            ax.annotate("", end, (x, y), arrowprops=arrow)
            middle = (np.sqrt(x * end[0]), np.sqrt(y * end[1]))
            ax.annotate(
                f"{-100 * pair.gain(target):+.1f} %",
                middle,
                (-5, 0),
                textcoords="offset points",
                ha="right",
                va="center",
                fontsize=7,
                color=INK_COLOUR,
            )
        set_logarithmic(ax, xs=[p.body_parameters for p in points])
        ax.set_xlabel(AXIS_LABELS["body_parameters"])
        set_title(ax, target)
    arrows = (
        " Arrows: from the wider to the deeper network of equal size, with the change." if find_pairs(points) else ""
    )
    return figure, f"Width against depth at D = {size:,}, one seed for each run.{arrows}"
