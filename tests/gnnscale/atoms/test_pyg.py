"""There and back again: a batch as torch_geometric's Data, and what others make with it as a batch."""

import numpy as np
import pytest
import torch
from torch_geometric.data import Batch, Data

from gnnscale.atoms.graph import edge_vectors
from gnnscale.atoms.pyg import from_pyg, to_pyg
from gnnscale.data.loading.corpus import load_corpus, make_batch


@pytest.fixture
def batch(converted):
    sources = {need.removeprefix("convert/"): path for need, path in converted.items()}
    corpus = load_corpus(sources, "train", 4.0)
    return make_batch(corpus, np.arange(0, len(corpus), 3))


def test_there_and_back(batch):
    graphs, labels = batch
    back, again = from_pyg(to_pyg(graphs, labels))
    for name in graphs._fields:
        assert torch.equal(getattr(back, name), getattr(graphs, name)), name
    for name in labels._fields:
        torch.testing.assert_close(getattr(again, name), getattr(labels, name), equal_nan=True, rtol=0, atol=0)


def test_pyg_batches_it_as_we_do(batch):
    """Its own collation shifts edge_index, so fields are named as it expects."""
    graphs, labels = batch
    whole = Batch.from_data_list(to_pyg(graphs, labels))
    assert torch.equal(whole.edge_index[1], graphs.receivers) and torch.equal(whole.edge_index[0], graphs.senders)
    assert torch.equal(whole.batch, graphs.structure)


def test_bare_data_of_others_are_taken(batch):
    pos = torch.tensor([[0.0, 0, 0], [1.1, 0, 0], [0, 1.2, 0]])
    bare = Data(z=torch.tensor([8, 1, 1]), pos=pos, edge_index=torch.tensor([[1, 0, 2, 0], [0, 1, 0, 2]]))
    graphs, labels = from_pyg([bare, bare])
    assert graphs.receivers.tolist() == [0, 0, 1, 2, 3, 3, 4, 5]
    assert labels.energy.isnan().all() and labels.forces.isnan().all()
    torch.testing.assert_close(edge_vectors(graphs).norm(dim=1)[:4], torch.tensor([1.1, 1.2, 1.1, 1.2]))
