"""The fused kernels give the numbers of the chunked path; on a machine without a GPU, as Triton's interpreter runs them.

The interpreter must be asked for before triton is imported, so kernels run in a process of their own.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from importlib.util import find_spec
from multiprocessing import get_context

import numpy as np
import pytest
import torch

from gnnscale.architectures.egnn import EGNNConfig
from gnnscale.atoms.graph import AtomGraphs
from gnnscale.models import edges
from gnnscale.models.kernels import messages, verified
from gnnscale.models.kernels.chunked import Chunk, Sums, split_into_chunks
from gnnscale.models.registry import build
from tests.support.structures import CUTOFF, Sample, make_batch, make_crystal, make_molecule

if find_spec("triton") is None:
    if "triton" in os.environ.get("GNNSCALE_REQUIRE", ""):
        raise ModuleNotFoundError("triton is not installed, but was required to be")
    pytest.skip("triton is not installed: pip install triton", allow_module_level=True)

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SINGLE, HALF = torch.float32, torch.bfloat16
EDGES = 16  # EDGES_AT_ONCE of fused_sums.py, which only a process with Triton may import


def interpret() -> None:
    torch.set_num_threads(1)
    if DEVICE == "cpu":
        os.environ["TRITON_INTERPRET"] = "1"


@pytest.fixture(scope="module")
def kernels():
    """kernels(function, *arguments): its value, from the process where kernels can run."""
    with ProcessPoolExecutor(1, get_context("spawn"), interpret) as pool:
        yield lambda *call: pool.submit(*call).result()


DEGREES = [0, 1, EDGES + 1, 3, 0, 2, EDGES, 1, 0]  # more than a kernel takes at a time, as many, and none


def random_graph() -> AtomGraphs:
    """Return a graph in which only neighbourship matters, as kernels see nothing else."""
    receivers = torch.repeat_interleave(torch.arange(len(DEGREES)), torch.tensor(DEGREES))
    senders = torch.randint(len(DEGREES), receivers.shape, generator=torch.Generator().manual_seed(0))
    atoms, one = torch.zeros(len(DEGREES), dtype=torch.int64), torch.zeros(1, dtype=torch.int64)
    shifts = torch.zeros(len(receivers), 3)
    return AtomGraphs(atoms, torch.zeros(len(DEGREES), 3), atoms, torch.zeros(1, 3, 3), one, receivers, senders, shifts)


def outcome(
    function, parts: list[Chunk], atoms: int, edges: int, width: int, radial: int, form: str, dtype, wanted: str
):
    """Values, and gradients of what is `wanted`: all, learning (no geometry) or geometry (no weights)."""
    torch.manual_seed(0)
    table, basis, scale = torch.randn(2 * atoms, width), torch.randn(edges, radial), torch.randn(4, edges) / 6
    second = (torch.randn(width, width) / width**0.5, torch.randn(width)) if form == "edge" else (None, None)
    mix = torch.randn(max(1, width // 8), width) / width**0.5
    given = [table, basis, scale, torch.randn(width, radial) / radial**0.5, *second, mix]
    learns = {"all": range(7), "learning": (0, 3, 4, 5, 6), "geometry": (0, 1, 2)}[wanted]
    given = [x if x is None else x.to(DEVICE).requires_grad_(n in learns) for n, x in enumerate(given)]
    cast = [given[0].to(dtype), *given[1:]]
    s, v = function.apply(parts, *cast)
    out = [s, v]
    loss = sum((x.float() * torch.randn(x.shape, device=DEVICE)).sum() for x in out)
    found = [x for n, x in enumerate(given) if x is not None and n in learns]
    return [x.detach().double().cpu() for x in (*out, *torch.autograd.grad(loss, found))]


def errors(form: str, width: int, radial: int, size: int, dtype=SINGLE, wanted: str = "all") -> list[float]:
    """Return the relative errors of the fused kernels against the chunked path, each over its norm."""
    from gnnscale.models.kernels.fused_sums import FusedSums

    made = random_graph()
    atoms, edges = len(made.numbers), len(made.receivers)
    parts = on_device(split_into_chunks(made, size))
    return relative(*(outcome(f, parts, atoms, edges, width, radial, form, dtype, wanted) for f in (FusedSums, Sums)))


def on_device(parts: list[Chunk]) -> list[Chunk]:
    return [Chunk(*(x.to(DEVICE) if isinstance(x, torch.Tensor) else x for x in c)) for c in parts]


def relative(got: list[torch.Tensor], expected: list[torch.Tensor]) -> list[float]:
    return [float((a - b).norm() / b.norm()) for a, b in zip(got, expected, strict=True)]


@pytest.mark.slow
@pytest.mark.parametrize("form", ["deferred", "edge"])
@pytest.mark.parametrize("width, radial, size", [(8, 8, 10**6), (24, 5, 20), (64, 3, 1), (200, 3, 10**6)])
def test_values_and_gradients_are_those_of_the_chunked_path(kernels, form, width, radial, size):
    assert all(error < 1e-5 for error in kernels(errors, form, width, radial, size))  # nor nan


@pytest.mark.slow
@pytest.mark.parametrize("form", ["deferred", "edge"])
@pytest.mark.parametrize("wanted", ["learning", "geometry"])
def test_only_what_is_wanted(kernels, form, wanted):
    assert all(error < 1e-5 for error in kernels(errors, form, 24, 8, 20, SINGLE, wanted))


@pytest.mark.slow
@pytest.mark.parametrize("form", ["deferred", "edge"])
def test_bfloat16_is_as_exact_as_the_chunked_path(kernels, form):
    """But for what they store the kernels round nothing; the interpreter cuts off, where a GPU rounds, so: twice."""
    fused, chunked = (kernels(rounding, form, 40, name) for name in ("FusedSums", "Sums"))
    assert all(a < 2 * b for a, b in zip(fused, chunked, strict=True)), (fused, chunked)


def judged(how: str) -> str:
    """Return the reason not to use the kernels, or some that are wrong."""
    from gnnscale.models.kernels.fused_sums import FusedSums

    class Wrong(FusedSums):
        @staticmethod
        def forward(ctx, *given):
            if how == "broken":
                raise RuntimeError("no such instruction\nand more")
            s, v = FusedSums.forward(ctx, *given)
            if how == "half" and given[1].dtype == torch.bfloat16:  # what training in bf16 runs, and nothing else
                s = s * 1.2
            return (s * 1.01, v) if how == "forward" else (s * torch.nan, v) if how == "nan" else (s, v)

        @staticmethod
        def backward(ctx, *given):
            table, *others = FusedSums.backward(ctx, *given)[1:]
            return None, table, *others[:-1], others[-1] * (0.9 if how == "backward" else 1)

    return verified.reason_not_to_use(Wrong if how else FusedSums, torch.device(DEVICE))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("", "^$"),
        ("forward", "^relative error 0.01 in float32, expected less than 0.005$"),
        ("backward", "relative error 0.1 in"),
        ("nan", "relative error inf in"),
        ("broken", "^RuntimeError: no such instruction$"),
        ("half", "relative error 0.2 in bfloat16"),
    ],
)
def test_kernels_are_used_where_they_are_right(kernels, how, said):
    assert re.search(said, kernels(judged, how))


def rounding(form: str, width: int, name: str) -> list[float]:
    """Return the relative errors of bfloat16 against the chunked path in float32."""
    from gnnscale.models.kernels.fused_sums import FusedSums

    made = random_graph()
    shape, parts = (len(made.numbers), len(made.receivers), width, 8, form), on_device(split_into_chunks(made, 60))
    exact = outcome(Sums, parts, *shape, SINGLE, "all")
    return relative(outcome({"FusedSums": FusedSums, "Sums": Sums}[name], parts, *shape, HALF, "all"), exact)


def network(form: str, forces: str, edge_chunk: int | None, fused: bool) -> torch.Tensor:
    """Energies, forces and the gradient of a loss of a whole network, in one row."""
    torch.manual_seed(0)
    config = EGNNConfig(width=16, depth=2, cutoff=CUTOFF, form=form, forces=forces)
    potential = build(config, sources=2, average_degree=12.0, edge_chunk=edge_chunk)
    torch.nn.init.normal_(potential.backbone.readout.weight)
    rng, alone = np.random.default_rng(1), Sample(np.array([8]), np.zeros((1, 3)), np.zeros((3, 3)), np.zeros(3, bool))
    made = make_batch([alone, make_molecule(rng, 5), make_crystal(rng, 1), alone], CUTOFF, SINGLE)
    potential, made = potential.to(DEVICE), AtomGraphs(*(x.to(DEVICE) for x in made))
    with pytest.MonkeyPatch.context() as patch:
        for module in (messages, edges):  # without a GPU, Triton's interpreter takes its place
            patch.setattr(module, "can_fuse", lambda x: fused)
        if fused:
            patch.setattr(messages, "Sums", None)  # not to be used
        out = potential(made)
        loss = out.energy.square().sum() + (out.forces - 0.3).square().sum()
        loss.backward()
    found = [out.energy, out.forces, *(p.grad for p in potential.parameters())]
    return torch.cat([x.detach().double().cpu().reshape(-1) / max(1, x.numel()) ** 0.5 for x in found])


@pytest.mark.slow
@pytest.mark.parametrize(
    "form, forces, edge_chunk",
    [("deferred", "direct", None), ("edge", "direct", 20), ("deferred", "gradient", 20)],
)
def test_a_network_is_the_same_with_kernels(kernels, form, forces, edge_chunk):
    plain = network(form, forces, None, fused=False)
    fused = kernels(network, form, forces, edge_chunk, True)
    assert float((fused - plain).norm() / plain.norm()) < 1e-5


@pytest.mark.slow
def test_a_training_on_a_cpu_never_imports_triton():
    program = """
