"""Laws of other people's points: a CSV file with a column for each size and one for the loss becomes a Fit."""

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
from gnnscale.contract.scaling_results import Fit, LawFit, Point
from gnnscale.contract.settings import ScalingSettings
from gnnscale.scaling.fitting.fit import MAX_STORED_RESAMPLES, fit_data, format_range, round_to_digits
from gnnscale.scaling.fitting.fitted import Observations
from gnnscale.scaling.fitting.laws import LAWS, Law
from gnnscale.scaling.words import format_estimate, format_number, format_percent, join_names, with_greek_letters

# what a column is called, if its name is not given; compared without case, blanks and underscores
USUAL = {
    "N": ("bodyparameters", "n", "params", "parameters", "modelsize"),
    "D": ("d", "tokens", "structures", "data", "samples", "t"),
    "U": ("u", "unique", "uniquetokens", "uniquestructures"),
    "loss": ("loss", "valloss", "testloss", "l"),
}
WORDS = {"N": "the size of the model", "D": "the size of the data", "U": "how many data are unique", "loss": "the loss"}
OPTION = {"N": "--x", "D": "--y", "U": "--unique", "loss": "--loss"}
RIVALS = ("Hoffmann", "OverTraining", "Kaplan", "KaplanFloor")  # of laws of N and D, each is compared with all


# what else a study's points say; a file with one of STUDIED is read as a study, of which not all rows are one grid
MORE = {
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
}
STUDIED = ("model", "depth", "epochs", "subset")
ROUNDED = 1e-6  # by which share unique data may exceed those seen, as files have so many digits
WORDY = ("run", "model", "subset", "diverged")


class Table(NamedTuple):
    """The points that were kept, and why the others were not."""

    path: Path
    columns: dict[str, str]  # axis -> name in the file
    at: dict[str, np.ndarray]
    loss: np.ndarray
    lines: tuple[int, ...]  # of each point in the file
    excluded: dict[str, str]  # "line 7" -> rule


def law_named(name: str) -> Law:
    known = {each.lower(): law for each, law in LAWS.items()}
    if name.lower() in known:
        return known[name.lower()]
    raise UserError(f"no law {name!r}{nearest(name, list(LAWS))}; there are: {', '.join(LAWS)}")


def nearest(name: str, known: list[str]) -> str:
    plain = {each.lower(): each for each in known}
    close = difflib.get_close_matches(name.lower(), plain, 1, 0.5)
    return f"; nearest: {plain[close[0]]!r}" if close else ""


def read(path: Path, asked: dict[str, str | None], flops: str | None, axes: str, drop_highest: int) -> Table:
    """`asked`: axis -> column, None to look for it. D may come from compute, as C/(6 N)."""
    rows, names = table_of(path)
    wanted = [axis for axis in axes if not (axis == "D" and flops)]
    columns = {axis: column(path, axis, asked.get(axis), names) for axis in (*wanted, "loss")}
    if flops:
        columns["C"] = column(path, "C", flops, names)
        columns.setdefault("N", column(path, "N", asked.get("N"), names))
    kept, excluded = [], {}
    for line, row in rows:
        values = {axis: value(path, line, name, row[name]) for axis, name in columns.items()}
        bad = [columns[axis] for axis, v in values.items() if not math.isfinite(v)]
        if bad:
            excluded[f"line {line}"] = f"{bad[0]} is not finite"
        elif low := [columns[axis] for axis, v in values.items() if v <= 0]:
            excluded[f"line {line}"] = f"{low[0]} is not positive"
        elif "U" in values and values["U"] > (1 + ROUNDED) * size(values):
            excluded[f"line {line}"] = f"{columns['U']} is more than was seen"
        else:
            kept.append((line, values))
    losses = sorted((v["loss"] for _, v in kept), reverse=True)
    above = losses[drop_highest - 1] if 0 < drop_highest <= len(losses) else math.inf
    excluded |= {f"line {k}": f"one of the {drop_highest} of largest loss" for k, v in kept if v["loss"] >= above}
    kept = [(k, v) for k, v in kept if v["loss"] < above]
    if not kept:
        raise UserError(f"{path}: none of {len(rows)} rows can be used: {', '.join(sorted(set(excluded.values())))}")
    at = {axis: np.array([v[axis] for _, v in kept]) for axis in columns if axis not in ("loss", "C")}
    if flops and "D" in axes:
        at["D"] = np.array([size(v) for _, v in kept])
    at = {axis: at[axis] for axis in axes}
    loss = np.array([v["loss"] for _, v in kept])
    return Table(path, columns, at, loss, tuple(k for k, _ in kept), excluded)


