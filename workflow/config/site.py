"""The fields of sites/*.yaml: where and how the stages of a study run. The name of the file is the name of the site."""

from __future__ import annotations

import os
import re
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, field_validator

from gnnscale.schema import Record
from workflow.config.walltime import Walltime, format_walltime, to_seconds


# ---------------------------------------------------------------------------------------------------- the scheduler
class NoScheduler(Record):
    """The absence of a scheduler: stages are processes of this machine."""

    kind: Literal["none"]


class BatchScheduler(Record):
    """Options that Slurm and PBS have in common."""

    directives: tuple[str, ...] = Field(
        (), description="options of every job, written as in a job script but without #SBATCH or #PBS"
    )
    poll_seconds: float = Field(30.0, gt=0, description="seconds between two queries for all jobs")
    command_timeout: float = Field(
        120.0, gt=0, description="seconds after which a command of the scheduler is given up"
    )
    signal_seconds: int = Field(
        300, ge=10, description="seconds before its walltime at which a job is signalled to save its work"
    )
    max_jobs: int = Field(50, ge=1, description="most jobs of this driver, waiting or running, at any time")
    stall_seconds: float = Field(
        1800.0, gt=0, description="a training that shows no progress for so many seconds is ended"
    )
    late_seconds: float = Field(
        60.0, ge=0, description="seconds by which files written on other nodes may appear late here"
    )
    exclude_nodes: bool = Field(True, description="true = jobs may name nodes to avoid")
    forbidden: dict[str, str] = Field(
        default_factory=dict, description="option -> why this site refuses jobs that use it"
    )


class Slurm(BatchScheduler):
    """Slurm: sbatch, squeue and sacct."""

    kind: Literal["slurm"]
    exclusive: bool = Field(
        True, description="true = whole nodes; false where nodes are shared: then request a share in directives"
    )


class PBS(BatchScheduler):
    """PBS Professional or OpenPBS: qsub and qstat."""

    kind: Literal["pbs"]
    select: str = Field("", description="added to each chunk after select=N:ncpus=C, for example system=polaris")


Scheduler = Annotated[NoScheduler | Slurm | PBS, Field(discriminator="kind")]


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
        None, description="Slurm's partition or PBS's queue; null = the name of this entry; \"\" = the default"
    )
    qos: str | None = Field(None, description="Slurm only")
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

    command: Literal["none", "srun", "mpiexec", "ibrun"] = Field("none", description="none = a single rank")
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


def require_directory(text: str) -> str:
    """Raise unless the text is a path that may stand in double quotes in bash."""
    if not re.fullmatch(r"(?:[\w/.:-]|\$\w+|\$\{\w+(:-[\w/.-]*)?\})+", text):
        raise ValueError("expected a path, in which only $NAME and ${NAME:-path} are filled in")
    return text


def require_absolute(text: str) -> str:
    if not text.startswith("/"):
        raise ValueError("expected an absolute path; variables are not filled in")
    return text


class Container(Record):
    """The container runtime of this site, and options for images."""

    runtime: Literal["none", "apptainer", "singularity", "podman", "podman-hpc", "shifter", "ce"] = "none"
    use: bool = Field(
        False, description="true = every stage runs in the image; the same as --container on the command line"
    )
    image: str | None = Field(
        None,
        description="file of the image, or its name in podman-hpc, shifter and ce; null = the one that `image build` made",
    )
    digest: str | None = Field(None, description="id of the image; null = as in the record beside its file")
    checkout: bool | None = Field(
        None, description="true = the code of this checkout is bound over the image's; null = only if they differ"
    )
    modules: tuple[str, ...] = Field((), description="modules that provide the runtime")
    flags: tuple[str, ...] = Field((), description="options of the run or exec command; those for GPUs are added")
    binds: tuple[str, ...] = Field(
        (), description="SOURCE, SOURCE:TARGET or SOURCE:TARGET:ro, added to run directory, code and scratch"
    )
    data: tuple[str, ...] = Field(
        (), description="paths that conversions may read; the raw data of the study are added"
    )
    env: dict[str, str] = Field(default_factory=dict, description="variables set in the container")
    pass_env: tuple[str, ...] = Field(
        (), description="variables passed in, added to PASSED_VARIABLES of workflow/images/environment.py"
    )
    scratch: Annotated[str, AfterValidator(require_directory)] = Field(
        "${TMPDIR:-/tmp}",
        description="scratch directory of a node; it becomes /tmp in the container, where caches are too",
    )
    broadcast: int | None = Field(
        None,
        ge=1,
        description="fewest nodes of a job that copies the image to `scratch`, which must be emptied after jobs; Slurm only",
    )


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
    cost: ChargeUnit = ChargeUnit()
    quirks: tuple[Quirk, ...] = ()
    verified: Verification

    @property
    def has_scheduler(self) -> bool:
        return isinstance(self.scheduler, BatchScheduler)

    @property
    def batch_scheduler(self) -> Slurm | PBS:
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
