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


def print_status(root: Path, plan: PlanFile, rows: list[StageStatus], driver: LeaseHolder | None, clear: bool) -> None:
    """Print the counts of stages, and a line for each that runs, waits in the queue or has failed."""
    if clear:
        print(CLEAR_SCREEN, end="")
    who = f"driver pid {driver['pid']} on {driver['host']}" if driver else "no driver is running"
    print(f"{plan.study} on {plan.site}: {who}\n{root}")
    print("  ".join(f"{kind} {done}/{total}" for kind, (done, total) in status.count_done(rows).items()))
    for row in rows:
        if line := describe_row(row):
            print(line)
    if driver is None and any(row.job for row in rows):
        print("jobs are as the last driver saw them; `run` follows them again, `cancel` ends them")


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
