"""The style of all figures: fonts, colours, axes, labels, reproducible SVG and PNG. Only this file imports matplotlib."""

from __future__ import annotations

import io
import os
import shutil
import tempfile
from collections.abc import Iterable, Sequence
from typing import Any, Literal, NamedTuple

# On import matplotlib writes its list of fonts, which must not go into the home directory.
if "MPLCONFIGDIR" not in os.environ:
    os.environ["MPLCONFIGDIR"] = tempfile.mkdtemp(prefix="gnnscale-matplotlib-")

import matplotlib

matplotlib.use("Agg")

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.axis import Axis, XAxis
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullFormatter, NullLocator
from matplotlib.typing import ColorType

from gnnscale.report.figures.series import format_si
from gnnscale.report.study_results import TARGETS

if "gnnscale-matplotlib-" in os.environ["MPLCONFIGDIR"]:
    shutil.rmtree(os.environ["MPLCONFIGDIR"], ignore_errors=True)  # now, because stages end with os._exit

WIDE_INCHES, HALF_INCHES = 7.0, 3.4  # two columns and one column of a journal
OKABE_ITO = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "osD^vP*"
INK_COLOUR, FAINT_COLOUR = "#222222", "#8a8a8a"
MATPLOTLIB_STYLE: Any = {  # the stubs of rc_context list its keys, and a dictionary of strings does not match
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same on every machine
    "font.size": 8,
    "axes.titlesize": 8.5,
    "axes.titlelocation": "left",
    "axes.labelsize": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.7,
    "axes.edgecolor": INK_COLOUR,
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


class DrawnFigure(NamedTuple):
    """A figure as SVG and PNG, with its caption."""

    name: str
    caption: str
    wide: bool
    svg: str
    png: bytes


def close_figure(figure: Figure) -> None:
    plt.close(figure)


def export_figure(figure: Figure) -> tuple[str, bytes]:
    svg, png = io.StringIO(), io.BytesIO()
    figure.savefig(svg, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    figure.set_layout_engine("none")  # the layout of the SVG is kept for the bitmap
    figure.savefig(png, format="png", dpi=220, metadata={"Software": None})
    return svg.getvalue(), png.getvalue()


AXIS_LABELS = {"structures": "unique training structures D", "body_parameters": "body parameters N"}


def make_panels(
    count: int, width: float = WIDE_INCHES, height: float = 2.45, sharey: bool | Literal["row"] = False, rows: int = 1
) -> tuple[Figure, list[Axes]]:
    """Make `count` panels in each row; they are listed row after row."""
    figure, axes = plt.subplots(
        rows, count, figsize=(width, height), layout="constrained", squeeze=False, sharey=sharey
    )
    return figure, list(axes.flat)


def set_title(ax: Axes, target: str) -> None:
    name, unit, _ = TARGETS[target]
    ax.set_title(f"{name} ({unit})" if unit else name)


def sequential_colours(count: int) -> list[ColorType]:
    """Return colours for sizes, dark for large; the palest end of viridis is left out, as it does not print."""
    return [matplotlib.colormaps["viridis"](v) for v in np.linspace(0.82, 0.05, count)]


def label_ends(ax: Axes, ends: Sequence[tuple[float, float, str, ColorType]]) -> None:
    """Label lines at their right ends, and push labels apart where lines end close together."""
    low, high = np.log(ax.get_ylim())
    order = sorted(range(len(ends)), key=lambda i: ends[i][1])
    at = [(np.log(ends[i][1]) - low) / (high - low) for i in order]
    gap = min(0.075, 0.95 / max(len(at), 1))
    up, down = list(at), list(at)  # pushed only up, and only down; their mean keeps the gaps
    for k in range(1, len(at)):
        up[k] = max(up[k], up[k - 1] + gap)
    for k in reversed(range(len(at) - 1)):
        down[k] = min(down[k], down[k + 1] - gap)
    at = [(a + b) / 2 for a, b in zip(up, down)]
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


def set_logarithmic(
    ax: Axes, xs: Iterable[float], ys: Iterable[float] = (), exact: bool = False, exact_y: bool = False
) -> None:
    """Make both axes logarithmic, with readable labels even if an axis spans less than a decade."""
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.margins(x=0.08, y=0.1)
    for axis, values, only in ((ax.xaxis, list(xs), exact), (ax.yaxis, list(ys), exact_y)):
        set_ticks(axis, sorted(set(values)) if only and len(set(values)) <= 6 else None)


def set_ticks(axis: Axis, values: list[float] | None) -> None:
    """Set the densest ticks that leave room for labels; below a decade they are evenly spaced."""
    low, high = sorted(axis.get_view_interval())
    axis.set_minor_locator(NullLocator())
    if values is None:
        most = 4 if isinstance(axis, XAxis) else 6
        powers = range(int(np.floor(np.log10(low))), int(np.ceil(np.log10(high))) + 1)

        def inside(steps: Iterable[float]) -> list[float]:
            return [s * 10.0**p for p in powers for s in steps if low <= s * 10.0**p <= high]

        choices = [inside(steps) for steps in ((1, 2, 5), (1, 3), (1,))] + [inside((1,))[::k] for k in (2, 3, 4)]
        values = next((v for v in choices if len(v) <= most), choices[-1])
        if high / low < 8:
            values = [v for v in MaxNLocator(most, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high) if low <= v <= high]
        axis.set_minor_locator(FixedLocator(inside(range(1, 10))))
    axis.set_major_locator(FixedLocator(values))
    axis.set_major_formatter(FuncFormatter(lambda v, _: format_si(v)))
    axis.set_minor_formatter(NullFormatter())
