"""A batch is its structures side by side, with the neighbours that each has alone."""

import numpy as np
import torch

from gnnscale.data import loader, splits
from gnnscale.graph import edge_vectors


def sources(converted):
    return {need.removeprefix("convert/"): path for need, path in converted.items()}


def test_a_batch_equals_its_structures(converted):
    corpus = loader.load(sources(converted), "train", 4.0)
    chosen = np.array([3, 0, len(corpus) - 1, 17])
    whole, labels = loader.batch(corpus, chosen)
    atoms = edges = 0
    for position, k in enumerate(chosen):
        single, label = loader.batch(corpus, np.array([k]))
        n, e = len(single.numbers), len(single.senders)
        assert torch.equal(whole.numbers[atoms : atoms + n], single.numbers)
        assert torch.equal(whole.positions[atoms : atoms + n], single.positions)
        assert torch.equal(whole.senders[edges : edges + e] - atoms, single.senders)
        assert torch.equal(whole.receivers[edges : edges + e] - atoms, single.receivers)
        assert torch.equal(edge_vectors(whole)[edges : edges + e], edge_vectors(single))
        assert torch.equal(labels.forces[atoms : atoms + n], label.forces)
        assert labels.energy[position] == label.energy[0]
        atoms, edges = atoms + n, edges + e
    assert atoms == len(whole.numbers) and edges == len(whole.senders)


def test_edges_are_sorted_and_within_the_cutoff(converted):
    corpus = loader.load(sources(converted), "train", 4.0)
    graphs, _ = loader.batch(corpus, np.arange(len(corpus)))
    assert (graphs.receivers.diff() >= 0).all()
    assert edge_vectors(graphs).norm(dim=1).max() < 4.0


def test_splits_share_no_group_and_subsets_are_nested(converted):
    groups = [set(loader.load(sources(converted), name, 4.0).packed.group) for name in splits.NAMES]
    assert not groups[0] & groups[1] and not groups[0] & groups[2] and not groups[1] & groups[2]
    small, large = (loader.load(sources(converted), "train", 4.0, n) for n in (10, 30))
    assert len(small) == 10 and len(large) == 30
    assert set(small.packed.energy) <= set(large.packed.energy)


def test_costs_count_atoms_and_edges(converted):
    corpus = loader.load(sources(converted), "test", 4.0)
    graphs, _ = loader.batch(corpus, np.arange(len(corpus)))
    assert corpus.costs.sum() == 3 * len(graphs.numbers) + 2 * len(graphs.senders)
