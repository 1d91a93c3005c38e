"""The errors of a study's runs beside those that others published, on each source and external test, as rows and as a table."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from html import escape
from typing import NamedTuple, get_args

from gnnscale.contract.results import Errors, Evaluation
from gnnscale.contract.settings import Measure, PublishedErrors
from gnnscale.report.html import format_duration, render_table
from gnnscale.report.study_results import StudyResults, run_name
from gnnscale.scaling.words import format_number

HEADS: dict[Measure, str] = {
    "force_rmse": "force RMSE, meV/Å",
    "force_mae": "force MAE, meV/Å",
    "energy_rmse": "energy RMSE, meV/atom",
    "energy_mae": "energy MAE, meV/atom",
    "energy_rmse_per_structure": "energy RMSE, meV a structure",
}
NOTE = (
    "Errors on held-out structures of each source and on its external tests; forces per component. CPU time is that of the "
    "whole training, measured. Published errors are as their authors give them, with what differs from the protocol here."
)


class ErrorRow(NamedTuple):
    """Errors of one model on one source or external test; an error that is not known is NaN, a fact of others is None."""

    where: str
    model: str
    errors: dict[Measure, float]  # meV and Angstrom
    run: str = ""
    parameters: int | None = None
    trained_on: int | None = None  # structures
    tested_on: int | None = None  # structures
    cpu_seconds: float | None = None
    citation: str = ""
    note: str = ""


def list_rows(study: StudyResults) -> list[ErrorRow]:
    """List the rows by source and test, the study's own runs first; nothing if the study names no published errors."""
    if not study.settings.published:
        return []
    own = [row for e in study.evaluations.values() for row in rows_of_run(study, e)]
    rows = [
        *sorted(own, key=lambda row: (row.where, row.model, row.run)),
        *map(row_of_others, study.settings.published),
    ]
    return sorted(rows, key=lambda row: row.where)  # stable: within a source, the study's own stay first


def rows_of_run(study: StudyResults, e: Evaluation) -> Iterator[ErrorRow]:
    trained = study.results.get(f"train/{run_name(e.run)}")
    model, run = f"{e.model.label}, {e.model.forces} forces{', diverged' * e.diverged}", run_name(e.run)
    for where, errors in e.sources.items():
        seconds = trained.cpu_seconds if trained else None
        if errors.structures:
            known = errors_in_mev(errors)
            yield ErrorRow(where, model, known, run, e.parameters, e.structures, errors.structures, seconds)


def errors_in_mev(errors: Errors) -> dict[Measure, float]:
    return {measure: 1e3 * getattr(errors, measure) for measure in get_args(Measure)}


def row_of_others(published: PublishedErrors) -> ErrorRow:
    errors = {measure: published.errors.get(measure, float("nan")) for measure in get_args(Measure)}
    return ErrorRow(published.where, published.model, errors, citation=published.citation, note=published.note)


# ----------------------------------------------------------------------------------------------------- page and file
def render_beside_published(study: StudyResults) -> str:
    """Render a table for each source and test, with the citations of what is published on it."""
    rows = list_rows(study)
    parts = [
        render_where(where, [r for r in rows if r.where == where]) for where in dict.fromkeys(r.where for r in rows)
    ]
    return f'<p class="note">{escape(NOTE)}</p>{"".join(parts)}' if parts else ""


def render_where(where: str, rows: list[ErrorRow]) -> str:
    """Render the rows of one source or test; energies of whole structures where others are published."""
    per_structure = any(r.citation and not is_nan(r.errors["energy_rmse_per_structure"]) for r in rows)
    measures = [m for m in HEADS if m != "energy_rmse_per_structure" or per_structure]
    cells = [
        [
            row.model,
            *("" if is_nan(row.errors[m]) else format_number(row.errors[m]) for m in measures),
            "" if row.cpu_seconds is None else format_duration(row.cpu_seconds),
            *("" if number is None else f"{number:,}" for number in (row.trained_on, row.tested_on, row.parameters)),
            row.run,
        ]
        for row in rows
    ]
    heads = ["model", *(HEADS[m] for m in measures), "CPU time", "trained on", "tested on", "parameters", "run"]
    sentences = dict.fromkeys(f"{r.citation}{'. ' if r.note else ''}{r.note}." for r in rows if r.citation)
    cited = "".join(f"<li>{escape(sentence)}</li>" for sentence in sentences)
    below = (
        f'<ul class="soft">{cited}</ul>' if cited else '<p class="note">The study lists no published errors for it.</p>'
    )
    classes = ["out" if row.citation else "" for row in rows]
    return f"<h3>{escape(where)}</h3>{render_table(heads, cells, classes, numbers_from=1)}{below}"


def is_nan(value: float) -> bool:
    return value != value


def write_rows(rows: list[ErrorRow]) -> str:
    """Return the rows as CSV, errors in meV with four digits; an empty cell is not known."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    fields = [name for name in ErrorRow._fields if name != "errors"]
    writer.writerow([*fields[:-2], *HEADS.values(), *fields[-2:]])
    for row in rows:
        rounded = row._replace(cpu_seconds=row.cpu_seconds and round(row.cpu_seconds, 1))
        facts = ["" if (value := getattr(rounded, name)) is None else value for name in fields]
        errors = ["" if is_nan(row.errors[m]) else f"{row.errors[m]:.4g}" for m in HEADS]
        writer.writerow([*facts[:-2], *errors, *facts[-2:]])
    return text.getvalue()