def size(values: dict[str, float]) -> float:
    """D, given or from compute."""
    return values["D"] if "D" in values else values["C"] / (6 * values["N"])


def table_of(path: Path) -> tuple[list[tuple[int, dict[str, str]]], list[str]]:
    """Rows, each with its line, and the names of their columns; blank lines and those that begin with # are passed over."""
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
    return [(line, dict(zip_longest(names, row[: len(names)], fillvalue=""))) for line, row in rows], [
        *filter(None, names)
    ]


def study_points(path: Path, asked: dict[str, str | None]) -> list[Point]:
    """Read the rows as points of a study, as far as their columns say; return none if they do not say that they are of one."""
    rows, names = table_of(path)
    plain = {plainly(each): each for each in reversed(names)}
    there = {
        field: found for field, usual in MORE.items() if (found := next((plain[u] for u in usual if u in plain), None))
    }
    if not set(STUDIED) & set(there):
        return []
    columns = {axis: column(path, axis, asked.get(axis), names) for axis in ("N", "D", "loss")}
    seeds: Counter = Counter()
    points = []
    for line, row in rows:
        n, d, loss = (value(path, line, name, row[name]) for name in columns.values())
        if not (n >= 1 and d >= 1 and math.isfinite(n * d)):
            found = f"{columns['N']} {row[columns['N']]!r} and {columns['D']} {row[columns['D']]!r}"
            raise UserError(f"{path}: line {line}: found {found}, expected sizes of 1 and more")
        said = {
            field: row[name] if field in WORDY else value(path, line, name, row[name])
            for field, name in there.items()
            if row[name].strip()
        }
        cell = (n, d, *(said.get(field) for field in ("model", "width", "depth", "epochs", "learning_rate", "subset")))
        fields = {
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
            "seed": seeds[cell],
            "diverged": False,
            "energy_mae": math.nan,
            "force_mae": math.nan,
            **said,
            "body_parameters": n,
            "structures": d,
            "loss": loss,
        }
        seeds[cell] += 1
        try:
            points.append(Point.model_validate(fields))
        except ValidationError as error:
            first = error.errors()[0]
            name = there.get(str(first["loc"][0]), first["loc"][0])
            raise UserError(
                f"{path}: line {line}, column {name!r}: found {first['input']!r}; {first['msg'].lower()}"
            ) from None
    return points


def plainly(name: str) -> str:
    return name.lower().replace(" ", "").replace("_", "")


def column(path: Path, axis: str, name: str | None, names: list[str]) -> str:
    if name in names:
        return name
    there = f"; there are: {', '.join(names)}"
    if name is not None:
        raise UserError(f"{path}: no column {name!r}{nearest(name, names)}{there}")
    plain = {plainly(each): each for each in reversed(names)}
    found = next((plain[usual] for usual in USUAL[axis] if usual in plain), None)
    if found is None:
        raise UserError(f"{path}: which column is {WORDS[axis]}? Name it with {OPTION[axis]}{there}")
    return found


def value(path: Path, line: int, name: str, text: str) -> float:
    try:
        return float(text.strip().lower().replace("d", "e") or "nan")  # 1.5D-3, as Fortran writes it
    except ValueError:
        raise UserError(f"{path}: line {line}, column {name!r}: found {text!r}, expected a number") from None


def cells(at: dict[str, np.ndarray]) -> np.ndarray:
    """Return a number for each row by its sizes: rows of the same sizes are seeds of one run."""
    return np.unique(np.stack([at[axis] for axis in at], axis=1), axis=0, return_inverse=True)[1].reshape(-1)