import sys, torch
from gnnscale.architectures.egnn import EGNNConfig
from tests.benchmarks.bench_step import liquid, potential, step
import gnnscale.train.loop
for chunk in (None, 500):
    step(potential(EGNNConfig(width=8, depth=1), chunk), liquid(1))()
assert not {"triton", "gnnscale.models.kernels.triton"} & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


class Recorder:
    """In the place of a kernel: keeps what it would be launched with, once for each type of its arguments."""

    launches: dict[str, tuple] = {}

    def __init__(self, kernel):
        self.kernel = kernel

    def __getitem__(self, grid):
        return self.record

    def record(self, *arguments, enable_fp_fusion: bool, **constants):
        names, types = self.kernel.arg_names, {SINGLE: "*fp32", HALF: "*bf16", torch.int32: "*i32", torch.int64: "*i64"}
        signature = {
            name: types[x.dtype] if isinstance(x, torch.Tensor) else "i32"
            for name, x in zip(names, arguments, strict=False)
        }
        signature = {name: signature.get(name, "constexpr") for name in names}
        self.launches[str((self.kernel.__name__, signature, constants))] = (self.kernel, signature, constants)


def compiled_for(target: tuple[str, int | str, int], cache: str) -> list[str]:
    """Compile the kernels that a training with either form and either kind of forces launches; return their signatures."""
    import triton
    from triton.backends.compiler import GPUTarget

    from gnnscale.models.kernels import fused_sums

    os.environ["TRITON_CACHE_DIR"] = cache
    kernels = [name for name in dir(fused_sums) if name.endswith("_kernel")]
    with pytest.MonkeyPatch.context() as patch:
        for name in kernels:
            patch.setattr(fused_sums, name, Recorder(getattr(fused_sums, name)))
        patch.setattr(torch.version, "hip", "6" if target[0] == "hip" else None)
        for form, wanted in (
            ("edge", "learning"),
            ("deferred", "learning"),
            ("edge", "geometry"),
            ("deferred", "geometry"),
        ):
            made = random_graph()
            shape = (len(made.numbers), len(made.receivers), 64, 3, form)
            outcome(fused_sums.FusedSums, split_into_chunks(made, 10**6), *shape, HALF, wanted)
    for kernel, signature, constants in Recorder.launches.values():
        source = triton.compiler.ASTSource(kernel, signature, constants)
        triton.compile(source, target=GPUTarget(*target))
    assert {kernel.__name__ for kernel, *_ in Recorder.launches.values()} == set(kernels)
    return list(Recorder.launches)


@pytest.mark.slow
@pytest.mark.parametrize("target", [("cuda", 90, 32), ("hip", "gfx90a", 64)], ids=["H200", "MI250X"])
def test_kernels_compile_without_a_gpu(target, tmp_path):
    """To machine code, by the compiler that Triton brings."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        assert len(pool.submit(compiled_for, target, str(tmp_path)).result()) >= 10
