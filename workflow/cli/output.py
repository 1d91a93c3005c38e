"""Everything that the command line prints, and the few files at the top of a run directory."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any, TypeVar

import yaml

from gnnscale.contract import files
from gnnscale.contract.errors import Problem
from gnnscale.contract.settings import ConvertSettings, PartSettings, TrainSettings
from gnnscale.schema import Spec
from workflow.config import scratch_lifetime
from workflow.config.site import SiteConfig
from workflow.config.study import Study
from workflow.config.yaml_file import nearest
from workflow.doctor import diagnosis
from workflow.jobs import requests as queueing
from workflow.jobs.requests import Request
from workflow.plan import build
from workflow.plan import done as plan_done
from workflow.plan.stage import FOLDERS, Planned, Stage
from workflow.run_directory import status
from workflow.run_directory.status import PlanFile, Row

T = TypeVar("T")
REASON = 120  # characters of it in a table


def duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    for unit, length in (("min", 60), ("h", 3600), ("days", 86400), ("years", 31557600)):
        if seconds < 90 * length or unit == "years":
            return f"{seconds / length:,.0f} {unit}"


def pick(name: str, known: dict[str, T]) -> T:
    """A stage by its id, or by the end of it where that is enough."""
    if name in known:
        return known[name]
    close = [id for id in known if id.endswith(f"/{name}")]
    if len(close) == 1:
        return known[close[0]]
    raise Problem(f"no stage {name!r}; {'it could be ' + ', '.join(close) if close else nearest(name, list(known))}")


# ------------------------------------------------------------------------------------------------------------- plan
def plan_text(name: str, asked: Study, planned: dict[str, Planned], site: SiteConfig, root: Path) -> None:
    print(f"{name}: {asked.title}\n{root}\n")
    width = max(len(id) for id in planned)
    for each in planned.values():
        core = duration(each.stage.core_seconds) if site.batch else f"{each.stage.core_seconds:7.0f} core-s"
        core = core if each.state != "done" else ""
        print(
            f"  {each.stage.id:{width}}  {each.state:7}  {size_text(each, len(asked.data)):32}  {core:14}  {why(each)}".rstrip()
        )
    left = [each for each in planned.values() if each.state != "done"]
    requests = queueing.schedule([each.stage for each in left if each.state != "refused"], site)
    if requests:
        jobs_text(requests, site)
    print(f"\n{len(planned) - len(left)} of {len(planned)} stages done", end="")
    if left:
        where = (
            "in jobs, and the time that they wait" if site.batch else f"on {site.parallel_stages} stage(s) side by side"
        )
        print(
            f"; {len(left)} to do, about {duration(plan_done.wall_seconds(planned, site))} {where} (estimate)", end=""
        )
    print()
    warn(planned, site, root)


def warn(planned: dict[str, Planned], site: SiteConfig, root: Path) -> None:
    """Of what may be lost or go wrong, before it does."""
    if not site.batch and len(tempfile.gettempdir()) > diagnosis.SOCKET:
        print(f"warning: {diagnosis.long_path(tempfile.gettempdir())}; export TMPDIR=/tmp")
    if site.filesystems.purge_days is not None:
        for line in scratch_lifetime.warnings(
            plan_done.outputs(planned, root), root, site, plan_done.wall_seconds(planned, site)
        ):
            print(f"warning: {line}")


def jobs_text(requests: dict[str, Request], site: SiteConfig) -> None:
    """The jobs that would be submitted; those of one kind and size in a line."""
    alike: dict[tuple, list[Request]] = {}
    for request in dict.fromkeys(requests.values()):
        kinds = dict.fromkeys(id.split("/")[0] for id in request.all)
        same = ("+".join(sorted(kinds, key=list(FOLDERS).index)), request.queue, request.nodes, len(request.stages))
        alike.setdefault(same, []).append(request)
    print("\njobs                    queue            nodes  walltime              node-hours: expected, at most")
    for (kind, queue, nodes, together), group in alike.items():
        times = sorted({request.walltime for request in group})
        time = times[0] if len(times) == 1 else f"{times[0]} to {times[-1]}"
        notes = [f"{together} {'trainings' if kind.startswith('train') else 'stages'} in each"] if together > 1 else []
        notes += sorted({request.why for request in group if request.why}, key=len)[-1:]
        hours = f"{sum(r.node_hours for r in group):9,.1f} {sum(r.node_hours_at_most for r in group):9,.0f}"
        print(f"  {len(group):4} x {kind:14}  {queue:15}  {nodes:5}  {time:20}  {hours}  {'; '.join(notes)}".rstrip())
    total, cost = queueing.node_hours(requests), site.cost
    charged = f" = {total * cost.factor:,.1f} {cost.unit}" if cost.factor != 1 else ""
    print(f"  expected in all: {total:,.1f} node-hours{charged}")


def why(each: Planned) -> str:
    """The reason, and how a training is made to fit where it takes more than the plain way."""
    levers = each.stage.levers
    said = f"to fit: {levers.said}" if each.state not in ("done", "refused") and levers and levers.said else ""
    reason = each.reason
    if len(reason) > REASON and each.state != "refused":
        reason = reason[:REASON].rsplit(", ", 1)[0] + ", ...: `explain` has all"
    return "; ".join(part for part in (reason, said) if part)


def size_text(each: Planned, sources: int) -> str:
    settings = each.stage.settings
    if isinstance(settings, TrainSettings):
        structures = f"{settings.structures:,}" if settings.structures else "all"
        return f"{settings.model.parameters(sources):>11,} parameters, {structures:>6} structures"
    if isinstance(settings, ConvertSettings):
        parts = settings.parts if isinstance(settings, PartSettings) else 1
        made = each.result.values["structures"] if each.result else build.dataset_card(settings).structures // parts
        return f"{made:>11,} structures"
    return ""


def plan_json(planned: dict[str, Planned], site: SiteConfig) -> dict[str, Any]:
    sources = sum(each.stage.kind == "convert" for each in planned.values())
    listed = []
    for each in planned.values():
        entry = {
            "id": each.stage.id,
            "state": each.state,
            "reason": each.reason,
            "key": each.stage.key,
            "folder": each.stage.folder,
            "needs": each.stage.needs,
            "core_seconds": round(each.stage.core_seconds, 1),
            "settings": each.stage.settings.model_dump(mode="json"),
        }
        if isinstance(each.stage.settings, TrainSettings):
            entry["parameters"] = each.stage.settings.model.parameters(sources)
            entry["runtime"] = each.stage.levers.runtime.model_dump()
            entry["peak_bytes"] = each.stage.levers.memory.peak
        listed.append(entry)
    left = [each.stage for each in planned.values() if each.state not in ("done", "refused")]
    requests = queueing.schedule(left, site)
    jobs = [
        request._asdict() | {"walltime": request.walltime, "node_hours": round(request.node_hours, 3)}
        for request in dict.fromkeys(requests.values())
    ]
    return {"stages": listed, "wall_seconds": round(plan_done.wall_seconds(planned, site), 1), "jobs": jobs}


def explain(planned: dict[str, Planned], stage: Stage, stages: dict[str, Stage], root: Path) -> None:
    """Follow the cause upstream as far as it goes."""
    print(
        f"{stage.id}: {planned[stage.id].state}" + (f": {planned[stage.id].reason}" if planned[stage.id].reason else "")
    )
    print(f"  directory  {root / stage.folder}\n  key        {stage.key}")
    seen: set[str] = set()
    waiting = list(stage.needs) if planned[stage.id].state != "done" else []
    while waiting:
        need = waiting.pop(0)
        if need in seen or planned[need].state == "done":
            continue
        seen.add(need)
        print(f"  because    {need}: {planned[need].state}: {planned[need].reason}")
        waiting += stages[need].needs
    print(f"  code       {len(stage.code)} files: {', '.join(stage.code)}")


# ----------------------------------------------------------------------------------------------------------- status
def status_text(root: Path, found: PlanFile, rows: list[Row], driver: dict | None, clear: bool) -> None:
    if clear:
        print("\033[H\033[J", end="")
    who = f"driver pid {driver['pid']} on {driver['host']}" if driver else "no driver at work"
    print(f"{found.study} on {found.site}: {who}\n{root}")
    print("  ".join(f"{kind} {done}/{total}" for kind, (done, total) in status.counts(rows).items()))
    for row in rows:
        if row.state == "running":
            far = f"{row.done:,.0f}/{row.total:,.0f}" if row.total else ""
            loss = f"loss {row.loss:.4f}" if row.loss is not None else ""
            left = f"{duration(row.eta)} left" if row.eta is not None else ""
            print("  ".join(filter(None, ["  running", row.id, in_job(row), far, loss, left])))
        elif row.state == "queued":
            print("  ".join(filter(None, ["  queued ", row.id, in_job(row), row.reason])))
        elif row.state == "failed":
            print(f"  failed   {row.id}: {row.message}")
    if driver is None and any(row.job for row in rows):
        print("jobs are as the last driver saw them; `run` follows them again, `cancel` ends them")


def in_job(row: Row) -> str:
    """Where it is: job 1234 on n[1-2], attempt 3"""
    if not row.job:
        return ""
    again = f", attempt {row.attempt}" if row.attempt and row.attempt > 1 else ""
    return f"job {row.job}{' on ' + row.nodes if row.nodes else ''}{again}"


def status_json(rows: list[Row], driver: dict | None) -> dict[str, Any]:
    return {"driver": driver, "stages": [row._asdict() for row in rows]}


def logs(folder: Path, id: str) -> None:
    attempts = sorted((folder / "attempts").glob("[0-9]*"), key=lambda path: int(path.name))
    if not attempts:
        raise Problem(f"{id}: has not been started yet")
    said = False
    for name in ("job.out", "stdout", "stderr"):
        path = attempts[-1] / name
        text = path.read_text(errors="replace").rstrip() if path.exists() else ""
        if text:
            said = True
            print(f"--- {path}\n{text}")
    if not said:
        print(f"{id}: attempt {attempts[-1].name} has printed nothing yet")


# -------------------------------------------------------------------------------------------------------- the end
def summary(dag: Any, asked: Any, seconds: float) -> None:
    """One line a failure, with its last words once where several have the same, and the command to type next."""
    states = list(dag.states.values())
    print(f"{states.count('done')} of {len(dag.stages)} stages done in {duration(seconds)}")
    told: dict[str, str] = {}
    for failure in dag.failures.values():
        first = told.setdefault(failure.message, failure.id)
        print(f"failed: {failure.id}: {failure.message if first == failure.id else 'the same as ' + first}")
        if first == failure.id:
            for line in failure.tail:
                print(f"    | {line}")
            print(f"    {failure.hint or 'all it printed: ' + asked.command('logs') + ' ' + failure.id}")
    if dag.failures:
        print(f"{states.count('blocked')} stage(s) wait for what failed. When it is mended: {asked.command()}")
    elif "report/all" in dag.stages:
        print(f"report: {asked.root / 'report.html'}")


def stopped(dag: Any, asked: Any) -> None:
    kept = dag.jobs.kept() if dag.jobs else 0
    if kept:
        print(f"{kept} job{' goes' if kept == 1 else 's go'} on without this driver; to end: {asked.command('cancel')}")
    print(f"stopped; to go on: {asked.command()}", flush=True)


def write_asked(root: Path, asked: Study, site: SiteConfig) -> None:
    """study.yaml and site.yaml as they were resolved, before anything is done."""
    for name, settings in (("study", asked), ("site", site)):
        files.write(root / f"{name}.yaml", as_yaml(settings))


def as_yaml(settings: Spec) -> str:
    return yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False, width=120)


# ------------------------------------------------------------------------------------------------------------ sites
