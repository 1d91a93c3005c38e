"""Is this node fit for a training: python -m gnnscale.machine.node_check ATTEMPT VENDOR, on every rank, as the training is launched.

Prints one line, `fit HOST` or `sick HOST: WHY`. What is looked at goes wrong on large machines without anybody noticing: a
file system that is not mounted, a GPU that fell off the bus, memory that an earlier job left full, a clock that is off.
Standard library only, and no torch: the whole takes a second. Computing is tried through the driver's own library; for
AMD that was written after its documentation and never run, for Intel the devices are counted and no more.
"""

from __future__ import annotations

import ctypes
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from gnnscale.machine import directory_check
from gnnscale.machine.rank_env import ranks

SKEW = 120.0  # s by which a clock may differ from the file server's; certificates and file times begin to fail there
LEAST_DISK = 8 * 2**20  # bytes in the node's own temporary directory; some containers have but 64 MB there
WORDS, PATTERN = 1 << 16, 0x5A5A1234  # what a GPU is to write and give back


class Library(NamedTuple):
    """The names that a driver has for the same things."""

    file: str
    device: str  # there if the kernel has the driver
    init: str
    count: str
    take: Callable[[ctypes.CDLL, int], int]
    allocate: str
    fill: str
    fetch: str


def take_cuda(library: ctypes.CDLL, index: int) -> int:
    device, context = ctypes.c_int(), ctypes.c_void_p()
    return (
        library.cuDeviceGet(ctypes.byref(device), index)
        or library.cuDevicePrimaryCtxRetain(ctypes.byref(context), device)
        or library.cuCtxSetCurrent(context)
    )


def take_hip(library: ctypes.CDLL, index: int) -> int:
    return library.hipSetDevice(index)


LIBRARIES = {
    "nvidia": Library(
        "libcuda.so.1",
        "/dev/nvidiactl",
        "cuInit",
        "cuDeviceGetCount",
        take_cuda,
        "cuMemAlloc_v2",
        "cuMemsetD32_v2",
        "cuMemcpyDtoH_v2",
    ),
    "amd": Library(
        "libamdhip64.so",
        "/dev/kfd",
        "hipInit",
        "hipGetDeviceCount",
        take_hip,
        "hipMalloc",
        "hipMemsetD32",
        "hipMemcpyDtoH",
    ),
}


def problems(attempt: Path, vendor: str, local_rank: int, local_size: int) -> Iterator[str]:
    """What is wrong, worst first."""
    yield from run_directory(attempt)
    yield from temporary(Path(tempfile.gettempdir()))
    yield from memory(Path("/proc/meminfo"))
    if vendor in LIBRARIES:
        yield from gpu(LIBRARIES[vendor], local_rank, local_size)
    elif vendor == "intel" and not list(Path("/dev/dri").glob("renderD*")):
        yield "no GPU is to be seen in /dev/dri"


def run_directory(attempt: Path) -> Iterator[str]:
    """Written and read; and this clock against the file server's."""
    probe = attempt / f".fit.{platform.node()}.{os.getpid()}"
    try:
        with open(probe, "wb") as file:
            file.write(b"fit" * 1000)
            os.fsync(file.fileno())
        read = probe.read_bytes()
        probe.unlink()
        lead = directory_check.clock_lead(attempt)
    except OSError as error:
        yield f"{attempt}: {(error.strerror or str(error)).lower()}"
        return
    if read != b"fit" * 1000:
        yield f"{attempt}: what was written is not what is read"
    if abs(lead) > SKEW:
        yield f"its clock is {lead:+.0f} s off the file server's"


def temporary(folder: Path) -> Iterator[str]:
    try:
        with tempfile.NamedTemporaryFile(dir=folder) as file:
            file.write(b"fit")
            file.flush()
        free = shutil.disk_usage(folder).free
    except OSError as error:
        yield f"{folder}: {(error.strerror or str(error)).lower()}"
        return
    if free < LEAST_DISK:
        yield f"{folder}: {free / 1e6:.0f} MB left"


def memory(path: Path) -> Iterator[str]:
    """Full of what an earlier job left: a fiftieth of it is no more than the system itself needs."""
    said = dict(line.split(":", 1) for line in path.read_text().splitlines() if ":" in line)
    whole, free = (1024 * int(said[name].split()[0]) for name in ("MemTotal", "MemAvailable"))
    if free < min(4e9, whole / 50):
        yield f"{free / 1e9:.1f} of {whole / 1e9:.0f} GB of memory are free"


def gpu(names: Library, local_rank: int, local_size: int) -> Iterator[str]:
    """The one that this rank will use: it is there, and gives back what it was told to write."""
    try:
        library = ctypes.CDLL(names.file)
    except OSError as error:
        if not Path(names.device).exists():
            yield f"no driver: {error}"
        return  # a library that lies elsewhere is no fault of the node
    found = ctypes.c_int(0)
    code = getattr(library, names.init)(0) or getattr(library, names.count)(ctypes.byref(found))
    if code or not found.value:
        yield f"no GPU is to be seen (error {code} of {names.file})"
        return
    if 1 < found.value < local_size:  # one each, or all of them
        yield f"{found.value} of {local_size} GPUs are to be seen"
        return
    index, held, back = local_rank % found.value, ctypes.c_void_p(), (ctypes.c_uint * WORDS)()
    code = (
        names.take(library, index)
        or getattr(library, names.allocate)(ctypes.byref(held), ctypes.c_size_t(4 * WORDS))
        or getattr(library, names.fill)(held, ctypes.c_uint(PATTERN), ctypes.c_size_t(WORDS))
        or getattr(library, names.fetch)(back, held, ctypes.c_size_t(4 * WORDS))
    )
    if code:
        yield f"GPU {index} does not work (error {code} of {names.file})"
    elif any(word != PATTERN for word in back):
        yield f"GPU {index} gives back other numbers than it was told to write"


def local_size(environ: Mapping[str, str] = os.environ) -> int:
    """Ranks of this node; 1 where nobody says."""
    for name in ("PALS_LOCAL_SIZE", "OMPI_COMM_WORLD_LOCAL_SIZE", "MPI_LOCALNRANKS", "SLURM_STEP_TASKS_PER_NODE"):
        if digits := environ.get(name, "").split("(")[0].split(",")[0]:
            return int(digits)
    return 1


def main(attempt: Path, vendor: str) -> int:
    wrong = next(problems(attempt, vendor, ranks().local_rank, local_size()), "")
    print(f"sick {platform.node()}: {wrong}" if wrong else f"fit {platform.node()}", flush=True)
    return 0  # a launcher would end the others, who have not spoken yet


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2]))
