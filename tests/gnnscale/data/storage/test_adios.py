"""Structures are read back as written, by ADIOS2 and from the map, from one shard or many, and never in part."""

import json
import multiprocessing
import os
import signal
from pathlib import Path

import adios2
import numpy as np
import pytest

from gnnscale.atoms import neighbors
from gnnscale.atoms.structure import Structure
from gnnscale.contract import errors, files
from gnnscale.contract.dataset_card import Split
from gnnscale.data.storage import adios, manifest, mapped, reference_energies
from gnnscale.data.storage.packed import content_digest, pack


def random_structures(count, seed=0):
    """Draw molecules and crystals; crystals of one group share a cell, stresses are symmetric in some groups only."""
    rng = np.random.default_rng(seed)
    made, cell = [], np.zeros((3, 3))
    for k in range(count):
        atoms, group = int(rng.integers(1, 9)), k // 3
        if k % 3 == 0:
            cell = 4 * np.eye(3) + rng.normal(size=(3, 3)) / 2
        stress, forces = rng.normal(size=(3, 3)), rng.normal(size=(atoms, 3))
        if k % 11 == 3:
            stress[0] = np.nan  # only a part is known
        periodic = bool(rng.integers(2))
        made.append(
            Structure(
                numbers=rng.integers(1, 90, atoms),
                positions=rng.normal(size=(atoms, 3)),
                cell=cell if periodic else np.zeros((3, 3)),
                pbc=rng.integers(2, size=3) > 0 if periodic else np.zeros(3, bool),
                energy=float(rng.normal() * 1e4) if k % 7 else float("nan"),
                forces=forces if k % 5 else np.full((atoms, 3), np.nan),
                stress=(stress if group % 2 else stress + stress.T) if periodic and k % 4 else np.full((3, 3), np.nan),
                group=f"g{group}",
            )
        )
    return made


def in_shards(path, structures, size, split=None, cutoff=3.0, units=None):
    """Write several shards and the manifest, as a conversion does."""
    path.mkdir()
    entries = []
    for start in range(0, len(structures), size):
        held = structures[start : start + size]
        origins = units and [units[k] for k in range(start, start + len(held))]
        entries.append(adios.write_shard(path / f"{start:05}.bp", held, split or Split(), cutoff, origins))
    adios.write_manifest(path, entries)
    return entries


def equal(one, other):
    for name, array in one._asdict().items():
        found = getattr(other, name)
        assert array.dtype == found.dtype and array.shape == found.shape, name
        assert np.ascontiguousarray(array).tobytes() == np.ascontiguousarray(found).tobytes(), name


def test_written_is_read(tmp_path):
    structures, split = random_structures(50), Split(test=0.3)
    adios.write(tmp_path / "shards", structures, split, 3.0)
    packed = adios.read(tmp_path / "shards")
    for k, s in enumerate(structures):
        atoms = slice(packed.ptr[k], packed.ptr[k + 1])
        assert (packed.numbers[atoms] == s.numbers).all() and (packed.pbc[k] == s.pbc).all()
        np.testing.assert_array_equal(packed.energy[k], s.energy)
        np.testing.assert_array_equal(packed.positions[atoms], s.positions.astype(np.float32))
        np.testing.assert_array_equal(packed.forces[atoms], s.forces.astype(np.float32))
        np.testing.assert_array_equal(packed.stress[k], s.stress.astype(np.float32))
        np.testing.assert_array_equal(packed.cell[k], s.cell.astype(np.float32))
        assert packed.nedges[k] == len(
            neighbors.find_edges(packed.positions[atoms], packed.cell[k], packed.pbc[k], 3.0)[0]
        )
    for group in np.unique(packed.group):
        assert len(np.unique(packed.split[packed.group == group])) == 1, "a group straddles splits"


def test_reading_leaves_nothing_behind(tmp_path):
    """ADIOS2 writes its timings into the system's folder for temporary files, where they would accumulate."""
    in_shards(tmp_path / "shards", random_structures(20), 7)
    before = set(Path("/tmp").iterdir())
    adios.read(tmp_path / "shards")
    assert not [path for path in set(Path("/tmp").iterdir()) - before if f"_{os.getpid():x}_" in path.name]


