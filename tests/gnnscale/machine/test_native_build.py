"""Of the builds of the native library the fastest usable one is opened; all others are told in a line, and harm nothing."""

import os
import shutil
import subprocess
import sys

import pytest

from gnnscale.machine import native_build
from gnnscale.machine.native_build import open_fastest
from tests.support.errors import message_of
from tests.support.native_builds import compiled_sets, make_builds

NO_AVX = "sse4_2 popcnt"
ONLY_AVX2 = "avx2 fma bmi1 bmi2 f16c abm movbe"
X86 = pytest.mark.skipif(os.uname().machine != "x86_64", reason="about x86-64")


@pytest.fixture(autouse=True)
def no_wish(monkeypatch):
    monkeypatch.delenv(native_build.VARIABLE, raising=False)


@pytest.fixture
def processor(monkeypatch, tmp_path):
    """Pretend to be on a processor with these features."""

    def pretend(flags):
        (tmp_path / "cpuinfo").write_text(f"processor\t: 0\nflags\t\t: fpu {flags}\nbugs\t\t: none\n" * 2)
        monkeypatch.setattr(native_build, "CPU_INFO", tmp_path / "cpuinfo")
        monkeypatch.setattr("platform.machine", lambda: "x86_64")

    return pretend


@pytest.fixture
def folder(tmp_path):
    return make_builds(tmp_path / "native")


def one_line(build):
    """Return the explanation of a build that is not there: a reason and what to type."""
    assert build.library is None and build.is_missed and "\n" not in build.explanation
    assert " -m pip install --no-deps -e " in build.hint
    return build.explanation


ALL_FEATURES = " ".join(sorted(native_build.AVX512))


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (ALL_FEATURES, ["avx512", "avx2", "baseline"]),
        (ONLY_AVX2, ["avx2", "baseline"]),
        (ONLY_AVX2 + " avx512f avx512cd avx512er", ["avx2", "baseline"]),  # Xeon Phi
        (NO_AVX, ["baseline"]),
        (ONLY_AVX2.replace("fma ", ""), ["baseline"]),
    ],
)
def test_a_set_is_used_only_where_the_processor_has_all_of_it(processor, flags, expected):
    processor(flags)
    assert native_build.instruction_sets() == expected


def test_elsewhere_there_is_the_baseline_alone(monkeypatch, tmp_path):
    monkeypatch.setattr(native_build, "CPU_INFO", tmp_path / "none")
    assert native_build.instruction_sets() == ["baseline"]
    monkeypatch.undo()
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    assert native_build.instruction_sets() == ["baseline"]


def test_the_fastest_is_opened(folder, processor):
    processor(ALL_FEATURES)
    build = open_fastest(folder=folder)
    assert build.library is not None and build.instruction_set == "avx512" and not build.is_missed
    assert build.explanation == ""
    processor(NO_AVX)
    assert open_fastest(folder=folder).instruction_set == "baseline"


def test_a_set_that_was_not_compiled_is_replaced_by_the_next(folder, processor):
    """A compiler may lack a flag."""
    processor(ALL_FEATURES)
    (folder / "_native_avx512_float.so").unlink()
    assert open_fastest(folder=folder).instruction_set == "avx2"


def test_without_any_the_reason_and_the_next_command_are_told(tmp_path, monkeypatch):
    said = one_line(open_fastest(folder=tmp_path))
    assert said.startswith("it was not compiled when gnnscale was installed; ")
    monkeypatch.setenv("PATH", "/nonexistent")
    assert "; install a C++ compiler (g++), then type: " in one_line(open_fastest(folder=tmp_path))


