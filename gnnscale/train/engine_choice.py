"""The choice of the engine that takes a training's steps: the compiled library where it can, DeepSpeed elsewhere."""

from __future__ import annotations

import torch

from gnnscale.contract.settings import OptimSettings
from gnnscale.contract.stage_spec import Runtime
from gnnscale.machine import accelerator
from gnnscale.models.compiled import Compiled, compile_network
from gnnscale.models.potential import Potential
from gnnscale.train.deepspeed_engine import DeepSpeedEngine
from gnnscale.train.engine import Engine
from gnnscale.train.native_engine import NativeEngine
from gnnscale.train.process_group import gather


def make_engine(model: Potential, groups: list[dict], optim: OptimSettings, runtime: Runtime) -> tuple[Engine, str]:
    """Return the engine of a training and, in words, what takes its steps. All ranks choose alike."""
    found: Compiled | str = reason_for_deepspeed(optim, runtime) or compile_network(
        model, torch.float32, runtime.threads
    )
    reason = next((each for each in gather(found if isinstance(found, str) else "") if each), "")
    if isinstance(found, str) or reason:
        return DeepSpeedEngine(model, groups, optim, runtime), f"DeepSpeed and PyTorch ({reason})"
    torch.set_num_threads(1)  # the library has threads of its own
    return NativeEngine(model, groups, optim, found), found.words


def reason_for_deepspeed(optim: OptimSettings, runtime: Runtime) -> str:
    """Return which setting the library cannot serve, or ""."""
    kind = accelerator.detect_kind()
    if kind != "cpu":
        return f"on a GPU ({kind})"
    if runtime.zero_stage:
        return f"zero_stage {runtime.zero_stage}"
    return f"precision {optim.precision}" if optim.precision != "fp32" else ""
