"""The figure of loss against compute: exact FLOPs, and measured time."""

from __future__ import annotations

from gnnscale.contract.scaling_results import Point
from gnnscale.report.figures.series import find_frontier, format_size
from gnnscale.report.figures.style import (
    FAINT_COLOUR,
    HALF_INCHES,
    INK_COLOUR,
    WIDE_INCHES,
    Axes,
    Figure,
    make_panels,
    sequential_colours,
    set_logarithmic,
    set_title,
)
from gnnscale.report.study_results import StudyResults, is_drawable, run_name


def draw_compute(study: StudyResults) -> tuple[Figure, str] | None:
    """Draw the loss against exact FLOPs and against accelerator time, each with its lower envelope."""
    points = [p for p in study.points if is_drawable(p) and p.flops > 0]
    if not points:
        return None
    costs = {"training compute (FLOP)": {p.run: p.flops for p in points}}
    spent = {p.run: study.spent[run_name(p.run)] for p in points if study.spent.get(run_name(p.run))}
    if len(spent) == len(points):
        costs["training time (GPU-s; without GPUs process-s)"] = spent
    figure, axes = make_panels(len(costs), width=WIDE_INCHES if len(costs) > 1 else HALF_INCHES * 1.35, height=2.9)
    for ax, (words, cost) in zip(axes, costs.items()):
        draw_frontier(ax, study, points, cost)
        ax.set_xlabel(words)
        set_title(ax, "loss")
    runs = {p.run for p in study.grid_runs()}
    hollow = " Hollow markers: runs outside the grid." if any(p.run not in runs for p in points) else ""
    time = (
        " Right: measured wall time times GPUs, or times processes where there are no GPUs." if len(costs) > 1 else ""
    )
    return (
        figure,
        f"Measured loss against compute, counted exactly per atom and edge.{time} Broad grey line: the lower "
        f"envelope.{hollow}",
    )


def draw_frontier(ax: Axes, study: StudyResults, points: list[Point], cost: dict[str, float]) -> None:
    grid, runs, ends = study.grid_points(), {p.run for p in study.grid_runs()}, []
    groups = sorted({p.body_parameters for p in grid})
    for value, colour in zip(groups, sequential_colours(len(groups))):
        members = sorted((p for p in grid if p.body_parameters == value), key=lambda p: cost[p.run])
        ax.plot([cost[p.run] for p in members], [p.loss for p in members], "o-", color=colour, linewidth=0.9, zorder=3)
        ends.append((cost[members[-1].run], members[-1].loss, format_size("body_parameters", value), colour))
    others = [p for p in points if p.run not in runs]
    ax.plot([cost[p.run] for p in others], [p.loss for p in others], "o", mfc="none", mec=FAINT_COLOUR, zorder=2)
    best = find_frontier(points, cost)
    ax.plot(
        [cost[p.run] for p in best],
        [p.loss for p in best],
        color=INK_COLOUR,
        linewidth=4.5,
        alpha=0.16,
        solid_capstyle="round",
        zorder=1,
    )
    set_logarithmic(ax, xs=cost.values())
    for x, y, text, colour in ends:
        ax.annotate(text, (x, y), (0, -11), textcoords="offset points", ha="center", fontsize=7, color=colour)
