"""The figures of a study, fit for a paper."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from gnnscale.contract.scaling_results import LawFit, Point
from gnnscale.report.figures.comparisons import equal_compute, learning_rates, subset_bias
from gnnscale.report.figures.depth import depths, layers
from gnnscale.report.figures.levers import levers
from gnnscale.report.figures.series import (
    compared,
    envelope,
    holds,
    label,
    plain,
    predicted,
    scaled,
    si,
    smoothed,
    table,
)
from gnnscale.report.figures.style import (
    AXIS,
    FAINT,
    HALF,
    INK,
    MARKERS,
    OKABE_ITO,
    STYLE,
    WIDE,
    Axes,
    Drawn,
    Figure,
    FuncFormatter,
    MaxNLocator,
    close,
    label_ends,
    logarithmic,
    matplotlib,
    panels,
    rendered,
    sequence,
    title,
)
from gnnscale.report.study_results import TARGETS, Study, short, sound
from gnnscale.scaling.comparisons.width_vs_depth import find_depth_lines, find_pairs
from gnnscale.scaling.fitting.laws import LAWS
from gnnscale.scaling.words import TARGET_NAMES, format_percent, with_greek_letters


def draw(study: Study) -> list[Drawn]:
    """All figures that the study has data for."""
    wanted: list[tuple[str, bool, Callable[[Study], tuple[Figure, str] | None]]] = [
        ("loss_data", True, lambda s: curves(s, "structures", "body_parameters")),
        ("loss_parameters", True, lambda s: curves(s, "body_parameters", "structures")),
        ("surface", True, surface),
        ("compute", True, compute),
        ("width_depth", True, width_depth),
        ("depths", True, depths),
        ("layers", True, layers),
        ("equal_compute", True, equal_compute),
        ("learning_rates", True, learning_rates),
        ("subset_bias", True, subset_bias),
        ("levers", True, levers),
        ("sources", True, sources),
        ("learning", True, learning),
    ]
    drawn = []
    with matplotlib.rc_context(STYLE):
        for name, wide, make in wanted:
            made = make(study)
            if made:
                figure, caption = made
                drawn.append(Drawn(name, caption, wide, *rendered(figure)))
                close(figure)
    return drawn


# -------------------------------------------------------------------------------------------------------------- figures
def curves(study: Study, along: str, across: str) -> tuple[Figure, str] | None:
    """Target against D for each N, or against N for each D, with the chosen law."""
    grid = study.grid()
    if len({getattr(p, along) for p in grid}) < 2:
        return None
    figure, axes = panels(len(study.targets()))
    groups = sorted({getattr(p, across) for p in grid})
    colours = sequence(len(groups))
    for ax, target in zip(axes, study.targets()):
        law, ends = study.chosen(target), []
        alike = law is not None and AXIS[across][-1] not in LAWS[law.law].axes  # one law for all the lines
        for value, colour in zip(groups, colours):
            members = sorted((p for p in grid if getattr(p, across) == value), key=lambda p: getattr(p, along))
            xs, ys = [getattr(p, along) for p in members], [scaled(p, target) for p in members]
            others = [p for p in study.replicas() if getattr(p, across) == value]  # of all seeds
            if len(others) > len(members):
                each = [getattr(p, along) for p in others], [scaled(p, target) for p in others]
                ax.plot(*each, ".", color=colour, markersize=3, alpha=0.6)
            joined = "o" if holds(law) else "o-"  # a law that does not hold is no guide for the eye
            ax.plot(xs, ys, joined, color=colour, linewidth=1, zorder=3, markeredgecolor="white", markeredgewidth=0.4)
            fine = np.geomspace(min(getattr(p, along) for p in grid), max(getattr(p, along) for p in grid), 60)
            ink = INK if alike else colour
            end = law_line(ax, law, target, {along: fine, across: np.full(60, float(value))}, ink)
            ends.append((xs[-1], end if holds(law) else ys[-1], label(across, value), colour))
        logarithmic(ax, xs=[getattr(p, along) for p in grid], exact=along == "structures")
        ax.set_xlabel(AXIS[along])
        title(ax, target)
        label_ends(ax, ends)
    what = (
        "data, one line for each model size N" if along == "structures" else "model size, one line for each data size D"
    )
    seeds = (
        " Large: geometric mean over seeds; small: each of them." if len({p.seed for p in study.replicas()}) > 1 else ""
    )
    return figure, f"Held-out error against {what}.{seeds} {law_words(study)}"


def surface(study: Study) -> tuple[Figure, str] | None:
    """The measured grid as a coloured table, with how far each run lies from the chosen law."""
    grid = study.grid()
    models, sizes, _ = table(grid, "loss")
    if len(models) < 2 or len(sizes) < 2 or len(models) * len(sizes) > 2 * len(grid) or len(models) > 8:
        return None
    figure, axes = panels(len(study.targets()), height=2.6)
    laws = [study.chosen(t) for t in study.targets()]
    for ax, target, law in zip(axes, study.targets(), laws):
        values = table(grid, target)[2]
        norm = matplotlib.colors.LogNorm(np.nanmin(values), np.nanmax(values))
        ax.pcolormesh(range(len(models)), range(len(sizes)), values, cmap="viridis_r", norm=norm)
        for i, j in np.argwhere(np.isfinite(values)):
            text = f"{values[i, j]:.3g}"
            if law:
                here = TARGETS[target][2] * predicted(law, np.array([models[j]]), np.array([sizes[i]]))[0, 0]
                text += f"\n{round(100 * (values[i, j] / here - 1)):+d} %".replace("+0", "0")
            dark = norm(values[i, j]) > 0.45
            ax.text(j, i, text, ha="center", va="center", fontsize=6.5, color="white" if dark else INK, linespacing=1.3)
        ax.set_xticks(range(len(models)), [si(v, 2) for v in models])
        ax.set_yticks(range(len(sizes)), [si(v) for v in sizes])
        ax.tick_params(length=0)
        ax.spines[:].set_visible(False)
        ax.set_xlabel(AXIS["body_parameters"])
        title(ax, target)
    axes[0].set_ylabel(AXIS["structures"])
    below = " Below each value: how far it lies from the law of the other figures." if any(laws) else ""
    return figure, f"The measured grid; dark is large.{below}"


def compute(study: Study) -> tuple[Figure, str] | None:
    """Loss against exact FLOPs, and against the time of accelerators, each with its lower envelope."""
    points = [p for p in study.points if sound(p) and p.flops > 0]
    if not points:
        return None
    costs = {"training compute (FLOP)": {p.run: p.flops for p in points}}
    spent = {p.run: study.spent[short(p.run)] for p in points if study.spent.get(short(p.run))}
    if len(spent) == len(points):
        costs["training time (GPU-s; without GPUs process-s)"] = spent
    figure, axes = panels(len(costs), width=WIDE if len(costs) > 1 else HALF * 1.35, height=2.9)
    for ax, (words, cost) in zip(axes, costs.items()):
        frontier(ax, study, points, cost)
        ax.set_xlabel(words)
        title(ax, "loss")
    runs = {p.run for p in study.replicas()}
    hollow = " Hollow: runs outside the grid." if any(p.run not in runs for p in points) else ""
    time = " Right: wall time times GPUs, or processes where there are none, as measured." if len(costs) > 1 else ""
    return (
        figure,
        f"Measured loss against compute, counted exactly per atom and edge.{time} Broad grey: the lower envelope.{hollow}",
    )


def frontier(ax: Axes, study: Study, points: list[Point], cost: dict[str, float]) -> None:
    grid, runs, ends = study.grid(), {p.run for p in study.replicas()}, []
    groups = sorted({p.body_parameters for p in grid})
    for value, colour in zip(groups, sequence(len(groups))):
        members = sorted((p for p in grid if p.body_parameters == value), key=lambda p: cost[p.run])
        ax.plot([cost[p.run] for p in members], [p.loss for p in members], "o-", color=colour, linewidth=0.9, zorder=3)
        ends.append((cost[members[-1].run], members[-1].loss, label("body_parameters", value), colour))
    others = [p for p in points if p.run not in runs]
    ax.plot([cost[p.run] for p in others], [p.loss for p in others], "o", mfc="none", mec=FAINT, zorder=2)
    best = envelope(points, cost)
    ax.plot(
        [cost[p.run] for p in best],
        [p.loss for p in best],
        color=INK,
        linewidth=4.5,
        alpha=0.16,
        solid_capstyle="round",
        zorder=1,
    )
    logarithmic(ax, xs=cost.values())
    for x, y, text, colour in ends:
        ax.annotate(text, (x, y), (0, -11), textcoords="offset points", ha="center", fontsize=7, color=colour)


def width_depth(study: Study) -> tuple[Figure, str] | None:
    """Target against size for each depth, at the largest data size with more than one; lines of depths have `depths`."""
    if find_depth_lines(study.points):
        return None
    size, points = compared([p for p in study.points if sound(p) and p.subset == "random"])
    if not points:
        return None
    depths = sorted({p.depth for p in points})
    figure, axes = panels(len(study.targets()))
    for ax, target in zip(axes, study.targets()):
        for k, depth in enumerate(depths):
            members = sorted((p for p in points if p.depth == depth), key=lambda p: p.body_parameters)
            colour = OKABE_ITO[k % len(OKABE_ITO)]
            xs, ys = [p.body_parameters for p in members], [scaled(p, target) for p in members]
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
        for pair in find_pairs(points):  # an arrow from the wide to the deep one
            (x, y), end = ((p.body_parameters, scaled(p, target)) for p in pair)
            arrow = {"arrowstyle": "->", "color": FAINT, "linewidth": 0.8, "shrinkA": 4, "shrinkB": 4}
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
                color=INK,
            )
        logarithmic(ax, xs=[p.body_parameters for p in points])
        ax.set_xlabel(AXIS["body_parameters"])
        title(ax, target)
    arrows = (
        " Arrows: from the wider to the deeper network of equal size, with the change."
        if find_pairs(points)
        else ""
    )
    return figure, f"Width against depth at D = {size:,}, one seed for each run.{arrows}"


def sources(study: Study) -> tuple[Figure, str] | None:
    """Errors per source of the largest model of the grid, against the data."""
    grid = {p.run: p for p in study.grid()}
    largest = max((p.body_parameters for p in grid.values()), default=0)
    chosen = [e for e in study.evaluations.values() if e.run in grid and grid[e.run].body_parameters == largest]
    chosen.sort(key=lambda e: e.structures)
    names = sorted({name for e in chosen for name in e.sources})
    if not names or len({e.structures for e in chosen}) < 2:
        return None
    figure, axes = panels(2, height=2.5)
    for ax, target in zip(axes, ("energy_mae", "force_mae")):
        ends = []
        for k, name in enumerate(names):
            rows = [(e.structures, getattr(e.sources[name], target)) for e in chosen if name in e.sources]
            rows = [(x, TARGETS[target][2] * y) for x, y in rows if 0 < y < float("inf")]
            if rows:
                colour = OKABE_ITO[k % len(OKABE_ITO)]
                ax.plot(*zip(*rows), marker=MARKERS[k % len(MARKERS)], color=colour, linewidth=0.9)
                ends.append((*rows[-1], plain(name[:24]), colour))
        logarithmic(ax, xs=[e.structures for e in chosen], exact=True)
        ax.set_xlabel(AXIS["structures"])
        title(ax, target)
        label_ends(ax, ends)
    return (
        figure,
        f"Held-out errors on each source, of the largest model (N = {largest:,}). D counts all sources together.",
    )


def learning(study: Study) -> tuple[Figure, str] | None:
    """Objective while training: one panel for each data size, up to four, a colour for each model size."""
    by_run = {short(p.run): p for p in study.grid()}
    have = {short(name): lines for name, lines in study.metrics.items() if lines and short(name) in by_run}
    sizes = sorted({by_run[name].structures for name in have})
    if not sizes:
        return None
    sizes = [sizes[i] for i in sorted({round(v) for v in np.linspace(0, len(sizes) - 1, 4)})]
    models = sorted({p.body_parameters for p in by_run.values()})
    colours = dict(zip(models, sequence(len(models))))
    figure, axes = panels(len(sizes), height=2.3, sharey=True)
    for ax, size in zip(axes, sizes):
        ends = []
        for name in sorted((n for n in have if by_run[n].structures == size), key=lambda n: by_run[n].body_parameters):
            colour, lines = colours[by_run[name].body_parameters], have[name]
            epochs = np.array([m.structures_seen / size for m in lines])
            x, y = smoothed(epochs, np.array([m.loss for m in lines], float))
            if not len(x):
                continue
            ax.plot(x, y, color=colour, linewidth=0.9, alpha=0.45)
            held = [(e, m.validation) for e, m in zip(epochs, lines) if m.validation and 0 < m.validation < np.inf]
            if held:
                ax.plot(*zip(*held), "o-", color=colour, markersize=3, markeredgecolor="white", markeredgewidth=0.4)
            ends.append(
                (x[-1], held[-1][1] if held else y[-1], label("body_parameters", by_run[name].body_parameters), colour)
            )
        logarithmic(ax, xs=())
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
    return figure, f"Learning curves ({words}). Every panel has as many epochs, so the right ones have more steps."


# ----------------------------------------------------------------------------------------------------------------- laws
def law_line(ax: Axes, law: LawFit | None, target: str, at: dict[str, np.ndarray], colour: tuple) -> float | None:
    """The chosen law along one line of the grid, and its bootstrap band if it holds; the value at the end of the line."""
    if law is None:
        return None
    n, d, factor = at["body_parameters"], at["structures"], TARGETS[target][2]
    x = n if n[0] != n[-1] else d
    line = factor * predicted(law, n, d)[0]
    ax.plot(x, line, color=colour, linestyle="-" if holds(law) else (0, (4, 2)), linewidth=1.1, zorder=2)
    if law.replicas and holds(law):
        band = factor * np.quantile(LAWS[law.law](np.array(law.replicas), N=n, D=d), [0.025, 0.975], axis=0)
        ax.fill_between(x, *band, color=colour, alpha=0.18, linewidth=0)
    return float(line[-1])


def law_words(study: Study) -> str:
    laws = [law for law in (study.chosen(t) for t in study.targets()) if law]
    if not laws:
        return "The runs determine no law; lines join them."
    each = [f"{with_greek_letters(law.formula)} for {TARGET_NAMES[law.target]} (rms residual {format_percent(law.log_rms)})" for law in laws]
    text = f"Laws: {', '.join(each)}."
    if any(map(holds, laws)):
        text += " Solid: a law that describes the runs to within 5 %, with the 95 % band of its resamples."
    if not all(map(holds, laws)):
        text += " Dashed: a law that does not; there thin lines join the measured runs."
    return text
