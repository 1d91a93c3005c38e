"""The state in which a training begins: its own newest checkpoint, or one of a shorter training with the same steps.

Before the learning rate falls, trainings that differ in their length alone take the same steps. So the state in which
one begins its decay is a state of every longer one, which need not be computed again: several lengths cost little more
than the longest.
"""

from __future__ import annotations

from pathlib import Path

from gnnscale.contract import errors, files, stage_run
from gnnscale.contract.settings import TrainSettings
from gnnscale.contract.stage_spec import StageSpec
from gnnscale.train import checkpoint


def find_start(run: stage_run.Run, decay: int) -> checkpoint.Checkpoint | None:
    """Find the checkpoint to begin from: another training's only up to step `decay`."""
    root = run.directory / "checkpoints"
    found = checkpoint.find_newest(root)
    if found and found.key != run.spec.key:
        raise errors.UserError(
            f"{found.directory} belongs to another training (key {found.key}, this one has {run.spec.key})",
            f"remove {root} to begin anew, or bring back the spec.json that it was made with",
        )
    if found:
        print(f"going on from step {found.progress['step']}", flush=True)
        return found
    for shorter in run.spec.runtime.shorter:
        found = find_shared_state(run, run.directory / shorter, decay)
        if found:
            print(f"beginning at step {found.progress['step']} of {found.directory.parent.parent.name}", flush=True)
            return found
    return None


def find_shared_state(run: stage_run.Run, other: Path, decay: int) -> checkpoint.Checkpoint | None:
    """Find the state in which another training began its decay, if it differs from this one in length alone."""
    try:
        theirs = files.read_model(other / "spec.json", StageSpec)
    except errors.BadFile:
        return None
    if all_but_length(theirs, other) != all_but_length(run.spec, run.directory):
        return None
    found = checkpoint.find_newest(other / "checkpoints", pinned=True)
    return found if found and found.key == theirs.key and found.progress["step"] <= decay else None


def all_but_length(spec: StageSpec, directory: Path) -> tuple:
    """Return everything that determines a training's steps, except their number."""
    assert isinstance(spec.settings, TrainSettings)
    optim = spec.settings.optim.model_copy(update={"epochs": 1.0})
    needs = {name: (directory / path).resolve() for name, path in spec.needs.items()}
    return spec.settings.model_copy(update={"optim": optim}), spec.code, spec.image, needs
