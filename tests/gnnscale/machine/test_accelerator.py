"""Which accelerator is taken, against stand-ins for torch's own answers: there is neither CUDA nor XPU where tests run."""

import os
import types

import pytest
import torch

from gnnscale.contract import errors
from gnnscale.machine import accelerator
from gnnscale.train import process_group

GIBI = 2**30


class StandIn:
    """torch.cuda or torch.xpu with so many GPUs."""

    def __init__(self, monkeypatch, kind, count, uuids=True):
        self.taken, self.waited = None, 0
        for name, act in (
            ("is_available", lambda: count > 0),
            ("device_count", lambda: count),
            ("set_device", self.take),
            ("synchronize", self.wait),
            ("get_device_properties", lambda index: self.properties(index, uuids)),
        ):
            monkeypatch.setattr(getattr(torch, kind), name, act)

    def take(self, device):
        self.taken = device

    def wait(self):
        self.waited += 1

    def properties(self, index, uuids):
        more = {"uuid": f"id-{index}"} if uuids else {}
        return types.SimpleNamespace(name="GPU of somebody", total_memory=64 * GIBI, **more)


@pytest.fixture
def environ(monkeypatch):
    monkeypatch.delenv("DS_ACCELERATOR", raising=False)
    StandIn(monkeypatch, "cuda", 0)
    StandIn(monkeypatch, "xpu", 0)
    yield
    monkeypatch.delenv("DS_ACCELERATOR", raising=False)


def chosen():
    return os.environ.get("DS_ACCELERATOR")


def test_a_machine_without(environ):
    assert (accelerator.kind(), accelerator.backend(), accelerator.count()) == ("cpu", "gloo", 0)
    assert accelerator.take(3) == torch.device("cpu") and chosen() == "cpu"
    assert accelerator.devices() == [] and accelerator.identity(0) == ""
    accelerator.wait()


@pytest.mark.parametrize(("kind", "backend"), [("cuda", "nccl"), ("xpu", "xccl")])
@pytest.mark.parametrize(("count", "local_rank", "index"), [(12, 7, 7), (1, 7, 0), (4, 4, 0)])
def test_each_rank_takes_its_own(environ, monkeypatch, kind, backend, count, local_rank, index):
    """Where a launcher shows each rank only one GPU, that is the one."""
    there = StandIn(monkeypatch, kind, count)
    assert (accelerator.kind(), accelerator.backend()) == (kind, backend)
    assert accelerator.take(local_rank) == there.taken == torch.device(kind, index)
    assert chosen() == kind and accelerator.identity(local_rank) == f"id-{index}"
    assert [device.memory for device in accelerator.devices()] == [64 * GIBI] * count
    accelerator.wait()
    assert there.waited == 1


@pytest.mark.parametrize(("seen", "device"), [(1, "0"), (4, "3"), (0, "3")])
@pytest.mark.parametrize(
    "launcher",
    [
        {"RANK": "7", "LOCAL_RANK": "3", "WORLD_SIZE": "8"},
        {"OMPI_COMM_WORLD_RANK": "7", "OMPI_COMM_WORLD_LOCAL_RANK": "3", "OMPI_COMM_WORLD_SIZE": "8"},
    ],
)
def test_deepspeed_is_told_which_device_and_not_which_rank(environ, environment, monkeypatch, launcher, seen, device):
    """It sets the device of that number; on most sites each rank sees only its own."""
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in launcher.items():
        monkeypatch.setenv(name, value)
    StandIn(monkeypatch, "cuda", seen)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    assert process_group.join(1).rank == 7
    assert os.environ["LOCAL_RANK"] == os.environ.get("OMPI_COMM_WORLD_LOCAL_RANK", device) == device


def test_ranks_that_do_not_know_where_to_meet(environ, environment, monkeypatch):
    """`srun python -m gnnscale.stages.train` by hand."""
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: False)
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(errors.Refusal, match="2 ranks do not know where to meet"):
        process_group.join(1)


@pytest.mark.parametrize(("gpus", "here", "backend"), [(1, "2", "gloo"), (2, "2", "nccl"), (0, "2", "gloo")])
def test_ranks_that_share_a_gpu_talk_without_it(environ, monkeypatch, gpus, here, backend):
    StandIn(monkeypatch, "cuda", gpus)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", here)
    assert accelerator.backend() == backend


def test_what_the_user_has_set_for_deepspeed_stays(environ, monkeypatch):
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    StandIn(monkeypatch, "xpu", 2)
    accelerator.take(0)
    assert chosen() == "cpu"


def test_gpus_without_names_of_their_own_differ_by_number(environ, monkeypatch):
    StandIn(monkeypatch, "xpu", 2, uuids=False)
    assert accelerator.identity(0) != accelerator.identity(1) != ""


def test_it_is_what_torch_and_deepspeed_call_them():
    """The names that could only be read: that torch knows the backends, and DeepSpeed the accelerators."""
    from deepspeed.accelerator.real_accelerator import SUPPORTED_ACCELERATOR_LIST

    assert set(accelerator.BACKENDS) <= set(SUPPORTED_ACCELERATOR_LIST)
    known = torch.distributed.Backend.backend_capability
    assert all(kind in known[backend] for kind, backend in accelerator.BACKENDS.items())
