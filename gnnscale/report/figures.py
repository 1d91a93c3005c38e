"""The figures of a study, fit for a paper: vector and bitmap, always the same bytes. The only door to matplotlib."""

from __future__ import annotations

import io
import os
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from typing import NamedTuple

if "MPLCONFIGDIR" not in os.environ:  # matplotlib would write its font cache into the user's home
    CACHE = tempfile.TemporaryDirectory(prefix="gnnscale-matplotlib-")  # gone with the process
    os.environ["MPLCONFIGDIR"] = CACHE.name

import matplotlib

matplotlib.use("Agg")

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullFormatter, NullLocator

from gnnscale.report.series import envelope, label, optimal_data, plain, predicted, scaled, si, smoothed
from gnnscale.report.study import TARGETS, Study, short, sound
from gnnscale.scaling.laws import LAWS
from gnnscale.specs import LawFit

WIDE, HALF = 7.0, 3.4  # inches: two columns and one of a journal
OKABE_ITO = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "osD^vP*"
INK, FAINT = "#222222", "#8a8a8a"
STYLE = {
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same on every machine
    "font.size": 8,
    "axes.titlesize": 8.5,
    "axes.titlelocation": "left",
    "axes.labelsize": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.7,
    "axes.edgecolor": INK,
    "xtick.labelsize": 7.5,
    "ytick.labelsize": 7.5,
    "lines.linewidth": 1.3,
    "lines.markersize": 4.2,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "svg.hashsalt": "gnnscale",
    "svg.fonttype": "path",
    "path.simplify": True,
}


class Drawn(NamedTuple):
    name: str
    caption: str
    wide: bool
    svg: str
    png: bytes


def draw(study: Study) -> list[Drawn]:
    """All figures that the study has data for."""
    wanted: list[tuple[str, bool, Callable[[Study], tuple[Figure, str] | None]]] = [
        ("loss_data", True, lambda s: curves(s, "structures", "body_parameters")),
        ("loss_parameters", True, lambda s: curves(s, "body_parameters", "structures")),
        ("surface", True, surface),
        ("compute", False, compute),
        ("width_depth", True, width_depth),
        ("sources", True, sources),
        ("learning", True, learning),
    ]
    drawn = []
    with plt.rc_context(STYLE):
        for name, wide, make in wanted:
            made = make(study)
            if made:
                figure, caption = made
                drawn.append(Drawn(name, caption, wide, *rendered(figure)))
                plt.close(figure)
    return drawn


