"""A small converted dataset, made once a test session by the real stage, and directories for stages to run in."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from gnnscale.contract import files
from gnnscale.contract.dataset_card import Split
from gnnscale.contract.results import StageResult
from gnnscale.contract.settings import ConvertSettings, OptimSettings, Settings, TrainSettings
from gnnscale.contract.stage_spec import StageSpec

ROOT = Path(__file__).parents[2]
ENV = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}

TINY = TrainSettings(
    model={"kind": "egnn", "width": 8, "depth": 2, "cutoff": 4.0},
    structures=40,
    optim=OptimSettings(epochs=4, batch=8, warmup=2),
)


def make_stage_directory(
    root: Path, id: str, settings: Settings, needs: dict[str, Path] | None = None, **runtime: object
) -> Path:
    """Make a stage's directory with its spec.json, as the workflow does."""
    made = root / id
    made.mkdir(parents=True)
    relative = {need: os.path.relpath(path, made) for need, path in (needs or {}).items()}
    spec = StageSpec(id=id, key="0" * 16, settings=settings, code={}, needs=relative, runtime=runtime)
    files.write_model(made / "spec.json", spec)
    return made


def run_stage(made: Path, *, module: str = "", ranks: int = 1, timeout: float = 300) -> subprocess.CompletedProcess:
    """Run the stage in `made`, as a driver on a machine without a scheduler does."""
    kind = module or json.loads((made / "spec.json").read_text())["settings"]["kind"]
    words = [f"gnnscale.stages.{kind}"] if ranks == 1 else ["gnnscale.job.local_launcher", str(ranks), kind]
    command = [sys.executable, "-m", *words, str(made)]
    return subprocess.run(command, env=os.environ | ENV, capture_output=True, text=True, timeout=timeout)


def read_result(made: Path) -> StageResult:
    return files.read_model(made / "result.json", StageResult)


def convert_two_sources(root: Path) -> dict[str, Path]:
    """Convert two sources that differ in everything: periodic alloys and oxides with stress, and molecules without."""
    needs = {}
    for name in ("bulk", "organic"):
        settings = ConvertSettings(
            dataset="generated",
            name=name,
            options={"source": name, "structures": 48},
            split=Split(validation=0.15, test=0.2),
            cutoff=4.0,
        )
        made = make_stage_directory(root, f"convert/{name}", settings)
        done = run_stage(made)
        assert done.returncode == 0, done.stderr
        needs[f"convert/{name}"] = made
    return needs
