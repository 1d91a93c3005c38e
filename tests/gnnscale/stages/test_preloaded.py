"""Real stages, forked from the process that has their libraries loaded, and as fresh processes: the same bytes."""

import json
import os
import signal
import subprocess
import sys

import pytest

from gnnscale.contract import exit_codes
from gnnscale.contract.settings import EvaluateSettings
from gnnscale.machine import warm_parent
from gnnscale.machine.warm_parent import FORKED_KINDS, WarmParent
from tests.support import training
from tests.support.cluster import PATIENCE, wait_until
from tests.support.corpus import ENV, make_stage_directory, read_result, run_stage

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="stages are forked on Linux")

LOADED = """
import json, os, sys
from gnnscale.stages import preloaded
heavy = {"deepspeed", "torch._dynamo", "torch._inductor", "triton", "sympy", "parsl", "matplotlib", "adios2", "mpi4py"}
from gnnscale.job.fork_server import count_threads, fork_in_vain
fork_in_vain()
print(json.dumps([sorted(heavy & set(sys.modules)), count_threads(), sorted({*preloaded.PROGRAMS} - {"rank"})]))
"""


@pytest.fixture(scope="module", params=[{}, training.DEEPSPEED], ids=["compiled", "DeepSpeed"])
def environ(request):
    return os.environ | ENV | request.param


@pytest.fixture(scope="module")
def parent(environ):
    made = WarmParent(environ)
    yield made
    made.close()


def start(parent, environ, made):
    with open(made / "stdout", "wb") as out, open(made / "stderr", "wb") as err:
        kind = json.loads((made / "spec.json").read_text())["settings"]["kind"]
        return parent.fork(kind, ["."], made, environ | {"PWD": str(made)}, out, err)


def start_fresh(environ, made):
    kind = json.loads((made / "spec.json").read_text())["settings"]["kind"]
    return subprocess.Popen(
        [sys.executable, "-m", f"gnnscale.stages.{kind}", "."], env=environ, cwd=made, stdout=subprocess.DEVNULL
    )


@pytest.mark.slow
@pytest.mark.parametrize("threads", ["1", "2"])
def test_it_loads_little_that_acts_by_itself(threads):
    """Neither threads nor what looks at the machine when it is imported; each kind that may be forked is there."""
    done = subprocess.run(
        [sys.executable, "-c", LOADED],
        env=os.environ | ENV | {"OMP_NUM_THREADS": threads},
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout) == [[], 1, sorted(FORKED_KINDS)]


@pytest.mark.slow
def test_a_forked_stage_leaves_the_bytes_of_a_fresh_one(parent, environ, converted, tmp_path):
    """A training and its evaluation, with what they print."""
    for name in ("forked", "fresh"):
        trained = training.prepare_training(tmp_path / name, converted)
        evaluated = make_stage_directory(
            tmp_path / name, "evaluate/x", EvaluateSettings(), {"train/x": trained, **converted}
        )
        for made in (trained, evaluated):
            process = start(parent, environ, made) if name == "forked" else start_fresh(environ, made)
            assert process is not None and process.wait(timeout=PATIENCE) == 0, (made / "stderr").read_text()
    for stage in ("train/x", "evaluate/x"):
        forked, fresh = (read_result(tmp_path / name / stage) for name in ("forked", "fresh"))
        digests = [
            {name: file.sha256 for name, file in each.outputs.items() if name != "metrics.jsonl"}  # it has times
            for each in (forked, fresh)
        ]
        assert digests[0] == digests[1] and forked.digest == fresh.digest and len(digests[0]) >= 1
        assert forked.provenance == fresh.provenance and forked.values.keys() == fresh.values.keys()
        assert 0 < forked.start_cpu_seconds < forked.cpu_seconds
    assert training.read_losses(tmp_path / "forked/train/x") == training.read_losses(tmp_path / "fresh/train/x")


@pytest.mark.slow
def test_a_forked_training_that_is_signalled_continues(parent, environ, converted, tmp_path):
    """It saves its work, continues in another process, and ends with the bytes of one that was not interrupted."""
    optim = {"epochs": 100}
    made, whole = (training.prepare_training(tmp_path, converted, name, optim=optim) for name in ("cut", "whole"))
    process = start(parent, environ, made)
    wait_until(lambda: (made / "progress.json").exists() or process.poll() is not None, "its first steps")
    os.killpg(process.pid, signal.SIGTERM)
    code = process.wait(timeout=PATIENCE)
    assert code in (exit_codes.STOPPED, exit_codes.DONE), (made / "stderr").read_text()  # it may have been faster
    if code == exit_codes.STOPPED:
        assert start(parent, environ, made).wait(timeout=PATIENCE) == 0
    assert start_fresh(environ, whole).wait(timeout=PATIENCE) == 0
    assert read_result(made).digest == read_result(whole).digest


@pytest.mark.slow
def test_a_forked_stage_has_the_errors_of_a_fresh_one(parent, environ, tmp_path):
    """It has no settings of its own kind, and nothing that it needs."""
    made, fresh = (make_stage_directory(tmp_path / name, "evaluate/x", EvaluateSettings()) for name in ("a", "b"))
    code = start(parent, environ, made).wait(timeout=PATIENCE)
    done = run_stage(fresh)
    assert (code, (made / "error.json").read_text()) == (done.returncode, (fresh / "error.json").read_text())
    assert (made / "stderr").read_text().splitlines()[-1] == done.stderr.splitlines()[-1]


@pytest.mark.slow
def test_the_start_of_the_parent_is_counted_once(environ, converted, tmp_path, monkeypatch):
    """The first stage carries it, as if it had been a fresh process."""
    monkeypatch.setattr(warm_parent, "ROOT", tmp_path)  # no change of the sources starts another parent in between
    parent = WarmParent(environ)
    try:
        made = [training.prepare_training(tmp_path, converted, name) for name in ("first", "second")]
        for each in made:
            assert start(parent, environ, each).wait(timeout=PATIENCE) == 0
    finally:
        parent.close()
    first, second = (read_result(each).start_cpu_seconds for each in made)
    assert first > second
