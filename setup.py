"""The part of the build that pyproject.toml cannot express: the file that is compiled, and the folders that an installed package carries along."""

import hashlib
import shutil
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_py import build_py

HERE = Path(__file__).parent
SOURCE = "gnnscale/atoms/neighbors.cpp"
SHARE = Path("gnnscale/share")  # as gnnscale/contract/places.py has it
SHARED = (
    *("datasets/*.py", "sites/*.yaml", "containers/*.*"),
    *("constraints.txt", "pyproject.toml", "setup.py"),  # from which a container image is built
)
digest = hashlib.sha256((HERE / SOURCE).read_bytes()).hexdigest()[:16]


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


setup(
    cmdclass={"build_py": BuildWithShare},
    ext_modules=[
        Extension(
            "gnnscale.atoms._neighbors",  # a library with a plain C interface: no Python.h is needed, and none is imported
            [SOURCE],
            # no -march=native: it may be compiled on a login node and run on another machine; no fused multiply-add,
            # so that the same edges are found on all of them
            extra_compile_args=["-std=c++17", "-O3", "-ffp-contract=off", f'-DSOURCE_DIGEST="{digest}"'],
            optional=True,
        )
    ],
)
