"""Stages and a site to requests: in which queue, on how many nodes, for how long, and what it takes. Pure.

A training is one job, on the fewest nodes on which it fits into memory and is done in `train.hours`; its evaluation
follows in the same job. Where a queue takes only larger jobs, or so few of them that they would follow one after another,
several trainings share one job. Stages without ranks that are ready together share one too, side by side on the cores of
a node. Not in a pilot: that dies with its driver, needs a way from compute nodes to the driver's host, and was measured
to lose one to four minutes whenever it was ended; these jobs are written down, adopted and continued as all others are.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from gnnscale.contract.errors import Problem
from workflow.config import capacity
from workflow.config.site import Queue, SiteConfig
from workflow.config.walltime import seconds, walltime

if TYPE_CHECKING:  # plan.py asks here for sizes
    from workflow.plan.stage import Stage

MARGIN = 1.5  # walltime over estimate: an estimate is one, and a job that ends early is charged only for its time
LEAST = 1800  # s of walltime: shorter requests start no earlier, and the first start of a stage compiles and loads
ROUND = 600  # s
SMALL = ("scaling", "report")  # seconds on one core: not worth a job, unless in an image
CONTINUED = ("train", "convert", "convert_part")  # keep what they have when their job ends, and go on in another
STAGE_GB = 4.0  # of memory for one stage without ranks; conversions are bounded, and a batch of an evaluation is small


class Request(NamedTuple):
    """One job: what is asked of the scheduler, and what it is expected to take."""

    stages: tuple[str, ...]  # ids; several trainings have `nodes_each` of its nodes each, others share one, see `slots`
    queue: str  # a name in site.queues
    nodes: int
    nodes_each: int
    ranks_per_node: int  # of a training; 1 for other stages
    threads: int  # per rank
    seconds: int  # of walltime, of one job
    jobs: int  # one after another, each as long, until a training is done (exit code 75 -> the next)
    expected: float  # seconds of work in all, estimated
    why: str = ""  # where the choice needs a word
    slots: int = 0  # of stages without ranks: how many of them run at a time
    after: tuple[tuple[str, str], ...] = ()  # (evaluation, its training): it follows that, on its first node

    @property
    def all(self) -> tuple[str, ...]:
        """Ids of all that the job does."""
        return *self.stages, *(id for id, _ in self.after)

    @property
    def ranks(self) -> int:
        """Of one stage."""
        return self.nodes_each * self.ranks_per_node

    @property
    def walltime(self) -> str:
        return walltime(self.seconds)

    @property
    def node_hours(self) -> float:
        """Expected."""
        return self.nodes * self.expected / 3600

    @property
    def node_hours_at_most(self) -> float:
        """If every job takes all of its time."""
        return self.nodes * self.jobs * self.seconds / 3600


def schedule(stages: Sequence[Stage], site: SiteConfig) -> dict[str, Request]:
    """Stage -> the job that is to do it; one that is not in it runs where the driver runs. `stages`: what is left to do."""
    if not site.batch:
        return {}
    made, known = {}, {stage.id: stage for stage in stages}
    riding = evaluations(known)
    carried = {id for ids in riding.values() for id in ids}
    ready: dict[int, list[Stage]] = {}  # by how many others come before them: those that are ready together
    alike: dict[tuple[int, int], list[Stage]] = {}  # those that may share a job: as large, and none waits for another
    for stage in stages:
        if stage.levers is not None:
            whole = stage.core_seconds + sum(known[id].core_seconds for id in riding.get(stage.id, ()))
            alike.setdefault((nodes_of(stage, site), wave(stage, known)), []).append(stage._replace(core_seconds=whole))
        elif stage.kind in SMALL and not site.container.use:  # an image may run nowhere but on a node
            continue
        elif stage.id not in carried and (site.serial or stage.kind == "evaluate"):
            ready.setdefault(depth(stage, known), []).append(stage)
    for group in ready.values():
        for request in serial(group, site):
            made |= dict.fromkeys(request.stages, request)
    for (nodes, _), trainings in alike.items():
        for request in choose(nodes, trainings, site):
            after = tuple((id, training) for training in request.stages for id in riding.get(training, ()))
            made |= dict.fromkeys((*request.stages, *(id for id, _ in after)), request._replace(after=after))
    return made


def evaluations(known: dict[str, Stage]) -> dict[str, list[str]]:
    """Training -> what can follow it in its job: all else that it needs, the training needed too."""
    found: dict[str, list[str]] = {}
    for stage in known.values():
        trainings = [id for id in stage.needs if id in known and known[id].kind == "train"]
        if stage.kind == "evaluate" and len(trainings) == 1:
            found.setdefault(trainings[0], []).append(stage.id)
    return found


# ----------------------------------------------------------------------------------------------- stages without ranks
def serial(stages: Sequence[Stage], site: SiteConfig) -> list[Request]:
    """As few jobs as are over in `serial.walltime`, or as soon as the longest of the stages."""
    name = site.serial.queue if site.serial else next(iter(capacity.for_trainings(site)))
    queue = site.queues[name]
    node, least = queue.node or site.node, seconds(site.serial.walltime) if site.serial else LEAST
    room = max(1, int(node.memory_gb // STAGE_GB)) if node.memory_gb else len(stages)
    slots = min(len(stages), node.cores or site.node.cores or site.cores, room)
    if node.gpus and any(stage.kind == "evaluate" for stage in stages):  # on one each
        slots = min(slots, node.gpus.count)
    stages = sorted(stages, key=lambda stage: -stage.core_seconds)
    fill = max(least / MARGIN, stages[0].core_seconds)
    count = math.ceil(sum(stage.core_seconds for stage in stages) / (slots * fill))
    return [cpu_request(stages[i::count], slots, name, least, site) for i in range(count)]


def cpu_request(stages: list[Stage], slots: int, name: str, least: int, site: SiteConfig) -> Request:
    """Longest first, the next as soon as one is done."""
    queue, expected, jobs, why = site.queues[name], side_by_side(stages, slots), 1, ""
    longest, slots = queue.longest, min(slots, len(stages))
    if stages[0].core_seconds > longest and not all(stage.kind in CONTINUED for stage in stages):
        why = f"longer than {name} allows: set serial.queue"
    elif expected > longest:
        jobs = math.ceil(MARGIN * expected / (longest - site.scheduler.signal_seconds))
        why = f"{jobs} jobs one after another: {name} ends at {queue.max_walltime}; more `parts` of a source are faster"
    if len(stages) > slots:
        why = "; ".join(filter(None, [why, f"{slots} at a time"]))
    asked = min(longest, max(least, rounded(expected, site)))
    nodes = queue.nodes[0]  # which is 1, or a waste that the file asks for
    return Request(tuple(s.id for s in stages), name, nodes, 1, 1, 1, asked, jobs, expected, why, slots)


def side_by_side(stages: Sequence[Stage], slots: int) -> float:
    """Seconds until all are done."""
    busy = [0.0] * slots
    for stage in stages:
        heapq.heappush(busy, heapq.heappop(busy) + stage.core_seconds)
    return max(busy)


def depth(stage: Stage, known: dict[str, Stage]) -> int:
    """How many others must be done before it, one after another."""
    return max((1 + depth(known[id], known) for id in stage.needs if id in known), default=0)


# ----------------------------------------------------------------------------------------------------------- trainings
def wave(stage: Stage, known: dict[str, Stage]) -> int:
    """How many others must have ended before it, one after another."""
    return max((1 + wave(known[id], known) for id in stage.shorter if id in known), default=0)


def nodes_of(stage: Stage, site: SiteConfig) -> int:
    return -(-stage.levers.runtime.ranks // site.ranks_per_node)


# --------------------------------------------------------------------------------------------- which queue, and how
def choose(nodes: int, trainings: list[Stage], site: SiteConfig) -> list[Request]:
    """All of one size. The plan that is over first, of those that take at most twice the node-hours of the cheapest."""
    plans = []
    for name, queue in capacity.for_trainings(site).items():
        if nodes <= queue.nodes[1]:
            plans.append(in_queue(name, queue, nodes, trainings, site))
    if not plans:
        most = max(queue.nodes[1] for queue in capacity.for_trainings(site).values())
        raise Problem(f"{trainings[0].id} needs {nodes} nodes, no queue of this site takes more than {most}")
    cheapest = min(sum(request.node_hours for request in plan) for plan in plans)
    able = [plan for plan in plans if sum(request.node_hours for request in plan) <= 2 * cheapest]
    return min(able, key=lambda plan: until_done(plan, site))  # the first of equals: the order of the site's file


def until_done(plan: list[Request], site: SiteConfig) -> float:
    """Seconds until all are done, were there no one else; a chained job waits anew."""
    queue = site.queues[plan[0].queue]
    rounds = math.ceil(len(plan) / (queue.max_running or len(plan)))
    return rounds * max(request.expected for request in plan) + LEAST * max(request.jobs for request in plan)


def in_queue(name: str, queue: Queue, nodes: int, trainings: list[Stage], site: SiteConfig) -> list[Request]:
    together, why = packed(name, queue, nodes, trainings, site)
    trainings = sorted(trainings, key=lambda stage: -stage.core_seconds)  # those of a job end at about the same time
    groups = [trainings[i : i + together] for i in range(0, len(trainings), together)]
    return [request(name, queue, nodes, group, site, why) for group in groups]


def packed(name: str, queue: Queue, nodes: int, trainings: list[Stage], site: SiteConfig) -> tuple[int, str]:
    """How many trainings share a job, and why."""
    if site.launch.command not in ("srun", "mpiexec"):  # only these can be told which nodes
        return 1, ""
    room = queue.nodes[1] // nodes
    if queue.nodes[0] > nodes:
        return min(room, queue.nodes[0] // nodes), f"{name} takes {capacity.span(queue)}"
    count, most = len(trainings), min(site.scheduler.max_jobs, queue.max_queued or site.scheduler.max_jobs)
    if queue.max_running and count > queue.max_running:
        return min(room, -(-count // queue.max_running)), f"{name} runs {queue.max_running} job(s) of a user at a time"
    if count > most and max(stage.core_seconds for stage in trainings) < LEAST:  # more waiting than work
        return min(room, -(-count // most)), f"{count} short trainings, of which {most} may wait at a time"
    return 1, ""


def request(name: str, queue: Queue, nodes: int, group: list[Stage], site: SiteConfig, why: str) -> Request:
    expected = max(stage.core_seconds for stage in group)
    longest, asked = queue.longest, rounded(expected, site)
    jobs = 1
    if asked > longest:
        useful = longest - site.scheduler.signal_seconds - site.node.start_seconds
        jobs, asked = math.ceil(MARGIN * expected / useful), longest
        why = "; ".join(filter(None, [why, f"{jobs} jobs one after another: {name} ends at {queue.max_walltime}"]))
    whole = max(queue.nodes[0], nodes * len(group))
    if len(group) == 1 and whole == nodes:
        why = why if jobs > 1 else ""
    threads = group[0].levers.runtime.threads
    return Request(
        tuple(stage.id for stage in group), name, whole, nodes, site.ranks_per_node, threads, asked, jobs, expected, why
    )


def rounded(expected: float, site: SiteConfig) -> int:
    """Seconds to ask for."""
    told = expected + site.scheduler.signal_seconds  # by then it must be done
    return ROUND * math.ceil(max(LEAST, MARGIN * expected, told) / ROUND)


# -------------------------------------------------------------------------------------------------------- the total
def node_hours(requests: dict[str, Request]) -> float:
    """Expected, of all jobs; those that several stages share count once."""
    return sum(request.node_hours for request in set(requests.values()))


def check_budget(requests: dict[str, Request], site: SiteConfig, most: float | None) -> None:
    """Before anything is submitted."""
    expected = node_hours(requests)
    if most is not None and expected > most:
        largest = max(set(requests.values()), key=lambda request: request.node_hours)
        raise Problem(
            f"what is left to do is expected to take {expected:,.1f} node-hours, --max-node-hours allows {most:,.1f}; nothing "
            "was submitted",
            f"the largest job: {', '.join(largest.stages[:3])} with {largest.node_hours:,.1f}; a smaller sweep, or a larger "
            "budget",
        )
