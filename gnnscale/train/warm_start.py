"""Where a training begins: at its own newest checkpoint, or at one of a shorter training that went the same way.

Before the learning rate falls, trainings that differ in their length alone take the same steps. So the state in which
one begins its decay is a state of every longer one, which need not be computed again: several lengths cost little more
than the longest.
"""

from __future__ import annotations

from pathlib import Path

from gnnscale.contract import errors, files, stage_run
from gnnscale.contract.stage_spec import StageSpec
from gnnscale.train import checkpoint


def origin(run: stage_run.Run, decay: int) -> checkpoint.Found | None:
    """A whole checkpoint; not from beyond step `decay` if it is another's."""
    root = run.directory / "checkpoints"
    found = checkpoint.newest(root)
    if found and found.key != run.spec.key:
        raise errors.Refusal(
            f"{found.directory} belongs to another training (key {found.key}, this one has {run.spec.key})",
            f"remove {root} to begin anew, or bring back the spec.json that it was made with",
        )
    if found:
        print(f"going on from step {found.progress['step']}", flush=True)
        return found
    for shorter in run.spec.runtime.shorter:
        found = shared(run, run.directory / shorter, decay)
        if found:
            print(f"beginning at step {found.progress['step']} of {found.directory.parent.parent.name}", flush=True)
            return found
    return None


def shared(run: stage_run.Run, other: Path, decay: int) -> checkpoint.Found | None:
    """The state in which another training began its decay, if that training differs from this one in length alone."""
    try:
        theirs = files.read_model(other / "spec.json", StageSpec)
    except files.BadFile:
        return None
    if way(theirs, other) != way(run.spec, run.directory):
        return None
    found = checkpoint.newest(other / "checkpoints", pinned=True)
    return found if found and found.key == theirs.key and found.progress["step"] <= decay else None


def way(spec: StageSpec, directory: Path) -> tuple:
    """All that determines a training's steps but their number."""
    optim = spec.settings.optim.model_copy(update={"epochs": 1.0})
    needs = {name: (directory / path).resolve() for name, path in spec.needs.items()}
    return spec.settings.model_copy(update={"optim": optim}), spec.code, spec.image, needs
