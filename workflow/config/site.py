"""What a sites/*.yaml may say: where and how the stages of a study run. The file's name is the site's name."""

from __future__ import annotations

import os
import re
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, field_validator

from gnnscale.schema import Spec
from workflow.config.walltime import Walltime, seconds, walltime


# ---------------------------------------------------------------------------------------------------- the scheduler
class NoScheduler(Spec):
    """Stages are processes of this machine."""

    kind: Literal["none"]


class BatchScheduler(Spec):
    """What Slurm and PBS have in common."""

    directives: tuple[str, ...] = Field(
        (), description="options of every job, as in its script, without #SBATCH or #PBS"
    )
    poll_seconds: float = Field(30.0, gt=0, description="between two looks at all jobs")
    command_timeout: float = Field(120.0, gt=0, description="s, of one command of the scheduler")
    signal_seconds: int = Field(300, ge=10, description="before its end, a job is told to keep its work")
    max_jobs: int = Field(50, ge=1, description="of ours, waiting or running, at any time")
    stall_seconds: float = Field(1800.0, gt=0, description="a training that gives no sign of life for so long is ended")
    late_seconds: float = Field(60.0, ge=0, description="by which files of other nodes may be seen late here")
    exclude_nodes: bool = Field(True, description="whether a job may name nodes to avoid")
    forbidden: dict[str, str] = Field(default_factory=dict, description="option -> why this site refuses jobs with it")


class Slurm(BatchScheduler):
    kind: Literal["slurm"]
    exclusive: bool = Field(
        True, description="whole nodes; false where nodes are shared, then ask for a share in directives"
    )


class PBS(BatchScheduler):
    kind: Literal["pbs"]
    select: str = Field("", description="of each chunk, after select=N:ncpus=C, for example system=polaris")


Scheduler = Annotated[NoScheduler | Slurm | PBS, Field(discriminator="kind")]


def is_expression(text: str | None) -> str | None:
    try:
        re.compile(text or "")
    except re.error as error:
        raise ValueError(f"not a regular expression: {error}") from None
    return text


Expression = Annotated[str | None, AfterValidator(is_expression)]


class AccountRule(Spec):
    """What this site's accounts look like."""

    required: bool = True
    pattern: Expression = Field(None, description="a regular expression that the whole account matches")
    example: str = Field("", description="shown when the account is missing or has another form")


# -------------------------------------------------------------------------------------------------------- machines
class Gpus(Spec):
    """Of one node, as a program counts them: a die that is addressed alone is one."""

    count: int = Field(ge=1)
    vendor: Literal["nvidia", "amd", "intel"]
    model: str
    memory_gb: float = Field(gt=0, description="of each")
    peak_tflops: dict[Literal["fp32", "bf16"], float] = Field(description="dense, of each, from its data sheet")
    sustained: float = Field(0.25, gt=0, le=1, description="share of the peak; an assumption for estimates only")

    @property
    def visible(self) -> str:
        """The variable that shows some of them to a program."""
        names = {"nvidia": "CUDA_VISIBLE_DEVICES", "amd": "ROCR_VISIBLE_DEVICES", "intel": "ZE_AFFINITY_MASK"}
        return names[self.vendor]


class Node(Spec):
    """One machine of the site."""

    cores: int | None = Field(None, ge=1, description="that a job may use; null = all that this process may use")
    memory_gb: float | None = Field(None, gt=0, description="of the machine; null = this machine's")
    gpus: Gpus | None = None
    core_gflops: float = Field(30.0, gt=0, description="sustained in training, per core; for estimates only")
    step_seconds: float = Field(0.012, gt=0, description="fixed cost of a step of three layers; for estimates only")
    start_seconds: float = Field(4.0, gt=0, description="of one stage before it does anything; for estimates only")


