"""The lines and the JSON of `plan` and `explain`."""

from __future__ import annotations

import shlex
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any, NamedTuple

from gnnscale.contract.command_name import command_name
from gnnscale.contract.settings import ConversionSettings, PartSettings, TrainSettings
from gnnscale.machine.native_build import open_fastest
from workflow.cli.invocation import DEFAULT_SITE, Invocation
from workflow.cli.output import format_duration
from workflow.config import scratch_lifetime
from workflow.config.site import SiteConfig
from workflow.doctor import diagnosis
from workflow.jobs.requests import Request, schedule, total_node_hours
from workflow.plan import done
from workflow.plan.dataset_scripts import dataset_card
from workflow.plan.stage import FOLDER_OF_KIND, PlannedStage, Stage

MIN_SIZE_WIDTH, MIN_TIME_WIDTH = 32, 14  # characters, of columns of a table
MAX_REASON_LENGTH = 120  # characters of it in a table
MAX_STAGES_IN_FULL = 60  # of a plan; a larger one has a line for all stages that are alike


def print_plan(invocation: Invocation, planned: dict[str, PlannedStage], in_full: bool) -> None:
    """Print the stages, those alike in one line unless `in_full`, the jobs that would be submitted, and what may go wrong."""
    study, site = invocation.study, invocation.site
    print(f"{invocation.study_name}: {study.title}\n{invocation.root}\n")
    print_stages(planned, site, in_full or len(planned) <= MAX_STAGES_IN_FULL)
    left = [each.stage for each in planned.values() if each.state != "done"]
    possible = [each.stage for each in planned.values() if each.state not in ("done", "refused")]
    if requests := schedule(possible, site):
        print_jobs(requests, site)
    side_by_side = f"with {site.parallel_stages} stage(s) at a time"
    where = "in jobs, without their time in the queue" if site.has_scheduler else side_by_side
    seconds = format_duration(done.remaining_seconds(planned, site))
    rest = f"; {len(left)} to do, about {seconds} {where} (estimate)" if left else ""
    print(f"\n{len(planned) - len(left)} of {len(planned)} stages done{rest}")
    if missing := describe_missing_data(planned.values(), invocation):
        print("\n" + "\n  ".join(missing))
    print_warnings(planned, site, invocation.root)


def describe_missing_data(planned: Iterable[PlannedStage], invocation: Invocation) -> list[str]:
    """List the published files that conversions lack, and the one command that gets them; nothing if they lack none."""
    lacking = list(dict.fromkeys(each.stage.lacks for each in planned if each.stage.lacks is not None))
    if not lacking:
        return []
    sizes = [each.gigabytes for each in lacking]
    known = f"{sum(sizes):,.0f} GB" if sum(sizes) >= 1 else f"{1e3 * sum(sizes):,.0f} MB"
    size = known + ("" if all(sizes) else " and what is of unknown size") + " to download"
    words = ["data", "fetch", *(each.published for each in lacking)]
    words += ["--site", invocation.typed_site] if invocation.typed_site != DEFAULT_SITE else []
    words += [word for text in invocation.settings for word in ("--set", text)]
    return [
        f"published data of {len(lacking)} source(s) are missing ({size})",
        *(f"{each.description} in {each.folder}: {done.summarise_names([*each.files])}" for each in lacking),
        f"to get them, on a machine with a network: {command_name()} {shlex.join(words)}",
    ]


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


# ---------------------------------------------------------------------------------------------------------- stages
class SameStages(NamedTuple):
    """Stages of one kind, state and size, which share a line."""

    kind: str
    state: str
    size: str  # parameters of a training, source of a part; "" = all of the kind


def print_stages(planned: dict[str, PlannedStage], site: SiteConfig, in_full: bool) -> None:
    """Print a line for each stage, or for all that are alike."""
    groups = [[each] for each in planned.values()] if in_full else list(group_stages(planned).values())
    names = [describe_names([each.stage.id for each in group]) for group in groups]
    sizes, times = (
        [describe_sizes(group) for group in groups],
        [describe_times(group, site) for group in groups],
    )
    widths = [max(map(len, names)), max(MIN_SIZE_WIDTH, *map(len, sizes)), max(MIN_TIME_WIDTH, *map(len, times))]
    for name, size, time, group in zip(names, sizes, times, groups):
        count = "" if in_full else f"{len(group):4} x " if len(group) > 1 else " " * 7
        state, reason = group[0].state, describe_reasons(group)
        print(f"  {count}{name:{widths[0]}}  {state:7}  {size:{widths[1]}}  {time:{widths[2]}}  {reason}".rstrip())
    if not in_full:
        print(f"  `plan --all` lists each of the {len(planned)} stages")


