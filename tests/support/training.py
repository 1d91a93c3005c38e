"""Trainings for tests: in this process, which takes a tenth of a second once DeepSpeed is imported, or on ranks."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

from gnnscale.contract import stage_run
from gnnscale.contract.results import Metrics
from gnnscale.stages import train
from tests.support.corpus import ENV, ROOT, TINY, make_stage_directory

DEEPSPEED = {"GNNSCALE_NATIVE": "0"}  # in the environment: steps by PyTorch and DeepSpeed, also where the library could
LINEAR = torch.nn.functional.linear  # ZeRO 3 puts its own there, for good, which cannot be differentiated twice

# Trains in each directory of the command line in turn; DIRECTORY@7 is asked to stop during its seventh step.
TRAIN_SEVERAL = """
import os, sys
from pathlib import Path
from tests.support.training import train_here
for word in sys.argv[1:]:
    made, _, step = word.partition("@")
    train_here(Path(made), int(step) if step else None)
sys.stdout.flush()
os._exit(0)  # as gnnscale/job/stage_process.py does, and for its reason
"""


# Trains in the directory of the command line; the sixth step waits for a file `go` there, so that a signal comes in time.
HELD = """
import os, sys, time
from gnnscale.job import stage_process
from gnnscale.stages.train import main
from gnnscale.train.loop import Trainer

taken = []

def agree(*words, fast=Trainer.agree):
    while len(taken) == 5 and not os.path.exists(sys.argv[1] + "/go"):
        time.sleep(0.01)
    taken.append(1)
    return fast(*words)

Trainer.agree = agree
stage_process.run(main)
"""


def change_settings(optim: dict | None = None, model: dict | None = None, **other: object):
    """Return TINY with changes, validated."""
    changed = TINY.model_dump() | other
    return type(TINY).model_validate(
        changed | {"optim": changed["optim"] | (optim or {}), "model": changed["model"] | (model or {})}
    )


def prepare_training(
    root: Path, needs: dict[str, Path], name: str = "x", runtime: dict | None = None, **changes: object
) -> Path:
    return make_stage_directory(root, f"train/{name}", change_settings(**changes), needs, **(runtime or {}))


def train_here(made: Path, stop_at: int | None = None) -> Path:
    """Train in this process; `stop_at` asks to stop during that step, as a signal does."""
    environ = dict(os.environ)
    run = stage_run.Run(made)
    report_progress = run.report_progress

    def report_and_stop(done: float, total: float, **numbers: float) -> None:
        report_progress(done, total, **numbers)
        run.stop_requested = stop_at is not None and done >= stop_at - 1

    run.report_progress = report_and_stop
    try:
        train.main(run)
    except stage_run.Stopped:
        assert stop_at is not None
    finally:
        torch.nn.functional.linear = LINEAR
        if int(os.environ.get("WORLD_SIZE", "1")) == 1:
            os.environ.clear()
            os.environ.update(environ)
    return made


def run_on_ranks(ranks: int, *command: str, timeout: float = 400) -> list[tuple[int, str]]:
    """Run a command on several ranks; return (exit code, output) of each."""
    return wait_for_ranks(start_on_ranks(ranks, *command), timeout)


def start_on_ranks(ranks: int, *command: str) -> list[subprocess.Popen]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    common = os.environ | ENV | {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return [
        subprocess.Popen(
            [sys.executable, *command],
            env=common | {"RANK": str(r), "LOCAL_RANK": str(r)},
            text=True,
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        for r in range(ranks)
    ]


def wait_for_ranks(processes: list[subprocess.Popen], timeout: float = 400) -> list[tuple[int, str]]:
    try:
        outputs = [process.communicate(timeout=timeout)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(process.returncode, output) for process, output in zip(processes, outputs)]


def train_several(ranks: int, *made: Path | str) -> None:
    """Train in each directory in turn on the same ranks: starting them costs more than these trainings."""
    for code, output in run_on_ranks(ranks, "-c", TRAIN_SEVERAL, *map(str, made), timeout=300 + 60 * len(made)):
        assert code == 0, output


def read_metrics(made: Path) -> list[Metrics]:
    return [Metrics.model_validate_json(line) for line in (made / "metrics.jsonl").read_text().splitlines()]


def read_losses(made: Path) -> list[dict]:
    """Return the reproducible fields of the metrics."""
    return [line.model_dump(exclude={"seconds"}) for line in read_metrics(made)]


def read_weights(made: Path) -> dict[str, torch.Tensor]:
    return load_file(made / "model.safetensors")


def assert_equal(one: Path, other: Path, rtol: float = 2e-4, atol: float = 2e-6) -> None:
    """Compare two trainings up to rounding: every weight at the end, every loss and gradient of each step."""
    for a, b in zip(read_metrics(one), read_metrics(other), strict=True):
        for field in ("loss", "energy", "forces", "stress", "gradient", "validation"):
            x, y = getattr(a, field), getattr(b, field)
            assert x is y is None or abs(x - y) <= 2e-3 * abs(x) + 1e-6, (field, a, b)
    expected, found = read_weights(one), read_weights(other)
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=rtol, atol=atol, msg=lambda m, name=name: f"{name}: {m}")


def read_json(path: Path) -> dict:
    return json.loads(path.read_text())
