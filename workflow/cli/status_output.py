"""The lines and the JSON of `status`, and the output of stages for `logs`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gnnscale.contract.errors import UserError
from workflow.cli.output import format_duration
from workflow.run_directory import status
from workflow.run_directory.lease import LeaseHolder
from workflow.run_directory.status import PlanFile, StageStatus

CLEAR_SCREEN = "\033[H\033[J"
MAX_ROWS_IN_FULL = 20  # of `status`; of more, those that are alike share a line


def print_status(
    root: Path, plan: PlanFile, rows: list[StageStatus], driver: LeaseHolder | None, clear: bool, in_full: bool
) -> None:
    """Print the counts of stages, and those that run, wait in the queue or have failed, alike ones together if they are many."""
    if clear:
        print(CLEAR_SCREEN, end="")
    who = f"driver pid {driver['pid']} on {driver['host']}" if driver else "no driver is running"
    print(f"{plan.study} on {plan.typed_site}: {who}\n{root}")
    print("  ".join(f"{kind} {done}/{total}" for kind, (done, total) in status.count_done(rows).items()))
    lines = [line for row in rows if (line := describe_row(row))]
    in_full = in_full or len(lines) <= MAX_ROWS_IN_FULL
    print("\n".join(lines if in_full else describe_groups(rows)), end="\n" if lines else "")
    if driver is None and any(row.job for row in rows):
        print("jobs are as the last driver saw them; `run` follows them again, `cancel` ends them")


def describe_groups(rows: list[StageStatus]) -> list[str]:
    """Return a line for all stages of one kind that are in one state for one reason, and which of them is the first."""
    groups: dict[tuple[str, str, str], list[StageStatus]] = {}
    for row in rows:
        if describe_row(row):
            groups.setdefault((row.state, row.kind, row.message or row.reason), []).append(row)
    lines = [describe_row(group[0]) if len(group) == 1 else describe_group(group) for group in groups.values()]
    return [*lines, "  `status --all` lists each stage"]


def describe_group(group: list[StageStatus]) -> str:
    first = group[0]
    text = f"  {first.state:8} {len(group):4} x {first.kind}: {first.message or first.reason}".rstrip(": ")
    done, total = (sum(value or 0 for value in column) for column in zip(*((row.done, row.total) for row in group)))
    return text + (f"  {done:,.0f}/{total:,.0f}" if total else "") + f"  ({first.id}, ...)"


def describe_row(row: StageStatus) -> str:
    """Return the line of a stage; none for one that is done or waits for others."""
    if row.state == "failed":
        return f"  failed   {row.id}: {row.message}"
    if row.state == "queued":
        return "  ".join(filter(None, ["  queued ", row.id, describe_job(row), row.reason]))
    if row.state != "running":
        return ""
    progress = f"{row.done:,.0f}/{row.total:,.0f}" if row.total else ""
    loss = f"loss {row.loss:.4f}" if row.loss is not None else ""
    left = f"{format_duration(row.eta)} left" if row.eta is not None else ""
    return "  ".join(filter(None, ["  running", row.id, describe_job(row), progress, loss, left]))


def describe_job(row: StageStatus) -> str:
    """Return where a stage is, such as `job 1234 on n[1-2], attempt 3`."""
    if not row.job:
        return ""
    again = f", attempt {row.attempt}" if row.attempt and row.attempt > 1 else ""
    return f"job {row.job}{' on ' + row.nodes if row.nodes else ''}{again}"


def encode_status(rows: list[StageStatus], driver: LeaseHolder | None) -> dict[str, Any]:
    """Return the status as JSON has it."""
    return {"driver": driver, "stages": [row._asdict() for row in rows]}


def print_logs(folder: Path, id: str) -> None:
    """Print what the last attempt of a stage printed."""
    attempts = sorted((folder / "attempts").glob("[0-9]*"), key=lambda path: int(path.name))
    if not attempts:
        raise UserError(f"{id}: has not been started yet")
    paths = [attempts[-1] / name for name in ("job.out", "stdout", "stderr")]
    texts = {path: path.read_text(errors="replace").rstrip() for path in paths if path.exists()}
    for path, text in texts.items():
        if text:
            print(f"--- {path}\n{text}")
    if not any(texts.values()):
        print(f"{id}: attempt {attempts[-1].name} has printed nothing yet")
