"""What a rank sees on its node, for `workflow/run.py doctor`: python -m gnnscale.stages.rank_report DIRECTORY, started as a training is.

Each rank leaves DIRECTORY/ranks/HOST-PID.json and writes it anew before each `step`, from what needs nothing but Python to a
collective over all ranks: whatever ends it, the file says how far it came.
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
from gnnscale.machine.rank_env import ranks

PACKAGES = ("torch", "deepspeed", "adios2")
MEBIBYTES = 64  # of the measured collective: about the gradient of 17 million parameters
WARM_UP, TIMED = 2, 5
SIOCGIFADDR = 0x8915


class Report:
    """The file of this rank."""

    def __init__(self, directory: Path):
        self.path = directory / "ranks" / f"{platform.node()}-{os.getpid()}.json"
        self.said: dict[str, Any] = {}

    def begin(self, step: str, **known: Any) -> None:
        self.said |= {"step": step, **known}
        files.write(self.path, json.dumps(self.said, indent=1) + "\n")


def main(directory: Path) -> int:
    asked, report = json.loads((directory / "asked.json").read_text()), Report(directory)
    faulthandler.dump_traceback_later(asked["patience"], exit=True)  # a rank that waits for one that is not there
    try:
        report.begin("look around", token=asked["token"], **standing(directory))
        report.begin("import", **surroundings(directory))
        import torch  # noqa: F401

        report.begin("accelerators", packages=versions())
        found = accelerators()
        report.begin("meet", **found)
        met = meet(asked["threads"])
        report.begin("reduce", **met)
        measured = reduce()
    except Exception as error:
        report.begin(report.said.get("step", "begin"), error=f"{type(error).__name__}: {error}".strip())
        raise
    report.begin("done", **measured)
    faulthandler.cancel_dump_traceback_later()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # gloo's threads were seen to abort a process that ends the long way


def standing(directory: Path) -> dict[str, Any]:
    here = ranks()
    return {
        "host": platform.node(),
        "arch": platform.machine(),
        "rank": here.rank,
        "local_rank": here.local_rank,
        "size": here.size,
        "launcher": here.launcher,
        "python": sys.executable,
        "began": time.time(),
    }


def surroundings(directory: Path) -> dict[str, Any]:
    return {
        "fault": directory_check.fault(directory),
        "clock_lead": directory_check.clock_lead(directory),
        "cores": len(os.sched_getaffinity(0)),
        "memory": directory_check.memory(),
        "temporary": tempfile.gettempdir(),
        "interfaces": interfaces(),
        "modules": [name for name in os.environ.get("LOADEDMODULES", "").split(":") if name],
        "image": (container.inside() or {}).get("id", ""),
    }


def interfaces() -> dict[str, str]:
    """Networks of this machine: name -> IPv4 address, "" where it has none."""
    found = {}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        for _, name in socket.if_nameindex():
            try:
                said = fcntl.ioctl(asking, SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
                found[name] = socket.inet_ntoa(said[20:24])
            except OSError:
                found[name] = ""
    return found


def versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = ""
    return found


def accelerators() -> dict[str, Any]:
    from gnnscale.machine import accelerator

    return {"accelerator": accelerator.kind(), "devices": [device._asdict() for device in accelerator.devices()]}


def meet(threads: int) -> dict[str, Any]:
    """Join the ranks as a training does, and take its GPU."""
    from gnnscale.machine import accelerator
    from gnnscale.train import process_group

    here = process_group.join(threads)
    hosts = process_group.gathered(platform.node())
    return {"backend": accelerator.backend(), "met": hosts, "device": accelerator.identity(here.local_rank)}


def reduce() -> dict[str, Any]:
    """Whether a sum over all ranks is one, and how fast: seconds of the best of some."""
    import torch

    from gnnscale.machine import accelerator

    distributed = torch.distributed
    device = torch.device(accelerator.kind())
    numbers = torch.empty(MEBIBYTES * 2**20 // 4, device=device)
    size, seconds = distributed.get_world_size(), []
    for _ in range(WARM_UP + TIMED):
        numbers.fill_(distributed.get_rank() + 1)
        accelerator.wait()
        distributed.barrier()
        began = time.perf_counter()
        distributed.all_reduce(numbers)
        accelerator.wait()
        seconds.append(time.perf_counter() - began)
    right = bool((numbers == size * (size + 1) // 2).all())
    return {"sum_is_right": right, "seconds": min(seconds[WARM_UP:]), "mebibytes": MEBIBYTES}


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
