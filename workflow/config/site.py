"""The fields of sites/*.yaml: where and how the stages of a study run. The name of the file is the name of the site."""

from __future__ import annotations

import os
import re
from functools import reduce
from operator import or_
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import AfterValidator, Field, field_validator

from gnnscale.schema import Record
from workflow.config.batch_scheduler import BatchScheduler
from workflow.config.container import Container
from workflow.config.scheduler_kinds import KINDS, LAUNCHERS
from workflow.config.walltime import Walltime, format_walltime, to_seconds


# ---------------------------------------------------------------------------------------------------- the scheduler
class NoScheduler(Record):
    """The absence of a scheduler: stages are processes of this machine."""

    kind: Literal["none"]


if TYPE_CHECKING:
    Scheduler = NoScheduler | BatchScheduler
    LauncherName = str
else:
    Scheduler = Annotated[reduce(or_, KINDS.values(), NoScheduler), Field(discriminator="kind")]
    LauncherName = Literal["none", "mpiexec", *LAUNCHERS]


def require_expression(text: str | None) -> str | None:
    """Raise unless the text is a regular expression."""
    try:
        re.compile(text or "")
    except re.error as error:
        raise ValueError(f"not a regular expression: {error}") from None
    return text


Expression = Annotated[str | None, AfterValidator(require_expression)]


class AccountRule(Record):
    """The form of this site's accounts."""

    required: bool = True
    pattern: Expression = Field(None, description="regular expression that matches a whole account")
    example: str = Field("", description="shown when the account is missing or has another form")


# -------------------------------------------------------------------------------------------------------- machines
class Gpus(Record):
    """GPUs of one node, counted as programs see them: a die that has an address of its own is one."""

    count: int = Field(ge=1)
    vendor: Literal["nvidia", "amd", "intel"]
    model: str
    memory_gb: float = Field(gt=0, description="memory of each")
    peak_tflops: dict[Literal["fp32", "bf16"], float] = Field(description="dense peak of each, from its data sheet")
    sustained: float = Field(0.25, gt=0, le=1, description="assumed share of the peak; for estimates only")

    @property
    def visible_variable(self) -> str:
        """Name of the environment variable that restricts a program to some of the GPUs."""
        names = {"nvidia": "CUDA_VISIBLE_DEVICES", "amd": "ROCR_VISIBLE_DEVICES", "intel": "ZE_AFFINITY_MASK"}
        return names[self.vendor]


class Node(Record):
    """One machine of the site."""

    cores: int | None = Field(None, ge=1, description="cores that a job may use; null = all that this process may use")
    memory_gb: float | None = Field(None, gt=0, description="memory of the node; null = that of this machine")
    gpus: Gpus | None = None
    core_gflops: float = Field(30.0, gt=0, description="rate sustained in training, per core; for estimates only")
    step_seconds: float = Field(
        0.012, gt=0, description="fixed cost of a training step of three layers; for estimates only"
    )
    start_seconds: float = Field(4.0, gt=0, description="time that a stage takes to start; for estimates only")


class Queue(Record):
    """A queue of the scheduler. Size classes of one partition with different limits are separate queues here."""

    partition: str | None = Field(
        None,
        description='partition of Slurm, or queue of another scheduler; null = the name of this entry; "" = the default',
    )
    qos: str | None = Field(None, description="where the scheduler has them, as Slurm")
    directives: tuple[str, ...] = Field(
        (), description="options of jobs in this queue, added to those of the scheduler"
    )
    nodes: tuple[int, int] = Field(description="fewest and most nodes of one job")
    max_walltime: Walltime
    max_running: int | None = Field(None, ge=1, description="most running jobs of one user; null = no such limit")
    max_queued: int | None = Field(
        None, ge=1, description="most jobs of one user, waiting or running; null = no such limit"
    )
    production: bool = Field(True, description="false = used only if train.queue or serial.queue names it")
    preemptible: bool = Field(
        False, description="true = jobs may be stopped at any time; they continue from their checkpoint"
    )
    node: Node | None = Field(None, description="nodes of this queue, where they differ from those of the site")

    @property
    def longest_seconds(self) -> int:
        """Longest walltime that a job may request."""
        return to_seconds(format_walltime(to_seconds(self.max_walltime)))

    @field_validator("nodes")
    @classmethod
    def _is_range(cls, nodes: tuple[int, int]) -> tuple[int, int]:
        if not 1 <= nodes[0] <= nodes[1]:
            raise ValueError("expected [fewest, most], both 1 or more")
        return nodes


# ----------------------------------------------------------------------------------------------- how stages are run
class Launch(Record):
    """The command that starts the ranks of a training: one process each, and one per GPU where there are GPUs."""

    command: LauncherName = Field("none", description="none = a single rank")
    ranks: int = Field(
        1, ge=1, description="ranks of one training where there is no scheduler; each needs a GPU if there are GPUs"
    )
    ranks_per_node: int | None = Field(None, ge=1, description="null = one per GPU, or 1")
    threads_per_rank: int = Field(1, ge=1)
    parallel_stages: int | None = Field(
        None,
        ge=1,
        description="stages that run at a time; null = cores / (ranks * threads_per_rank), or max_jobs with a scheduler",
    )
    flags: tuple[str, ...] = Field(
        (), description="options of the command; {ranks}, {nodes}, {per_node} and {threads} are filled in"
    )
    before_rank: tuple[str, ...] = Field(
        (), description="lines of shell that each rank runs first, for example to choose its GPU"
    )
    interface: str | None = Field(
        None, description="network interface of the nodes, for MASTER_ADDR, NCCL and gloo; null = host names are used"
    )


