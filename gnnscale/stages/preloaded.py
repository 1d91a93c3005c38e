"""The program of a warm parent: python -m gnnscale.stages.preloaded, with a socket as standard input.

It imports what the stages that compute with torch have in common. DeepSpeed is not among it: its import looks at the
environment and at the machine.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from gnnscale.contract.stage_run import Outputs, Run
from gnnscale.job import fork_server, rank_wrapper, stage_process
from gnnscale.job.fork_server import Program
from gnnscale.stages import evaluate, memory_levers, train

STAGES: dict[str, Callable[[Run], Outputs]] = {
    "train": train.main,
    "memory_levers": memory_levers.main,
    "evaluate": evaluate.main,
}


def run_stage(kind: str, arguments: Sequence[str], cpu_seconds: float) -> None:
    """Run a stage as `python -m gnnscale.stages.KIND ARGUMENTS` does."""
    np.random.seed()  # the state of the warm parent, which all of its children have
    sys.argv = [f"gnnscale.stages.{kind}", *arguments]
    stage_process.run(STAGES[kind], cpu_seconds)


def run_rank(arguments: Sequence[str], cpu_seconds: float) -> None:
    """Run the only rank of a stage in a batch job as `python -m gnnscale.job.rank_wrapper ATTEMPT STAGE` does."""
    attempt, kind = arguments
    sys.exit(rank_wrapper.main(Path(attempt), kind, partial(run_stage, kind, ["."], cpu_seconds)))


PROGRAMS: dict[str, Program] = {kind: partial(run_stage, kind) for kind in STAGES} | {"rank": run_rank}

if __name__ == "__main__":
    sys.exit(fork_server.serve(PROGRAMS))
