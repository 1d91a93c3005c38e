"""A batch is its structures side by side, with the neighbours that each has alone, for every storage backend."""

import numpy as np
import pytest
import torch

from gnnscale.atoms.graph import edge_vectors
from gnnscale.atoms.neighbors import find_edges
from gnnscale.contract import errors, files
from gnnscale.contract.dataset_card import ShardCard
from gnnscale.data.loading import held
from gnnscale.data.loading.corpus import load_corpus, make_batch, make_batch_of_share
from gnnscale.data.storage import adios, splits
from gnnscale.data.storage.mapped import open_shards


def sources(converted):
    return {need.removeprefix("convert/"): path for need, path in converted.items()}


def everything(corpus):
    return corpus.select(np.arange(len(corpus)))


def test_a_batch_equals_its_structures(converted):
    corpus = load_corpus(sources(converted), "train", 4.0)
    chosen = np.array([3, 0, len(corpus) - 1, 17])
    whole, labels = make_batch(corpus, chosen)
    atoms = edges = 0
    for position, k in enumerate(chosen):
        single, label = make_batch(corpus, np.array([k]))
        n, e = len(single.numbers), len(single.senders)
        assert torch.equal(whole.numbers[atoms : atoms + n], single.numbers)
        assert torch.equal(whole.positions[atoms : atoms + n], single.positions)
        assert torch.equal(whole.senders[edges : edges + e] - atoms, single.senders)
        assert torch.equal(whole.receivers[edges : edges + e] - atoms, single.receivers)
        assert torch.equal(edge_vectors(whole)[edges : edges + e], edge_vectors(single))
        assert torch.equal(labels.forces[atoms : atoms + n], label.forces)
        assert labels.energy[position] == label.energy[0] and whole.source[position] == single.source[0]
        atoms, edges = atoms + n, edges + e
    assert atoms == len(whole.numbers) and edges == len(whole.senders)


def test_a_batch_is_what_adios2_reads(converted):
    """Compare with ADIOS2's reader, one structure at a time."""
    corpus = load_corpus(sources(converted), "validation", 4.0)
    at = 0
    for index, path in enumerate(converted.values()):
        packed = adios.read(path / "shards")
        for k in np.flatnonzero(packed.split == splits.NAMES.index("validation")):
            atoms = slice(packed.ptr[k], packed.ptr[k + 1])
            graphs, labels = make_batch(corpus, np.array([at]))
            i, j, shifts = find_edges(packed.positions[atoms], packed.cell[k], packed.pbc[k], 4.0)
            for mine, theirs in (
                (graphs.numbers, packed.numbers[atoms]),
                (graphs.positions, packed.positions[atoms]),
                (graphs.receivers, i),
                (graphs.senders, j),
                (graphs.shifts, shifts),
                (graphs.cell[0], packed.cell[k]),
                (labels.forces, packed.forces[atoms]),
                (labels.energy, packed.energy[k : k + 1]),
                (labels.stress[0], packed.stress[k]),
            ):
                np.testing.assert_array_equal(mine.numpy(), theirs)
            assert graphs.source.tolist() == [index]
            at += 1
    assert at == len(corpus) > 2


@pytest.mark.parametrize("structures", [None, 30])
def test_data_in_memory_are_those_on_disk(converted, structures):
    mapped, held = (load_corpus(sources(converted), "train", 4.0, structures, backend=b) for b in ("map", "memory"))
    chosen = np.random.default_rng(0).integers(0, len(mapped), 40)
    for one, other in zip(make_batch(mapped, chosen), make_batch(held, chosen)):
        for a, b in zip(one, other):
            np.testing.assert_array_equal(a.numpy(), b.numpy())


def assert_same_bits(one, other):
    for made, expected in zip(one, other, strict=True):
        for name, a, b in zip(made._fields, made, expected, strict=True):
            assert (a.dtype, a.shape, a.numpy().tobytes()) == (b.dtype, b.shape, b.numpy().tobytes()), name


@pytest.mark.parametrize("backend", ["map", "memory"])
@pytest.mark.parametrize("structures", [None, 30])
def test_batches_of_held_structures_are_the_same_bits(converted, structures, backend, monkeypatch):
    monkeypatch.setattr(held, "BLOCK", 7)  # which divides nothing
    read, kept = (
        load_corpus(sources(converted), "train", 4.0, structures, backend=backend, hold=hold) for hold in (False, True)
    )
    assert read.held is None and kept.held is not None
    draw = np.random.default_rng(0)
    for size in (1, 5, 40):  # with repetitions, as across two epochs
        chosen = draw.integers(0, len(read), size)
        assert_same_bits(make_batch(kept, chosen), make_batch(read, chosen))
    everything_of_it = np.arange(len(read))
    assert_same_bits(make_batch(kept, everything_of_it), make_batch(read, everything_of_it))


