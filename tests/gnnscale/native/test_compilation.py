"""setup.py compiles every instruction set that the compiler knows; without a compiler the package works without them."""

import os
import shutil
import subprocess
import sys

import pytest

from tests.support.corpus import ROOT
from tests.support.native_builds import INTERFACE

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not shutil.which("g++") or os.uname().machine != "x86_64", reason="needs g++ on x86-64"),
]
ASK = "from gnnscale.machine.native_build import open_fastest; build = open_fastest(); print(build.library is None, *build[1:])"


@pytest.fixture
def checkout(tmp_path):
    """Copy the package, with a small library in place of the one whose compilation takes half a minute."""
    ignored = shutil.ignore_patterns("__pycache__", "*.so", "*.h")
    shutil.copytree(ROOT / "gnnscale", tmp_path / "gnnscale", ignore=ignored)
    shutil.copy(ROOT / "setup.py", tmp_path)
    (tmp_path / "gnnscale" / "native" / "library.cpp").write_text('#include "parts/simd.h"\n' + INTERFACE)
    (tmp_path / "gnnscale" / "native" / "parts").mkdir()
    (tmp_path / "gnnscale" / "native" / "parts" / "simd.h").write_text("#pragma once\n")
    return tmp_path


@pytest.fixture
def compile_with(checkout):
    def run(text):
        """Build in the checkout with this shell script as compiler; return the names of the libraries that are there then."""
        program = checkout / "compiler"
        program.write_text(f"#!/bin/sh\n{text}\n")
        program.chmod(0o755)
        env = os.environ | {"CC": str(program), "CXX": str(program), "LDCXXSHARED": f"{program} -shared"}
        command = [sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"]
        done = subprocess.run(command, cwd=checkout, env=env, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, "the package is installed all the same: " + done.stderr
        return sorted(path.name for path in (checkout / "gnnscale").rglob("*.so"))

    return run


def ask(checkout, **variables):
    """Return what a process that uses this checkout finds."""
    env = {**os.environ, "PYTHONPATH": str(checkout), **variables}
    done = subprocess.run([sys.executable, "-c", ASK], cwd="/", env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.rstrip("\n")


EVERY_NATIVE = sorted(
    f"_native_{name}_{real}.so" for name in ("avx512", "avx2", "baseline") for real in ("float", "double")
)


def test_every_set_is_compiled_and_again_after_a_change(checkout, compile_with):
    assert compile_with('exec g++ "$@"') == sorted([*EVERY_NATIVE, "_neighbors.so"])
    assert ask(checkout, GNNSCALE_NATIVE="baseline") == "False baseline  "
    (checkout / "gnnscale" / "native" / "parts" / "simd.h").write_text("#pragma once\n// changed\n")
    assert "was compiled from other sources than those beside it" in ask(checkout)
    built = checkout / "gnnscale" / "native" / "_native_baseline_float.so"
    os.utime(built, (2**32, 2**32))  # a file of another time must not pass for a new one
    for path in checkout.rglob("build/lib*/**/*.so"):
        os.utime(path, (2**32 + 1, 2**32 + 1))
    compile_with('exec g++ "$@"')
    assert ask(checkout, GNNSCALE_NATIVE="baseline") == "False baseline  "
    compile_with("exit 1")
    assert ask(checkout, GNNSCALE_NATIVE="baseline") == "False baseline  ", "nothing changed, so nothing is compiled"


@pytest.mark.parametrize(
    "compiler",
    [
        "exit 1",
        "echo internal compiler error >&2; exit 4",
        'while [ "$1" != -o ]; do shift || exit 0; done; echo nonsense >"$2"',  # all is well, it says
        "kill -SEGV $$",
    ],
)
def test_without_a_compiler_the_package_works_and_says_what_to_type(checkout, compile_with, compiler):
    compile_with(compiler)
    said = ask(checkout)
    assert said.startswith("True  ") and "\n" not in said
    assert "it was not compiled when gnnscale was installed" in said or "cannot be opened: " in said
    assert said.endswith(f" -m pip install --no-deps -e {checkout}")


def test_a_compiler_that_lacks_a_flag_compiles_the_other_sets(checkout, compile_with):
    lacks = 'case " $* " in *" -mavx512"*) echo unknown flag >&2; exit 1;; esac; exec g++ "$@"'
    made = compile_with(lacks)
    assert made == sorted([*(name for name in EVERY_NATIVE if "avx512" not in name), "_neighbors.so"])
    assert ask(checkout).startswith("False ")


def test_what_an_earlier_version_has_left_is_removed(checkout, compile_with):
    old = checkout / "gnnscale" / "atoms" / "_neighbors.cpython-311-x86_64-linux-gnu.so"
    old.write_text("")
    assert old.name not in compile_with('exec g++ "$@"')
