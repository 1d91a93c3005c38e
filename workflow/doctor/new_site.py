"""Draft a sites/NAME.yaml from what the scheduler and the GPUs of this machine report.

What no program reports (accounts, which queue is for production, how ranks are bound) is marked with ??? in the draft.
"""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import time
from collections.abc import Iterable
from typing import NamedTuple

from gnnscale.contract.errors import UserError
from workflow.config.walltime import SECONDS_PER_DAY, format_walltime
from workflow.scheduler.interface import SchedulerUnreachable
from workflow.scheduler.queue_facts import QueueFacts, SiteDraft, leading_number, parse_json
from workflow.scheduler.registry import SCHEDULERS

ANSWER_SECONDS = 60.0  # for each program
TEST_QUEUE_SECONDS = 1800  # queues with shorter limits are for tests
SCRATCH_VARIABLES = ("SCRATCH", "PSCRATCH")  # in which sites keep the path for run directories
# name -> (memory in GB, dense TFLOP/s in fp32, in bf16), from the data sheets; None where a name has several sizes
GPU_DATA_SHEETS: dict[str, tuple[float | None, float, float]] = {
    "gh200": (96, 67, 989),
    "h200": (141, 67, 989),
    "h100": (80, 67, 989),
    "a100": (None, 19.5, 312),
    "a40": (48, 37, 150),
    "l40s": (48, 92, 362),
    "v100": (None, 15.7, 0),
    "mi300x": (192, 163, 1307),
    "mi250x": (64, 23.9, 191.5),
    "mi210": (64, 22.6, 181),
    "max 1550": (64, 26, 416),
    "pvc": (64, 26, 416),
}


class LocalGPU(NamedTuple):
    """A GPU of this machine."""

    model: str
    memory_gb: float
    vendor: str


def draft_site_file() -> str:
    """Return the text of a site file for the cluster that this machine belongs to."""
    devices = parse_nvidia(
        read_output("nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader")
    ) or parse_rocm(read_output("rocm-smi", "--showproductname", "--showmeminfo", "vram", "--json"))
    answers = []
    for kind, scheduler in SCHEDULERS.items():
        try:
            found = scheduler.read_queues(ANSWER_SECONDS)
        except SchedulerUnreachable as error:
            answers.append(f"{kind}: {error}")
            continue
        if found:
            return format_site_file(kind, found, devices)
        answers.append(f"{kind}: it answers, and lists no queue with nodes")
    raise UserError(
        "no scheduler describes a cluster here. " + "; ".join(answers),
        "run this on a login node, after loading the module of its scheduler if it has one",
        f"or copy one of {', '.join(f'sites/{kind}.yaml' for kind in SCHEDULERS)} and fill it in",
        "site `local` is for a machine without a scheduler",
    )


def read_output(*command: str) -> str:
    """Return the output of a program; nothing if it is missing or fails."""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=ANSWER_SECONDS, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return ""


# ----------------------------------------------------------------------------------------------------- GPUs of this machine
def parse_nvidia(text: str) -> list[LocalGPU]:
    pairs = (line.rsplit(",", 1) for line in text.splitlines() if "," in line)
    return [
        LocalGPU(name.strip(), round(leading_number(memory.strip()) * 2**20 / 1e9), "nvidia") for name, memory in pairs
    ]


def parse_rocm(text: str) -> list[LocalGPU]:
    found = []
    for card in parse_json(text).values():
        name = card.get("Card Series") or card.get("Card series") or card.get("Card Model") or "unknown"
        memory = next((int(v) for k, v in card.items() if k.startswith("VRAM Total Memory")), 0)
        found.append(LocalGPU(str(name), round(memory / 1e9), "amd"))
    return found


# --------------------------------------------------------------------------------------------------------- the file
def format_site_file(kind: str, partitions: list[QueueFacts], devices: list[LocalGPU]) -> str:
    """Return the file for these queues, around the one with most GPUs."""
    main = max(partitions, key=lambda p: (p.gpus, p.default, p.most))
    draft = SCHEDULERS[kind].draft(main)
    return "\n".join(
        [
            *head_lines(kind, draft, main),
            "account_rule: {required: false}  # ??? true where jobs are charged",
            "node:",
            f"  cores: {main.cores}",
            *([f"  memory_gb: {main.memory_gb:.0f}"] if main.memory_gb >= 1 else []),
            *(gpu_lines(main, devices) if main.gpus else []),
            "queues:  # ??? production: false for those that the planner should not choose",
            *(queue_line(each, main) for each in partitions),
            *scratch_lines(),
            "launch:",
            f"  command: {draft.launcher}",
            f"  threads_per_rank: {max(1, main.cores // (main.gpus or 1))}",
            f"  flags: {draft.flags}",
            "  # interface: ???         # the network of the nodes, from `ip address` on one of them",
            "train: {nodes: [1, 1]}",
            *serial_line(main, partitions),
            f'verified: {{level: docs, date: "{time.strftime("%Y-%m-%d")}", note: written by sites new}}',
            "",
        ]
    )


