"""The build beyond pyproject.toml: the files that are compiled, and the folders that an installed package carries along."""

import copy
import hashlib
import platform
import shutil
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

HERE = Path(__file__).parent
SHARE = Path("gnnscale/share")  # as gnnscale/contract/places.py has it
SHARED = (
    *("datasets/*.py", "sites/*.yaml", "containers/*.*"),
    *("constraints.txt", "pyproject.toml", "setup.py"),  # from which a container image is built
)
NEIGHBORS, NATIVE = "gnnscale/atoms/neighbors.cpp", "gnnscale/native/library.cpp"
# A training step is compiled once for each instruction set and precision, and gnnscale/machine/native_build.py chooses: what
# is compiled on a login node runs on another machine, so there is no -march=native. The features of x86-64-v3 and -v4 are
# listed one by one, because compilers before GCC 11 do not know these names.
AVX2 = ["-mavx2", "-mfma", "-mbmi", "-mbmi2", "-mf16c", "-mlzcnt", "-mmovbe"]
AVX512 = [f"-mavx512{part}" for part in ("f", "bw", "cd", "dq", "vl")]
INSTRUCTION_SETS = (
    {
        "avx512": ["-march=x86-64", *AVX2, *AVX512, "-mprefer-vector-width=512"],
        "avx2": ["-march=x86-64", *AVX2],
        "baseline": ["-march=x86-64"],
    }
    if platform.machine() == "x86_64"
    else {"baseline": []}
)
# not -ffast-math: a label that is missing is NaN. Nothing but the interface is visible, as several builds share a process.
NATIVE_FLAGS = [
    *("-O3", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast", "-fvisibility=hidden", "-pthread"),
    "-Wno-maybe-uninitialized",  # GCC 12 is wrong about its own avx512fintrin.h
]


def native_sources() -> list[Path]:
    """Return library.cpp and all headers."""
    folder = HERE / NATIVE.rpartition("/")[0]
    return sorted(path for path in folder.rglob("*") if path.suffix in (".cpp", ".h"))


def digest(paths: list[Path]) -> str:
    """Return the digest by which a library is known that was compiled from other sources."""
    return hashlib.sha256(b"".join(path.read_bytes() for path in paths)).hexdigest()[:16]


def library(name: str, source: str, sources: list[Path], flags: list[str]) -> Extension:
    """Return a library with a plain C interface: no Python.h is needed, and none is imported."""
    made = Extension(
        name,
        [source],
        depends=["setup.py", *(str(path.relative_to(HERE)) for path in sources)],
        extra_compile_args=["-std=c++17", "-g0", *flags, f'-DSOURCE_DIGEST="{digest(sources)}"'],
        extra_link_args=["-pthread"],
        optional=True,  # without a compiler, or with one that lacks a flag, the package is installed all the same
    )
    made.digest = digest(sources)
    return made


def libraries() -> list[Extension]:
    """Return all libraries, those that take longest to compile first."""
    sources = native_sources()
    native = [
        library(f"gnnscale.native._native_{name}_{real}", NATIVE, sources, [*NATIVE_FLAGS, *flags, f"-DREAL={real}"])
        for name, flags in INSTRUCTION_SETS.items()
        for real in ("float", "double")
    ]
    # no fused multiply-add, so that the same edges are found on all machines
    neighbors = library("gnnscale.atoms._neighbors", NEIGHBORS, [HERE / NEIGHBORS], ["-O3", "-ffp-contract=off"])
    return [*native, neighbors]


def shared_files() -> list[Path]:
    """Return the files beside the packages, relative to this directory; the build context of an image lacks some."""
    return sorted(path.relative_to(HERE) for pattern in SHARED for path in HERE.glob(pattern) if path.is_file())


class BuildWithShare(build_py):
    """The packages, and beside them in gnnscale/share/ what lies at the top of a checkout.

    A package `datasets` at the top of site-packages would shadow Hugging Face's. An editable installation finds the
    checkout itself and copies nothing.
    """

    def run(self) -> None:
        if not self.editable_mode:
            for package in ("gnnscale", "workflow"):  # an earlier build's files, since moved, would be installed too
                shutil.rmtree(Path(self.build_lib) / package, ignore_errors=True)
        super().run()
        for path in () if self.editable_mode else shared_files():
            target = Path(self.build_lib) / SHARE / path
            target.parent.mkdir(parents=True, exist_ok=True)
            self.copy_file(str(HERE / path), str(target))

    def get_source_files(self) -> list[str]:
        """Add them to a source distribution."""
        return [*super().get_source_files(), *map(str, shared_files())]


class BuildLibraries(build_ext):
    """The libraries, compiled side by side."""

    def finalize_options(self) -> None:
        super().finalize_options()
        self.parallel = self.parallel or True  # on all cores

    def get_ext_filename(self, fullname: str) -> str:
        """Leave out the version of Python, with which a library has nothing to do."""
        return f"{fullname.replace('.', '/')}.so"

    def copy_extensions_to_source(self) -> None:
        """Copy whatever the times say, and remove files named after a version of Python, which would be found first."""
        self.force = True
        super().copy_extensions_to_source()
        for ext in self.extensions:
            for old in HERE.glob(f"{ext.name.replace('.', '/')}.*-*.so"):
                old.unlink()

    def build_extension(self, ext: Extension) -> None:
        """Compile in a folder of its own, as one source file becomes several libraries, and whatever the times say."""
        alone, made = copy.copy(self), Path(self.get_ext_fullpath(ext.name))
        if made.exists() and ext.digest.encode() not in made.read_bytes():
            made.unlink()
        alone.build_temp = str(Path(self.build_temp) / ext.name)
        super(BuildLibraries, alone).build_extension(ext)


class WheelOfAnyPython(bdist_wheel):
    """A wheel for one kind of processor and system, and for every version of Python."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


setup(
    cmdclass={"build_py": BuildWithShare, "build_ext": BuildLibraries, "bdist_wheel": WheelOfAnyPython},
    ext_modules=libraries(),
)
