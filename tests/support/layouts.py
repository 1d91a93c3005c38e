"""A few known structures, written in the layout of each published dataset: its keys, units and signs, with our own constants.

LAYOUTS has every script of datasets/ that reads files; the folder is the registry, and test_datasets.py holds it to that.
"""

from __future__ import annotations

import bz2
import io
import json
import lzma
import pickle
import sys
import tarfile
import types
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import ase.db
import ase.io
import h5py
import lmdb
import numpy as np
import orjson
import torch
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.data import chemical_symbols

from gnnscale.atoms.structure import Structure

HARTREE, BOHR = 27.211386245988, 0.529177210903  # eV, Angstrom: CODATA 2018
KBAR = 1 / 1602.176634  # eV/Angstrom^3
ALL_ELECTRONS = {1: -13.6, 6: -1027.6, 7: -1484.3, 8: -2039.7}  # eV, as QM7-X's readers have them
VALENCE = {1: -3.4, 3: -1.9, 8: -4.9, 22: -7.8, 29: -4.1}  # eV, of elemental crystals
NAN = np.nan


def make_molecules(forces: bool = True, seed: int = 0) -> list[Structure]:
    """Make three molecules of each of three formulas."""
    rng = np.random.default_rng(seed)
    made = []
    for numbers in ([6, 1, 1, 1, 1], [7, 1, 1, 1], [6, 8, 1, 1]):
        total = 1.01 * sum(ALL_ELECTRONS[z] for z in numbers)
        for _ in range(3):
            made.append(
                Structure(
                    numbers=np.array(numbers),
                    positions=rng.normal(size=(len(numbers), 3)) * 2,
                    cell=np.zeros((3, 3)),
                    pbc=np.zeros(3, bool),
                    energy=total + rng.normal(),
                    forces=rng.normal(size=(len(numbers), 3)) if forces else np.full((len(numbers), 3), NAN),
                    stress=np.full((3, 3), NAN),
                    group="",
                )
            )
    return made


def make_crystals(stress: bool = True, seed: int = 0) -> list[Structure]:
    """Make three crystals of each of three materials, with cells that differ from their transpose."""
    rng = np.random.default_rng(seed)
    made = []
    for numbers in ([22, 8, 8], [3, 3, 8], [29, 29, 29, 29]):
        total = 1.2 * sum(VALENCE[z] for z in numbers)
        for _ in range(3):
            cell = np.diag([4.0, 5.0, 6.0]) + rng.normal(size=(3, 3)) * 0.4
            tension = rng.normal(size=(3, 3)) * 0.01
            made.append(
                Structure(
                    numbers=np.array(numbers),
                    positions=rng.random((len(numbers), 3)) @ cell,
                    cell=cell,
                    pbc=np.ones(3, bool),
                    energy=total + rng.normal() * 0.1,
                    forces=rng.normal(size=(len(numbers), 3)),
                    stress=(tension + tension.T) / 2 if stress else np.full((3, 3), NAN),
                    group="",
                )
            )
    return made


def group_by_three(structures: list[Structure]) -> list[list[Structure]]:
    return [structures[k : k + 3] for k in range(0, len(structures), 3)]


def list_symbols(structure: Structure) -> list[str]:
    return [chemical_symbols[z] for z in structure.numbers]


# ---------------------------------------------------------------------------------------------------------------- HDF5
def write_ani1x(path: Path, known: list[Structure]) -> Path:
    with h5py.File(path / "ani1x-release.h5", "w") as file:
        for name, some in zip("ABC", group_by_three(known)):
            group = file.create_group(name)
            group["atomic_numbers"] = some[0].numbers.astype(np.uint8)
            group["coordinates"] = np.array([s.positions for s in some])
            for level in ("wb97x_dz", "wb97x_tz"):
                group[f"{level}.energy"] = np.array([s.energy for s in some]) / HARTREE
                group[f"{level}.forces"] = np.array([s.forces for s in some]) / HARTREE
            group["ccsd(t)_cbs.energy"] = np.array([some[0].energy / HARTREE, NAN, NAN])
    return path / "ani1x-release.h5"


