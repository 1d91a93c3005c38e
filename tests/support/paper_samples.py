"""Real samples of the five data sets of arXiv 2504.08112, laid out as `gnnscale data fetch` leaves the published files.

Of QM7-X there are real geometries only; its sample has labels of a fast method. OC22's sample is OC20's in OC22's format.
"""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path

import h5py

from tests.support.layouts import make_frame, make_graph, pickle_graph, write_lmdb
from tests.support.raw import read_all, require_sample

OC22_FOLDER = "s2ef_total_train_val_test_lmdbs/data/oc22/s2ef-total"
ALL_ELECTRONS_PBE0 = {1: -13.64, 6: -1027.59, 7: -1484.27, 8: -2039.73, 16: -10828.71, 17: -12516.44}  # eV
OC22_FRAMES = 60
MPTRJ_FRAMES, MPTRJ_ATOMS = (
    60,
    12,
)  # frames beside those of the sample in the published format, and atoms of the largest


def lay_out_samples(folder: Path, oc20: str = "200K") -> None:
    """Lay out all five below the folder of published data."""
    lay_out_ani1x(folder / "ani1x")
    lay_out_qm7x(folder / "qm7x")
    lay_out_oc20(folder / "oc20" / oc20 / f"s2ef_train_{oc20}" / f"s2ef_train_{oc20}")
    lay_out_oc22(folder / "oc22" / OC22_FOLDER)
    lay_out_mptrj(folder / "mptrj")


def lay_out_ani1x(folder: Path) -> None:
    folder.mkdir(parents=True)
    shutil.copy(require_sample("ani1x_release_format/ani1_n5.hdf5"), folder / "ani1x-release.h5")


def lay_out_qm7x(folder: Path) -> None:
    """Write a molecule into each of the eight files; the sample has six, so that two come again, a little displaced."""
    folder.mkdir(parents=True)
    with h5py.File(require_sample("qm7x_geometries/qm7x_layout.SYNTHETIC.hdf5")) as sample:
        names = list(sample)
        for k in range(8):
            with h5py.File(folder / f"{k + 1}000.hdf5", "w") as file:
                sample.copy(names[k % len(names)], file, str(k + 1))
                for conformation in file[str(k + 1)].values():
                    conformation["atXYZ"][...] += 0.01 * (k // len(names))
                    for key in ("ePBE0", "ePBE0+MBD"):  # its labels are of valence electrons, the published ones of all
                        conformation[key][...] += sum(
                            ALL_ELECTRONS_PBE0[z] for z in conformation["atNUM"][...].tolist()
                        )
    shutil.copy(require_sample("qm7x_geometries/DupMols.SYNTHETIC.dat"), folder / "DupMols.dat")


def lay_out_oc20(folder: Path) -> None:
    folder.mkdir(parents=True)
    for name in ("0.extxyz.xz", "0.txt.xz"):
        shutil.copy(require_sample("oc20_relaxations/s2ef_layout.DERIVED") / name, folder / name)


def lay_out_oc22(folder: Path) -> None:
    """Write frames of OC20's sample in OC22's format, with total energies, and divide the systems among the splits."""
    known, _ = read_all("oc20", require_sample("oc20_relaxations/s2ef_layout.DERIVED"), energy="raw")
    known = known[:: len(known) // OC22_FRAMES]
    systems = sorted({structure.group for structure in known})
    for n, split in enumerate(("train", "val_id", "val_ood")):
        (folder / split).mkdir(parents=True)
        some = [structure for structure in known if structure.group in systems[n::3]]
        content = {
            str(k).encode(): pickle_graph(make_graph(k, each) | {"sid": each.group}) for k, each in enumerate(some)
        }
        write_lmdb(folder / split / "data.0000.lmdb", content | {b"length": pickle.dumps(len(some))})


def lay_out_mptrj(folder: Path) -> None:
    """Write the sample in the published format, and frames of the random sample in the same, each with its material."""
    folder.mkdir(parents=True)
    content = json.loads(require_sample("mptrj_1k/MPtrj_layout_sample.DERIVED.json").read_text())
    known, _ = read_all("extxyz", require_sample("mptrj_1k/mptrj-random-1k.xyz"), group="mptrj_traj_id")
    small = [each for each in known if len(each.numbers) < MPTRJ_ATOMS][:MPTRJ_FRAMES]
    content |= {structure.group: {f"{structure.group}-0-0": make_frame(structure)} for structure in small}
    (folder / "MPtrj_2022.9_full.json").write_text(json.dumps(content))
