"""The stage `convert`: one dataset, through its script in datasets/, into ADIOS2 shards and a card.

python -m gnnscale.convert DIRECTORY
"""

from __future__ import annotations

import importlib.util
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
from ase.data import chemical_symbols
from pydantic import ValidationError

from gnnscale import stage
from gnnscale.data import loader, shards, splits
from gnnscale.data.structure import Structure
from gnnscale.specs import ConvertSettings, DatasetCard, ShardCard, SplitCount

DATASETS = Path(__file__).parent.parent / "datasets"


def main(run: stage.Run) -> stage.Outputs:
    settings: ConvertSettings = run.spec.settings
    script = load_script(settings.dataset)
    try:
        options = script.Options(**settings.options)
    except ValidationError as error:
        raise stage.Refusal(f"options of dataset {settings.dataset!r}: {error}") from None
    card, skipped = script.card(options), Counter()
    found = watched(run, script.structures(options, lambda reason: skipped.update([reason])), card.structures)
    path = run.directory / "shards"
    shards.write(path, found, settings.split)
    packed = shards.read(path)
    made = describe(packed, card, settings, dict(sorted(skipped.items())))
    run.write("card.json", made.model_dump_json(indent=1) + "\n")
    values = {"structures": len(packed.energy), "atoms": len(packed.numbers), "skipped": sum(skipped.values())}
    return stage.Outputs(files=["shards", "card.json"], values=values)


def load_script(name: str) -> ModuleType:
    """A dataset is one file, run by path: a package called `datasets` would shadow Hugging Face's."""
    path = DATASETS / f"{name}.py"
    if not path.exists():
        known = ", ".join(sorted(p.stem for p in DATASETS.glob("*.py")))
        raise stage.Refusal(f"no dataset {name!r} in {DATASETS}", f"known: {known}")
    spec = importlib.util.spec_from_file_location(f"datasets_{name}", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # pydantic looks types up there
    spec.loader.exec_module(module)
    return module


def watched(run: stage.Run, structures: Iterator[Structure], expected: int) -> Iterator[Structure]:
    for number, structure in enumerate(structures, 1):
        check(structure, number)
        run.progress(number, max(number, expected))
        yield structure


def check(structure: Structure, number: int) -> None:
    """A label may be NaN where it is lacking; a geometry may not, and shapes must agree."""
    atoms = len(structure.numbers)
    if not atoms or structure.positions.shape != (atoms, 3) or structure.forces.shape != (atoms, 3):
        raise stage.Refusal(
            f"structure {number} ({structure.label or structure.group}): {atoms} atoms, but positions "
            f"{structure.positions.shape} and forces {structure.forces.shape}",
            "mend the dataset's script",
            "data",
        )
    if not np.isfinite(structure.positions).all() or not np.isfinite(structure.cell).all():
        raise stage.Refusal(
            f"structure {number} ({structure.label or structure.group}): position not finite", "", "data"
        )


def describe(packed: shards.Packed, card: DatasetCard, settings: ConvertSettings, skipped: dict[str, int]) -> ShardCard:
    """Everything that normalisation, load balance and planning need to know of the shards."""
    train = packed.split == splits.NAMES.index("train")
    for name in ("train", "test"):
        if not (packed.split == splits.NAMES.index(name)).any():
            groups = len(np.unique(packed.group))
            raise stage.Refusal(
                f"{settings.name}: no structure falls into the {name} split ({groups} groups)",
                "ask for more structures, a larger share, or another split seed",
                "data",
            )
    elements, counts = composition(packed)
    known = np.isfinite(packed.energy)
    references, rank = fit_references(counts[train & known], packed.energy[train & known])
    residual = (packed.energy - counts @ references) / packed.natoms
    atoms_in_train = np.repeat(train, packed.natoms)
    edge_ptr = loader.neighbours(packed, settings.cutoff)[3]
    return ShardCard(
        card=card,
        cutoff=settings.cutoff,
        counts={name: count(packed, np.diff(edge_ptr), index) for index, name in enumerate(splits.NAMES)},
        elements={chemical_symbols[z]: int(counts[:, k].sum()) for k, z in enumerate(elements)},
        references={chemical_symbols[z]: float(references[k]) for k, z in enumerate(elements)},
        reference_rank=rank,
        energy_rms=rms(residual[train & known]),
        force_rms=rms(packed.forces[atoms_in_train]),
        skipped=skipped,
        content=shards.content(packed),
    )


def composition(packed: shards.Packed) -> tuple[np.ndarray, np.ndarray]:
    """(atomic numbers present, atoms of each in every structure (S, elements))"""
    elements, column = np.unique(packed.numbers, return_inverse=True)
    counts = np.zeros((len(packed.natoms), len(elements)))
    np.add.at(counts, (np.repeat(np.arange(len(packed.natoms)), packed.natoms), column), 1.0)
    return elements, counts


def fit_references(counts: np.ndarray, energy: np.ndarray) -> tuple[np.ndarray, int]:
    """Energy per element by least squares, around the mean energy of an atom.

    Narrow data leave some of them undetermined (an oxide's metal and oxygen come in step). The solution of least norm
    *about the mean* then keeps every reference, also that of an element which training never saw, near a real one.
    """
    if not len(energy):
        return np.zeros(counts.shape[1]), 0  # a source without energies
    mean = energy.sum() / counts.sum()
    solution, _, rank, _ = np.linalg.lstsq(counts, energy - mean * counts.sum(1), rcond=1e-10)
    return mean + solution, int(rank)


def rms(values: np.ndarray) -> float:
    known = values[np.isfinite(values)].astype(np.float64)
    return float(np.sqrt(np.mean(known**2))) if known.size else float("nan")


def count(packed: shards.Packed, edges: np.ndarray, split: int) -> SplitCount:
    chosen = packed.split == split
    return SplitCount(
        structures=int(chosen.sum()),
        groups=len(np.unique(packed.group[chosen])),
        atoms=int(packed.natoms[chosen].sum()),
        edges=int(edges[chosen].sum()),
    )


if __name__ == "__main__":
    stage.run(main)
