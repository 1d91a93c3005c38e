"""%test of an image: all of it can be imported, and two ranks convert, train and evaluate as stages do."""

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

import gnnscale
from gnnscale.atoms import neighbors

ACCELERATOR, HOME = sys.argv[1], Path(__file__).parent.parent
BUILT_IN = {"cuda": "cuda", "rocm": "hip", "xpu": "xpu"}  # attribute of torch.version that says for what it was built
ONLY_WITH = {"gnnscale.models.kernels.triton": "triton"}


def imports() -> None:
    """Every module of ours, and all that any line of them imports, also where it does so only when it is needed."""
    wanted: set[str] = set()
    for path in [*HOME.glob("gnnscale/**/*.py"), *HOME.glob("datasets/*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                wanted |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                wanted.add(node.module)
    absent = [name for name in ONLY_WITH.values() if importlib.util.find_spec(name) is None]
    for name in sorted(wanted):
        if name.split(".")[0] not in (*absent, "gnnscale"):
            importlib.import_module(name)
    for module in pkgutil.walk_packages(gnnscale.__path__, "gnnscale."):
        needs = ONLY_WITH.get(module.name)
        if module.name.endswith("._neighbors") or (needs and importlib.util.find_spec(needs) is None):
            continue  # a plain library, loaded by neighbors.py; a package that this image has not
        importlib.import_module(module.name)
    assert neighbors.compiled() is not None, "the compiled neighbour list cannot be loaded"


def stage(folder: Path, kind: str, settings: dict, needs: dict[str, str], ranks: int = 1) -> None:
    folder.mkdir()
    spec = {"id": f"{kind}/check", "key": "0" * 16, "settings": {"kind": kind, **settings}, "code": {}, "needs": needs}
    (folder / "spec.json").write_text(json.dumps(spec))
    common = os.environ | {
        "WORLD_SIZE": str(ranks),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(20000 + os.getpid() % 20000),
    }
    common = common if ranks > 1 else dict(os.environ)
    each = [common | ({"RANK": str(r), "LOCAL_RANK": str(r)} if ranks > 1 else {}) for r in range(ranks)]
    started = [
        subprocess.Popen([sys.executable, "-m", f"gnnscale.stages.{kind}", str(folder)], env=env) for env in each
    ]
    codes = [process.wait(timeout=300) for process in started]
    assert not any(codes) and (folder / "result.json").exists(), f"{kind}: exit codes {codes}"


def work() -> None:
    """From data to errors; the training on two ranks."""
    os.environ["OMP_NUM_THREADS"] = "1"
    place = Path(tempfile.mkdtemp(prefix="gnnscale-check-"))
    try:
        for source in ("bulk", "organic"):  # each in a process of its own, which has no library but those that it loads
            stage(
                place / source,
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
        stage(place / "train", "train", {"model": model, "optim": {"epochs": 1, "batch": 4}}, data, ranks=2)
        stage(place / "evaluate", "evaluate", {}, {"train/check": "../train"} | data)
    finally:
        shutil.rmtree(place, ignore_errors=True)


imports()
import torch  # noqa: E402

if ACCELERATOR != "cpu":
    assert getattr(torch.version, BUILT_IN[ACCELERATOR], None), (
        f"torch {torch.__version__} is not built for {ACCELERATOR}"
    )
    import triton  # noqa: F401

    header = Path(sysconfig.get_paths()["include"], "Python.h")
    assert shutil.which("gcc") and header.is_file(), f"Triton cannot compile its launchers: no gcc, or no {header}"
work()
print("gnnscale: the image is as it should be")