class Queue(Spec):
    """A policy of the scheduler. Bins of one partition with different limits are queues of their own here."""

    partition: str | None = Field(
        None, description='of Slurm, the queue of PBS; null = this queue\'s name; "" = the default'
    )
    qos: str | None = Field(None, description="Slurm only")
    directives: tuple[str, ...] = Field(
        (), description="options of a job in this queue, besides those of the scheduler"
    )
    nodes: tuple[int, int] = Field(description="fewest and most of one job")
    max_walltime: Walltime
    max_running: int | None = Field(None, ge=1, description="jobs of one user at a time; null = no such limit")
    max_queued: int | None = Field(None, ge=1, description="jobs of one user, waiting or running")
    production: bool = Field(True, description="false = never chosen, unless train.queue or serial.queue names it")
    preemptible: bool = Field(False, description="jobs may be stopped at any time; they go on from their checkpoint")
    node: Node | None = Field(None, description="where its nodes are other than the site's")

    @property
    def longest(self) -> int:
        """Seconds that a job may ask for."""
        return seconds(walltime(seconds(self.max_walltime)))

    @field_validator("nodes")
    @classmethod
    def _some(cls, nodes: tuple[int, int]) -> tuple[int, int]:
        if not 1 <= nodes[0] <= nodes[1]:
            raise ValueError("expected [fewest, most], both 1 or more")
        return nodes


# ----------------------------------------------------------------------------------------------- how stages are run
class Launch(Spec):
    """How the ranks of a training are started, one process each: one per GPU where there are GPUs."""

    command: Literal["none", "srun", "mpiexec", "ibrun"] = Field("none", description="none = a single rank")
    ranks: int = Field(1, ge=1, description="of one training, where there is no scheduler; on a GPU each")
    ranks_per_node: int | None = Field(None, ge=1, description="null = one per GPU, or 1")
    threads_per_rank: int = Field(1, ge=1)
    parallel_stages: int | None = Field(
        None, ge=1, description="null = cores / threads_per_rank; with a scheduler, max_jobs"
    )
    flags: tuple[str, ...] = Field(
        (), description="of the command; {ranks}, {nodes}, {per_node} and {threads} are filled in"
    )
    before_rank: tuple[str, ...] = Field((), description="lines of shell that each rank runs first, to choose its GPU")
    interface: str | None = Field(
        None, description="network of the nodes, for MASTER_ADDR, NCCL and gloo; null = by host names"
    )


class Train(Spec):
    """How large the job of a training may be. Fewer nodes are taken where they suffice."""

    nodes: tuple[int, int] = Field((1, 1), description="fewest and most of one training")
    hours: float = Field(24.0, gt=0, description="a training estimated to take longer gets more nodes, if it may")
    queue: str | None = Field(None, description="a queue of this site; null = the one that fits best")

    @field_validator("nodes")
    @classmethod
    def _some(cls, nodes: tuple[int, int]) -> tuple[int, int]:
        return Queue._some(nodes)


class Serial(Spec):
    """Jobs of the stages without ranks: conversions, the audit, left-over evaluations, and in a container the laws and the
    report too; side by side on the cores of a node."""

    queue: str
    walltime: Walltime = Field("01:00:00", description="of one job, at least: as many stages share it as fill it")


def is_directory(text: str) -> str:
    if not re.fullmatch(r"(?:[\w/.:-]|\$\w+|\$\{\w+(:-[\w/.-]*)?\})+", text):
        raise ValueError("expected a path, in which only $NAME and ${NAME:-path} are filled in")
    return text


def is_absolute(text: str) -> str:
    if not text.startswith("/"):
        raise ValueError("expected an absolute path; variables are not filled in")
    return text