def group_stages(planned: dict[str, PlannedStage]) -> dict[SameStages, list[PlannedStage]]:
    groups: dict[SameStages, list[PlannedStage]] = {}
    for each in planned.values():
        groups.setdefault(SameStages(each.stage.kind, each.state, size_of_stage(each)), []).append(each)
    return groups


def size_of_stage(each: PlannedStage) -> str:
    """Return the words by which stages of one kind count as equally large."""
    settings = each.stage.settings
    if isinstance(settings, TrainSettings):
        return f"{settings.model.parameters(count_sources(each.stage)):>11,} parameters"
    return settings.name if isinstance(settings, ConversionSettings) else ""


def count_sources(stage: Stage) -> int:
    """Return the number of sources that a training has."""
    return sum(need.startswith("convert/") for need in stage.needs)


def describe_names(ids: list[str]) -> str:
    """Return the id of a stage, or the common beginning of several, without a part of a number."""
    common = "".join(letters[0] for letters in takewhile(lambda letters: len(set(letters)) == 1, zip(*ids)))
    return ids[0] if len(ids) == 1 else f"{common.rstrip('0123456789')}*"


def describe_times(group: list[PlannedStage], site: SiteConfig) -> str:
    """Return the estimated time of a stage of the group, from the shortest to the longest."""
    shortest, longest = (choose(group, key=lambda each: each.stage.core_seconds) for choose in (min, max))
    least, most = (describe_time(each, site) for each in (shortest, longest))
    return most if least == most else f"{least.removesuffix(' core-s').strip()} to {most.strip()}"


def describe_reasons(group: list[PlannedStage]) -> str:
    """Return the reason that stages of a group share, or the first of several."""
    reasons = list(dict.fromkeys(map(describe_reason, group)))
    return reasons[0] + (f" (and {len(reasons) - 1} more)" if len(reasons) > 1 else "")


def describe_sizes(group: list[PlannedStage]) -> str:
    """Return the parameters of a group's trainings and the range of their structures, or the size of any other stage."""
    counts = [s.structures for each in group if isinstance(s := each.stage.settings, TrainSettings)]
    if len(set(counts)) < 2:
        return describe_size(group[0])
    known = [count for count in counts if count is not None]
    most = "all" if None in counts else f"{max(known):,}"
    return f"{size_of_stage(group[0])}, {min(known):,} to {most} structures"


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


def describe_size(each: PlannedStage) -> str:
    """Return the parameters and structures of a training, or the structures of a conversion."""
    settings = each.stage.settings
    if isinstance(settings, TrainSettings):
        structures = f"{settings.structures:,}" if settings.structures else "all"
        return f"{size_of_stage(each)}, {structures:>6} structures"
    if isinstance(settings, ConversionSettings):
        parts = settings.parts if isinstance(settings, PartSettings) else 1
        expected = dataset_card(settings).structures // parts
        return f"{each.result.values['structures'] if each.result else expected:>11,} structures"
    return ""


# ------------------------------------------------------------------------------------------------------------- JSON
def encode_plan(planned: dict[str, PlannedStage], site: SiteConfig) -> dict[str, Any]:
    """Return the plan as JSON has it."""
    left = [each.stage for each in planned.values() if each.state not in ("done", "refused")]
    jobs = [
        request._asdict() | {"walltime": request.walltime, "node_hours": round(request.node_hours, 3)}
        for request in dict.fromkeys(schedule(left, site).values())
    ]
    return {
        "stages": [encode_stage(each) for each in planned.values()],
        "wall_seconds": round(done.remaining_seconds(planned, site), 1),
        "jobs": jobs,
    }


def encode_stage(each: PlannedStage) -> dict[str, Any]:
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
        entry["parameters"] = stage.settings.model.parameters(count_sources(stage))
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
