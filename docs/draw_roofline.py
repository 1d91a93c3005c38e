"""Draw the rate of a training step under the roof of one core, from tests/benchmarks/results/native.json.

python docs/draw_roofline.py     writes docs/images/native.svg
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT)]

from gnnscale.report.figures.style import (  # noqa: E402
    FAINT_COLOUR,
    INK_COLOUR,
    MATPLOTLIB_STYLE,
    OKABE_ITO,
    export_figure,
    plt,
)

RESULTS = ROOT / "tests" / "benchmarks" / "results" / "native.json"
DRAWING = ROOT / "docs" / "images" / "native.svg"
WAYS = {"native": ("o", OKABE_ITO[0]), "PyTorch": ("s", OKABE_ITO[1])}


def draw() -> str:
    rows = json.loads(RESULTS.read_text())["rows"]
    (roof,) = [row for row in rows if row["what"] == "one core"]
    steps = [row for row in rows if row["what"].startswith("step, ") and row["way"] in WAYS]
    peak, bandwidth = roof["GFLOP/s"], roof["GB/s"]
    with plt.rc_context(MATPLOTLIB_STYLE):
        figure, axes = plt.subplots(1, 2, figsize=(7.0, 2.9), sharey=True, layout="constrained")
        for ax, forces in zip(axes, ("direct", "gradient"), strict=True):
            chosen = [row for row in steps if row["what"].endswith(f"{forces} forces")]
            x = [row["FLOP/byte"] for row in chosen]
            low, high = min(x) * 0.7, max(x) * 1.5
            ax.plot(
                [low, peak / bandwidth, high],
                [low * bandwidth, peak, peak],
                color=INK_COLOUR,
                label=f"one core: {bandwidth:.0f} GB/s, {peak:.0f} GFLOP/s",
            )
            for way, (marker, colour) in WAYS.items():
                for form, style in (("deferred", "-"), ("edge", "--")):
                    line = [row for row in chosen if row["way"] == way and f" {form}," in row["what"]]
                    points = [row["FLOP/byte"] for row in line], [row["GFLOP/s"] for row in line]
                    ax.plot(*points, marker=marker, linestyle=style, color=colour, label=f"{way}, {form}")
                    if way == "native":
                        for row in (line[0], line[-1]):
                            at = row["FLOP/byte"], row["GFLOP/s"]
                            ax.annotate(
                                f"W = {row['width']}",
                                at,
                                (4, -9),
                                textcoords="offset points",
                                fontsize=6.5,
                                color=FAINT_COLOUR,
                            )
            ax.set_xscale("log")
            ax.set_yscale("log")
            ax.set_xlim(low, high)
            ax.set_title(f"{forces} forces")
            ax.set_xlabel("arithmetic intensity (FLOP per byte between blocks)")
        axes[0].set_ylabel("GFLOP/s of the whole step")
        axes[1].legend(frameon=False, fontsize=6.5, loc="lower right")
        svg, _ = export_figure(figure)
    return svg


if __name__ == "__main__":
    DRAWING.write_text(draw())
    print(DRAWING.relative_to(ROOT))
