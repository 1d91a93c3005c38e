"""Figures of width against depth: errors against depth at equal size, and how alike features become from layer to layer."""

from __future__ import annotations

import numpy as np

from gnnscale.report.figures.series import si
from gnnscale.report.figures.style import (
    FAINT,
    HALF,
    INK,
    MARKERS,
    OKABE_ITO,
    WIDE,
    Axes,
    Figure,
    FixedLocator,
    FuncFormatter,
    MaxNLocator,
    NullLocator,
    label_ends,
    logarithmic,
    panels,
    sequence,
    title,
)
from gnnscale.report.study_results import TARGETS, Study, short
from gnnscale.scaling.comparisons.width_vs_depth import PAPER_DEPTH, DepthLine, find_depth_lines

FLOOR = 1e-8  # below it features are equal to the last bits of float32
MEASURES = {"distance": "cosine distance in a structure", "dirichlet": "Dirichlet energy"}


def depths(study: Study) -> tuple[Figure, str] | None:
    """A panel for each target, a colour for each model, a line for each size."""
    lines = find_depth_lines(study.points)
    if not lines:
        return None
    models = sorted({x.model for x in lines})
    figure, axes = panels(len(study.targets()), height=2.8)
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
            ends.append(
                (max(means), factor * means[max(means)], f"{x.model}, {si(x.size, 2)}", colour)
            )
        logarithmic(ax, xs=[d for x in lines for d in x.runs], exact=True)
        whole(ax, sorted({d for x in lines for d in x.runs}))
        ax.axvline(PAPER_DEPTH, color=FAINT, linewidth=0.7, linestyle=(0, (2, 2)), zorder=1)
        ax.set_xlabel("layers")
        title(ax, target)
        label_ends(ax, ends)
    sizes = max(x.seeds for x in lines)
    return figure, (
        f"Held-out error against depth at equal parameters, one line for each form and size N. Small: each of {sizes} seeds; "
        f"lines: their geometric mean. Dashed: the {PAPER_DEPTH} layers past which arXiv 2504.08112 prefers width."
        if sizes > 1
        else "Held-out error against depth at equal parameters, one line for each form and size N; one seed for each run. "
        f"Dashed: the {PAPER_DEPTH} layers past which arXiv 2504.08112 prefers width."
    )


def layers(study: Study) -> tuple[Figure, str] | None:
    """A row for each measure, a column for each model, a line for each depth: of the largest size that has several."""
    largest: dict[str, DepthLine] = {}
    for x in find_depth_lines(study.points):
        largest[x.model] = max(x, largest.get(x.model, x), key=lambda line: line.size)
    known = {short(name): e.layers for name, e in study.evaluations.items()}
    models = [
        m for m in sorted(largest) if any(short(p.run) in known for runs in largest[m].runs.values() for p in runs)
    ]
    if not models:
        return None
    width = WIDE if len(models) > 1 else HALF * 1.35
    figure, axes = panels(len(models), width=width, height=4.4, sharey="row", rows=len(MEASURES))
    for row, (field, words) in enumerate(MEASURES.items()):
        for column, model in enumerate(models):
            ax = axes[row * len(models) + column]
            unlike(ax, largest[model], field, known)
            if row == 0:
                ax.set_title(f"{model}, N ≈ {si(largest[model].size, 2)}")
            else:
                ax.set_xlabel("layer; 0 is the input of the first")
            if column == 0:
                ax.set_ylabel(words)
    return figure, (
        "How unlike the features of atoms are after each layer of the trained networks, by depth: mean pairwise cosine distance "
        "within a structure, and Dirichlet energy over edges, normalised (0: all alike, 1: unrelated); means over held-out "
        f"structures and seeds. Values below {FLOOR:g} are drawn there."
    )


def unlike(ax: Axes, line: DepthLine, field: str, known: dict) -> None:
    for (depth, runs), colour in zip(line.runs.items(), sequence(len(line.runs))):
        rows = [[getattr(layer, field) for layer in known[short(p.run)]] for p in runs if short(p.run) in known]
        if not rows:
            continue
        mean = np.maximum(np.mean(rows, axis=0), FLOOR)
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
    logarithmic(ax, xs=())
    ax.set_xscale("linear")
    ax.set_xlim(-0.4, max(line.runs) + 0.9)
    ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
    ax.axhline(1, color=FAINT, linewidth=0.6, zorder=1)
    ax.tick_params(labelcolor=INK)


def whole(ax: Axes, values: list[int]) -> None:
    """Ticks at the depths themselves."""
    ax.xaxis.set_major_locator(FixedLocator(values))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
    ax.xaxis.set_minor_locator(NullLocator())
