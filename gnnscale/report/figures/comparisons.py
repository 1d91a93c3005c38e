"""Figures of comparisons: loss against size at equal compute, loss against learning rate for each width."""

from __future__ import annotations

import numpy as np

from gnnscale.report.figures.series import scaled
from gnnscale.report.figures.style import (
    AXIS,
    INK,
    MARKERS,
    OKABE_ITO,
    Axes,
    Figure,
    label_ends,
    logarithmic,
    panels,
    sequence,
    title,
)
from gnnscale.report.study_results import TARGETS, Study
from gnnscale.scaling.comparisons import contrasts, random_vs_prefix
from gnnscale.scaling.comparisons.contrasts import LineMinimum


def equal_compute(study: Study) -> tuple[Figure, str] | None:
    """A panel for each target, a colour for each model, a line for each budget."""
    if not contrasts.group_by_compute(study.points):
        return None
    figure, axes = panels(len(study.targets()), height=2.9)
    for ax, target in zip(axes, study.targets()):
        found = contrasts.group_by_compute(study.points, target)
        models = sorted({model for b in found for model in b.models})
        for k, model in enumerate(models):
            colour = OKABE_ITO[k % len(OKABE_ITO)]
            for b in found:
                if model in b.models:
                    valley(ax, b.models[model], "body_parameters", target, colour, MARKERS[k % len(MARKERS)])
            if ax is axes[0]:
                ax.plot([], [], marker=MARKERS[k % len(MARKERS)], color=colour, label=model)
        logarithmic(ax, xs=[p.body_parameters for p in study.points])
        ax.set_xlabel(AXIS["body_parameters"])
        title(ax, target)
    figure.legend(loc="outside upper right", ncols=4, frameon=False, fontsize=7)
    budgets = ", ".join(f"{b.flops:.1e}" for b in contrasts.group_by_compute(study.points))
    return figure, (
        f"Held-out error against model size at equal compute ({budgets} FLOPs, the lower lines the larger ones). Rings: "
        "the best size of each, from a parabola through its runs."
    )


def learning_rates(study: Study) -> tuple[Figure, str] | None:
    """A panel for each model, a line for each width."""
    found = contrasts.find_best_rates(study.points)
    if not found:
        return None
    figure, axes = panels(len(found), height=2.9, sharey=True)
    for ax, one in zip(axes, found):
        ends = []
        for (width, b), colour in zip(one.widths.items(), sequence(len(one.widths))):
            valley(ax, b, "learning_rate", "loss", colour, "o")
            ends.append((b.points[-1].learning_rate, scaled(b.points[-1], "loss"), f"W = {width}", colour))
        logarithmic(ax, xs=[p.learning_rate for b in one.widths.values() for p in b.points])
        ax.set_xlabel("learning rate, as at width 64")
        ax.set_title(one.model)
        label_ends(ax, ends)
    axes[0].set_ylabel(TARGETS["loss"][0])
    return figure, "Held-out loss against learning rate. Rings: the best rate of each width, from a parabola."


def subset_bias(study: Study) -> tuple[Figure, str] | None:
    """A panel for each target, a colour for each width; random subsets full, prefixes dashed."""
    if not random_vs_prefix.find_subset_lines(study.points):
        return None
    figure, axes = panels(len(study.targets()), height=2.7)
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
        logarithmic(ax, xs=[size for line in found for size in (*line.random, *line.prefix)])
        ax.set_xlabel(AXIS["structures"])
        title(ax, target)
        label_ends(ax, ends)
    for how, style, fill in (("random subsets", "-", INK), ("prefixes of the files", (0, (4, 2)), "white")):
        axes[0].plot([], [], color=INK, linestyle=style, marker="o", markerfacecolor=fill, label=how)
    figure.legend(loc="outside upper right", ncols=2, frameon=False, fontsize=7)
    return figure, (
        "Held-out error of models trained on random subsets (full) and on prefixes of the files (dashed, hollow). Small: each "
        "seed; lines: their geometric mean."
    )


def valley(ax: Axes, b: LineMinimum, along: str, target: str, colour: object, marker: str) -> None:
    xs, ys = [getattr(p, along) for p in b.points], [scaled(p, target) for p in b.points]
    ax.plot(xs, ys, marker=marker, color=colour, linewidth=1, markeredgecolor="white", markeredgewidth=0.4, zorder=3)
    if b.inside:
        at = TARGETS[target][2] * b.loss
        ax.plot([b.at], [at], marker="o", markersize=7, markerfacecolor="none", markeredgecolor=INK, zorder=4)
