"""What is written is what is read, in one step or in many, and never half."""

import numpy as np
import pytest

from gnnscale import files
from gnnscale.data import shards
from gnnscale.data.structure import Structure
from gnnscale.specs import Split


def random_structures(count, seed=0):
    rng = np.random.default_rng(seed)
    made = []
    for k in range(count):
        atoms, periodic = int(rng.integers(1, 9)), bool(rng.integers(2))
        made.append(
            Structure(
                numbers=rng.integers(1, 90, atoms), positions=rng.normal(size=(atoms, 3)),
                cell=rng.normal(size=(3, 3)) if periodic else np.zeros((3, 3)), pbc=np.full(3, periodic),
                energy=float(rng.normal() * 1e4), forces=rng.normal(size=(atoms, 3)),
                stress=rng.normal(size=(3, 3)) if periodic else np.full((3, 3), np.nan), group=f"g{k // 3}",
            )
        )  # fmt: skip
    return made


def test_written_is_read(tmp_path):
    structures, split = random_structures(50), Split(test=0.3)
    shards.write(tmp_path / "shards", structures, split)
    packed = shards.read(tmp_path / "shards")
    for k, structure in enumerate(structures):
        atoms = slice(packed.ptr[k], packed.ptr[k + 1])
        assert (packed.numbers[atoms] == structure.numbers).all()
        assert packed.energy[k] == structure.energy
        np.testing.assert_array_equal(packed.positions[atoms], structure.positions.astype(np.float32))
        np.testing.assert_array_equal(packed.forces[atoms], structure.forces.astype(np.float32))
        np.testing.assert_array_equal(packed.stress[k], structure.stress.astype(np.float32))
        np.testing.assert_array_equal(packed.cell[k], structure.cell.astype(np.float32))
    for group in np.unique(packed.group):
        assert len(np.unique(packed.split[packed.group == group])) == 1, "a group straddles splits"


def test_the_number_of_shards_does_not_matter(tmp_path, monkeypatch):
    structures = random_structures(50)
    shards.write(tmp_path / "one", structures, Split())
    monkeypatch.setattr(shards, "SHARD", 7)
    shards.write(tmp_path / "many", iter(structures), Split())
    one, many = shards.read(tmp_path / "one"), shards.read(tmp_path / "many")
    assert shards.content(one) == shards.content(many)
    assert shards.content(one) != shards.content(one._replace(energy=one.energy + 1))


def test_equal_data_make_equal_files(tmp_path):
    for name in ("a", "b"):
        shards.write(tmp_path / f"{name}", random_structures(20), Split())
    a, b = (files.describe(tmp_path / f"{name}", ["."]) for name in ("a", "b"))
    assert {n: f.sha256 for n, f in a.items()} == {n: f.sha256 for n, f in b.items()}


def test_a_writer_that_dies_leaves_nothing_that_looks_like_shards(tmp_path):
    def dying():
        yield from random_structures(5)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        shards.write(tmp_path / "shards", dying(), Split())
    assert not (tmp_path / "shards").exists()
    shards.write(tmp_path / "shards", random_structures(5), Split())
    assert len(shards.read(tmp_path / "shards").energy) == 5


@pytest.mark.parametrize("file", ["md.0", "md.idx", "data.0", "mmd.0"])
@pytest.mark.parametrize("harm", ["cut", "flip", "remove"])
def test_a_broken_file_is_named(tmp_path, file, harm):
    """ADIOS2 itself waits for ever, or crashes, on some of these."""
    shards.write(tmp_path / "shards", random_structures(20), Split())
    path = tmp_path / "shards" / "00000.bp" / file
    whole = bytearray(path.read_bytes())
    path.unlink()
    if harm == "cut":
        path.write_bytes(whole[: len(whole) // 2])
    elif harm == "flip":
        whole[len(whole) // 2] ^= 1
        path.write_bytes(whole)
    with pytest.raises(files.BadFile, match=f"00000.bp/{file}"):
        shards.read(tmp_path / "shards")


def test_bytes_per_atom_and_structure(tmp_path):
    structures = random_structures(4000)
    shards.write(tmp_path / "shards", structures, Split())
    atoms = sum(len(s.numbers) for s in structures)
    size = sum(f.stat().st_size for f in (tmp_path / "shards").rglob("*") if f.is_file())
    assert size <= 25 * atoms + 112 * len(structures) + 20_000