def head_lines(kind: str, draft: SiteDraft, main: QueueFacts) -> list[str]:
    """Return the lines about the machine and its scheduler."""
    lines = [
        f"# Written by `sites new` on {platform.node()}: from what the scheduler reports. Check the lines with ???.",
        f"title: {platform.node()}",
        f"host: {json.dumps(host_pattern(platform.node()))}  # ??? where a driver may run: do all login nodes match?",
        f"arch: {platform.machine()}" if platform.machine() in ("x86_64", "aarch64") else "# arch: ???",
        "scheduler:",
        f"  kind: {kind}",
    ]
    if (longest := main.seconds or SECONDS_PER_DAY) <= TEST_QUEUE_SECONDS:
        lines += [f"  signal_seconds: {max(10, longest // 5)}"]
    return lines + [f"  {line}" for line in draft.options]


def scratch_lines() -> list[str]:
    """Return the line about the scratch file system, if one of its variables is set."""
    name = next((name for name in SCRATCH_VARIABLES if os.environ.get(name)), None)
    if name is None:
        return []
    return [f"filesystems: {{scratch: ${name}}}  # ??? purge_days, if files that nobody touches are removed there"]


def host_pattern(name: str) -> str:
    """Return a pattern for hosts whose names differ from this one in their numbers."""
    return "^" + re.sub(r"\d+", r"\\d+", re.escape(name)) + "$"


def serial_line(main: QueueFacts, partitions: Iterable[QueueFacts]) -> list[str]:
    """Return the queue for conversions and evaluations, which need one node: that of the trainings if it gives one."""
    found = next((each for each in (main, *partitions) if each.fewest <= 1), None)
    if found is None:
        return ["# serial: ???             # no queue gives a single node: conversions run where the driver runs"]
    return [
        f'serial: {{queue: {quote(found.name or "default")}, walltime: "{format_walltime(min(3600, found.seconds or 3600))}"}}'
    ]


def vendor_of(model: str) -> str:
    return "amd" if model.startswith("mi") else "intel" if model.startswith(("pvc", "max")) else "nvidia"


def gpu_lines(main: QueueFacts, devices: Iterable[LocalGPU]) -> list[str]:
    device = next(iter(devices), None)
    model = main.model or (device.model if device else "") or "unknown"
    name = next((name for name in GPU_DATA_SHEETS if name in model.lower()), None)
    listed, fp32, bf16 = GPU_DATA_SHEETS[name] if name else (None, 0, 0)
    memory = device.memory_gb if device else listed
    vendor = device.vendor if device else vendor_of(model.lower())
    rates = ", ".join(f"{k}: {v}" for k, v in (("fp32", fp32 or 10), ("bf16", bf16)) if v)
    doubt = "" if name and memory and (device or main.model) else "  # ??? from the data sheet"
    return [
        f"  gpus: {{count: {main.gpus}, vendor: {vendor}, model: {quote(model)}, memory_gb: {memory or 16}, "
        f"peak_tflops: {{{rates}}}}}{doubt}"
    ]


def queue_line(each: QueueFacts, main: QueueFacts) -> str:
    limit = format_walltime(each.seconds or 7 * SECONDS_PER_DAY)
    more = "" if (each.cores, each.gpus) == (main.cores, main.gpus) else f", node: {{cores: {each.cores}}}"
    more += (
        ", production: false" if each is not main and (each.seconds or SECONDS_PER_DAY) <= TEST_QUEUE_SECONDS else ""
    )
    comment = "" if each.seconds else "  # no limit is reported"
    nodes = f"[{each.fewest}, {max(each.fewest, each.most)}]"
    partition = "" if each.name else ', partition: ""'
    return f'  {quote(each.name or "default")}: {{nodes: {nodes}, max_walltime: "{limit}"{partition}{more}}}{comment}'


def quote(name: str) -> str:
    return json.dumps(name) if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_.-]*", name) else name
