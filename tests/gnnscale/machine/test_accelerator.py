"""The choice of an accelerator, against stand-ins for torch: there is neither CUDA nor XPU where tests run."""

import os
import types

import pytest
import torch

from gnnscale.contract import errors
from gnnscale.machine import accelerator
from gnnscale.train import process_group

GIBI = 2**30


class StandIn:
    """A stand-in for torch.cuda or torch.xpu with `count` GPUs."""

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
    assert (accelerator.detect_kind(), accelerator.choose_backend(), accelerator.count_devices()) == ("cpu", "gloo", 0)
    assert accelerator.take_device(3) == torch.device("cpu") and chosen() == "cpu"
    assert accelerator.list_devices() == [] and accelerator.identify_device(0) == ""
    accelerator.synchronize()


@pytest.mark.parametrize(("kind", "backend"), [("cuda", "nccl"), ("xpu", "xccl")])
@pytest.mark.parametrize(("count", "local_rank", "index"), [(12, 7, 7), (1, 7, 0), (4, 4, 0)])
def test_each_rank_takes_its_own(environ, monkeypatch, kind, backend, count, local_rank, index):
    """A rank takes the GPU of its number, or the only one that its launcher shows it."""
    there = StandIn(monkeypatch, kind, count)
    assert (accelerator.detect_kind(), accelerator.choose_backend()) == (kind, backend)
    assert accelerator.take_device(local_rank) == there.taken == torch.device(kind, index)
    assert chosen() == kind and accelerator.identify_device(local_rank) == f"id-{index}"
    assert [device.memory for device in accelerator.list_devices()] == [64 * GIBI] * count
    accelerator.synchronize()
    assert there.waited == 1


@pytest.mark.parametrize(("seen", "device"), [(1, "0"), (4, "3"), (0, "3")])
@pytest.mark.parametrize(
    "launcher",
    [
        {"RANK": "7", "LOCAL_RANK": "3", "WORLD_SIZE": "8"},
        {"OMPI_COMM_WORLD_RANK": "7", "OMPI_COMM_WORLD_LOCAL_RANK": "3", "OMPI_COMM_WORLD_SIZE": "8"},
    ],
)
def test_deepspeed_gets_the_number_of_the_device_not_of_the_rank(
    environ, environment, monkeypatch, launcher, seen, device
):
    """DeepSpeed sets the device of that number; on most sites each rank sees only its own."""
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in launcher.items():
        monkeypatch.setenv(name, value)
    StandIn(monkeypatch, "cuda", seen)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    assert process_group.join_ranks(1).rank == 7
    assert os.environ["LOCAL_RANK"] == os.environ.get("OMPI_COMM_WORLD_LOCAL_RANK", device) == device


def test_ranks_that_do_not_know_where_to_meet(environ, environment, monkeypatch):
    """Ranks started by hand, as `srun python -m gnnscale.stages.train`, are refused in words."""
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: False)
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(errors.UserError, match="2 ranks do not know where to meet"):
        process_group.join_ranks(1)


@pytest.mark.parametrize(("gpus", "here", "backend"), [(1, "2", "gloo"), (2, "2", "nccl"), (0, "2", "gloo")])
def test_ranks_that_share_a_gpu_talk_without_it(environ, monkeypatch, gpus, here, backend):
    StandIn(monkeypatch, "cuda", gpus)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", here)
    assert accelerator.choose_backend() == backend


def test_what_the_user_has_set_for_deepspeed_stays(environ, monkeypatch):
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    StandIn(monkeypatch, "xpu", 2)
    accelerator.take_device(0)
    assert chosen() == "cpu"


def test_gpus_without_names_of_their_own_differ_by_number(environ, monkeypatch):
    StandIn(monkeypatch, "xpu", 2, uuids=False)
    assert accelerator.identify_device(0) != accelerator.identify_device(1) != ""


def test_torch_and_deepspeed_know_these_names():
    """Names that no test can use here: torch knows the backends, DeepSpeed the accelerators."""
    from deepspeed.accelerator.real_accelerator import SUPPORTED_ACCELERATOR_LIST

    assert set(accelerator.BACKENDS) <= set(SUPPORTED_ACCELERATOR_LIST)
    known = torch.distributed.Backend.backend_capability
    assert all(kind in known[backend] for kind, backend in accelerator.BACKENDS.items())
