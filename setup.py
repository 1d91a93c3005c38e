"""The one part that is compiled, if a C++ compiler is there: gnnscale/atoms/neighbors.cpp. All else is in pyproject.toml."""

import hashlib
from pathlib import Path

from setuptools import Extension, setup

SOURCE = "gnnscale/atoms/neighbors.cpp"
digest = hashlib.sha256((Path(__file__).parent / SOURCE).read_bytes()).hexdigest()[:16]

setup(
    ext_modules=[
        Extension(
            "gnnscale.atoms._neighbors",  # a library with a plain C interface: no Python.h is needed, and none is imported
            [SOURCE],
            # no -march=native: it may be compiled on a login node and run on another machine; no fused multiply-add,
            # so that the same edges are found on all of them
            extra_compile_args=["-std=c++17", "-O3", "-ffp-contract=off", f'-DSOURCE_DIGEST="{digest}"'],
            optional=True,
        )
    ]
)