def write_spice(path: Path, known: list[Structure]) -> Path:
    with h5py.File(path / "SPICE-2.0.1.hdf5", "w") as file:
        for name, smiles, some in zip(
            ("1", "C=O", "x"), ("[H:1][C:2]", "[NH4+:1]", "[O-]C[Mg+2:7]"), group_by_three(known)
        ):
            group = file.create_group(name)
            group["atomic_numbers"] = some[0].numbers.astype(np.int16)
            group["conformations"] = np.array([s.positions for s in some]) / BOHR
            group["dft_total_energy"] = np.array([s.energy for s in some]) / HARTREE
            group["dft_total_gradient"] = -np.array([s.forces for s in some]) / HARTREE * BOHR
            group["smiles"] = [smiles]
    return path / "SPICE-2.0.1.hdf5"


def write_qm7x(path: Path, known: list[Structure]) -> Path:
    with h5py.File(path / "1000.hdf5", "w") as file:
        for name, some in zip(("1", "2", "10"), group_by_three(known)):
            for conformation, s in zip(("1", "2", "opt"), some):
                group = file.create_group(f"{name}/Geom-m{name}-i1-c1-{conformation}")
                group["atNUM"], group["atXYZ"] = s.numbers, s.positions
                group["ePBE0+MBD"], group["ePBE0"] = [s.energy], [s.energy + 0.25]
                group["totFOR"], group["pbe0FOR"] = s.forces, s.forces + 0.5
    (path / "DupMols.dat").write_text("Geom-m99-i1-c1-opt\n")
    return path / "1000.hdf5"


# ---------------------------------------------------------------------------------------------------------------- JSON
def to_pymatgen(s: Structure, forces: bool = False) -> dict:
    fractional = s.positions @ np.linalg.inv(s.cell)
    sites = [
        {
            "species": [{"element": symbol, "occu": 1}],
            "abc": abc.tolist(),
            "xyz": xyz.tolist(),
            "label": symbol,
            "properties": {"forces": force.tolist(), "magmom": 0.0} if forces else {},
        }
        for symbol, abc, xyz, force in zip(list_symbols(s), fractional, s.positions, s.forces)
    ]
    return {"@class": "Structure", "charge": 0.0, "lattice": {"matrix": s.cell.tolist()}, "sites": sites}


def make_frame(s: Structure) -> dict[str, Any]:
    """Make one frame of MPtrj."""
    return {
        "structure": to_pymatgen(s),
        "uncorrected_total_energy": s.energy,
        "corrected_total_energy": s.energy - 3.0,
        "energy_per_atom": (s.energy - 3.0) / len(s.numbers),
        "force": s.forces.tolist(),
        "stress": (-s.stress / KBAR).tolist(),
        "magmom": None,
    }


def write_mptrj(path: Path, known: list[Structure]) -> Path:
    content = {
        f"mp-{k}": {f"mp-{k}-0-{step}": make_frame(s) | {"mp_id": f"mp-{k}"} for step, s in enumerate(some)}
        for k, some in enumerate(group_by_three(known))
    }
    (path / "MPtrj_2022.9_full.json").write_text(json.dumps(content))
    return path / "MPtrj_2022.9_full.json"


def write_alexandria(path: Path, known: list[Structure]) -> Path:
    content = {
        f"agm{k}": [
            {
                "steps": [
                    {
                        "structure": to_pymatgen(s),
                        "energy": s.energy,
                        "forces": s.forces.tolist(),
                        "stress": (-s.stress / KBAR).tolist(),
                    }
                    for s in some
                ]
            }
        ]
        for k, some in enumerate(group_by_three(known))
    }
    with bz2.open(path / "alexandria_000.json.bz2", "wt") as file:
        json.dump(content, file)
    return path / "alexandria_000.json.bz2"


def write_alexandria_relaxed(path: Path, known: list[Structure]) -> Path:
    content = [
        {
            "structure": to_pymatgen(s, forces=True),
            "energy": s.energy,
            "data": {"mat_id": f"agm{k}", "energy_total": s.energy, "stress": np.eye(3).tolist()},
        }
        for k, s in enumerate(known)
    ]
    with bz2.open(path / "alexandria_000.json.bz2", "wt") as file:
        json.dump({"entries": content}, file)
    return path / "alexandria_000.json.bz2"


