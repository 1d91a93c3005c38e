"""The figure of learning curves: the objective over epochs."""

from __future__ import annotations

import numpy as np

from gnnscale.report.figures.series import format_size, smooth
from gnnscale.report.figures.style import (
    Figure,
    FuncFormatter,
    MaxNLocator,
    label_ends,
    make_panels,
    sequential_colours,
    set_logarithmic,
)
from gnnscale.report.study_results import StudyResults, run_name


def draw_learning_curves(study: StudyResults) -> tuple[Figure, str] | None:
    """Draw the objective over epochs: one panel for each data size, up to four, and a colour for each model size."""
    by_run = {run_name(p.run): p for p in study.grid_points()}
    have = {run_name(name): lines for name, lines in study.metrics.items() if lines and run_name(name) in by_run}
    sizes = sorted({by_run[name].structures for name in have})
    if not sizes:
        return None
    sizes = [sizes[i] for i in sorted({round(v) for v in np.linspace(0, len(sizes) - 1, 4)})]
    models = sorted({p.body_parameters for p in by_run.values()})
    colours = dict(zip(models, sequential_colours(len(models))))
    figure, axes = make_panels(len(sizes), height=2.3, sharey=True)
    for ax, size in zip(axes, sizes):
        ends = []
        for name in sorted((n for n in have if by_run[n].structures == size), key=lambda n: by_run[n].body_parameters):
            colour, lines = colours[by_run[name].body_parameters], have[name]
            epochs = np.array([m.structures_seen / size for m in lines])
            x, y = smooth(epochs, np.array([m.loss for m in lines], float))
            if not len(x):
                continue
            ax.plot(x, y, color=colour, linewidth=0.9, alpha=0.45)
            held = [(e, m.validation) for e, m in zip(epochs, lines) if m.validation and 0 < m.validation < np.inf]
            if held:
                ax.plot(*zip(*held), "o-", color=colour, markersize=3, markeredgecolor="white", markeredgewidth=0.4)
            ends.append(
                (
                    x[-1],
                    held[-1][1] if held else y[-1],
                    format_size("body_parameters", by_run[name].body_parameters),
                    colour,
                )
            )
        set_logarithmic(ax, xs=())
        ax.set_xscale("linear")
        ax.set_xlim(0, 1.04 * max(m.structures_seen / by_run[n].structures for n in have for m in have[n][-1:]))
        ax.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
        ax.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        ax.set_xlabel("epochs")
        ax.set_title(f"D = {size:,}")
        if ax is axes[-1]:
            label_ends(ax, ends)
    axes[0].set_ylabel("objective (dimensionless)")
    words = "points: on the validation split; pale lines: on the training batches, smoothed"
    return (
        figure,
        f"Learning curves ({words}). All panels have the same number of epochs, so the right ones have more steps.",
    )