def fit(table: Table, law: Law, settings: ScalingSettings) -> Fit:
    """Fit the law that was asked for and, on the same points, the other laws of N and D."""
    order = np.argsort(cells(table.at), kind="stable")
    at = {axis: sizes[order] for axis, sizes in table.at.items()}
    data = Observations(at, table.loss[order], cells(at))
    places = int(data.cell.max()) + 1
    if places < len(law.parameters):
        raise UserError(
            f"{table.path}: {places} different sizes for the {len(law.parameters)} parameters of {law.name}"
        )
    where = "all points: " + ", ".join(
        f"{axis} = {table.columns.get(axis, 'C/(6 N)')} {format_range(at[axis])}" for axis in at
    )
    found = []
    for other in [law, *(LAWS[name] for name in RIVALS if name != law.name and law.name in RIVALS)]:
        if places < len(other.parameters):
            continue
        mine = other is law
        entry, _, replicas = fit_data(other, data, settings if mine else settings.model_copy(update={"bootstrap": 0}))
        rows = (
            ()
            if replicas is None
            else tuple(tuple(round_to_digits(v, 6) for v in row) for row in replicas[:MAX_STORED_RESAMPLES])
        )
        entry = entry.model_copy(
            update={
                "where": where,
                "points": tuple(f"line {table.lines[k]}" for k in order),
                "excluded": table.excluded,
                "chosen": mine,
                "replicas": rows,
            }
        )
        found.append(entry)
    said, unsaid = sentences(found, settings, len(table.loss), places)
    return Fit(
        laws=tuple(found),
        bootstrap=settings.bootstrap,
        confidence=settings.confidence,
        seed=settings.seed,
        drop_highest=settings.drop_highest,
        findings=said,
        unsupported=unsaid,
    )


def compare_with_rivals(law: LawFit, rivals: list[LawFit]) -> str:
    """Compare a law with others on the same points by criteria and by how they predict the largest points."""
    each = [
        f"{r.law} {r.aicc - law.aicc:+.1f} and {r.bic - law.bic:+.1f}"
        for r in rivals
        if r.aicc is not None and r.bic is not None and law.aicc is not None and law.bic is not None
    ]
    text = f"AICc and BIC of other laws on the same points, less its own (lower is better): {'; '.join(each)}."
    errors = [(r.held_out.mean, r.law) for r in (law, *rivals) if r.held_out]
    if len(errors) > 1:
        error, best = min(errors, key=lambda each: each[0])
        text += f" {best} predicts the largest points best, to {format_percent(error)} on average."
    return text


def sentences(
    laws: list[LawFit], settings: ScalingSettings, points: int, places: int
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return sentences about what the fit says, and about what the points do not support."""
    law, *rivals = laws
    values = ", ".join(f"{with_greek_letters(name)} = {format_estimate(e)}" for name, e in law.estimates.items())
    said = [
        f"{law.law}: L = {with_greek_letters(law.formula)} with {values} ({format_percent(settings.confidence)} intervals)."
    ]
    seeds = f", {places} different sizes" if places < points else ""
    said.append(
        f"{points} points{seeds}; rms residual of log L {format_percent(law.log_rms)}; "
        f"{format_percent(law.at_optimum)} of the starts reach the optimum."
    )
    if law.allocation and law.identified:
        said.append(f"The best N for compute C ~ N D grows as C^a with a = {format_estimate(law.allocation)}.")
    if law.held_out:
        held = law.held_out
        said.append(
            f"Fitted without the {held.points} largest points, it misses them by {format_percent(held.mean)} on average, "
            f"{format_percent(held.worst)} at worst; they reach {format_number(held.beyond)} times as far."
        )
    if rivals and law.aicc is not None:
        said.append(compare_with_rivals(law, rivals))
    unsaid = [f"Parameters that the points do not determine: {'; '.join(law.notes)}."] if not law.identified else []
    if law.identified and law.notes:
        unsaid.append(f"Notes: {'; '.join(law.notes)}.")
    if not law.held_out:
        unsaid.append("Extrapolation: too few points are left without the largest ones to try it.")
    if places == points:
        unsaid.append("The noise of training: no size was run twice. Intervals hold the scatter between sizes.")
    rules = sorted(set(law.excluded.values()))
    if rules:
        said.append(f"Left out: {len(law.excluded)} ({join_names(rules)}); fit.json names each line.")
    return tuple(said), tuple(unsaid)
