"""Extended XYZ: read as ASE reads it, faults with frame and line, large files in ranges of bytes."""

import bz2
import gzip
import lzma

import numpy as np
import pytest

from gnnscale.atoms.units import ENERGY_UNITS
from gnnscale.data.formats import extxyz, frame_counts
from gnnscale.data.formats.raw_files import Location
from gnnscale.data.formats.structure_counts import StructureCounts
from tests.support import layouts
from tests.support.raw import is_same, load_script, read_all, read_until_fault, require_sample


def test_a_second_frame_is_told_with_its_line(tmp_path):
    path = layouts.write_extxyz(tmp_path, layouts.make_crystals())
    lines = path.read_text().splitlines(keepends=True)
    lines[7] = lines[7].replace(".", "o", 1)  # frame 1 has lines 6 to 10
    path.write_text("".join(lines))
    kept, fault = read_until_fault("extxyz", path)
    assert len(kept) == 1 and "frame 1, line 8" in str(fault) and "is not a number" in str(fault)


def test_extended_xyz_in_other_units_and_keys(tmp_path):
    known = layouts.make_crystals()[0]
    volume = np.linalg.det(known.cell)

    def extra(k, s):
        six = (-s.stress * volume / ENERGY_UNITS["kcal/mol"])[[0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1]]
        words = " ".join(map(repr, six.tolist()))
        return f'REF_energy={s.energy / ENERGY_UNITS["kcal/mol"]!r} REF_virial="_JSON [{words.replace(" ", ", ")}]"'

    text = layouts.format_extxyz([known._replace(forces=known.forces / ENERGY_UNITS["kcal/mol"])], extra)
    (tmp_path / "a.xyz").write_text(text.replace("forces:R:3", "REF_forces:R:3"))
    keys = {"energy": "REF_energy", "forces": "REF_forces", "virial": "REF_virial", "energy_unit": "kcal/mol"}
    (found,), _ = read_all("extxyz", tmp_path, **keys)
    assert is_same(found, known)


def test_labels_that_a_frame_lacks_are_nan(tmp_path):
    lines = ["2", 'Properties=species:S:1:pos:R:3 energy=-32.0 pbc="F F F"', "H 0 0 0", "H 0 0 0.74", ""]
    (tmp_path / "a.xyz").write_text("\n".join([*lines, "1", "energy=-13.6", "H 0 0 0", ""]))
    (found, atom), _ = read_all("extxyz", tmp_path)
    assert found.energy == -32.0 and np.isnan(found.forces).all() and np.isnan(found.stress).all()
    assert atom.is_reference and not found.is_reference


def test_an_s2ef_pair_that_disagrees(tmp_path):
    layouts.write_oc20(tmp_path, layouts.make_crystals(stress=False))
    lines = lzma.open(tmp_path / "0.txt.xz", "rt").readlines()
    for some, short in ((lines[:-1], "0.txt.xz"), ([*lines, lines[0]], "0.extxyz.xz")):
        with lzma.open(tmp_path / "0.txt.xz", "wt") as file:
            file.writelines(some)
        kept, fault = read_until_fault("oc20", tmp_path)
        assert len(kept) == min(9, len(some)) and "one is truncated" in str(fault)
        assert str(fault).startswith(str(tmp_path / short))
    with lzma.open(tmp_path / "0.txt.xz", "wt") as file:
        file.writelines([lines[0], "random0;frame1;2\n"])
    _, fault = read_until_fault("oc20", tmp_path)
    assert "0.txt.xz: line 2: system,frame,energy was expected" in str(fault)
    (tmp_path / "0.txt.xz").unlink()
    with pytest.raises(FileNotFoundError, match=r"0\.txt\.xz: missing beside"):
        load_script("oc20").input_files(load_script("oc20").Options(raw=str(tmp_path)))


def test_extended_xyz_is_read_as_ase_reads_it():
    import ase.io

    for name in ("mad_1k/mad_small_val.xyz", "bpa3_train/train_mixedT.xyz", "qm9_format/qm9_reduced_100.xyz"):
        with Location(require_sample(name)) as location:
            for mine, other in zip(extxyz.read_frames(location), ase.io.iread(location.path, ":60")):
                assert np.array_equal(mine.numbers, other.numbers) and np.array_equal(mine.pbc, other.pbc)
                assert np.array_equal(mine.columns["pos"], other.positions)
                assert np.array_equal(mine.cell, other.cell.array)
                assert "forces" not in mine.columns or np.array_equal(mine.columns["forces"], other.get_forces())
                assert set(other.info) <= set(mine.info)


