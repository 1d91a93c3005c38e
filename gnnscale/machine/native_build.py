"""The builds of the native library, one for each instruction set and precision, and the fastest that this processor runs.

setup.py compiles gnnscale/native/library.cpp into gnnscale/native/_native_SET_PRECISION.so. The variable GNNSCALE_NATIVE
names the set to use instead of the fastest; 0 switches the library off. Standard library only: the command line asks too.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import struct
import sys
from pathlib import Path
from typing import Literal, NamedTuple

from gnnscale.contract.errors import BadFile, UserError, reason_of
from gnnscale.contract.places import IS_INSTALLED, ROOT

Precision = Literal["float", "double"]
REAL_BYTES = {"float": 4, "double": 8}
VARIABLE = "GNNSCALE_NATIVE"
OFF = "0"
FOLDER = ROOT / "gnnscale" / "native"
CPU_INFO = Path("/proc/cpuinfo")
# What setup.py compiles for, in the words of /proc/cpuinfo; the fastest set first.
AVX2 = frozenset(("avx2", "fma", "bmi1", "bmi2", "f16c", "abm", "movbe"))
AVX512 = AVX2 | {f"avx512{part}" for part in ("f", "bw", "cd", "dq", "vl")}
FEATURES: dict[str, frozenset[str]] = {"avx512": AVX512, "avx2": AVX2, "baseline": frozenset()}
ELF_64_BIT, ELF_HEADER_BYTES = b"\x7fELF\x02", 64


class NativeBuild(NamedTuple):
    """An open library and its instruction set; or None, with the reason and with what to type, if anything, to have one."""

    library: ctypes.CDLL | None
    instruction_set: str = ""
    reason: str = ""
    hint: str = ""

    @property
    def is_missed(self) -> bool:
        """Return whether there is none although nobody has switched it off."""
        return bool(self.hint)

    @property
    def explanation(self) -> str:
        """Return why there is none and what to type, in one line."""
        return "; ".join(filter(None, (self.reason, self.hint)))


def open_fastest(precision: Precision = "float", folder: Path = FOLDER) -> NativeBuild:
    """Open the fastest build that is there and that this processor runs, or the one that GNNSCALE_NATIVE names."""
    wanted = os.environ.get(VARIABLE, "")
    if wanted == OFF:
        return NativeBuild(None, reason=f"it is switched off by {VARIABLE}={OFF}")
    faults = []
    for name in [check_wanted(wanted)] if wanted else instruction_sets():
        try:
            return NativeBuild(open_build(folder / f"_native_{name}_{precision}.so", precision), name)
        except BadFile as error:
            faults.append(error.message)
    fault = next((each for each in faults if each), "it was not compiled when gnnscale was installed")
    if wanted:
        raise UserError(f"{VARIABLE}={wanted}: {fault}", suggest_installation())
    return NativeBuild(None, reason=fault, hint=suggest_installation())


def instruction_sets() -> list[str]:
    """Return the instruction sets of this processor, the fastest first."""
    found: set[str] = set()
    if platform.machine() == "x86_64" and CPU_INFO.exists():
        lines = (line.partition(":") for line in CPU_INFO.read_text().splitlines())
        found = set(next((words for name, _, words in lines if name.strip() == "flags"), "").split())
    return [name for name, features in FEATURES.items() if features <= found]


def check_wanted(wanted: str) -> str:
    """Return the name of an instruction set if this processor has it."""
    here = instruction_sets()
    if wanted in here:
        return wanted
    fault = "this processor does not have it" if wanted in FEATURES else "no such instruction set"
    raise UserError(
        f"{VARIABLE}={wanted}: {fault}",
        f"choose one of {', '.join(here)}; 0 for none; or unset it: the fastest is used then",
    )


# -------------------------------------------------------------------------------------------------------------- one file
def open_build(path: Path, precision: Precision) -> ctypes.CDLL:
    """Open a build if it is whole and was compiled from the present sources; raise BadFile with the reason, "" if absent."""
    if not path.exists():
        raise BadFile("")
    try:
        if is_cut_off(path):
            raise BadFile(f"{path.name} is cut off")
        library = ctypes.CDLL(str(path))
    except OSError as error:
        raise BadFile(f"{path.name} cannot be opened: {reason_of(error).removeprefix(f'{path}: ')}") from None
    if not hasattr(library, "native_digest") or not hasattr(library, "native_real_bytes"):
        raise BadFile(f"{path.name} is another library")
    library.native_digest.restype = ctypes.c_char_p
    library.native_real_bytes.restype = ctypes.c_int64
    sources = source_files(path.parent)
    if sources and library.native_digest().decode() != digest_sources(sources):
        raise BadFile(f"{path.name} was compiled from other sources than those beside it")
    if library.native_real_bytes() != REAL_BYTES[precision]:
        raise BadFile(f"{path.name} has another precision than its name says")
    return library


def is_cut_off(path: Path) -> bool:
    """Return whether a file of ELF ends before its table of sections, which is its end. To open it would kill the process."""
    with open(path, "rb") as file:
        head = file.read(ELF_HEADER_BYTES)
    if not head.startswith(ELF_64_BIT):
        return False  # the system says what it is
    if len(head) < ELF_HEADER_BYTES:
        return True
    order = "<" if head[5] == 1 else ">"
    (begin,), (size, count) = struct.unpack_from(f"{order}Q", head, 40), struct.unpack_from(f"{order}HH", head, 58)
    return path.stat().st_size < begin + size * count


def source_files(folder: Path = FOLDER) -> list[Path]:
    """Return the files that all builds are compiled from."""
    return sorted(path for path in folder.rglob("*") if path.suffix in (".cpp", ".h"))


def digest_sources(paths: list[Path]) -> str:
    """Return the digest that setup.py compiles into a build, by which an outdated one is detected."""
    return hashlib.sha256(b"".join(path.read_bytes() for path in paths)).hexdigest()[:16]


def suggest_installation() -> str:
    """Return what to type so that the library is compiled."""
    programs = (os.environ.get("CXX", "").split() or ["c++"])[0], "g++", "clang++"
    needed = "" if any(map(shutil.which, programs)) else "install a C++ compiler (g++), then "
    if IS_INSTALLED:
        return f"{needed}install gnnscale again"
    return f"{needed}type: {sys.executable} -m pip install --no-deps -e {ROOT}"
