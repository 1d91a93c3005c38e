"""The node check, against directories, clocks, memory and a driver library that really have the fault."""

import json
import os
import platform
import re
import shutil
import subprocess
import sys
import time

import pytest

from gnnscale.job import batch_job
from gnnscale.machine import node_check
from tests.support.cluster import PATIENCE, require, wait_until
from tests.support.corpus import ENV

# A driver of GPUs whose memory is the machine's. FAKE_GPUS: how many; FAKE_BROKEN: the function that fails.
DRIVER = r"""
#include <stdlib.h>
#include <string.h>
static int broken(const char *what) { const char *said = getenv("FAKE_BROKEN"); return said && !strcmp(said, what); }
int cuInit(unsigned flags) { return broken("init") ? 100 : 0; }
int cuDeviceGetCount(int *count) { *count = atoi(getenv("FAKE_GPUS")); return 0; }
int cuDeviceGet(int *device, int index) { *device = index; return index < atoi(getenv("FAKE_GPUS")) ? 0 : 101; }
int cuDevicePrimaryCtxRetain(void **context, int device) { *context = "context"; return broken("context") ? 46 : 0; }
int cuCtxSetCurrent(void *context) { return strcmp(context, "context"); }
int cuMemAlloc_v2(unsigned long long *place, size_t bytes) {
    *place = (unsigned long long)malloc(bytes); return broken("memory") ? 2 : 0; }
int cuMemsetD32_v2(unsigned long long place, unsigned word, size_t count) {
    for (size_t i = 0; i < count; i++) ((unsigned *)place)[i] = word;
    if (broken("words")) ((unsigned *)place)[count / 2] ^= 1;
    return 0; }
int cuMemcpyDtoH_v2(void *target, unsigned long long place, size_t bytes) { memcpy(target, (void *)place, bytes); return 0; }
"""


def test_this_node_is_fit(tmp_path):
    command = [sys.executable, "-m", "gnnscale.machine.node_check", str(tmp_path), "none"]
    done = subprocess.run(command, env=os.environ | ENV, capture_output=True, text=True, timeout=PATIENCE)
    assert (done.returncode, done.stdout) == (0, f"fit {platform.node()}\n"), done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_run_directory_that_is_not_there_or_not_writable(tmp_path):
    assert list(node_check.check_run_directory(tmp_path / "gone")) == [
        f"{tmp_path / 'gone'}: no such file or directory"
    ]
    (said,) = node_check.check_run_directory(node_check.Path("/proc"))
    assert said.startswith("/proc: ")


def test_a_clock_that_is_off(tmp_path, monkeypatch):
    now = time.time
    for off in (-300, 300):
        monkeypatch.setattr(node_check.directory_check.time, "time", lambda off=off: now() + off)
        (said,) = node_check.check_run_directory(tmp_path)
        number = re.fullmatch(r"its clock is ([+-]\d+) s off the file server's", said)[1]
        assert int(number) == pytest.approx(off, abs=20)
    monkeypatch.setattr(node_check.directory_check.time, "time", lambda: now() + 60)
    assert list(node_check.check_run_directory(tmp_path)) == []


def test_memory_that_is_taken(tmp_path):
    said = "MemTotal:       527000000 kB\nMemFree:  1 kB\nMemAvailable:   {} kB\nHugePages_Total:       0\n"
    (tmp_path / "meminfo").write_text(said.format(3_000_000))
    assert list(node_check.check_memory(tmp_path / "meminfo")) == ["3.1 of 540 GB of memory are free"]
    (tmp_path / "meminfo").write_text(said.format(300_000_000))
    assert list(node_check.check_memory(tmp_path / "meminfo")) == []


def test_a_temporary_directory_that_is_full_or_not_there(tmp_path, monkeypatch):
    assert "no such file" in next(node_check.check_temporary(tmp_path / "gone"))
    monkeypatch.setattr(node_check, "MIN_TEMPORARY_BYTES", shutil.disk_usage(tmp_path).free * 2)
    assert next(node_check.check_temporary(tmp_path)).endswith(" MB left")


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    if shutil.which("gcc") is None:
        require("compiler", "no gcc here")
    place = tmp_path_factory.mktemp("driver")
    (place / "driver.c").write_text(DRIVER)
    made = place / "driver.so"
    subprocess.run(["gcc", "-shared", "-fPIC", "-w", "-o", made, place / "driver.c"], check=True, timeout=300)
    return node_check.DRIVERS["nvidia"]._replace(file=str(made))


