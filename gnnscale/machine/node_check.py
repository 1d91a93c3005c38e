"""A check of this node before a training: python -m gnnscale.machine.node_check ATTEMPT VENDOR, launched as the training is.

Every rank prints one line, `fit HOST` or `sick HOST: FAULT`. The checks are for faults that are common on large machines and
easily missed: a file system that is not mounted, a GPU that fell off the bus, memory that an earlier job left full, a wrong
clock. Standard library only, and no torch: all checks take a second. GPUs compute through the driver's own library; the
calls for AMD follow its documentation and were never run, and Intel's devices are only counted.
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

from gnnscale.contract.errors import reason_of
from gnnscale.machine import directory_check
from gnnscale.machine.rank_env import read_ranks

MAX_CLOCK_SKEW_SECONDS = 120.0  # from the file server's; beyond, certificates and file times begin to fail
MIN_TEMPORARY_BYTES = 8 * 2**20  # in the node's own temporary directory; some containers have only 64 MB there
TEST_WORDS, TEST_PATTERN = 1 << 16, 0x5A5A1234  # how many 32-bit words a GPU writes and gives back, and which


class Driver(NamedTuple):
    """A vendor's driver library and the names of its functions."""

    file: str
    device: str  # a device file that exists where the kernel has the driver
    init: str
    get_count: str
    take: Callable[[ctypes.CDLL, int], int]
    allocate: str
    fill: str
    fetch: str


def take_cuda(library: ctypes.CDLL, index: int) -> int:
    device, context = ctypes.c_int(), ctypes.c_void_p()
    code: int = (
        library.cuDeviceGet(ctypes.byref(device), index)
        or library.cuDevicePrimaryCtxRetain(ctypes.byref(context), device)
        or library.cuCtxSetCurrent(context)
    )
    return code


def take_hip(library: ctypes.CDLL, index: int) -> int:
    code: int = library.hipSetDevice(index)
    return code


DRIVERS = {
    "nvidia": Driver(
        "libcuda.so.1",
        "/dev/nvidiactl",
        "cuInit",
        "cuDeviceGetCount",
        take_cuda,
        "cuMemAlloc_v2",
        "cuMemsetD32_v2",
        "cuMemcpyDtoH_v2",
    ),
    "amd": Driver(
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


def find_faults(attempt: Path, vendor: str, local_rank: int, local_size: int) -> Iterator[str]:
    """Yield the faults of this node, the worst first."""
    yield from check_run_directory(attempt)
    yield from check_temporary(Path(tempfile.gettempdir()))
    yield from check_memory(Path("/proc/meminfo"))
    if vendor in DRIVERS:
        yield from check_gpu(DRIVERS[vendor], local_rank, local_size)
    elif vendor == "intel" and not list(Path("/dev/dri").glob("renderD*")):
        yield "no GPU is visible in /dev/dri"


def check_run_directory(attempt: Path) -> Iterator[str]:
    """Write and read a file, and compare this clock with the file server's."""
    probe = attempt / f".fit.{platform.node()}.{os.getpid()}"
    try:
        with open(probe, "wb") as file:
            file.write(b"fit" * 1000)
            os.fsync(file.fileno())
        read = probe.read_bytes()
        probe.unlink()
        lead = directory_check.measure_clock_lead(attempt)
    except OSError as error:
        yield f"{attempt}: {reason_of(error)}"
        return
    if read != b"fit" * 1000:
        yield f"{attempt}: a file reads back other than it was written"
    if abs(lead) > MAX_CLOCK_SKEW_SECONDS:
        yield f"its clock is {lead:+.0f} s off the file server's"


def check_temporary(folder: Path) -> Iterator[str]:
    try:
        with tempfile.NamedTemporaryFile(dir=folder) as file:
            file.write(b"fit")
            file.flush()
        free = shutil.disk_usage(folder).free
    except OSError as error:
        yield f"{folder}: {reason_of(error)}"
        return
    if free < MIN_TEMPORARY_BYTES:
        yield f"{folder}: {free / 1e6:.0f} MB left"


def check_memory(path: Path) -> Iterator[str]:
    """Yield a fault if memory is full of what an earlier job left; the system itself needs a fiftieth of it."""
    fields = dict(line.split(":", 1) for line in path.read_text().splitlines() if ":" in line)
    whole, free = (1024 * int(fields[name].split()[0]) for name in ("MemTotal", "MemAvailable"))
    if free < min(4e9, whole / 50):
        yield f"{free / 1e9:.1f} of {whole / 1e9:.0f} GB of memory are free"


def check_gpu(driver: Driver, local_rank: int, local_size: int) -> Iterator[str]:
    """Check that the GPU of this rank is there, and gives back the words that were written to it."""
    try:
        library = ctypes.CDLL(driver.file)
    except OSError as error:
        if not Path(driver.device).exists():
            yield f"no driver: {error}"
        return  # a library in another place is no fault of the node
    count = ctypes.c_int(0)
    code = getattr(library, driver.init)(0) or getattr(library, driver.get_count)(ctypes.byref(count))
    if code or not count.value:
        yield f"no GPU is visible (error {code} of {driver.file})"
        return
    if 1 < count.value < local_size:  # a rank sees its own GPU or all of them
        yield f"{count.value} of {local_size} GPUs are visible"
        return
    index, held, back = local_rank % count.value, ctypes.c_void_p(), (ctypes.c_uint * TEST_WORDS)()
    code = (
        driver.take(library, index)
        or getattr(library, driver.allocate)(ctypes.byref(held), ctypes.c_size_t(4 * TEST_WORDS))
        or getattr(library, driver.fill)(held, ctypes.c_uint(TEST_PATTERN), ctypes.c_size_t(TEST_WORDS))
        or getattr(library, driver.fetch)(back, held, ctypes.c_size_t(4 * TEST_WORDS))
    )
    if code:
        yield f"GPU {index} does not work (error {code} of {driver.file})"
    elif any(word != TEST_PATTERN for word in back):
        yield f"GPU {index} gives back other numbers than were written"


def count_local_ranks(environ: Mapping[str, str] = os.environ) -> int:
    """Return the number of ranks on this node; 1 where no launcher sets it."""
    for name in ("PALS_LOCAL_SIZE", "OMPI_COMM_WORLD_LOCAL_SIZE", "MPI_LOCALNRANKS", "SLURM_STEP_TASKS_PER_NODE"):
        if digits := environ.get(name, "").split("(")[0].split(",")[0]:
            return int(digits)
    return 1


def main(attempt: Path, vendor: str) -> int:
    fault = next(find_faults(attempt, vendor, read_ranks().local_rank, count_local_ranks()), "")
    print(f"sick {platform.node()}: {fault}" if fault else f"fit {platform.node()}", flush=True)
    return 0  # otherwise a launcher would end the other ranks before they have printed


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2]))
