"""The lines and the JSON of `plan` and `explain`."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from gnnscale.contract.settings import ConversionSettings, PartSettings, TrainSettings
from gnnscale.machine.native_build import open_fastest
from workflow.cli.output import format_duration
from workflow.config import scratch_lifetime
from workflow.config.site import SiteConfig
from workflow.config.study import Study
from workflow.doctor import diagnosis
from workflow.jobs.requests import Request, schedule, total_node_hours
from workflow.plan import done
from workflow.plan.dataset_scripts import dataset_card
from workflow.plan.stage import FOLDER_OF_KIND, PlannedStage, Stage

MAX_REASON_LENGTH = 120  # characters of it in a table


def print_plan(name: str, study: Study, planned: dict[str, PlannedStage], site: SiteConfig, root: Path) -> None:
    """Print a line for each stage, the jobs that would be submitted, and what may go wrong."""
    print(f"{name}: {study.title}\n{root}\n")
    width = max(len(id) for id in planned)
    for each in planned.values():
        size, time, reason = describe_size(each, len(study.data)), describe_time(each, site), describe_reason(each)
        print(f"  {each.stage.id:{width}}  {each.state:7}  {size:32}  {time:14}  {reason}".rstrip())
    left = [each.stage for each in planned.values() if each.state != "done"]
    possible = [each.stage for each in planned.values() if each.state not in ("done", "refused")]
    if requests := schedule(possible, site):
        print_jobs(requests, site)
    side_by_side = f"with {site.parallel_stages} stage(s) at a time"
    where = "in jobs, without their time in the queue" if site.has_scheduler else side_by_side
    seconds = format_duration(done.remaining_seconds(planned, site))
    rest = f"; {len(left)} to do, about {seconds} {where} (estimate)" if left else ""
    print(f"\n{len(planned) - len(left)} of {len(planned)} stages done{rest}")
    print_warnings(planned, site, root)


def print_warnings(planned: dict[str, PlannedStage], site: SiteConfig, root: Path) -> None:
    """Print what may be lost or go wrong, before it does."""
    if not site.has_scheduler and len(tempfile.gettempdir()) > diagnosis.MAX_TEMPORARY_LENGTH:
        print(f"warning: {diagnosis.describe_long_path(tempfile.gettempdir())}; export TMPDIR=/tmp")
    if any(each.stage.kind == "train" and each.state != "done" for each in planned.values()):
        print_native_warning(site)
    if site.filesystems.purge_days is not None:
        outputs, seconds = done.finished_outputs(planned, root), done.remaining_seconds(planned, site)
        for line in scratch_lifetime.purge_warnings(outputs, root, site, seconds):
            print(f"warning: {line}")


def print_native_warning(site: SiteConfig) -> None:
    """Print a warning if trainings on this machine would have to do without the native library."""
    if diagnosis.trains_in_this_environment(site) and (build := open_fastest()).is_missed:
        print(f"warning: trainings will be several times slower without the native library: {build.explanation}")


# ------------------------------------------------------------------------------------------------------------- jobs
class SameJobs(NamedTuple):
    """Jobs of the same kinds of stages and the same size, which share a line."""

    kinds: str
    queue: str
    nodes: int
    stages: int  # in each job


def print_jobs(requests: dict[str, Request], site: SiteConfig) -> None:
    """Print the jobs that would be submitted, those of one kind and size in a line."""
    print("\njobs                    queue            nodes  walltime              node-hours: expected, at most")
    for same, group in group_jobs(requests).items():
        times = sorted({request.walltime for request in group})
        time = times[0] if len(times) == 1 else f"{times[0]} to {times[-1]}"
        hours = f"{sum(r.node_hours for r in group):9,.1f} {sum(r.node_hours_at_most for r in group):9,.0f}"
        jobs = f"{len(group):4} x {same.kinds:14}  {same.queue:15}  {same.nodes:5}"
        print(f"  {jobs}  {time:20}  {hours}  {'; '.join(job_notes(same, group))}".rstrip())
    total, cost = total_node_hours(requests), site.cost
    charged = f" = {total * cost.factor:,.1f} {cost.unit}" if cost.factor != 1 else ""
    print(f"  expected in all: {total:,.1f} node-hours{charged}")


def group_jobs(requests: dict[str, Request]) -> dict[SameJobs, list[Request]]:
    """Group the jobs that differ in nothing but walltime."""
    groups: dict[SameJobs, list[Request]] = {}
    for request in dict.fromkeys(requests.values()):
        kinds = sorted({id.split("/")[0] for id in request.all_stages}, key=list(FOLDER_OF_KIND).index)
        same = SameJobs("+".join(kinds), request.queue, request.nodes, len(request.stages))
        groups.setdefault(same, []).append(request)
    return groups


def job_notes(same: SameJobs, group: Sequence[Request]) -> Iterator[str]:
    """Yield how many stages share a job, and the longest of the reasons for its shape."""
    if same.stages > 1:
        yield f"{same.stages} {'trainings' if same.kinds.startswith('train') else 'stages'} in each"
    yield from sorted({request.why for request in group if request.why}, key=len)[-1:]


# ------------------------------------------------------------------------------------------------------- one stage
def describe_time(each: PlannedStage, site: SiteConfig) -> str:
    """Return the estimated time of a stage that is not done."""
    if each.state == "done":
        return ""
    seconds = each.stage.core_seconds
    return format_duration(seconds) if site.has_scheduler else f"{seconds:7.0f} core-s"


def describe_reason(each: PlannedStage) -> str:
    """Return the reason for a stage's state, and the levers by which a training fits into memory, if it needs any."""
    fit, reason = each.stage.levers, each.reason
    levers = f"to fit: {fit.description}" if fit and fit.description and each.state not in ("done", "refused") else ""
    if len(reason) > MAX_REASON_LENGTH and each.state != "refused":
        reason = reason[:MAX_REASON_LENGTH].rsplit(", ", 1)[0] + ", ...: `explain` has all"
    return "; ".join(part for part in (reason, levers) if part)