def test_the_number_of_shards_does_not_matter(tmp_path):
    structures = random_structures(50)
    adios.write(tmp_path / "one", structures, Split(), 3.0)
    in_shards(tmp_path / "many", structures, 7, units=[("", k) for k in range(50)])
    one, many = adios.read(tmp_path / "one"), adios.read(tmp_path / "many")
    equal(one, many)
    totals = [mapped.open_shards(tmp_path / name).manifest.total for name in ("one", "many")]
    assert totals[0].content == totals[1].content == content_digest(one) == content_digest(many)
    exact = [t.model_dump(exclude={"energies", "forces_squared"}) for t in totals]
    assert exact[0] == exact[1], "counts, groups, extremes, elements"
    assert totals[0].forces_squared == pytest.approx(totals[1].forces_squared, rel=1e-12)


def test_the_digest_of_content_tells_every_change(tmp_path):
    packed, _ = pack(random_structures(9), Split(), 3.0)
    base = content_digest(packed)
    for name in ("numbers", "positions", "forces", "energy", "cell", "pbc", "stress", "group", "split"):
        array = getattr(packed, name).copy()
        array.reshape(-1)[-1] = 77
        assert content_digest(packed._replace(**{name: array})) != base, name
    turned = pack(random_structures(9)[::-1], Split(), 3.0)[0]
    assert content_digest(turned) != base, "the order counts"


def test_equal_data_make_equal_files(tmp_path):
    for name in ("a", "b"):
        in_shards(tmp_path / name, random_structures(20), 8)
    a, b = (files.describe_outputs(tmp_path / f"{name}", ["."]) for name in ("a", "b"))
    assert {n: f.sha256 for n, f in a.items()} == {n: f.sha256 for n, f in b.items()}


def test_a_shard_alone_says_all_about_itself(tmp_path):
    """entry.json is what write_shard returned, and ADIOS2's attribute is the same without the digests of its files."""
    (entry,) = in_shards(tmp_path / "shards", random_structures(20), 20)
    assert adios.read_entry(tmp_path / "shards" / "00000.bp") == entry
    with adios2.FileReader(str(tmp_path / "shards" / "00000.bp")) as reader:
        inside = manifest.ShardEntry.model_validate_json(reader.read_attribute("gnnscale"))
    assert inside.sums == entry.sums and inside.shard == entry.shard.model_copy(update={"files": {}})


def test_arrays_are_found_wherever_adios2_puts_them(tmp_path, monkeypatch):
    """A wrong guess of the offsets costs a second writing and changes nothing. Some large arrays do lie elsewhere."""
    in_shards(tmp_path / "guessed", random_structures(20), 20)
    monkeypatch.setattr(adios, "expected_offsets", lambda arrays: dict.fromkeys(arrays, 0))
    in_shards(tmp_path / "found", random_structures(20), 20)
    names = ("guessed", "found")
    assert (tmp_path / names[0] / "manifest.json").read_text() == (tmp_path / names[1] / "manifest.json").read_text()


def test_a_published_split_wins_and_an_unknown_one_is_told():
    structures = [s._replace(split=(None, "test", "validation")[k % 3]) for k, s in enumerate(random_structures(30))]
    packed, _ = pack(structures, Split(), 3.0)
    hashed, _ = pack(random_structures(30), Split(), 3.0)
    assert (packed.split[1::3] == 2).all() and (packed.split[2::3] == 1).all()
    assert (packed.split[::3] == hashed.split[::3]).all()
    with pytest.raises(ValueError, match=r"'dev'.*train, validation, test"):
        pack([structures[0]._replace(split="dev")], Split(), 3.0)


