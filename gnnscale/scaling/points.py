"""The table points.csv: one row per evaluated run, written by the stage `scaling`, read by the report and by people."""

from __future__ import annotations

import csv
import io
from pathlib import Path

from gnnscale.contract.results import Evaluation
from gnnscale.contract.scaling_results import Point


def to_point(e: Evaluation) -> Point:
    same = {
        name: getattr(e, name) for name in Point.model_fields if name in Evaluation.model_fields and name != "model"
    }
    return Point(
        **same,
        model=e.model.label,
        width=e.model.width,
        depth=e.model.depth,
        energy_mae=e.all.energy_mae,
        force_mae=e.all.force_mae,
        cosine_distance=e.layers[-1].distance,
        dirichlet_energy=e.layers[-1].dirichlet,
        source_names="+".join(e.trained_on),
    )


def to_csv(points: list[Point]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(Point.model_fields), lineterminator="\n")
    writer.writeheader()
    writer.writerows(p.model_dump() for p in points)
    return text.getvalue()


def read_points(path: Path) -> list[Point]:
    with open(path, newline="", encoding="utf-8-sig") as file:
        return [Point.model_validate(row) for row in csv.DictReader(file)]
