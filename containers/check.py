"""Test of an image (%test): imports everything in it, then converts, trains on two ranks and evaluates as stages do."""

import ast
import importlib
import importlib.util
import json
import os
import pkgutil
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

import gnnscale
from gnnscale.atoms import neighbors
from gnnscale.machine.native_build import open_fastest

ACCELERATOR, HOME = sys.argv[1], Path(__file__).parent.parent
BUILT_IN = {"cuda": "cuda", "rocm": "hip", "xpu": "xpu"}  # attribute of torch.version that is set for this accelerator
OPTIONAL = ("triton",)  # packages that images for GPUs have, and that modules import which nothing else needs


def import_everything() -> None:
    """Import every module of this project, and every module that any line of them imports, also within functions."""
    wanted: set[str] = set()
    for path in [*HOME.glob("gnnscale/**/*.py"), *HOME.glob("datasets/*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                wanted |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                wanted.add(node.module)
    absent = [name for name in OPTIONAL if importlib.util.find_spec(name) is None]
    for name in sorted(wanted):
        if name.split(".")[0] not in (*absent, "gnnscale"):
            importlib.import_module(name)
    for module in pkgutil.walk_packages(gnnscale.__path__, "gnnscale."):
        if module.name.rpartition(".")[2].startswith(("_neighbors", "_native")):
            continue  # a plain library, which another module loads
        try:
            importlib.import_module(module.name)
        except ModuleNotFoundError as error:
            if error.name not in absent:
                raise
    assert neighbors.compiled_library() is not None, "the compiled neighbour list cannot be loaded"
    for precision in ("float", "double"):
        build = open_fastest(precision)
        assert build.library is not None, f"the native library ({precision}) cannot be used: {build.reason}"


def run_stage(folder: Path, kind: str, settings: dict[str, Any], needs: dict[str, str], ranks: int = 1) -> None:
    """Run a stage in `folder` on some ranks, and assert that it succeeds."""
    folder.mkdir()
    spec = {"id": f"{kind}/check", "key": "0" * 16, "settings": {"kind": kind, **settings}, "code": {}, "needs": needs}
    (folder / "spec.json").write_text(json.dumps(spec))
    group = {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(20000 + os.getpid() % 20000)}
    variables = [group | {"RANK": str(rank), "LOCAL_RANK": str(rank)} if ranks > 1 else {} for rank in range(ranks)]
    command = [sys.executable, "-m", f"gnnscale.stages.{kind}", str(folder)]
    started = [subprocess.Popen(command, env=os.environ | each) for each in variables]
    codes = [process.wait(timeout=300) for process in started]
    assert not any(codes) and (folder / "result.json").exists(), f"{kind}: exit codes {codes}"


def run_pipeline() -> None:
    """Convert data, train on two ranks, and evaluate the result."""
    os.environ["OMP_NUM_THREADS"] = "1"
    folder = Path(tempfile.mkdtemp(prefix="gnnscale-check-"))
    try:
        for source in ("bulk", "organic"):  # each in a process of its own, which has only the libraries that it loads
            run_stage(
                folder / source,
                "convert",
                {
                    "dataset": "generated",
                    "name": source,
                    "cutoff": 4.0,
                    "options": {"source": source, "structures": 40},
                    "split": {"validation": 0.1, "test": 0.3},
                },
                {},
            )
        model = {"kind": "egnn", "width": 8, "depth": 1, "cutoff": 4.0}
        data = {"convert/bulk": "../bulk", "convert/organic": "../organic"}
        run_stage(folder / "train", "train", {"model": model, "optim": {"epochs": 1, "batch": 4}}, data, ranks=2)
        run_stage(folder / "evaluate", "evaluate", {}, {"train/check": "../train"} | data)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


import_everything()
import torch  # noqa: E402

if ACCELERATOR != "cpu":
    assert getattr(torch.version, BUILT_IN[ACCELERATOR], None), (
        f"torch {torch.__version__} is not built for {ACCELERATOR}"
    )
    import triton  # noqa: F401

    header = Path(sysconfig.get_paths()["include"], "Python.h")
    assert shutil.which("gcc") and header.is_file(), f"Triton cannot compile its launchers: no gcc, or no {header}"
run_pipeline()
print("gnnscale: the image passes its test")