class Container(Spec):
    """How images are run here."""

    runtime: Literal["none", "apptainer", "singularity", "podman-hpc", "shifter", "ce"] = "none"
    use: bool = Field(False, description="every stage runs in the image; --container on the command line says the same")
    image: str | None = Field(
        None, description="its file, or what podman-hpc, shifter and ce call it; null = the one that `image build` made"
    )
    digest: str | None = Field(None, description="the id in it; null = as told by the record beside its file")
    checkout: bool | None = Field(
        None, description="the code of this checkout over the image's; null = where they differ"
    )
    modules: tuple[str, ...] = Field((), description="that bring the runtime")
    flags: tuple[str, ...] = Field((), description="of its run or exec command; those of GPUs are added")
    binds: tuple[str, ...] = Field(
        (), description="SOURCE, SOURCE:DESTINATION or SOURCE:DESTINATION:ro, besides run directory, code and scratch"
    )
    data: tuple[str, ...] = Field((), description="what conversions may read; the raw data of the study are added")
    env: dict[str, str] = Field(default_factory=dict, description="set inside")
    pass_env: tuple[str, ...] = Field((), description="variables that are passed, besides those of containers.PASSED")
    scratch: Annotated[str, AfterValidator(is_directory)] = Field(
        "${TMPDIR:-/tmp}", description="of a node; it is /tmp inside, where caches are too"
    )
    broadcast: int | None = Field(
        None,
        ge=1,
        description="jobs of so many nodes copy the image to `scratch`, which must be emptied after a job; Slurm only",
    )


class Filesystems(Spec):
    scratch: str | None = Field(None, description="where run directories belong; variables of the shell are filled in")
    purge_days: int | None = Field(None, ge=1, description="files untouched for so long are removed")


class Cost(Spec):
    """What an allocation is charged."""

    unit: str = "node-hours"
    factor: float = Field(1.0, gt=0, description="units per node-hour")


class Quirk(Spec):
    """Something that costs a day if nobody says it."""

    id: str
    text: str
    source: str = Field(description="where it is written")


class Verified(Spec):
    """What was really done with this file; no more may be claimed."""

    level: Literal["docs", "dryrun", "live"] = Field(
        description="docs = read; dryrun = accepted by a scheduler; live = ran"
    )
    date: str = Field(description='quoted, "2026-11-21"')
    note: str = ""


class SiteConfig(Spec):
    title: str
    docs: tuple[str, ...] = Field((), description="public pages that the facts are from")
    host: Expression = Field(None, description="regular expression of the hosts on which a driver may run; null = any")
    arch: Literal["x86_64", "aarch64"] | None = Field(None, description="null = as this machine")
    scheduler: Scheduler
    account: str | None = Field(None, description="whom jobs are charged to; yours, so never in sites/")
    account_rule: AccountRule = AccountRule(required=False)
    node: Node = Node()
    queues: dict[str, Queue] = Field(default_factory=dict)
    launch: Launch = Launch()
    train: Train = Train()
    serial: Serial | None = Field(None, description="null = conversions and the audit run where the driver runs")
    python: str | None = Field(None, description="the interpreter of jobs; null = the driver's")
    module_paths: tuple[Annotated[str, AfterValidator(is_absolute)], ...] = Field(
        (), description="where modules are looked for too: `module use`, before any is loaded"
    )
    modules: tuple[str, ...] = Field((), description="loaded by every job")
    setup: tuple[str, ...] = Field((), description="lines of shell at the head of every job, after the modules")
    env: dict[str, str] = Field(default_factory=dict, description="set for every stage")
    container: Container = Container()
    filesystems: Filesystems = Filesystems()
    cost: Cost = Cost()
    quirks: tuple[Quirk, ...] = ()
    verified: Verified

    @property
    def batch(self) -> bool:
        return self.scheduler.kind != "none"

    @property
    def cores(self) -> int:
        return self.node.cores or len(os.sched_getaffinity(0))

    @property
    def ranks_per_node(self) -> int:
        return self.launch.ranks_per_node or (self.node.gpus.count if self.node.gpus else 1)

    @property
    def rank_bytes(self) -> float:
        """Memory that one rank of a training may fill, with as many at once as there may be."""
        if self.node.gpus:
            return self.node.gpus.memory_gb * 1e9
        whole = (
            self.node.memory_gb * 1e9
            if self.node.memory_gb
            else os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        )
        return whole / (self.ranks_per_node if self.batch else self.parallel_stages * self.launch.ranks)

    @property
    def parallel_stages(self) -> int:
        """Trainings at a time."""
        if self.launch.parallel_stages:
            return self.launch.parallel_stages
        if self.batch:
            return self.scheduler.max_jobs
        return max(1, self.cores // (self.launch.ranks * self.launch.threads_per_rank))
