"""The instruction sets that tests run with, and small libraries that stand for builds of the native library."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from gnnscale.machine import native_build

INTERFACE = """
#pragma GCC visibility push(default)
extern "C" const char* native_digest() { return SOURCE_DIGEST; }
extern "C" long long native_real_bytes() { return sizeof(REAL); }
"""


def compiled_sets():
    """List the instruction sets that this processor runs and that were compiled here, the fastest first."""
    folder, names = native_build.FOLDER, native_build.instruction_sets()
    return [name for name in names if (folder / f"_native_{name}_float.so").exists()]


def make_builds(folder, names=tuple(native_build.FEATURES), precision="float"):
    """Compile the two functions by which a build is known, once, as builds of all these instruction sets."""
    if not shutil.which("g++"):
        pytest.skip("needs g++")
    folder.mkdir(parents=True, exist_ok=True)
    source = folder / "library.cpp"
    source.write_text(INTERFACE)
    digest = native_build.digest_sources([source])
    flags = [f"-DREAL={precision}", f'-DSOURCE_DIGEST="{digest}"', "-shared", "-fPIC", "-O1"]
    first, *others = (folder / f"_native_{name}_{precision}.so" for name in names)
    subprocess.run(["g++", *flags, "-o", first, source], check=True, timeout=120)
    for other in others:
        shutil.copy(first, other)
    return folder