def describe_size(each: PlannedStage, sources: int) -> str:
    """Return the parameters and structures of a training, or the structures of a conversion."""
    settings = each.stage.settings
    if isinstance(settings, TrainSettings):
        structures = f"{settings.structures:,}" if settings.structures else "all"
        return f"{settings.model.parameters(sources):>11,} parameters, {structures:>6} structures"
    if isinstance(settings, ConversionSettings):
        parts = settings.parts if isinstance(settings, PartSettings) else 1
        expected = dataset_card(settings).structures // parts
        return f"{each.result.values['structures'] if each.result else expected:>11,} structures"
    return ""


# ------------------------------------------------------------------------------------------------------------- JSON
def encode_plan(planned: dict[str, PlannedStage], site: SiteConfig) -> dict[str, Any]:
    """Return the plan as JSON has it."""
    sources = sum(each.stage.kind == "convert" for each in planned.values())
    left = [each.stage for each in planned.values() if each.state not in ("done", "refused")]
    jobs = [
        request._asdict() | {"walltime": request.walltime, "node_hours": round(request.node_hours, 3)}
        for request in dict.fromkeys(schedule(left, site).values())
    ]
    return {
        "stages": [encode_stage(each, sources) for each in planned.values()],
        "wall_seconds": round(done.remaining_seconds(planned, site), 1),
        "jobs": jobs,
    }


def encode_stage(each: PlannedStage, sources: int) -> dict[str, Any]:
    stage = each.stage
    entry = {
        "id": stage.id,
        "state": each.state,
        "reason": each.reason,
        "key": stage.key,
        "folder": stage.folder,
        "needs": stage.needs,
        "core_seconds": round(stage.core_seconds, 1),
        "settings": stage.settings.model_dump(mode="json"),
    }
    if isinstance(stage.settings, TrainSettings):
        assert stage.levers is not None, "every training is fitted into memory"
        entry["parameters"] = stage.settings.model.parameters(sources)
        entry["runtime"] = stage.levers.runtime.model_dump()
        entry["peak_bytes"] = stage.levers.memory.peak
    return entry


def print_explanation(planned: dict[str, PlannedStage], stage: Stage, stages: dict[str, Stage], root: Path) -> None:
    """Print why a stage is in its state, and follow the cause upstream as far as it goes."""
    each = planned[stage.id]
    print(f"{stage.id}: {each.state}" + (f": {each.reason}" if each.reason else ""))
    print(f"  directory  {root / stage.folder}\n  key        {stage.key}")
    seen: set[str] = set()
    waiting = list(stage.needs) if each.state != "done" else []
    while waiting:
        need = waiting.pop(0)
        if need in seen or planned[need].state == "done":
            continue
        seen.add(need)
        print(f"  because    {need}: {planned[need].state}: {planned[need].reason}")
        waiting += stages[need].needs
    print(f"  code       {len(stage.code)} files: {', '.join(stage.code)}")
