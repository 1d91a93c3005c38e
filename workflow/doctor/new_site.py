"""A first sites/NAME.yaml from what the scheduler and the GPUs of this machine say of themselves.

It is a start: what the programs do not tell (accounts, which queue is for production, how ranks are bound) is marked.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
import time
from collections.abc import Iterable
from typing import NamedTuple

from gnnscale.contract.errors import Problem
from workflow.config.walltime import walltime
from workflow.scheduler.query import DAY, slurm_seconds

SHORT = 1800  # s: a queue for tests
SCRATCH = ("SCRATCH", "PSCRATCH")  # variables by which sites tell where run directories belong
# name -> (memory in GB, dense TFLOP/s in fp32, in bf16), from the data sheets; None where a name has several sizes
KNOWN = {
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


class Partition(NamedTuple):
    """One partition or queue, as the scheduler has it."""

    name: str
    default: bool
    fewest: int
    most: int  # nodes
    seconds: int | None  # None = no limit
    cores: int
    memory_gb: float
    gpus: int
    model: str  # "" = not told


class Device(NamedTuple):
    """A GPU of this very machine."""

    model: str
    memory_gb: float
    vendor: str


def survey() -> str:
    """The text of the file."""
    devices = nvidia(said("nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader")) or rocm(
        said("rocm-smi", "--showproductname", "--showmeminfo", "vram", "--json")
    )
    if shutil.which("sinfo"):
        found = slurm(said("sinfo", "-h", "-o", "%P|%a|%l|%D|%c|%m|%G"), said("scontrol", "show", "partition", "-o"))
        kind = "slurm"
    elif shutil.which("pbsnodes"):
        found = pbs(said("pbsnodes", "-a", "-F", "json"), said("qstat", "-Q", "-f", "-F", "json"))
        kind = "pbs"
    else:
        raise Problem(
            "neither sinfo nor pbsnodes is here, so there is no cluster to describe",
            "run this on a login node; site `local` is for a machine without a scheduler",
        )
    if not found:
        raise Problem(
            f"{'sinfo' if kind == 'slurm' else 'pbsnodes'} tells of no partition with nodes, or does not answer",
            "copy sites/slurm.yaml or sites/pbs.yaml and fill it in",
        )
    return text(kind, found, devices)


def said(*command: str) -> str:
    """What a program prints; nothing if it is not there or fails."""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return ""


# ------------------------------------------------------------------------------------------------------- what is said
def slurm(sinfo: str, scontrol: str) -> list[Partition]:
    limits = {}
    for line in scontrol.splitlines():
        fields = dict(word.split("=", 1) for word in line.split() if "=" in word)
        limits[fields.get("PartitionName", "")] = fields
    found: dict[str, Partition] = {}
    for line in sinfo.splitlines():
        name, up, limit, nodes, cores, memory, gres = (word.strip() for word in line.split("|"))
        plain = name.rstrip("*")
        if up != "up":
            continue
        count, model = gres_gpus(gres)
        asked = limits.get(plain, {})
        mine = Partition(
            plain,
            name.endswith("*"),
            max(1, number(asked.get("MinNodes", "1"))),
            number(nodes),
            slurm_seconds(limit),
            number(cores),
            number(memory) / 1000,
            count,
            model,
        )
        if plain in found:  # nodes of another kind in the same partition: what all of them have
            other = found[plain]
            mine = mine._replace(
                most=mine.most + other.most,
                cores=min(mine.cores, other.cores),
                gpus=min(mine.gpus, other.gpus),
                memory_gb=min(mine.memory_gb, other.memory_gb),
                model=other.model or mine.model,
            )
        found[plain] = mine
    for name, one in found.items():
        most = limits.get(name, {}).get("MaxNodes", "UNLIMITED")
        found[name] = one._replace(most=min(one.most, int(most)) if most.isdigit() else one.most)
    return list(found.values())


def number(text: str) -> int:
    """Slurm writes 8+ where there are several."""
    digits = re.match(r"\d+", text)
    return int(digits[0]) if digits else 0


def gres_gpus(gres: str) -> tuple[int, str]:
    """gpu:4, gpu:a100:4(S:0-1), (null)"""
    found = re.findall(r"gpu(?::([A-Za-z][^:,(]*))?:(\d+)", gres)
    return sum(int(count) for _, count in found), next((model for model, _ in found if model), "")


def pbs(nodes: str, queues: str) -> list[Partition]:
    machines = [m for m in decoded(nodes).get("nodes", {}).values() if "offline" not in m.get("state", "")]
    if not machines:
        return []
    have = [machine.get("resources_available", {}) for machine in machines]
    cores = min(int(r.get("ncpus", 1)) for r in have)
    memory = min(pbs_gb(str(r.get("mem", "0kb"))) for r in have)
    gpus = min(int(r.get("ngpus", 0)) for r in have)
    found = []
    for name, queue in decoded(queues).get("Queue", {}).items():
        if queue.get("queue_type") != "Execution" or str(queue.get("enabled")) != "True":
            continue
        limit = str(queue.get("resources_max", {}).get("walltime", ""))
        time_limit = (
            sum(int(part) * unit for part, unit in zip(limit.split(":"), (3600, 60, 1))) if ":" in limit else None
        )
        fewest = int(queue.get("resources_min", {}).get("nodect", 1))
        most = int(queue.get("resources_max", {}).get("nodect", len(machines)))
        found.append(Partition(name, False, fewest, most, time_limit, cores, memory, gpus, ""))
    return found


def decoded(text: str) -> dict:
    try:
        return json.loads(text)
    except ValueError:
        return {}


def pbs_gb(text: str) -> float:
    value = re.match(r"(\d+)([kmgt]?)b?", text.lower())
    return int(value[1]) * {"": 1e-9, "k": 1e-6, "m": 1e-3, "g": 1, "t": 1e3}[value[2]] if value else 0


def nvidia(text: str) -> list[Device]:
    pairs = (line.rsplit(",", 1) for line in text.splitlines() if "," in line)
    return [Device(name.strip(), round(number(memory.strip()) * 2**20 / 1e9), "nvidia") for name, memory in pairs]


def rocm(text: str) -> list[Device]:
    found = []
    for card in decoded(text).values():
        name = card.get("Card Series") or card.get("Card series") or card.get("Card Model") or "unknown"
        memory = next((int(v) for k, v in card.items() if k.startswith("VRAM Total Memory")), 0)
        found.append(Device(str(name), round(memory / 1e9), "amd"))
    return found


# --------------------------------------------------------------------------------------------------------- the file
def text(kind: str, partitions: list[Partition], devices: list[Device]) -> str:
    main = max(partitions, key=lambda p: (p.gpus, p.default, p.most))
    ranks = main.gpus or 1
    lines = [
        f"# Written by `sites new` on {platform.node()}: what the scheduler says of itself. Lines with ??? want a look.",
        f"title: {platform.node()}",
        f"host: {json.dumps(hosts_like(platform.node()))}  # ??? where a driver may run: are all login nodes called so?",
        f"arch: {platform.machine()}" if platform.machine() in ("x86_64", "aarch64") else "# arch: ???",
        "scheduler:",
        f"  kind: {kind}",
    ]
    if (main.seconds or DAY) <= SHORT:
        lines += [f"  signal_seconds: {max(10, main.seconds // 5)}"]
    if kind == "slurm":
        lines += ["  exclusive: false      # ??? true where jobs get whole nodes"]
        lines += [f'  directives: ["--gpus-per-node={main.gpus}"]'] if main.gpus else []
    else:
        lines += [f"  select: ngpus={main.gpus}"] if main.gpus else []
        lines += ['  directives: ["-l place=scatter"]  # ??? some sites want -l filesystems=...']
    lines += ["account_rule: {required: false}  # ??? true where jobs are charged", "node:", f"  cores: {main.cores}"]
    lines += [f"  memory_gb: {main.memory_gb:.0f}"] if main.memory_gb >= 1 else []
    lines += gpu_lines(main, devices) if main.gpus else []
    lines += ["queues:  # ??? production: false for those that the planner is not to choose"]
    lines += [queue_line(each, main) for each in partitions]
    if scratch := next((name for name in SCRATCH if os.environ.get(name)), None):
        lines += [
            f"filesystems: {{scratch: ${scratch}}}  # ??? purge_days, if files that nobody touches are removed there"
        ]
    lines += [
        "launch:",
        f"  command: {'srun' if kind == 'slurm' else 'mpiexec'}",
        f"  threads_per_rank: {max(1, main.cores // ranks)}",
        f"  flags: {FLAGS[kind]}",
        "  # interface: ???         # the network of the nodes, from `ip address` on one of them",
        "train: {nodes: [1, 1]}",
        *serial_line(main, partitions),
        f'verified: {{level: docs, date: "{time.strftime("%Y-%m-%d")}", note: written by sites new}}',
    ]
    return "\n".join(lines) + "\n"


def hosts_like(name: str) -> str:
    """Of the hosts that differ from this one in their numbers."""
    return "^" + re.sub(r"\d+", r"\\d+", re.escape(name)) + "$"


def serial_line(main: Partition, partitions: Iterable[Partition]) -> list[str]:
    """Conversions and evaluations need one node; the queue of the trainings will do if it gives one."""
    found = next((each for each in (main, *partitions) if each.fewest <= 1), None)
    if found is None:
        return ["# serial: ???             # no queue gives a single node: conversions run where the driver runs"]
    return [f'serial: {{queue: {quoted(found.name)}, walltime: "{walltime(min(3600, found.seconds or 3600))}"}}']


FLAGS = {
    "slurm": '["--nodes={nodes}", "--ntasks={ranks}", "--ntasks-per-node={per_node}", "--cpus-per-task={threads}", '
    '"--kill-on-bad-exit=1"]',
    "pbs": '["-n", "{ranks}", "-ppn", "{per_node}"]',
}


def vendor_of(model: str) -> str:
    return "amd" if model.startswith("mi") else "intel" if model.startswith(("pvc", "max")) else "nvidia"


def gpu_lines(main: Partition, devices: Iterable[Device]) -> list[str]:
    here = next(iter(devices), None)
    model = main.model or (here.model if here else "") or "unknown"
    name = next((name for name in KNOWN if name in model.lower()), None)
    memory, fp32, bf16 = KNOWN[name] if name else (None, None, None)
    memory = here.memory_gb if here else memory
    vendor = here.vendor if here else vendor_of(model.lower())
    rates = ", ".join(f"{k}: {v}" for k, v in (("fp32", fp32 or 10), ("bf16", bf16)) if v)
    doubt = "" if name and memory and (here or main.model) else "  # ??? from the data sheet"
    return [
        f"  gpus: {{count: {main.gpus}, vendor: {vendor}, model: {quoted(model)}, memory_gb: {memory or 16}, "
        f"peak_tflops: {{{rates}}}}}{doubt}"
    ]


def queue_line(each: Partition, main: Partition) -> str:
    limit = walltime(each.seconds or 7 * DAY)
    other = "" if (each.cores, each.gpus) == (main.cores, main.gpus) else f", node: {{cores: {each.cores}}}"
    other += ", production: false" if each is not main and (each.seconds or DAY) <= SHORT else ""
    known = "" if each.seconds else "  # no limit is told"
    nodes = f"[{each.fewest}, {max(each.fewest, each.most)}]"
    return f'  {quoted(each.name)}: {{nodes: {nodes}, max_walltime: "{limit}"{other}}}{known}'


def quoted(name: str) -> str:
    return json.dumps(name) if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_.-]*", name) else name
