"""TODO: say what a reader finds here."""

from __future__ import annotations

DONE, FAILED, REFUSED, DISK, STOPPED, MEMORY = 0, 1, 64, 74, 75, 137


EXIT = {"configuration": REFUSED, "data": REFUSED, "disk-full": DISK, "permission": DISK, "out-of-memory": MEMORY}


OUT_OF_MEMORY = ("DefaultCPUAllocator: can't allocate", "CUDA out of memory", "HIP out of memory", "XPU out of memory")
