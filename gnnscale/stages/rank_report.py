"""A report of each rank about its node, for the doctor: python -m gnnscale.stages.rank_report DIRECTORY.

The ranks are started as those of a training. Each leaves DIRECTORY/ranks/HOST-PID.json and writes it anew before each `step`,
from steps that need nothing but Python to a collective over all ranks: however it ends, the file shows how far it came.
"""

from __future__ import annotations

import faulthandler
import fcntl
import json
import os
import platform
import socket
import struct
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path
from typing import Any

from gnnscale.contract import files
from gnnscale.job import container
from gnnscale.machine import directory_check
from gnnscale.machine.native_build import open_fastest
from gnnscale.machine.rank_env import read_ranks

PACKAGES = ("torch", "deepspeed", "adios2")
REDUCED_MEBIBYTES = 64  # in the measured collective: about the gradient of 17 million parameters
WARM_UP_TURNS, TIMED_TURNS = 2, 5
SIOCGIFADDR = 0x8915


class Report:
    """The report file of this rank."""

    def __init__(self, directory: Path):
        self.path = directory / "ranks" / f"{platform.node()}-{os.getpid()}.json"
        self.content: dict[str, Any] = {}

    def begin(self, step: str, **known: Any) -> None:
        """Write what is known, and that `step` begins."""
        self.content |= {"step": step, **known}
        files.write(self.path, json.dumps(self.content, indent=1) + "\n")


def main(directory: Path) -> int:
    request, report = json.loads((directory / "request.json").read_text()), Report(directory)
    faulthandler.dump_traceback_later(request["patience"], exit=True)  # ends a rank that waits for one that is missing
    try:
        report.begin("look around", token=request["token"], **describe_process())
        report.begin("import", **describe_node(directory))
        import torch  # noqa: F401

        report.begin("accelerators", packages=list_versions())
        found = describe_accelerators()
        report.begin("meet", **found)
        met = join_ranks(request["threads"])
        report.begin("reduce", **met)
        measured = measure_reduction()
    except Exception as error:
        report.begin(report.content.get("step", "begin"), error=f"{type(error).__name__}: {error}".strip())
        raise
    report.begin("done", **measured)
    faulthandler.cancel_dump_traceback_later()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # gloo's threads were seen to abort a process that ended by sys.exit


def describe_process() -> dict[str, Any]:
    ranks = read_ranks()
    return {
        "host": platform.node(),
        "arch": platform.machine(),
        "rank": ranks.rank,
        "local_rank": ranks.local_rank,
        "size": ranks.size,
        "launcher": ranks.launcher,
        "python": sys.executable,
        "began": time.time(),
    }


def describe_node(directory: Path) -> dict[str, Any]:
    record, build = container.read_image_record(), open_fastest()
    return {
        "fault": directory_check.find_fault(directory),
        "clock_lead": directory_check.measure_clock_lead(directory),
        "cores": len(os.sched_getaffinity(0)),
        "memory": directory_check.read_memory_limit(),
        "temporary": tempfile.gettempdir(),
        "interfaces": list_networks(),
        "modules": [name for name in os.environ.get("LOADEDMODULES", "").split(":") if name],
        "image": record["id"] if record else "",
        "native": build.instruction_set,
        "native_reason": build.reason,
        "native_hint": build.hint,
    }


def list_networks() -> dict[str, str]:
    """Return the networks of this machine: name -> IPv4 address, "" where it has none."""
    found = {}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as query:
        for _, name in socket.if_nameindex():
            try:
                answer = fcntl.ioctl(query, SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
                found[name] = socket.inet_ntoa(answer[20:24])
            except OSError:
                found[name] = ""
    return found


def list_versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = ""
    return found


def describe_accelerators() -> dict[str, Any]:
    from gnnscale.machine import accelerator

    return {
        "accelerator": accelerator.detect_kind(),
        "devices": [device._asdict() for device in accelerator.list_devices()],
    }


def join_ranks(threads: int) -> dict[str, Any]:
    """Join the ranks and take a GPU, as a training does."""
    from gnnscale.machine import accelerator
    from gnnscale.train import process_group

    ranks = process_group.join_ranks(threads)
    hosts = process_group.gather(platform.node())
    return {
        "backend": accelerator.choose_backend(),
        "met": hosts,
        "device": accelerator.identify_device(ranks.local_rank),
    }


def measure_reduction() -> dict[str, Any]:
    """Sum numbers over all ranks; report whether the sum is right, and the seconds of the fastest turn."""
    import torch

    from gnnscale.machine import accelerator

    distributed = torch.distributed
    device = torch.device(accelerator.detect_kind())
    numbers = torch.empty(REDUCED_MEBIBYTES * 2**20 // 4, device=device)
    size, seconds = distributed.get_world_size(), []
    for _ in range(WARM_UP_TURNS + TIMED_TURNS):
        numbers.fill_(distributed.get_rank() + 1)
        accelerator.synchronize()
        distributed.barrier()
        began = time.perf_counter()
        distributed.all_reduce(numbers)
        accelerator.synchronize()
        seconds.append(time.perf_counter() - began)
    right = bool((numbers == size * (size + 1) // 2).all())
    return {"sum_is_right": right, "seconds": min(seconds[WARM_UP_TURNS:]), "mebibytes": REDUCED_MEBIBYTES}


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