def rendered(figure: Figure) -> tuple[str, bytes]:
    svg, png = io.StringIO(), io.BytesIO()
    figure.savefig(svg, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    figure.savefig(png, format="png", dpi=220, metadata={"Software": None})
    return svg.getvalue(), png.getvalue()


# -------------------------------------------------------------------------------------------------------------- figures
def curves(study: Study, along: str, across: str) -> tuple[Figure, str] | None:
    """Target against D for each N, or against N for each D, with the joint law and its band."""
    grid = study.grid()
    if not grid:
        return None
    figure, axes = panels(len(study.targets()))
    groups = sorted({getattr(p, across) for p in grid})
    colours = sequence(len(groups))
    for ax, target in zip(axes, study.targets()):
        law, ends = study.joint(target), []
        for value, colour in zip(groups, colours):
            members = sorted((p for p in grid if getattr(p, across) == value), key=lambda p: getattr(p, along))
            xs, ys = [getattr(p, along) for p in members], [scaled(p, target) for p in members]
            ax.plot(xs, ys, "o", color=colour, zorder=3, markeredgecolor="white", markeredgewidth=0.4)
            fine = np.geomspace(min(getattr(p, along) for p in grid), max(getattr(p, along) for p in grid), 60)
            end = law_line(ax, law, target, {along: fine, across: np.full(60, float(value))}, colour)
            ends.append((xs[-1], ys[-1] if end is None else end, label(across, value), colour))
        logarithmic(ax, xs=[getattr(p, along) for p in grid], exact=along == "structures")
        ax.set_xlabel(AXIS[along])
        title(ax, target)
        label_ends(ax, ends)
    what = (
        "unique training structures D, for each model size"
        if along == "structures"
        else "body parameters N, for each data size"
    )
    return figure, f"Held-out error against {what}. {law_words(study)}"


def surface(study: Study) -> tuple[Figure, str] | None:
    """Contours of the joint law with the measured points in the same colours."""
    grid = study.grid()
    n, d = ([getattr(p, name) for p in grid] for name in ("body_parameters", "structures"))
    if len(set(n)) < 2 or len(set(d)) < 2 or not any(study.joint(t) for t in study.targets()):
        return None
    figure, axes = panels(len(study.targets()))
    lines = False
    for ax, target in zip(axes, study.targets()):
        law = study.joint(target)
        ns, ds = np.geomspace(min(n) / 1.4, max(n) * 1.4, 60), np.geomspace(min(d) / 1.25, max(d) * 1.25, 60)
        mesh_n, mesh_d = np.meshgrid(ns, ds)
        z = TARGETS[target][2] * predicted(law, mesh_n.ravel(), mesh_d.ravel())[0].reshape(mesh_n.shape)
        values = [scaled(p, target) for p in grid]
        low, high = min(z.min(), *values), max(z.max(), *values)
        norm = matplotlib.colors.LogNorm(low, high)
        ax.contourf(mesh_n, mesh_d, z, levels=np.geomspace(low, high, 25), cmap="viridis_r", norm=norm)
        nice = [v for v in MaxNLocator(7, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high) if low < v < high]
        drawn = ax.contour(mesh_n, mesh_d, z, levels=nice, colors="white", linewidths=0.7)
        ax.clabel(drawn, fmt=lambda v: f"{v:.3g}", fontsize=6.5, inline_spacing=2)
        ax.scatter(n, d, c=values, cmap="viridis_r", norm=norm, s=34, edgecolors="white", linewidths=1.1, zorder=4)
        if law.identified:
            lines = True
            optimal = optimal_data(law, ns)
            inside = (optimal > ds[0]) & (optimal < ds[-1])
            ax.plot(ns[inside], optimal[inside], "--", color="#D55E00", linewidth=2)
        logarithmic(ax, xs=n, ys=d, exact_y=True)
        ax.set_xlim(ns[0], ns[-1])
        ax.set_ylim(ds[0], ds[-1])
        ax.set_xlabel(AXIS["body_parameters"])
        title(ax, target)
    axes[0].set_ylabel(AXIS["structures"])
    dashed = " Dashed: the split that is best at equal N·D, where the law is determined." if lines else ""
    return (
        figure,
        f"The joint law E + A/N^α + B/D^β as contours, and the measured runs as points in the same colours.{dashed}",
    )


def compute(study: Study) -> tuple[Figure, str] | None:
    """Loss against training compute, with the lower envelope."""
    points = [p for p in study.points if sound(p) and p.flops > 0]
    if not points:
        return None
    figure, (ax,) = panels(1, width=HALF * 1.35, height=2.9)
    runs = {p.run for p in study.grid()}
    groups = sorted({p.body_parameters for p in points if p.run in runs})
    ends = []
    for value, colour in zip(groups, sequence(len(groups))):
        members = sorted((p for p in points if p.run in runs and p.body_parameters == value), key=lambda p: p.flops)
        ax.plot([p.flops for p in members], [p.loss for p in members], "o-", color=colour, linewidth=0.9, zorder=3)
        ends.append((members[-1].flops, members[-1].loss, label("body_parameters", value), colour))
    others = [p for p in points if p.run not in runs]
    ax.plot([p.flops for p in others], [p.loss for p in others], "o", mfc="none", mec=FAINT, zorder=2)
    best = envelope(points)
    ax.plot(
        [p.flops for p in best],
        [p.loss for p in best],
        color=INK,
        linewidth=4.5,
        alpha=0.16,
        solid_capstyle="round",
        zorder=1,
    )
    logarithmic(ax, xs=[p.flops for p in points])
    ax.set_xlabel("training compute (FLOP)")
    title(ax, "loss")
    for x, y, text, colour in ends:
        ax.annotate(text, (x, y), (0, -11), textcoords="offset points", ha="center", fontsize=7, color=colour)
    hollow = " Hollow: runs outside the grid (another depth or seed)." if others else ""
    return (
        figure,
        f"Measured loss against compute, counted exactly per atom and edge. Broad grey: the lower envelope.{hollow}",
    )


def width_depth(study: Study) -> tuple[Figure, str] | None:
    """Target against size for each depth, at the largest data size that has more than one depth."""
    points = [p for p in study.points if sound(p)]
    depths = defaultdict(set)
    for p in points:
        depths[p.structures].add(p.depth)
    several = [d for d, found in depths.items() if len(found) > 1]
    if not several:
        return None
    size = max(several)
    points = [p for p in points if p.structures == size]
    usual = Counter(p.depth for p in points).most_common(1)[0][0]
    least = min(p.body_parameters for p in points if p.depth != usual)
    points = [p for p in points if p.body_parameters >= least / 5]  # the neighbourhood where depths can be compared
    figure, axes = panels(len(study.targets()))
    for ax, target in zip(axes, study.targets()):
        ends = []
        for k, depth in enumerate(sorted(depths[size])):
            members = sorted((p for p in points if p.depth == depth), key=lambda p: p.body_parameters)
            colour = OKABE_ITO[k % len(OKABE_ITO)]
            xs, ys = [p.body_parameters for p in members], [scaled(p, target) for p in members]
            ax.plot(xs, ys, marker=MARKERS[k % len(MARKERS)], color=colour, linewidth=0.9)
            ends.append((xs[-1], ys[-1], f"depth {depth}", colour))
            if ax is axes[0]:
                for p, x, y in zip(members, xs, ys):
                    aside = (-6, -9) if depth == usual else (6, 5)
                    ax.annotate(
                        f"w{p.width}",
                        (x, y),
                        aside,
                        textcoords="offset points",
                        ha="center",
                        fontsize=6.5,
                        color=colour,
                    )
        logarithmic(ax, xs=[p.body_parameters for p in points])
        ax.set_xlabel(AXIS["body_parameters"])
        title(ax, target)
        label_ends(ax, ends)
    return (
        figure,
        f"Width against depth at D = {size:,}: at equal N, which depth is lower? w is the width.",
    )


def sources(study: Study) -> tuple[Figure, str] | None:
    """Errors per source of the largest model of the grid, against the data."""
    grid = {p.run: p for p in study.grid()}
    largest = max((p.body_parameters for p in grid.values()), default=0)
    chosen = [e for e in study.evaluations.values() if e.run in grid and grid[e.run].body_parameters == largest]
    chosen.sort(key=lambda e: e.structures)
    names = sorted({name for e in chosen for name in e.sources})
    if not names:
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
    figure, axes = panels(len(sizes), height=2.2, sharey=True)
    for ax, size in zip(axes, sizes):
        ends, seen = [], []
        for name in sorted((n for n in have if by_run[n].structures == size), key=lambda n: by_run[n].body_parameters):
            colour = colours[by_run[name].body_parameters]
            x, y = smoothed(
                np.array([m.structures_seen for m in have[name]], float), np.array([m.loss for m in have[name]], float)
            )
            if not len(x):
                continue
            ax.plot(x, y, color=colour, linewidth=0.9, alpha=0.75)
            held = [
                (m.structures_seen, m.validation)
                for m in have[name]
                if m.validation and 0 < m.validation < float("inf")
            ]
            if held:
                ax.plot(
                    *zip(*held), "o", color=colour, markersize=3, markeredgecolor="white", markeredgewidth=0.4, zorder=3
                )
            seen += [*x]
            ends.append((x[-1], y[-1], label("body_parameters", by_run[name].body_parameters), colour))
        logarithmic(ax, xs=seen)
        ax.set_xlabel("structures seen")
        ax.set_title(f"D = {size:,}")
        if ax is axes[-1]:
            label_ends(ax, ends)
    axes[0].set_ylabel("objective")
    return (
        figure,
        "Learning curves: the training objective (lines, running median) and that on the validation split (points).",
    )


# ---------------------------------------------------------------------------------------------------------------- parts
AXIS = {"structures": "unique training structures D", "body_parameters": "body parameters N"}


def panels(count: int, width: float = WIDE, height: float = 2.45, sharey: bool = False) -> tuple[Figure, list[Axes]]:
    figure, axes = plt.subplots(1, count, figsize=(width, height), layout="constrained", squeeze=False, sharey=sharey)
    return figure, list(axes[0])


def title(ax: Axes, target: str) -> None:
    name, unit, _ = TARGETS[target]
    ax.set_title(f"{name} ({unit})" if unit else name)


def sequence(count: int) -> list[tuple]:
    """For sizes: dark is large; the palest end of viridis does not print."""
    return [matplotlib.colormaps["viridis"](v) for v in np.linspace(0.82, 0.05, count)]


def law_line(ax: Axes, law: LawFit | None, target: str, at: dict[str, np.ndarray], colour: tuple) -> float | None:
    """The joint law along one line of the grid and its bootstrap band; the value at the end of the line."""
    if law is None:
        return None
    n, d, factor = at["body_parameters"], at["structures"], TARGETS[target][2]
    x = n if n[0] != n[-1] else d
    line = factor * predicted(law, n, d)[0]
    ax.plot(x, line, color=colour, linestyle="-" if law.identified else (0, (4, 2)), zorder=2)
    if law.replicas:
        band = factor * np.quantile(LAWS[law.law](np.array(law.replicas), n, d), [0.025, 0.975], axis=0)
        ax.fill_between(x, *band, color=colour, alpha=0.18, linewidth=0)
    return float(line[-1])


def law_words(study: Study) -> str:
    laws = [law for law in (study.joint(t) for t in study.targets()) if law]
    if not laws:
        return "No joint law could be fitted."
    words = "Lines: the joint law E + A/N^α + B/D^β"
    if any(law.replicas for law in laws):
        words += ", bands: 95 % of its bootstrap resamples"
    if not all(law.identified for law in laws):
        words += "; dashed where its parameters are not determined"
    return words + "."


def label_ends(ax: Axes, ends: list[tuple[float, float, str, tuple]]) -> None:
    """Direct labels at the right, pushed apart where lines end close together."""
    low, high = np.log(ax.get_ylim())
    order = sorted(range(len(ends)), key=lambda i: ends[i][1])
    at = [(np.log(ends[i][1]) - low) / (high - low) for i in order]
    gap = min(0.075, 0.95 / max(len(at), 1))
    for k in range(1, len(at)):
        at[k] = max(at[k], at[k - 1] + gap)
    excess = max(0.0, at[-1] - 1.0) if at else 0.0
    for i, y in zip(order, at):
        ax.text(
            1.02,
            y - excess,
            ends[i][2],
            color=ends[i][3],
            transform=ax.transAxes,
            fontsize=7,
            va="center",
            clip_on=False,
        )


def logarithmic(
    ax: Axes, xs: Iterable[float], ys: Iterable[float] = (), exact: bool = False, exact_y: bool = False
) -> None:
    """Both axes logarithmic, with labels that can be read also when an axis spans less than a decade."""
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.margins(x=0.08, y=0.1)
    for axis, values, only in ((ax.xaxis, list(xs), exact), (ax.yaxis, list(ys), exact_y)):
        ticks(axis, sorted(set(values)) if only and len(set(values)) <= 6 else None)


def ticks(axis: Axis, values: list[float] | None) -> None:
    """The densest of some habits that leaves room for the labels; below a decade evenly spaced numbers read better."""
    low, high = sorted(axis.get_view_interval())
    axis.set_minor_locator(NullLocator())
    if values is None:
        most = 4 if axis.axis_name == "x" else 6
        powers = range(int(np.floor(np.log10(low))), int(np.ceil(np.log10(high))) + 1)

        def inside(steps: Iterable[float]) -> list[float]:
            return [s * 10.0**p for p in powers for s in steps if low <= s * 10.0**p <= high]

        habits = [inside(steps) for steps in ((1, 2, 5), (1, 3), (1,))] + [inside((1,))[::k] for k in (2, 3, 4)]
        values = next((v for v in habits if len(v) <= most), habits[-1])
        if high / low < 8:
            values = [v for v in MaxNLocator(most, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high) if low <= v <= high]
        axis.set_minor_locator(FixedLocator(inside(range(1, 10))))
    axis.set_major_locator(FixedLocator(values))
    axis.set_major_formatter(FuncFormatter(lambda v, _: si(v)))
    axis.set_minor_formatter(NullFormatter())