@pytest.mark.parametrize("size", [1, 37, 200, 1000, 10**9])
def test_ranges_of_bytes_have_every_frame_once(tmp_path, monkeypatch, size):
    """Cuts fall in a comment, in a number, between frames, and in a frame whose comment is a number too."""
    known = layouts.make_crystals() + layouts.make_molecules()
    path = layouts.write_extxyz(tmp_path, known)
    path.write_text(path.read_text() + "\n\n" + "2\n3\nH 0 0 0\nH 0 0 1\n" * 3 + "3\n2\nO 0 0 0\nH 0 0 1\nH 0 1 0\n")
    with Location(path) as location:
        whole = list(extxyz.read_frames(location))
    assert len(whole) == len(known) + 4
    monkeypatch.setattr(extxyz, "BYTES_PER_PIECE", size)
    pieces = extxyz.pieces_by_bytes(str(tmp_path), Location(path), None, StructureCounts())
    assert len(pieces) == max(1, -(-path.stat().st_size // size)) and len({piece.name for piece in pieces}) == len(
        pieces
    )
    found = []
    for piece in pieces:
        with Location(path) as location:
            found += list(extxyz.read_frames(location, piece.span))
    assert len(found) == len(whole)
    for one, two in zip(found, whole):
        assert np.array_equal(one.columns["pos"], two.columns["pos"]) and one.info == two.info


def test_a_fault_in_a_later_range_is_told_with_its_place(tmp_path, monkeypatch):
    monkeypatch.setattr(extxyz, "BYTES_PER_PIECE", 900)
    path = layouts.write_extxyz(tmp_path, layouts.make_crystals())
    text = path.read_text()
    path.write_text(text[:-30].rstrip("\n") + "x\n")
    kept, fault = read_until_fault("extxyz", tmp_path)
    assert len(kept) == 8 and "counted from byte" in str(fault) and str(path) in str(fault)


def test_pieces_count_their_structures(tmp_path, monkeypatch):
    """Frames of very different size, the smallest first: an estimate from the first frame would be 20 times too large."""
    small, large = layouts.make_molecules()[:1], layouts.make_crystals()[0]
    large = large._replace(numbers=np.tile(large.numbers, 60), positions=np.tile(large.positions, (60, 1)))
    large = large._replace(forces=np.zeros_like(large.positions))
    path = layouts.write_extxyz(tmp_path, [*small, *[large] * 30])
    with Location(path) as location:
        (piece,) = extxyz.pieces_by_bytes(str(tmp_path), location, None, StructureCounts())
        assert (piece.structures, piece.name, piece.span) == (31, "mine.extxyz", None)
        for opener in (lzma, gzip, bz2):
            packed = tmp_path / f"b.xyz.{ {lzma: 'xz', gzip: 'gz', bz2: 'bz2'}[opener] }"
            packed.write_bytes(opener.compress(path.read_bytes()))
            with Location(packed) as beside:
                assert extxyz.pieces_by_bytes(str(tmp_path), beside, None, StructureCounts())[
                    0
                ].structures == pytest.approx(31)
        monkeypatch.setattr(extxyz, "BYTES_PER_PIECE", 30_000)
        parts = extxyz.pieces_by_bytes(str(tmp_path), location, None, StructureCounts())
        counted = [sum(1 for _ in extxyz.read_frames(location, part.span)) for part in parts]
        assert [part.structures for part in parts] == pytest.approx(counted, abs=1e-6) and len(parts) > 3
        monkeypatch.setattr(frame_counts, "BYTES_TO_COUNT", 1)
        monkeypatch.setattr(frame_counts, "SAMPLE_BYTES", 20_000)
        monkeypatch.setattr(frame_counts, "SAMPLES", 3)
        sampled = [part.structures for part in extxyz.pieces_by_bytes(str(tmp_path), location, None, StructureCounts())]
        assert sum(sampled) == pytest.approx(31, rel=0.35) and len(sampled) == len(parts)


def test_in_a_folder_of_very_many_files_a_few_are_counted(tmp_path):
    counts, asked = StructureCounts(), []
    path = tmp_path / "a.xyz"
    path.write_bytes(b"x" * 300)

    def count(k):
        asked.append(k)
        return 3.0

    found = [counts(".xyz", path, lambda k=k: count(k)) for k in range(1000)]
    assert found == pytest.approx([3.0] * 1000) and len(asked) == 64 + 3
    path.write_bytes(b"x" * 900)
    assert counts(".xyz", path, lambda: 0.0) == pytest.approx(9.0), "by its size"
    assert counts(".gz", path, lambda: 5.0) == 5.0, "each kind has its own"


def test_frames_of_equal_names_in_two_folders_are_told_apart(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        layouts.write_extxyz(tmp_path / name, layouts.make_crystals())
    found, _ = read_all("extxyz", tmp_path)
    assert len(found) == len({s.group for s in found}) == len({s.label for s in found}) == 18