# ---------------------------------------------------------------------------------------------------------------- text
def format_extxyz(known: list[Structure], extra: Callable[[int, Structure], str], tags: bool = False) -> str:
    """Return extended XYZ with 17 digits, in the form of ASE with columns=..., but exact."""
    lines = []
    for k, s in enumerate(known):
        lattice = f'Lattice="{" ".join(map(repr, s.cell.ravel().tolist()))}" ' if s.pbc.any() else ""
        columns = "species:S:1:pos:R:3" + (":move_mask:L:1:tags:I:1" if tags else "") + ":forces:R:3"
        pbc = " ".join("FT"[int(p)] for p in s.pbc)
        lines += [str(len(s.numbers)), f'{lattice}Properties={columns} {extra(k, s)} pbc="{pbc}"']
        for symbol, xyz, force in zip(list_symbols(s), s.positions.tolist(), s.forces.tolist()):
            words = [symbol, *map(repr, xyz), *(["T", "1"] if tags else []), *map(repr, force)]
            lines.append(" ".join(words))
    return "\n".join(lines) + "\n"


def write_extxyz(path: Path, known: list[Structure]) -> Path:
    def extra(k: int, s: Structure) -> str:
        stress = " ".join(map(repr, s.stress.ravel().tolist()))
        return f'material=m{k // 3} energy={s.energy!r} stress="{stress}" flag note="two = words"'

    (path / "mine.extxyz").write_text(format_extxyz(known, extra))
    return path / "mine.extxyz"


def write_oc20(path: Path, known: list[Structure]) -> Path:
    with lzma.open(path / "0.extxyz.xz", "wt") as file:
        file.write(format_extxyz(known, lambda k, s: f"energy={s.energy!r} free_energy={s.energy + 0.1!r}", tags=True))
    with lzma.open(path / "0.txt.xz", "wt") as file:
        file.writelines(f"random{k // 3},frame{k % 3},{-2.5 * k}\n" for k in range(len(known)))
    return path / "0.extxyz.xz"


def write_qm9(path: Path, known: list[Structure]) -> Path:
    """Write every second number as Mathematica does: 1.5*^-1."""
    (path / "uncharacterized.txt").write_text("3054 of them\n\n====\n    77  CCO  C  1.0\n====\n")
    with tarfile.open(path / "dsgdb9nsd.xyz.tar.bz2", "w:bz2") as tar:
        for k, s in enumerate(known, 1):
            rows = [
                "\t".join([symbol, *(f"{x * 10!r}*^-1" if (n + j) % 2 else repr(x) for j, x in enumerate(xyz)), "0.1"])
                for n, (symbol, xyz) in enumerate(zip(list_symbols(s), s.positions.tolist()))
            ]
            energies = [repr(s.energy / HARTREE + 0.01 * j) for j in range(4)]  # U0 U H G
            head = "\t".join(["gdb", str(k), *["1.0"] * 10, *energies, "6.469"])
            content = "\n".join([str(len(s.numbers)), head, *rows, "1 2 3", "C\tC", "InChI=1S\tInChI=1S", ""]).encode()
            member = tarfile.TarInfo(f"dsgdb9nsd_{k:06d}.xyz")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path / "dsgdb9nsd.xyz.tar.bz2"


def write_deepmd(path: Path, known: list[Structure]) -> Path:
    """Write a system for each material, in two sets each."""
    for k, some in enumerate(group_by_three(known)):
        system = path / f"system{k}"
        system.mkdir()
        elements = sorted({*some[0].numbers.tolist()}, reverse=True)
        (system / "type_map.raw").write_text("\n".join(chemical_symbols[z] for z in elements))
        (system / "type.raw").write_text("\n".join(str(elements.index(z)) for z in some[0].numbers))
        for name, part in (("set.000", some[:2]), ("set.001", some[2:])):
            (system / name).mkdir()
            save = {
                "coord": [s.positions.ravel() for s in part],
                "box": [s.cell.ravel() for s in part],
                "energy": [s.energy for s in part],
                "force": [s.forces.ravel() for s in part],
                "virial": [-s.stress.ravel() * np.linalg.det(s.cell) for s in part],
            }
            for key, values in save.items():
                np.save(system / name / f"{key}.npy", np.array(values))
    return path / "system1" / "set.000" / "coord.npy"