@pytest.mark.parametrize(
    ("gpus", "broken", "rank", "size", "said"),
    [
        (4, "", 3, 4, []),
        (1, "", 3, 4, []),  # each sees its own
        (4, "", 0, 1, []),
        (0, "", 0, 1, ["no GPU is visible (error 0"]),
        (3, "", 0, 4, ["3 of 4 GPUs are visible"]),
        (4, "init", 0, 4, ["no GPU is visible (error 100"]),
        (4, "context", 2, 4, ["GPU 2 does not work (error 46"]),
        (4, "memory", 1, 4, ["GPU 1 does not work (error 2"]),
        (4, "words", 1, 4, ["GPU 1 gives back other numbers"]),
    ],
)
def test_a_gpu(driver, monkeypatch, gpus, broken, rank, size, said):
    # setenv as C sees it: os.environ writes through
    monkeypatch.setenv("FAKE_GPUS", str(gpus))
    monkeypatch.setenv("FAKE_BROKEN", broken)
    found = list(node_check.check_gpu(driver, rank, size))
    assert len(found) == len(said) and all(a.startswith(b) for a, b in zip(found, said)), found


def test_no_driver_at_all():
    nothing = node_check.DRIVERS["nvidia"]._replace(file="libnothing.so.1", device="/dev/nothing")
    (said,) = node_check.check_gpu(nothing, 0, 1)
    assert said.startswith("no driver: libnothing.so.1")
    assert list(node_check.check_gpu(nothing._replace(device="/dev/null"), 0, 1)) == [], "a library that lies elsewhere"


def test_how_many_ranks_a_node_has():
    assert node_check.count_local_ranks({"SLURM_STEP_TASKS_PER_NODE": "4(x2)"}) == 4
    assert node_check.count_local_ranks({"PALS_LOCAL_SIZE": "12"}) == 12 and node_check.count_local_ranks({}) == 1


@pytest.mark.parametrize(
    ("lines", "sick"),
    [
        (["fit n1", "fit n2", "fit n2", "fit n1"], {}),
        (["fit n1", "fit n2", "fit n2"], {"n1": "1 of 2 ranks did not answer"}),
        (["fit n1.cluster.org", "fit n2.cluster.org"] * 2, {}),
        (
            ["fit n1", "fit n1", "0: sick n2.cluster.org: no driver: libcuda: not there"],
            {"n2": "no driver: libcuda: not there"},
        ),
        (["fit n1", "sick n1: GPU 1 does not work", "fit n2", "fit n2"], {"n1": "GPU 1 does not work"}),
        (["a word of greeting", "fit n1", "1: fit n1"], {"n2": "it did not answer"}),
        (["srun: error: nothing works"], {}),
        (["fit elsewhere"], {}),
        ([], {}),
    ],
)
def test_sick_nodes_are_named(tmp_path, monkeypatch, lines, sick):
    """A silent node is sick, but if all are silent none is."""
    monkeypatch.setattr(batch_job, "CHECK_SECONDS", PATIENCE)
    text = json.dumps("\n".join(lines))
    check = batch_job.NodeCheck([sys.executable, "-c", f"print({text})"], tmp_path, dict(os.environ))
    while not check.is_over():
        time.sleep(0.01)
    assert check.find_sick(["n1", "n2"], 2) == sick


def test_a_silent_node_is_not_waited_for(tmp_path, monkeypatch):
    program = "import time; print('fit n1', flush=True); time.sleep(600)"
    check = batch_job.NodeCheck([sys.executable, "-c", program], tmp_path, dict(os.environ))
    wait_until(lambda: os.pread(check.output.fileno(), 9, 0), "the node that is fit to say so")
    monkeypatch.setattr(batch_job, "CHECK_SECONDS", 0.0)
    assert check.is_over()
    assert check.find_sick(["n1", "n2"], 1) == {"n2": "it did not answer"} and check.process.wait() == -9
