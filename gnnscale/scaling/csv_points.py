"""Points of a CSV file that gnnscale did not write: its columns, rows and sizes, or the points of a whole study."""

from __future__ import annotations

import csv
import difflib
import io
import math
from collections import Counter
from itertools import zip_longest
from pathlib import Path
from typing import NamedTuple

import numpy as np
from pydantic import ValidationError

from gnnscale.contract.errors import UserError, reason_of
from gnnscale.contract.scaling_results import Point

# Columns by the names that they usually have, where the user names none: compared without case, blanks and underscores.
USUAL_COLUMNS = {
    "N": ("bodyparameters", "n", "params", "parameters", "modelsize"),
    "D": ("d", "tokens", "structures", "data", "samples", "t"),
    "U": ("u", "unique", "uniquetokens", "uniquestructures"),
    "loss": ("loss", "valloss", "testloss", "l"),
}
COLUMN_MEANINGS = {
    "N": "the size of the model",
    "D": "the size of the data",
    "U": "how many data are unique",
    "loss": "the loss",
}
COLUMN_OPTIONS = {"N": "--x", "D": "--y", "U": "--unique", "loss": "--loss"}
# The same for the other fields of a study's points.
USUAL_STUDY_COLUMNS = {
    "run": ("run", "name"),
    "model": ("model", "form", "architecture"),
    "width": ("width",),
    "depth": ("depth", "layers"),
    "parameters": ("parameters",),
    "atoms": ("atoms",),
    "epochs": ("epochs",),
    "atoms_seen": ("atomsseen",),
    "flops": ("flops", "c", "compute"),
    "learning_rate": ("learningrate", "lr"),
    "seed": ("seed",),
    "subset": ("subset",),
    "diverged": ("diverged",),
    "energy_mae": ("energymae",),
    "force_mae": ("forcemae",),
    "cosine_distance": ("cosinedistance",),
    "dirichlet_energy": ("dirichletenergy",),
    "source_names": ("sourcenames",),
}
STUDY_MARKERS = ("model", "depth", "epochs", "subset")  # a file with one of these fields may hold more than one grid
# Equal in runs of one size:
FIELDS_OF_ONE_CELL = ("source_names", "model", "width", "depth", "epochs", "learning_rate", "subset")
TEXT_FIELDS = ("run", "model", "subset", "diverged", "source_names")
MAX_ROUNDING = 1e-6  # share by which unique data may exceed the data seen: files round their numbers


class CsvPoints(NamedTuple):
    """The points that were kept, and the reasons for which others were not."""

    path: Path
    columns: dict[str, str]  # axis -> name in the file
    at: dict[str, np.ndarray]  # axis -> size of each point
    loss: np.ndarray
    lines: tuple[int, ...]  # line of each point in the file
    excluded: dict[str, str]  # "line 7" -> rule


class CsvTable(NamedTuple):
    """The cells of a file as text."""

    names: list[str]  # of the columns
    rows: list[tuple[int, dict[str, str]]]  # line in the file, and name of a column -> cell


# ------------------------------------------------------------------------------------------------- points of one law
def read_csv_points(
    path: Path, named_columns: dict[str, str | None], flops: str | None, axes: str, drop_highest: int
) -> CsvPoints:
    """Read the points of a law of `axes`, without the `drop_highest` ones of largest loss.

    `named_columns` are those that the user names, by axis; others are found by their usual names. With `flops`, a column
    of compute C, D is C/(6 N).
    """
    table = read_table(path)
    columns = choose_columns(path, named_columns, flops, axes, table.names)
    kept, excluded = [], {}
    for line, row in table.rows:
        sizes = {axis: parse_number(path, line, name, row[name]) for axis, name in columns.items()}
        if rule := exclusion_rule(sizes, columns):
            excluded[f"line {line}"] = rule
        else:
            kept.append((line, sizes))
    losses = sorted((sizes["loss"] for _, sizes in kept), reverse=True)
    least_dropped = losses[drop_highest - 1] if 0 < drop_highest <= len(losses) else math.inf
    dropped = [line for line, sizes in kept if sizes["loss"] >= least_dropped]
    excluded |= {f"line {line}": f"one of the {drop_highest} of largest loss" for line in dropped}
    kept = [(line, sizes) for line, sizes in kept if sizes["loss"] < least_dropped]
    if not kept:
        rules = ", ".join(sorted(set(excluded.values())))
        raise UserError(f"{path}: none of {len(table.rows)} rows can be used: {rules}")
    at = {
        axis: np.array([data_size(sizes) if axis == "D" else sizes[axis] for _, sizes in kept], float) for axis in axes
    }
    loss = np.array([sizes["loss"] for _, sizes in kept])
    return CsvPoints(path, columns, at, loss, tuple(line for line, _ in kept), excluded)


def choose_columns(
    path: Path, named_columns: dict[str, str | None], flops: str | None, axes: str, names: list[str]
) -> dict[str, str]:
    """Return axis -> name of its column; C stands for compute."""
    wanted = [axis for axis in axes if not (axis == "D" and flops)]
    columns = {axis: find_column(path, axis, named_columns.get(axis), names) for axis in (*wanted, "loss")}
    if flops:
        columns["C"] = find_column(path, "C", flops, names)
        columns.setdefault("N", find_column(path, "N", named_columns.get("N"), names))
    return columns


def exclusion_rule(sizes: dict[str, float], columns: dict[str, str]) -> str:
    """Return the rule by which a row is no point of a law, or ""."""
    not_finite = [columns[axis] for axis, size in sizes.items() if not math.isfinite(size)]
    if not_finite:
        return f"{not_finite[0]} is not finite"
    not_positive = [columns[axis] for axis, size in sizes.items() if size <= 0]
    if not_positive:
        return f"{not_positive[0]} is not positive"
    if "U" in sizes and sizes["U"] > (1 + MAX_ROUNDING) * data_size(sizes):
        return f"{columns['U']} is more than was seen"
    return ""