# ---------------------------------------------------------------------------------------------------------------- LMDB
def write_lmdb(path: Path, content: dict[bytes, bytes]) -> Path:
    with (
        lmdb.open(str(path), subdir=False, map_size=1 << 24, lock=False) as environment,
        environment.begin(write=True) as t,
    ):
        for key, value in content.items():
            t.put(key, value)
    return path


def pickle_graph(attributes: dict[str, Any], version: int = 2) -> bytes:
    """Pickle a graph as torch_geometric pickles a Data, without having its classes."""
    data, storage = types.ModuleType("torch_geometric.data.data"), types.ModuleType("torch_geometric.data.storage")
    Data = data.Data = type("Data", (), {"__module__": data.__name__})
    Store = storage.GlobalStorage = type("GlobalStorage", (), {"__module__": storage.__name__})
    made, store = Data(), Store()
    store.__dict__.update(_mapping=attributes, _parent=made)
    made.__dict__.update({"_store": store} if version == 2 else attributes)
    names = {"torch_geometric": data, "torch_geometric.data": data, data.__name__: data, storage.__name__: storage}
    with mock.patch.dict(sys.modules, names):
        return pickle.dumps(made, protocol=4)


def make_graph(k: int, s: Structure) -> dict[str, Any]:
    """Make a graph in double precision, for an exact comparison; published ones have single precision."""
    return {
        "y": s.energy,
        "pos": torch.tensor(s.positions),
        "cell": torch.tensor(s.cell.T.copy()).T[None],  # strided
        "atomic_numbers": torch.tensor(s.numbers, dtype=torch.float32),
        "natoms": len(s.numbers),
        "force": torch.tensor(s.forces),
        "tags": torch.zeros(len(s.numbers)),
        "sid": k // 3,
        "fid": k % 3,
    }


def write_oc22(path: Path, known: list[Structure]) -> Path:
    content = {str(k).encode(): pickle_graph(make_graph(k, s), version=1 + k % 2) for k, s in enumerate(known)}
    return write_lmdb(path / "data.0000.lmdb", content | {b"length": pickle.dumps(len(known))})


def encode_ase_row(s: Structure, data: dict) -> bytes:
    def array(values: np.ndarray) -> dict:
        return {"__ndarray__": [list(values.shape), str(values.dtype), values.ravel().tolist()]}

    row = {
        "numbers": array(s.numbers),
        "positions": array(s.positions),
        "cell": array(s.cell),
        "pbc": array(s.pbc),
        "energy": float(s.energy),
        "forces": array(s.forces),
        "data": data,
    }
    if np.isfinite(s.stress).all():
        row["stress"] = array(s.stress[[0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1]])  # xx yy zz yz xz xy
    return zlib.compress(orjson.dumps(row))


def write_aselmdb(path: Path, known: list[Structure]) -> Path:
    content = {str(k).encode(): encode_ase_row(s, {"charge": k % 2, "spin": 1}) for k, s in enumerate(known, 1)}
    content[str(len(known) + 1).encode()] = b"deleted"
    end = {b"nextid": len(known) + 2, b"deleted_ids": [len(known) + 1]}
    packed = {key: zlib.compress(orjson.dumps(value)) for key, value in end.items()}
    return write_lmdb(path / "val.aselmdb", content | packed)


# ------------------------------------------------------------------------------------------------- of the user's own
def to_images(known: list[Structure]) -> list[Atoms]:
    images = []
    for k, s in enumerate(known):
        image = Atoms(s.numbers, s.positions, cell=s.cell, pbc=s.pbc, info={"material": f"m{k // 3}"})
        stress = s.stress[[0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1]]  # xx yy zz yz xz xy
        image.calc = SinglePointCalculator(image, energy=s.energy, forces=s.forces, stress=stress)
        images.append(image)
    return images


