"""Turn stages into requests for jobs: in which queue, on how many nodes, for how long, and what that takes. Pure.

A training is one job, on the fewest nodes on which it fits into memory and is done in `train.hours`; its evaluation
follows in the same job. Where a queue takes only larger jobs, or so few of them that they would follow one after another,
several trainings share one job. Stages without ranks that are ready together share one too, side by side on the cores of
a node. They do not run in a pilot job: that dies with its driver, needs a way from compute nodes to the driver's host,
and was measured to lose one to four minutes whenever it was ended. These jobs are recorded, adopted and continued as all
others are.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from typing import NamedTuple

from gnnscale.contract.errors import UserError
from gnnscale.contract.stage_spec import Runtime
from workflow.config import capacity
from workflow.config.site import Queue, SiteConfig
from workflow.config.walltime import format_walltime, to_seconds
from workflow.plan.stage import Stage

WALLTIME_MARGIN = 1.5  # walltime over estimate; a job that ends early is charged only for its time
MIN_WALLTIME_SECONDS = 1800  # shorter requests start no earlier, and the first start of a stage compiles and loads
WALLTIME_STEP_SECONDS = 600
LOCAL_KINDS = ("scaling", "report")  # seconds on one core: not worth a job, unless in an image
RESUMABLE_KINDS = ("train", "convert", "convert_part")  # keep what they have, and continue in another job
MEMORY_GB_PER_STAGE = 4.0  # without ranks; conversions are bounded, and a batch of an evaluation is small


class Request(NamedTuple):
    """Request for one job: the resources to request, and the time that the job is expected to take."""

    stages: tuple[str, ...]  # ids; several trainings have `nodes_each` of its nodes each, others share one, see `slots`
    queue: str  # a name in site.queues
    nodes: int
    nodes_each: int
    ranks_per_node: int  # of a training; 1 for other stages
    threads: int  # per rank
    seconds: int  # of walltime, of one job
    jobs: int  # one after another, each as long, until a training is done (exit code 75 starts the next)
    expected_seconds: float  # of work in all, estimated
    why: str = ""  # where the choice needs an explanation
    slots: int = 0  # stages without ranks that run at a time
    evaluations: tuple[tuple[str, str], ...] = ()  # (evaluation, its training), which it follows on the first node

    @property
    def all_stages(self) -> tuple[str, ...]:
        """Ids of all stages that the job runs."""
        return *self.stages, *(id for id, _ in self.evaluations)

    @property
    def ranks(self) -> int:
        """Ranks of one stage."""
        return self.nodes_each * self.ranks_per_node

    @property
    def walltime(self) -> str:
        return format_walltime(self.seconds)

    @property
    def node_hours(self) -> float:
        """Expected node-hours, of all jobs together."""
        return self.nodes * self.expected_seconds / 3600

    @property
    def node_hours_at_most(self) -> float:
        """Node-hours if every job uses all of its walltime."""
        return self.nodes * self.jobs * self.seconds / 3600


def schedule(stages: Sequence[Stage], site: SiteConfig) -> dict[str, Request]:
    """Map the stages that are left to do to requests; a stage without one runs where the driver runs."""
    if not site.has_scheduler:
        return {}
    requests: dict[str, Request] = {}
    by_id = {stage.id: stage for stage in stages}
    evaluations = group_evaluations(by_id)
    carried = {id for ids in evaluations.values() for id in ids}
    ready: dict[int, list[Stage]] = {}  # stages without ranks that are ready together
    # Trainings of as many nodes, of which none waits for another, may share a job.
    alike: dict[tuple[int, int], list[Stage]] = {}
    for stage in stages:
        if stage.levers is not None:
            seconds = stage.core_seconds + sum(by_id[id].core_seconds for id in evaluations.get(stage.id, ()))
            key = nodes_for(stage, site), count_shorter_before(stage, by_id)
            alike.setdefault(key, []).append(stage._replace(core_seconds=seconds))
        elif stage.kind in LOCAL_KINDS and not site.container.use:  # an image may run nowhere but on a node
            continue
        elif stage.id not in carried and (site.serial or stage.kind == "evaluate"):
            ready.setdefault(count_needs_before(stage, by_id), []).append(stage)
    for group in ready.values():
        for request in serial_requests(group, site):
            requests |= dict.fromkeys(request.stages, request)
    for (nodes, _), trainings in alike.items():
        for request in choose_queue(nodes, trainings, site):
            pairs = tuple((id, training) for training in request.stages for id in evaluations.get(training, ()))
            request = request._replace(evaluations=pairs)
            requests |= dict.fromkeys(request.all_stages, request)
    return requests


def group_evaluations(by_id: dict[str, Stage]) -> dict[str, list[str]]:
    """Map each training to the evaluations that can follow it in its job, since they need no other training."""
    found: dict[str, list[str]] = {}
    for stage in by_id.values():
        trainings = [id for id in stage.needs if id in by_id and by_id[id].kind == "train"]
        if stage.kind == "evaluate" and len(trainings) == 1:
            found.setdefault(trainings[0], []).append(stage.id)
    return found


# ----------------------------------------------------------------------------------------------- stages without ranks
def serial_requests(stages: Sequence[Stage], site: SiteConfig) -> list[Request]:
    """Return the fewest requests that are done within `serial.walltime`, or as soon as the longest of the stages."""
    name = site.serial.queue if site.serial else next(iter(capacity.training_queues(site)))
    queue = site.queues[name]
    node, least = queue.node or site.node, to_seconds(site.serial.walltime) if site.serial else MIN_WALLTIME_SECONDS
    room = max(1, int(node.memory_gb // MEMORY_GB_PER_STAGE)) if node.memory_gb else len(stages)
    slots = min(len(stages), node.cores or site.node.cores or site.cores, room)
    if node.gpus and any(stage.kind == "evaluate" for stage in stages):  # on one each
        slots = min(slots, node.gpus.count)
    stages = sorted(stages, key=lambda stage: -stage.core_seconds)
    fill = max(least / WALLTIME_MARGIN, stages[0].core_seconds)
    count = math.ceil(sum(stage.core_seconds for stage in stages) / (slots * fill))
    return [serial_request(stages[i::count], slots, name, least, site) for i in range(count)]


def serial_request(stages: list[Stage], slots: int, name: str, least: int, site: SiteConfig) -> Request:
    """Return the request for stages that run side by side, longest first, the next as soon as one is done."""
    queue, expected, jobs, why = site.queues[name], side_by_side_seconds(stages, slots), 1, ""
    longest, slots = queue.longest_seconds, min(slots, len(stages))
    if stages[0].core_seconds > longest and not all(stage.kind in RESUMABLE_KINDS for stage in stages):
        why = f"longer than {name} allows: set serial.queue"
    elif expected > longest:
        jobs = math.ceil(WALLTIME_MARGIN * expected / (longest - site.batch_scheduler.signal_seconds))
        why = f"{jobs} jobs one after another: {name} ends at {queue.max_walltime}; more `parts` of a source are faster"
    if len(stages) > slots:
        why = "; ".join(filter(None, [why, f"{slots} at a time"]))
    walltime_seconds = min(longest, max(least, walltime_with_margin(expected, site)))
    nodes = queue.nodes[0]  # normally 1; a site file may demand more, which wastes nodes
    return Request(tuple(s.id for s in stages), name, nodes, 1, 1, 1, walltime_seconds, jobs, expected, why, slots)


def side_by_side_seconds(stages: Sequence[Stage], slots: int) -> float:
    """Return the seconds until all stages are done, `slots` at a time."""
    busy = [0.0] * slots
    for stage in stages:
        heapq.heappush(busy, heapq.heappop(busy) + stage.core_seconds)
    return max(busy)


def count_needs_before(stage: Stage, by_id: dict[str, Stage]) -> int:
    """Count the stages that must be done before this one, one after another."""
    return max((1 + count_needs_before(by_id[id], by_id) for id in stage.needs if id in by_id), default=0)


# ----------------------------------------------------------------------------------------------------------- trainings
def count_shorter_before(stage: Stage, by_id: dict[str, Stage]) -> int:
    """Count the shorter trainings that must have ended before this one, one after another."""
    return max((1 + count_shorter_before(by_id[id], by_id) for id in stage.shorter if id in by_id), default=0)


def nodes_for(stage: Stage, site: SiteConfig) -> int:
    return -(-runtime_of(stage).ranks // site.ranks_per_node)


def runtime_of(stage: Stage) -> Runtime:
    assert stage.levers is not None, f"{stage.id} has no ranks"
    return stage.levers.runtime


# --------------------------------------------------------------------------------------------- which queue, and how
def choose_queue(nodes: int, trainings: list[Stage], site: SiteConfig) -> list[Request]:
    """Choose the queue in which trainings of one size are done first, at twice the node-hours of the cheapest at most."""
    plans = []
    for name, queue in capacity.training_queues(site).items():
        if nodes <= queue.nodes[1]:
            plans.append(requests_in_queue(name, queue, nodes, trainings, site))
    if not plans:
        most = max(queue.nodes[1] for queue in capacity.training_queues(site).values())
        raise UserError(f"{trainings[0].id} needs {nodes} nodes, no queue of this site takes more than {most}")
    cheapest = min(sum(request.node_hours for request in plan) for plan in plans)
    affordable = [plan for plan in plans if sum(request.node_hours for request in plan) <= 2 * cheapest]
    # Among equals, the first in the order of the site's file.
    return min(affordable, key=lambda plan: seconds_until_done(plan, site))


def seconds_until_done(plan: list[Request], site: SiteConfig) -> float:
    """Estimate the seconds until all are done on an empty machine; each job of a chain waits in the queue again."""
    queue = site.queues[plan[0].queue]
    rounds = math.ceil(len(plan) / (queue.max_running or len(plan)))
    return rounds * max(request.expected_seconds for request in plan) + MIN_WALLTIME_SECONDS * max(
        request.jobs for request in plan
    )


def requests_in_queue(name: str, queue: Queue, nodes: int, trainings: list[Stage], site: SiteConfig) -> list[Request]:
    together, why = trainings_per_job(name, queue, nodes, trainings, site)
    trainings = sorted(trainings, key=lambda stage: -stage.core_seconds)  # those of a job end at about the same time
    groups = [trainings[i : i + together] for i in range(0, len(trainings), together)]
    return [training_request(name, queue, nodes, group, site, why) for group in groups]


def trainings_per_job(name: str, queue: Queue, nodes: int, trainings: list[Stage], site: SiteConfig) -> tuple[int, str]:
    """Return how many trainings share a job, and why."""
    if site.launch.command not in ("srun", "mpiexec"):  # only these launchers take a list of nodes
        return 1, ""
    room = queue.nodes[1] // nodes
    if queue.nodes[0] > nodes:
        return min(room, queue.nodes[0] // nodes), f"{name} takes {capacity.format_node_range(queue)}"
    max_jobs = site.batch_scheduler.max_jobs
    count, most = len(trainings), min(max_jobs, queue.max_queued or max_jobs)
    if queue.max_running and count > queue.max_running:
        return min(room, -(-count // queue.max_running)), f"{name} runs {queue.max_running} job(s) of a user at a time"
    if count > most and max(stage.core_seconds for stage in trainings) < MIN_WALLTIME_SECONDS:  # more waiting than work
        return min(room, -(-count // most)), f"{count} short trainings, of which {most} may wait at a time"
    return 1, ""


def training_request(name: str, queue: Queue, nodes: int, group: list[Stage], site: SiteConfig, why: str) -> Request:
    expected = max(stage.core_seconds for stage in group)
    longest, walltime_seconds = queue.longest_seconds, walltime_with_margin(expected, site)
    jobs = 1
    if walltime_seconds > longest:
        useful = longest - site.batch_scheduler.signal_seconds - site.node.start_seconds
        jobs, walltime_seconds = math.ceil(WALLTIME_MARGIN * expected / useful), longest
        why = "; ".join(filter(None, [why, f"{jobs} jobs one after another: {name} ends at {queue.max_walltime}"]))
    all_nodes = max(queue.nodes[0], nodes * len(group))
    if len(group) == 1 and all_nodes == nodes:
        why = why if jobs > 1 else ""
    threads = runtime_of(group[0]).threads
    return Request(
        tuple(stage.id for stage in group),
        name,
        all_nodes,
        nodes,
        site.ranks_per_node,
        threads,
        walltime_seconds,
        jobs,
        expected,
        why,
    )


def walltime_with_margin(expected: float, site: SiteConfig) -> int:
    """Return the seconds to request for `expected` seconds of work, which must be done before the job is signalled to stop."""
    needed = max(MIN_WALLTIME_SECONDS, WALLTIME_MARGIN * expected, expected + site.batch_scheduler.signal_seconds)
    return WALLTIME_STEP_SECONDS * math.ceil(needed / WALLTIME_STEP_SECONDS)


# -------------------------------------------------------------------------------------------------------- the total
def total_node_hours(requests: dict[str, Request]) -> float:
    """Sum the expected node-hours of all jobs; a job that several stages share counts once."""
    return sum(request.node_hours for request in set(requests.values()))


def check_budget(requests: dict[str, Request], max_node_hours: float | None) -> None:
    """Raise if the jobs are expected to take more than `max_node_hours`."""
    expected = total_node_hours(requests)
    if max_node_hours is not None and expected > max_node_hours:
        largest = max(set(requests.values()), key=lambda request: request.node_hours)
        raise UserError(
            f"the remaining stages are expected to take {expected:,.1f} node-hours, --max-node-hours allows "
            f"{max_node_hours:,.1f}; nothing was submitted",
            f"the largest job: {', '.join(largest.stages[:3])} with {largest.node_hours:,.1f}; a smaller sweep, or a larger "
            "budget",
        )