def keep_half(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def keep_header(path):
    path.write_bytes(path.read_bytes()[:40])


def keep_nothing(path):
    path.write_bytes(b"")


def put_text(path):
    path.write_text("<html>not found</html>")


def change_sources(path):
    (path.parent / "simd.h").write_text("// new\n")


def put_other_precision(path):
    make_builds(path.parent, ("baseline",), "double")
    (path.parent / "_native_baseline_double.so").replace(path)


def put_other_library(path):
    subprocess.run(["g++", "-shared", "-x", "c++", "/dev/null", "-o", path], check=True, timeout=120)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (keep_half, "_native_baseline_float.so is cut off"),
        (keep_header, "_native_baseline_float.so is cut off"),
        (keep_nothing, "_native_baseline_float.so cannot be opened: file too short"),
        (put_text, "_native_baseline_float.so cannot be opened: "),
        (change_sources, "_native_baseline_float.so was compiled from other sources than those beside it"),
        (put_other_precision, "_native_baseline_float.so has another precision than its name says"),
        (put_other_library, "_native_baseline_float.so is another library"),
    ],
)
def test_a_build_that_is_not_what_it_should_be_is_not_used(folder, processor, damage, reason):
    """In a process of its own: to open a file that is cut off would kill it."""
    processor(NO_AVX)
    damage(folder / "_native_baseline_float.so")
    program = (
        "import sys; from pathlib import Path; from gnnscale.machine import native_build\n"
        "native_build.CPU_INFO = Path('/nonexistent')\n"
        "build = native_build.open_fastest(folder=Path(sys.argv[1])); assert build.library is None\n"
        "print(build.explanation)"
    )
    done = subprocess.run([sys.executable, "-c", program, folder], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and done.stdout.startswith(reason), done.stderr or done.returncode
    assert done.stdout.count("\n") == 1 and " -m pip install " in done.stdout


def test_a_damaged_build_is_replaced_by_the_next(folder, processor):
    processor(ALL_FEATURES)
    keep_half(folder / "_native_avx512_float.so")
    assert open_fastest(folder=folder).instruction_set == "avx2"


def test_nothing_is_written_where_the_library_lies(folder):
    """It may be installed by somebody else."""
    before = sorted(folder.iterdir())
    for path in (*before, folder):
        path.chmod(0o555)
    try:
        assert open_fastest(folder=folder).library is not None
        assert sorted(folder.iterdir()) == before
    finally:
        folder.chmod(0o755)


# ------------------------------------------------------------------------------------------------------ GNNSCALE_NATIVE
def test_the_variable_switches_it_off(folder, monkeypatch):
    monkeypatch.setenv("GNNSCALE_NATIVE", "0")
    build = open_fastest(folder=folder)
    assert build.library is None and not build.is_missed
    assert build.explanation == "it is switched off by GNNSCALE_NATIVE=0"


@pytest.mark.parametrize("name", ["baseline", "avx2", "avx512"])
def test_the_variable_chooses_a_set(folder, processor, monkeypatch, name):
    processor(ALL_FEATURES)
    monkeypatch.setenv("GNNSCALE_NATIVE", name)
    assert open_fastest(folder=folder).instruction_set == name


def test_a_set_that_cannot_be_had_is_refused_in_words(folder, processor, monkeypatch):
    processor(ONLY_AVX2)
    monkeypatch.setenv("GNNSCALE_NATIVE", "avx512")
    said = message_of(lambda: open_fastest(folder=folder))
    assert said.startswith(
        "GNNSCALE_NATIVE=avx512: this processor does not have it\nchoose one of avx2, baseline; 0 for none"
    )
    monkeypatch.setenv("GNNSCALE_NATIVE", "AVX")
    assert message_of(lambda: open_fastest(folder=folder)).startswith("GNNSCALE_NATIVE=AVX: no such instruction set")
    monkeypatch.setenv("GNNSCALE_NATIVE", "avx2")
    (folder / "_native_avx2_float.so").unlink()
    said = message_of(lambda: open_fastest(folder=folder))
    assert said.startswith("GNNSCALE_NATIVE=avx2: it was not compiled when gnnscale was installed\n")
    assert " -m pip install " in said


@X86
def test_setup_compiles_what_is_looked_for(instruction_set):
    """The names of sets and the digest of sources are written in setup.py once more, as it cannot import the package."""
    for precision in ("float", "double"):
        assert open_fastest(precision).instruction_set == instruction_set in compiled_sets()


def test_where_there_is_a_compiler_every_build_is_there():
    """Otherwise all tests of the library would be left out, and nobody would see it."""
    if not shutil.which("g++"):
        pytest.skip("needs g++")
    assert compiled_sets() == native_build.instruction_sets()