class Train(Record):
    """Limits of the job of a training. The planner takes the fewest nodes that are enough."""

    nodes: tuple[int, int] = Field((1, 1), description="fewest and most nodes of one training")
    hours: float = Field(
        24.0, gt=0, description="a training that is estimated to take longer gets more nodes, up to the limit"
    )
    queue: str | None = Field(None, description="a queue of this site; null = the one that fits best")

    @field_validator("nodes")
    @classmethod
    def _is_range(cls, nodes: tuple[int, int]) -> tuple[int, int]:
        return Queue._is_range(nodes)


class Serial(Record):
    """Jobs for the stages without ranks, which run side by side on the cores of a node.

    These are conversions, the audit and evaluations that no training's job does; in a container also scaling and report.
    """

    queue: str
    walltime: Walltime = Field(
        "01:00:00", description="least walltime of one job: as many stages share a job as fill it"
    )


def require_absolute(text: str) -> str:
    if not text.startswith("/"):
        raise ValueError("expected an absolute path; variables are not filled in")
    return text


class Filesystems(Record):
    """The directories for run directories and for published data, and for how long files stay there."""

    scratch: str | None = Field(
        None, description="directory where run directories belong; environment variables are filled in"
    )
    purge_days: int | None = Field(None, ge=1, description="days after which files that nobody has touched are deleted")
    data: str | None = Field(
        None,
        description="directory of published data sets, which `data fetch` fills and `raw: data:NAME` names; environment "
        "variables are filled in; null = data/ beside runs/",
    )


DriverWay = Literal["tmux", "screen", "nohup", "service", "scrontab", "job"]


class Driver(Record):
    """The way by which `run --detach` starts a driver that outlives its session."""

    way: DriverWay | None = Field(
        None,
        description="tmux, screen; nohup = a session without a terminal; service = a unit of the user's systemd; scrontab = "
        "an entry of Slurm's, which starts a killed driver again; job = a batch job that submits itself again; "
        "null = tmux where there is one, else nohup",
    )
    options: tuple[str, ...] = Field((), description="scrontab: options of the entry, written as after #SCRON")
    queue: str | None = Field(None, description="job: the queue that it is submitted to")
    walltime: Walltime = Field("24:00:00", description="job: its walltime")


class ChargeUnit(Record):
    """The unit in which allocations are charged."""

    unit: str = "node-hours"
    factor: float = Field(1.0, gt=0, description="units per node-hour")


class Quirk(Record):
    """A peculiarity of the site that users must know."""

    id: str
    text: str
    source: str = Field(description="where this is documented")


class Verification(Record):
    """The degree to which this file has been verified, and the date."""

    level: Literal["docs", "dryrun", "live"] = Field(
        description="docs = written from documentation; dryrun = accepted by a scheduler; live = has run there"
    )
    date: str = Field(description='quoted, "2026-11-21"')
    note: str = ""


class SiteConfig(Record):
    """A whole site file."""

    title: str
    docs: tuple[str, ...] = Field((), description="public pages that document these facts")
    host: Expression = Field(None, description="regular expression of host names on which a driver may run; null = any")
    arch: Literal["x86_64", "aarch64"] | None = Field(
        None, description="architecture of the nodes; null = that of this machine"
    )
    scheduler: Scheduler
    account: str | None = Field(
        None, description="account that jobs are charged to; it is the user's own, so never in sites/"
    )
    account_rule: AccountRule = AccountRule(required=False)
    node: Node = Node()
    queues: dict[str, Queue] = Field(default_factory=dict)
    launch: Launch = Launch()
    train: Train = Train()
    serial: Serial | None = Field(None, description="null = stages without ranks run where the driver runs")
    python: str | None = Field(None, description="Python interpreter of jobs; null = the driver's")
    module_paths: tuple[Annotated[str, AfterValidator(require_absolute)], ...] = Field(
        (), description="more directories of modules, for `module use` before any is loaded"
    )
    modules: tuple[str, ...] = Field((), description="modules that every job loads")
    setup: tuple[str, ...] = Field((), description="lines of shell at the head of every job, after the modules")
    env: dict[str, str] = Field(default_factory=dict, description="environment variables of every stage")
    container: Container = Container()
    filesystems: Filesystems = Filesystems()
    driver: Driver = Driver()
    cost: ChargeUnit = ChargeUnit()
    quirks: tuple[Quirk, ...] = ()
    verified: Verification

    @property
    def has_scheduler(self) -> bool:
        return isinstance(self.scheduler, BatchScheduler)

    @property
    def batch_scheduler(self) -> BatchScheduler:
        """Settings of the scheduler, for code that runs only where there is one."""
        assert not isinstance(self.scheduler, NoScheduler), f"{self.title} has no batch jobs"
        return self.scheduler

    @property
    def cores(self) -> int:
        return self.node.cores or len(os.sched_getaffinity(0))

    @property
    def ranks_per_node(self) -> int:
        return self.launch.ranks_per_node or (self.node.gpus.count if self.node.gpus else 1)

    @property
    def rank_bytes(self) -> float:
        """Memory that one rank of a training may fill while as many trainings run as may run at a time."""
        if self.node.gpus:
            return self.node.gpus.memory_gb * 1e9
        whole = (
            self.node.memory_gb * 1e9
            if self.node.memory_gb
            else os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        )
        return whole / (self.ranks_per_node if self.has_scheduler else self.parallel_stages * self.launch.ranks)

    @property
    def parallel_stages(self) -> int:
        """Number of trainings that may run at a time."""
        if self.launch.parallel_stages:
            return self.launch.parallel_stages
        if self.has_scheduler:
            return self.batch_scheduler.max_jobs
        return max(1, self.cores // (self.launch.ranks * self.launch.threads_per_rank))
