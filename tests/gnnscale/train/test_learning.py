"""Both kinds of forces are learned on every kind of data, whatever the size of energies beside that of forces.

Energies per atom of one molecule or of a liquid spread a hundredth of what their forces do, those of an alloy a quarter.
"""

from __future__ import annotations

import json
import lzma
from io import StringIO
from pathlib import Path

import ase.io
import numpy as np
import pytest
from ase import Atoms, units
from ase.build import bulk
from ase.calculators.lj import LennardJones
from ase.calculators.singlepoint import SinglePointCalculator

from gnnscale.contract import files, stage_run
from gnnscale.contract.dataset_card import ShardCard, Split
from gnnscale.contract.results import Evaluation
from gnnscale.contract.settings import ConvertSettings, EvaluateSettings, OptimSettings, TrainSettings
from gnnscale.stages import convert, evaluate, train
from tests.support.corpus import make_stage_directory
from tests.support.raw import require_sample

FRAMES, CUTOFF, STEPS = 160, 5.0, 400
# The mean error of forces over their rms, at most: a constant has .6 to .75.
MOST = {"molecule": 0.3, "liquid": 0.05, "alloy": 0.15, "relaxations": 0.3}


def read_molecule() -> list[Atoms]:
    return ase.io.read(require_sample("bpa3_train/train_300K.xyz"), f":{FRAMES}")


def make_liquid() -> list[Atoms]:
    """Return frames of a dense argon-like liquid: a lattice of 108 atoms, shaken hard."""
    crystal, rng = bulk("Ar", "fcc", a=5.4, cubic=True).repeat(3), np.random.default_rng(0)
    frames = []
    for _ in range(FRAMES):
        atoms = crystal.copy()
        atoms.positions += rng.normal(scale=0.35, size=(len(atoms), 3))
        atoms.calc = LennardJones(sigma=3.4, epsilon=120 * units.kB, rc=5.0, smooth=True)
        frames.append(label(atoms, atoms.get_potential_energy(), atoms.get_forces()))
    return frames


def read_alloy() -> list[Atoms]:
    found: list[Atoms] = []
    for name in ("Mo_AIMD", "NbMo_SS", "TaW_SS"):
        for entry in json.loads(require_sample(f"MoNbTaW/{name}.json").read_text())[:60]:
            sites, outputs = entry["structure"]["sites"], entry["outputs"]
            symbols = [site["species"][0]["element"] for site in sites]
            cell = entry["structure"]["lattice"]["matrix"]
            atoms = Atoms(symbols, positions=[site["xyz"] for site in sites], cell=cell, pbc=True)
            found.append(label(atoms, outputs["energy"], outputs["forces"]))
    return found


def read_relaxations() -> list[Atoms]:
    packed = require_sample("oc20_relaxations/s2ef_layout.DERIVED/0.extxyz.xz")
    text = lzma.decompress(packed.read_bytes()).decode()  # ASE would go back to the beginning for each frame
    return ase.io.read(StringIO(text), f":{FRAMES}", format="extxyz")


def label(atoms: Atoms, energy: float, forces: np.ndarray) -> Atoms:
    atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=np.array(forces))
    return atoms


KINDS = {"molecule": read_molecule, "liquid": make_liquid, "alloy": read_alloy, "relaxations": read_relaxations}


@pytest.fixture(scope="module", params=KINDS)
def converted(request, tmp_path_factory) -> tuple[str, Path]:
    """Return the name of a kind of data and its shards; every fifth frame or so is a test."""
    root = tmp_path_factory.mktemp(request.param)
    ase.io.write(root / "frames.extxyz", KINDS[request.param]())
    settings = ConvertSettings(
        dataset="extxyz",
        name=request.param,
        options={"raw": str(root / "frames.extxyz")},
        split=Split(validation=0.05, test=0.2),
        cutoff=CUTOFF,
    )
    made = make_stage_directory(root, f"convert/{request.param}", settings)
    outputs = convert.main(stage_run.Run(made))
    assert outputs.values["structures"] >= 100
    return request.param, made


@pytest.mark.parametrize("forces", ["direct", "gradient"])
def test_forces_are_learned_on_every_kind_of_data(converted, forces, tmp_path):
    kind, data = converted
    card = files.read_model(data / "card.json", ShardCard)
    batch = 4
    settings = TrainSettings(
        model={"kind": "egnn", "width": 32, "depth": 2, "cutoff": CUTOFF, "forces": forces},
        optim=OptimSettings(batch=batch, epochs=STEPS * batch / card.counts["train"].structures),
    )
    needs = {f"convert/{kind}": data}
    trained = make_stage_directory(tmp_path, "train/x", settings, needs)
    train.main(stage_run.Run(trained))
    held_out = make_stage_directory(tmp_path, "evaluate/x", EvaluateSettings(), {"train/x": trained, **needs})
    evaluate.main(stage_run.Run(held_out))
    found = files.read_model(held_out / "errors.json", Evaluation).all
    assert found.force_mae < MOST[kind] * card.force_rms