def test_structures_are_held_up_to_a_limit(converted, monkeypatch):
    corpus = load_corpus(sources(converted), "train", 4.0, hold=True)
    arrays = [value for value in vars(corpus.held).values() if isinstance(value, np.ndarray)]
    counted = held.count_bytes(corpus.natoms, corpus.nedges)
    assert sum(array.nbytes for array in arrays) == counted
    for limit, is_held in ((counted, True), (counted - 1, False)):
        monkeypatch.setattr("gnnscale.data.loading.corpus.MOST_BYTES", limit)
        assert (load_corpus(sources(converted), "train", 4.0, hold=True).held is not None) == is_held


def test_edges_are_sorted_and_within_the_cutoff(converted):
    corpus = load_corpus(sources(converted), "train", 4.0)
    graphs, _ = make_batch(corpus, np.arange(len(corpus)))
    assert (graphs.receivers.diff() >= 0).all()
    assert edge_vectors(graphs).norm(dim=1).max() < 4.0


@pytest.mark.parametrize("cutoff", [4.0, 3.5, 5.0])
def test_edges_are_counted_without_being_made(converted, cutoff):
    """Edge counts are in the shards for the conversion's cutoff of 4; for others they are counted."""
    corpus = load_corpus(sources(converted), "test", cutoff, threads=2)
    for k in range(len(corpus)):
        graphs, _ = make_batch(corpus, np.array([k]))
        assert (corpus.natoms[k], corpus.nedges[k]) == (len(graphs.numbers), len(graphs.senders))
        assert corpus.costs(np.array([k])) == [3 * len(graphs.numbers) + 2 * len(graphs.senders)]
    assert corpus.edges == corpus.nedges.sum() and corpus.atoms == len(everything(corpus).numbers)


def test_splits_share_no_group_and_subsets_are_nested(converted):
    groups = [set(everything(load_corpus(sources(converted), name, 4.0)).group) for name in splits.NAMES]
    assert not groups[0] & groups[1] and not groups[0] & groups[2] and not groups[1] & groups[2]
    small, large = (load_corpus(sources(converted), "train", 4.0, n) for n in (10, 30))
    assert len(small) == 10 and len(large) == 30
    assert set(everything(small).energy) <= set(everything(large).energy)


@pytest.mark.parametrize("hidden", ["nothing", "some forces", "all forces", "energies", "some stress"])
def test_labels_are_counted_as_they_are(converted, tmp_path, hidden):
    path = converted["convert/bulk"]
    packed, card = adios.read(path / "shards"), files.read_model(path / "card.json", ShardCard)
    forces, energy, stress = packed.forces.copy(), packed.energy.copy(), packed.stress.copy()
    forces[{"some forces": slice(0, None, 5), "all forces": slice(None)}.get(hidden, slice(0))] = np.nan
    energy[slice(None) if hidden == "energies" else slice(0)] = np.nan
    stress[slice(0, None, 3) if hidden == "some stress" else slice(0), 0, 1] = np.nan
    packed = packed._replace(forces=forces, energy=energy, stress=stress)
    units = open_shards(path / "shards").units
    (tmp_path / "shards").mkdir()
    adios.write_manifest(tmp_path / "shards", [adios.write_packed(tmp_path / "shards" / "0.bp", packed, 4.0, units)])
    files.write_model(tmp_path / "card.json", card)
    for split in splits.NAMES:
        corpus = load_corpus({"bulk": tmp_path}, split, 4.0)
        for k in range(len(corpus)):
            _, labels = make_batch(corpus, np.array([k]))
            assert corpus.labels[k].tolist() == [int(kind.isfinite().sum()) for kind in labels]


def test_a_rank_without_a_share_has_nothing_to_learn(converted):
    corpus = load_corpus(sources(converted), "train", 4.0)
    graphs, labels = make_batch_of_share(corpus, np.zeros(0, np.int64))
    assert len(graphs.cell) == 1 and all(label.isnan().all() for label in labels)


def test_altered_shards_are_noticed_when_their_time_tells(converted, tmp_path):
    import shutil

    made = tmp_path / "bulk"
    shutil.copytree(converted["convert/bulk"], made)
    assert len(load_corpus({"bulk": made}, "train", 4.0))
    data = next((made / "shards").rglob("data.0"))
    content = bytearray(data.read_bytes())
    content[len(content) // 2] ^= 1
    data.write_bytes(content)
    with pytest.raises(errors.BadFile, match="altered since it was written"):
        load_corpus({"bulk": made}, "train", 4.0)
