"""Functions that several verbs share: durations, a stage by its name, settings as YAML, the end of a run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import yaml

from gnnscale.contract import files
from gnnscale.contract.errors import UserError
from gnnscale.schema import Record
from workflow.cli.invocation import Invocation
from workflow.config.field_problems import suggest
from workflow.config.site import SiteConfig
from workflow.config.study import Study

if TYPE_CHECKING:  # Parsl takes half a second to import
    from workflow.execute.dag import Dag

T = TypeVar("T")
SECONDS_OF_UNIT = {"s": 1, "min": 60, "h": 3600, "days": 86400, "years": 31557600}
MAX_OF_UNIT = 90  # beyond it the next larger unit is used


def format_duration(seconds: float) -> str:
    """Return a duration in the unit in which it is a number up to 90."""
    fitting = (unit for unit, length in SECONDS_OF_UNIT.items() if seconds < MAX_OF_UNIT * length)
    unit = next(fitting, "years")
    return f"{seconds / SECONDS_OF_UNIT[unit]:,.0f} {unit}"


def find_stage(name: str, stages: dict[str, T]) -> T:
    """Return a stage by its id, or by the end of it where only one ends so."""
    if name in stages:
        return stages[name]
    close = [id for id in stages if id.endswith(f"/{name}")]
    if len(close) == 1:
        return stages[close[0]]
    raise UserError(f"no stage {name!r}; {'it could be ' + ', '.join(close) if close else suggest(name, list(stages))}")


def write_resolved(root: Path, study: Study, site: SiteConfig) -> None:
    """Write study.yaml and site.yaml with all defaults into the run directory, before anything is started."""
    files.write(root / "study.yaml", to_yaml(study))
    files.write(root / "site.yaml", to_yaml(site))


def to_yaml(settings: Record) -> str:
    """Return settings with all defaults as YAML."""
    return yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False, width=120)


# ------------------------------------------------------------------------------------------------ the end of a run
def print_summary(dag: Dag, invocation: Invocation, seconds: float) -> None:
    """Print each failure, with the end of its output where it is the first with that message, and what to type next."""
    states = list(dag.states.values())
    print(f"{states.count('done')} of {len(dag.stages)} stages done in {format_duration(seconds)}")
    first_with: dict[str, str] = {}  # message -> the first stage that failed with it
    for id, outcome in dag.failures.items():
        first = first_with.setdefault(outcome.message, id)
        print(f"failed: {id}: {outcome.message if first == id else 'the same as ' + first}")
        if first == id:
            for line in outcome.tail:
                print(f"    | {line}")
            print(f"    {outcome.hint or 'all output: ' + invocation.command('logs') + ' ' + id}")
    if dag.failures:
        print(f"{states.count('blocked')} stage(s) wait for what failed. When it is fixed: {invocation.command()}")
    elif "report/all" in dag.stages:
        print(f"report: {invocation.root / 'report.html'}")


def print_stopped(dag: Dag, invocation: Invocation, why: str) -> None:
    """Print why the driver stopped, if nobody asked it to, which jobs keep running, and how to continue."""
    left = dag.jobs_left_running()
    if left:
        print(
            f"{left} job{' keeps' if left == 1 else 's keep'} running without this driver; to end: {invocation.command('cancel')}"
        )
    if why:
        print(f"{why}; `doctor` says what limits a driver here, and this starts one that outlives the session:")
        print(f"  {invocation.command('run')} --detach")
    print(f"stopped; to continue: {invocation.command()}", flush=True)