@pytest.mark.parametrize(
    "module, name", [(adios, "find_offsets"), (files, "sync_tree"), (os, "replace"), (files, "write_model")]
)
def test_a_writer_that_is_killed_leaves_nothing_that_looks_like_shards(tmp_path, monkeypatch, module, name):
    path = tmp_path / "shards"

    def dying():
        setattr(module, name, lambda *_: os.kill(os.getpid(), signal.SIGKILL))
        adios.write(path, random_structures(5), Split(), 3.0)

    child = multiprocessing.get_context("fork").Process(target=dying)
    child.start()
    child.join(120)
    assert child.exitcode == -signal.SIGKILL
    assert not path.exists()
    adios.write(path, random_structures(5), Split(), 3.0)
    assert len(adios.read(path).energy) == 5 and [p.name for p in tmp_path.iterdir()] == ["shards"]


def test_a_source_that_fails_leaves_nothing(tmp_path):
    def dying():
        yield from random_structures(5)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        adios.write(tmp_path / "shards", dying(), Split(), 3.0)
    with pytest.raises(errors.BadFile, match="has not finished"):
        mapped.open_shards(tmp_path / "shards")


@pytest.mark.parametrize("file", ["md.0", "md.idx", "data.0", "mmd.0"])
@pytest.mark.parametrize("harm", ["cut", "flip", "remove"])
def test_a_broken_file_is_named(tmp_path, file, harm):
    """ADIOS2 waits forever or crashes on some of these; a map would end the process at the missing page."""
    in_shards(tmp_path / "shards", random_structures(20), 20)
    path = tmp_path / "shards" / "00000.bp" / file
    whole = bytearray(path.read_bytes())
    path.unlink()
    if harm == "cut":
        path.write_bytes(whole[: len(whole) // 2])
    elif harm == "flip":
        whole[len(whole) // 2] ^= 1
        path.write_bytes(whole)
    with pytest.raises(errors.BadFile, match=f"00000.bp/{file}"):
        adios.read(tmp_path / "shards")
    if harm != "flip":
        for reading in (mapped.open_shards, lambda path: adios.read_entry(path / "00000.bp")):
            with pytest.raises(errors.BadFile, match=f"00000.bp/{file}"):
                reading(tmp_path / "shards")


def test_a_flipped_bit_is_told_with_variable_and_place(tmp_path):
    (entry,) = in_shards(tmp_path / "shards", random_structures(60), 60)
    path = tmp_path / "shards" / "00000.bp" / "data.0"
    whole = path.read_bytes()
    for name, block in entry.shard.variables.items():
        altered = bytearray(whole)
        altered[block.offset] ^= 4
        path.write_bytes(altered)
        with pytest.raises(errors.BadFile, match=f"variable {name}, between bytes {block.offset} and"):
            mapped.open_shards(tmp_path / "shards", check=True)


def test_the_place_of_damage_is_told_to_the_mebibyte(tmp_path):
    packed, units = pack(random_structures(2), Split(), 3.0)
    atoms = 200_000
    large = packed._replace(
        numbers=np.ones(atoms, np.uint8),
        positions=np.zeros((atoms, 3), np.float32),
        forces=np.zeros((atoms, 3), np.float32),
        natoms=np.array([1, atoms - 1], np.int32),
    )
    entry = adios.write_packed(tmp_path / "00000.bp", large, 3.0, units)
    adios.write_manifest(tmp_path, [entry])
    begin = entry.shard.variables["forces"].offset + (1 << 20)
    with (tmp_path / "00000.bp" / "data.0").open("r+b") as data:
        data.seek(begin + 17)
        data.write(b"\1")
    with pytest.raises(errors.BadFile, match=f"variable forces, between bytes {begin} and {begin + (1 << 20)}"):
        mapped.open_shards(tmp_path, check=True)


def test_older_shards_and_broken_manifests_are_refused_in_words(tmp_path):
    path = tmp_path / "manifest.json"
    path.write_text(json.dumps({"schema": "gnnscale.shards/1", "files": {"00000.bp/data.0": "5e"}}))
    with pytest.raises(errors.BadFile, match="older version of gnnscale; run the same command again"):
        mapped.open_shards(tmp_path)
    path.write_text("")
    with pytest.raises(errors.BadFile, match=r"manifest\.json: unreadable"):
        mapped.open_shards(tmp_path)
    path.unlink()
    with pytest.raises(errors.BadFile, match="has not finished"):
        mapped.open_shards(tmp_path)


def test_shards_of_other_folders_are_joined_by_relative_names(tmp_path):
    structures = random_structures(40)
    (tmp_path / "whole").mkdir()
    entries = []
    for part in range(2):
        for entry in in_shards(tmp_path / f"part.{part}", structures[part * 20 : part * 20 + 20], 9):
            moved = entry.shard.model_copy(update={"name": f"../part.{part}/{entry.shard.name}"})
            entries.append(entry.model_copy(update={"shard": moved}))
    adios.write_manifest(tmp_path / "whole", entries)
    adios.write(tmp_path / "one", structures, Split(), 3.0)
    there, one = mapped.open_shards(tmp_path / "whole"), mapped.open_shards(tmp_path / "one")
    assert there.manifest.total.content == one.manifest.total.content
    one, there = (s.select(np.arange(40)) for s in (one, there))
    equal(one._replace(origin=there.origin), there)
    with pytest.raises(ValueError, match=r"3\.0 and 4\.0"):
        adios.write_manifest(tmp_path / "whole", [entries[0], entries[1].model_copy(update={"cutoff": 4.0})])


def test_sums_are_those_of_the_arrays(tmp_path):
    structures = random_structures(90)
    in_shards(tmp_path / "shards", structures, 13, Split(test=0.3, validation=0.2))
    total, packed = mapped.open_shards(tmp_path / "shards").manifest.total, adios.read(tmp_path / "shards")
    train = packed.split == 0
    forces = packed.forces[np.repeat(train, packed.natoms)].astype(np.float64)
    elements, counts = manifest.composition(packed)
    learnt = train & np.isfinite(packed.energy)
    direct = reference_energies.sum_energies(elements, counts[learnt], packed.energy[learnt])
    assert total.energies.structures == learnt.sum() < len(learnt) and total.energies.elements == direct.elements
    for found, expected in zip(
        reference_energies.fit_references(total.energies)[0].values(),
        reference_energies.fit_references(direct)[0].values(),
    ):
        assert found == pytest.approx(expected, rel=1e-8)
    assert total.forces == np.isfinite(forces).sum()
    assert total.forces_squared == pytest.approx(np.nansum(forces**2), rel=1e-12)
    assert total.energy_per_atom == (np.nanmin(packed.energy / packed.natoms), np.nanmax(packed.energy / packed.natoms))
    assert (total.max_atoms, total.max_edges) == (packed.natoms.max(), packed.nedges.max())
    assert total.elements == {z: (packed.numbers == z).sum() for z in np.unique(packed.numbers)}
    for index, name in enumerate(("train", "validation", "test")):
        inside, count = packed.split == index, total.counts[name]
        assert (count.structures, count.atoms) == (inside.sum(), packed.natoms[inside].sum())
        assert (count.groups, count.edges) == (len(set(packed.group[inside])), packed.nedges[inside].sum())


def test_bytes_per_atom_and_structure(tmp_path):
    """Molecules take at most 25 and 40 bytes with all metadata; crystals with own cells and stresses take 62 more."""
    rng = np.random.default_rng(0)
    for kind, each in (("molecule", 40), ("relaxation", 56), ("crystal", 102)):
        chosen = [s for s in random_structures(6000) if s.pbc.any() == (kind != "molecule")]
        chosen = [s._replace(numbers=s.numbers % 8 + 1, forces=np.ones_like(s.forces)) for s in chosen]
        if kind == "crystal":
            cells = 4 * np.eye(3) + rng.normal(size=(len(chosen), 3, 3)) / 2
            chosen = [s._replace(cell=cell, stress=cell + cell.T) for s, cell in zip(chosen, cells)]
        elif kind == "relaxation":  # about 2.25 structures of a group share a cell
            chosen = [s._replace(stress=np.full((3, 3), np.nan)) for s in chosen]
        adios.write(tmp_path / kind, chosen, Split(), 3.0)
        atoms = sum(len(s.numbers) for s in chosen)
        size = sum(f.stat().st_size for f in (tmp_path / kind).rglob("*") if f.is_file())
        assert size <= 25 * atoms + each * len(chosen) + 15_000
    assert manifest.SCHEMA.endswith("/3"), "another layout is another schema"
