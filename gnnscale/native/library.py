"""The compiled library.cpp: chosen for this processor, opened, and described to ctypes as its interface is in C++."""

from __future__ import annotations

import ctypes
import os
from functools import cache

import torch

from gnnscale.machine.native_build import VARIABLE, NativeBuild, Precision, open_fastest

PRECISIONS: dict[torch.dtype, Precision] = {torch.float32: "float", torch.float64: "double"}
WHOLE, REAL, ARRAY = ctypes.c_int64, ctypes.c_double, ctypes.c_void_p  # an array is the address of its first element


class Batch(ctypes.Structure):
    """A batch of structures as AtomGraphs has it: sizes, and addresses of contiguous tensors."""

    _fields_ = (
        *((name, WHOLE) for name in ("atoms", "edges", "structures")),
        *((name, ARRAY) for name in ("numbers", "structure", "source", "receivers", "senders")),
        *((name, ARRAY) for name in ("positions", "shifts", "cell")),
    )


class Labels(ctypes.Structure):
    """The labels of a batch, in eV and Angstrom, and the units of the network."""

    _fields_ = (
        *((name, ARRAY) for name in ("energy", "forces", "stress", "references")),
        *((name, REAL) for name in ("energy_scale", "force_scale")),
    )


BATCH, LABELS = ctypes.POINTER(Batch), ctypes.POINTER(Labels)
ARGUMENTS = {
    "native_program_new": [ARRAY, WHOLE, REAL, REAL],
    "native_program_free": [ARRAY],
    "native_program_bytes": [ARRAY],
    "native_evaluate": [ARRAY, ARRAY, BATCH, REAL, WHOLE, ARRAY, ARRAY, ARRAY],
    "native_gradient": [ARRAY, ARRAY, ARRAY, BATCH, REAL, WHOLE, ARRAY, ARRAY, ARRAY],
    "native_learn": [ARRAY, ARRAY, ARRAY, WHOLE, BATCH, LABELS, WHOLE, ARRAY, WHOLE, ARRAY],
    "native_norm": [ARRAY, WHOLE],
    "native_adamw": [WHOLE, WHOLE, *[ARRAY] * 4, *[REAL] * 6, WHOLE],
    "native_muon": [WHOLE, WHOLE, *[ARRAY] * 3, *[REAL] * 4],
    "native_lerp": [ARRAY, ARRAY, WHOLE, REAL],
    "native_op_message_sums": [ARRAY] * 3,
    "native_op_message_sums_backward": [ARRAY] * 4,
    "native_op_message_sums_double_backward": [ARRAY] * 6,
    "native_op_edge_geometry": [WHOLE, WHOLE, REAL, REAL, *[ARRAY] * 3],
    "native_op_edge_geometry_backward": [WHOLE, WHOLE, REAL, REAL, *[ARRAY] * 4],
    "native_op_edge_geometry_double_backward": [WHOLE, WHOLE, REAL, REAL, *[ARRAY] * 7],
    **{f"native_op_{name}": [WHOLE, WHOLE, *[ARRAY] * 2] for name in ("silu", "rms_norm")},
    **{f"native_op_{name}_backward": [WHOLE, WHOLE, *[ARRAY] * 3] for name in ("silu", "rms_norm")},
    **{f"native_op_{name}_double_backward": [WHOLE, WHOLE, *[ARRAY] * 5] for name in ("silu", "rms_norm")},
    "native_op_sum_rows": [WHOLE, WHOLE, WHOLE, *[ARRAY] * 3],
}
RESULTS = {
    "native_program_new": ARRAY,
    "native_program_bytes": WHOLE,
    "native_norm": REAL,
    **{f"native_op_message_sums{order}": WHOLE for order in ("", "_backward", "_double_backward")},
    "native_op_sum_rows": WHOLE,
}


def open_library(dtype: torch.dtype) -> ctypes.CDLL | None:
    """Return the library for tensors of this kind, or None where there is none: PyTorch computes then."""
    return _open(PRECISIONS[dtype], os.environ.get(VARIABLE, "")).library if dtype in PRECISIONS else None


def reason_not_available() -> str:
    """Return why there is no library and what to type to have it, in one line; "" if it is there."""
    return _open("float", os.environ.get(VARIABLE, "")).explanation


def instruction_set() -> str:
    """Return the instruction set of the library that is used, "" if there is none."""
    return _open("float", os.environ.get(VARIABLE, "")).instruction_set


@cache
def _open(precision: Precision, wanted: str) -> NativeBuild:
    """Open the library once for each value of GNNSCALE_NATIVE."""
    build = open_fastest(precision)
    if build.library is not None:
        declare_interface(build.library)
    return build


def declare_interface(library: ctypes.CDLL) -> None:
    """Give every function its types, without which ctypes would pass 64-bit numbers as 32-bit ones."""
    for name, arguments in ARGUMENTS.items():
        function = getattr(library, name)
        function.argtypes, function.restype = arguments, RESULTS.get(name)