def write_trajectory(path: Path, known: list[Structure]) -> Path:
    ase.io.write(path / "mine.traj", to_images(known))
    return path / "mine.traj"


def write_database(path: Path, known: list[Structure], name: str = "mine.db") -> Path:
    with ase.db.connect(path / name) as database:
        for image in to_images(known):
            database.write(image, key_value_pairs={"material": image.info["material"]})
    return path / name


def write_ase_json(path: Path, known: list[Structure]) -> Path:
    return write_database(path, known, "mine.json")


def write_pymatgen_list(path: Path, known: list[Structure]) -> Path:
    entries = [
        {
            "structure": to_pymatgen(s),
            "outputs": {
                "energy": s.energy,
                "forces": s.forces.tolist(),
                "stress": (-s.stress / KBAR)[[0, 1, 2, 0, 1, 0], [0, 1, 2, 1, 2, 2]].tolist(),  # xx yy zz xy yz zx
            },
            "group": f"m{k // 3}",
            "tags": ["Md"],
        }
        for k, s in enumerate(known)
    ]
    (path / "mine.json").write_text(json.dumps(entries))
    return path / "mine.json"


def write_pyanitools(path: Path, known: list[Structure]) -> Path:
    with h5py.File(path / "ani_gdb_s01.h5", "w") as file:
        for k, some in enumerate(group_by_three(known)):
            group = file.create_group(f"gdb11_s01/gdb11_s01-{k}")
            group["species"] = [symbol.encode() for symbol in list_symbols(some[0])]
            group["coordinates"] = np.array([s.positions for s in some])
            group["energies"] = np.array([s.energy for s in some]) / HARTREE
            group["forces"] = np.array([s.forces for s in some]) / HARTREE
    return path / "ani_gdb_s01.h5"


# ------------------------------------------------------------------------------------------------------------ registry
class Layout(NamedTuple):
    """One way in which a dataset is written, with the structures that are written."""

    write: Callable[[Path, list[Structure]], Path]  # into a folder; returns the file that tests may spoil
    known: Callable[[], list[Structure]]
    options: dict[str, Any] = {}
    groups: int = 3


LAYOUTS: dict[str, list[Layout]] = {
    "extxyz": [Layout(write_extxyz, make_crystals, {"group": "material"}), Layout(write_extxyz, make_molecules, {}, 9)],
    "ani1x": [Layout(write_ani1x, make_molecules)],
    "mptrj": [Layout(write_mptrj, make_crystals)],
    "oc20": [
        Layout(write_oc20, lambda: make_crystals(stress=False), {"energy": "raw"}),
        Layout(write_oc22, lambda: make_crystals(stress=False), {"energy": "raw"}),
    ],
    "qm7x": [Layout(write_qm7x, make_molecules)],
    "oc22": [Layout(write_oc22, lambda: make_crystals(stress=False))],
    "spice": [Layout(write_spice, make_molecules)],
    "qm9": [Layout(write_qm9, lambda: make_molecules(forces=False), {}, 9)],
    "deepmd": [Layout(write_deepmd, make_crystals)],
    "ase_files": [
        Layout(write_trajectory, make_crystals, {"group": "material"}),
        Layout(write_database, make_crystals, {"group": "material"}),
        Layout(write_ase_json, make_crystals, {"group": "material"}),
    ],
    "pymatgen_json": [Layout(write_pymatgen_list, make_crystals, {"group": "group"})],
    "pyanitools": [Layout(write_pyanitools, make_molecules)],
    "alexandria": [
        Layout(write_alexandria, make_crystals),
        Layout(write_alexandria_relaxed, lambda: make_crystals(stress=False), {}, 9),
    ],
    "omat24": [Layout(write_aselmdb, make_crystals)],
    "omol25": [Layout(write_aselmdb, make_molecules)],
}
CASES = [(name, number) for name, layouts in LAYOUTS.items() for number in range(len(layouts))]
