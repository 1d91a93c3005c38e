"""The library reads and writes nothing beyond its arrays, whatever the batch: an address sanitizer watches it."""

import itertools
import shutil
import subprocess

import numpy as np
import pytest
import torch

from gnnscale.atoms.graph import AtomGraphs
from gnnscale.machine import native_build
from gnnscale.models.recording import record
from gnnscale.models.registry import build
from tests.support.architectures import make_config
from tests.support.corpus import ROOT
from tests.support.structures import CUTOFF, make_batch, make_crystal, make_molecule

SOURCES = 3
COPIES_FOR_THREADS = 13  # of four structures: threads share no smaller batch
FLAGS_OF_SET = {
    "baseline": (),
    "avx2": ("-mavx2", "-mfma"),
    "avx512": ("-mavx2", "-mfma", *(f"-mavx512{part}" for part in ("f", "bw", "cd", "dq", "vl"))),
}
WATCHED = ("-std=c++17", "-Og", "-g1", "-pthread", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")


def batches(copies):
    """Yield graphs: many structures, one, an atom alone, no edge at all, one edge, and many atoms that have one sender."""
    rng = np.random.default_rng(0)
    molecules, crystal = [make_molecule(rng, size) for size in (7, 1, 12)], make_crystal(rng, 4)
    many = [*molecules, crystal] * copies
    yield make_batch([each._replace(source=k % SOURCES) for k, each in enumerate(many)])
    yield make_batch([crystal])
    alone = make_batch([molecules[1]])
    yield alone
    few = make_batch([molecules[0], molecules[1]])
    yield few._replace(receivers=few.receivers[:0], senders=few.senders[:0], shifts=few.shifts[:0])
    yield few._replace(receivers=few.receivers[:1], senders=few.senders[:1], shifts=few.shifts[:1])
    star = few.senders == 0
    yield few._replace(receivers=few.receivers[star], senders=few.senders[star], shifts=few.shifts[star])


def write_case(file, graphs: AtomGraphs, dtype: torch.dtype) -> None:
    """Append a batch with random labels, some of which are missing."""
    atoms, structures = len(graphs.numbers), len(graphs.cell)
    sizes = atoms, len(graphs.receivers), structures, SOURCES
    energy, forces, stress = torch.randn(structures), torch.randn(atoms, 3), torch.randn(structures, 3, 3)
    energy[0], forces[0], stress[0] = torch.nan, torch.nan, torch.nan
    double = torch.float64
    for values, kind in (
        (torch.tensor(sizes), torch.int64),
        *((getattr(graphs, name), torch.int64) for name in ("numbers", "structure", "source", "receivers", "senders")),
        *((getattr(graphs, name), dtype) for name in ("positions", "shifts", "cell")),
        *((energy, double), (forces, dtype), (stress, dtype), (torch.randn(SOURCES, 119), double)),
    ):
        file.write(values.detach().to(kind).numpy().tobytes())


def write_networks(path, dtype: torch.dtype) -> None:
    """Write every kind of network, and every batch for each."""
    widths = {"width": 24, "depth": 2, "radial": 5}
    kinds = [
        *(
            {"form": form, "forces": forces}
            for form, forces in itertools.product(("deferred", "edge"), ("direct", "gradient"))
        ),
        {"form": "deferred", "forces": "gradient", "source_heads": True},
        *({"kind": "moments", "forces": forces} for forces in ("direct", "gradient")),
    ]
    with open(path, "wb") as file:
        file.write(np.array([dtype.itemsize, len(kinds)], np.int64).tobytes())
        for kind in kinds:
            torch.manual_seed(0)
            potential = build(make_config({"cutoff": CUTOFF} | widths | kind), SOURCES, 12.0)
            program = record(potential)
            assert not isinstance(program, str), program
            parameters = program.packing.pack(dict(potential.named_parameters()), dtype)
            file.write(np.array([len(program.code), *program.code], np.int64).tobytes())
            file.write(np.array([program.cutoff, program.scale]).tobytes())
            file.write(np.array([len(parameters)], np.int64).tobytes() + parameters.numpy().tobytes())
            cases = list(batches(COPIES_FOR_THREADS if kind in (kinds[0], kinds[3]) else 1))
            file.write(np.array([len(cases)], np.int64).tobytes())
            for graphs in cases:
                write_case(file, graphs, dtype)


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="needs g++")
@pytest.mark.parametrize(
    ("fastest", "dtype"), [(True, torch.float32), (False, torch.float64)], ids=["fastest", "baseline"]
)
def test_nothing_is_read_or_written_beyond_an_array(tmp_path, fastest, dtype):
    name = native_build.instruction_sets()[0] if fastest else "baseline"
    real = "float" if dtype == torch.float32 else "double"
    native, here = ROOT / "gnnscale" / "native", ROOT / "tests" / "gnnscale" / "native"
    program = tmp_path / "odd_inputs"
    command = ["g++", *WATCHED, *FLAGS_OF_SET[name], f"-DREAL={real}", f"-I{native}", "-o", program]
    subprocess.run([*command, here / "odd_inputs.cpp", native / "library.cpp"], check=True, timeout=300)
    write_networks(tmp_path / "inputs", dtype)
    done = subprocess.run([program, tmp_path / "inputs"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and done.stdout == "all is well\n", done.stderr[:3000]