def data_size(sizes: dict[str, float]) -> float:
    """Return D as the file gives it, or else from compute."""
    return sizes["D"] if "D" in sizes else sizes["C"] / (6 * sizes["N"])


# -------------------------------------------------------------------------------------------------- points of a study
def read_study_points(path: Path, named_columns: dict[str, str | None]) -> list[Point]:
    """Read the rows as points of a study; return none if no column marks the file as one."""
    table = read_table(path)
    by_plain_name = index_names(table.names)
    study_columns = {
        field: name for field, usual in USUAL_STUDY_COLUMNS.items() if (name := first_present(usual, by_plain_name))
    }
    if not set(STUDY_MARKERS) & set(study_columns):
        return []
    columns = {axis: find_column(path, axis, named_columns.get(axis), table.names) for axis in ("N", "D", "loss")}
    runs_of_cell: Counter[tuple] = Counter()
    points = []
    for line, row in table.rows:
        n, d, loss = (parse_number(path, line, name, row[name]) for name in columns.values())
        if not (n >= 1 and d >= 1 and math.isfinite(n * d)):
            cells = f"{columns['N']} {row[columns['N']]!r} and {columns['D']} {row[columns['D']]!r}"
            raise UserError(f"{path}: line {line}: found {cells}, expected sizes of 1 and more")
        given = {
            field: row[name] if field in TEXT_FIELDS else parse_number(path, line, name, row[name])
            for field, name in study_columns.items()
            if row[name].strip()
        }
        cell = (n, d, *(given.get(field) for field in FIELDS_OF_ONE_CELL))
        fields = default_fields(line, n, runs_of_cell[cell]) | given
        runs_of_cell[cell] += 1
        try:
            points.append(Point.model_validate(fields | {"body_parameters": n, "structures": d, "loss": loss}))
        except ValidationError as error:
            first = error.errors()[0]
            field = str(first["loc"][0])
            where = f"{path}: line {line}, column {study_columns.get(field, field)!r}"
            raise UserError(f"{where}: found {first['input']!r}; {first['msg'].lower()}") from None
    return points


def default_fields(line: int, n: float, seed: int) -> dict[str, str | float]:
    """Return the fields of a point whose file has nothing but its sizes and its loss."""
    return {
        "run": f"line {line}",
        "model": "",
        "width": n,
        "depth": 0,
        "parameters": n,
        "atoms": 0,
        "epochs": 0.0,
        "atoms_seen": 0,
        "flops": 0.0,
        "learning_rate": 0.0,
        "seed": seed,
        "diverged": False,
        "energy_mae": math.nan,
        "force_mae": math.nan,
    }


# ------------------------------------------------------------------------------------------------- cells and columns
def read_table(path: Path) -> CsvTable:
    """Read the cells of a file; blank lines and those that begin with # do not count."""
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            text = file.read()
        first = next((line for line in text.splitlines() if line.strip() and not line.startswith("#")), "")
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=max(",;\t", key=first.count))
        lines = [(reader.line_num, row) for row in reader if any(map(str.strip, row)) and not row[0].startswith("#")]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: {reason_of(error) if isinstance(error, OSError) else error}") from None
    if len(lines) < 2:
        raise UserError(
            f"{path}: no rows; a first line with the names of the columns and a line for each run are expected"
        )
    (_, names), *rows = lines
    if twice := [name for name, count in Counter(filter(None, names)).items() if count > 1]:
        raise UserError(f"{path}: several columns are called {twice[0]!r}; which is meant? Rename the others")
    if long := [line for line, row in rows if any(row[len(names) :])]:
        raise UserError(f"{path}: line {long[0]}: more cells than the {len(names)} columns named in the first line")
    cells = [(line, dict(zip_longest(names, row[: len(names)], fillvalue=""))) for line, row in rows]
    return CsvTable([name for name in names if name], cells)


def find_column(path: Path, axis: str, name: str | None, names: list[str]) -> str:
    """Return the column that the user names, or else the one with a usual name."""
    if name in names:
        return name
    listed = f"; there are: {', '.join(names)}"
    if name is not None:
        raise UserError(f"{path}: no column {name!r}{suggest_nearest(name, names)}{listed}")
    found = first_present(USUAL_COLUMNS[axis], index_names(names))
    if found is None:
        raise UserError(f"{path}: which column is {COLUMN_MEANINGS[axis]}? Name it with {COLUMN_OPTIONS[axis]}{listed}")
    return found


def index_names(names: list[str]) -> dict[str, str]:
    """Return name without case, blanks and underscores -> name; of equal ones the first counts."""
    return {name.lower().replace(" ", "").replace("_", ""): name for name in reversed(names)}


def first_present(usual: tuple[str, ...], by_plain_name: dict[str, str]) -> str | None:
    return next((by_plain_name[plain] for plain in usual if plain in by_plain_name), None)


def suggest_nearest(name: str, known: list[str]) -> str:
    """Return "; nearest: 'NAME'", or "" if no known name is near."""
    by_lower_case = {each.lower(): each for each in known}
    close = difflib.get_close_matches(name.lower(), by_lower_case, 1, 0.5)
    return f"; nearest: {by_lower_case[close[0]]!r}" if close else ""


def parse_number(path: Path, line: int, name: str, text: str) -> float:
    try:
        return float(text.strip().lower().replace("d", "e") or "nan")  # 1.5D-3, as Fortran writes it
    except ValueError:
        raise UserError(f"{path}: line {line}, column {name!r}: found {text!r}, expected a number") from None
