"""The order of the data is a function: nothing lost, nothing twice, the same for any number of ranks."""

import numpy as np
from hypothesis import example, given
from hypothesis import strategies as st

from gnnscale.data.loading import batch_plan


@given(st.integers(1, 60), st.integers(1, 20), st.integers(0, 5))
def test_an_epoch_holds_every_structure_once(structures, batch, seed):
    size = min(batch, structures)
    row = np.concatenate(
        [batch_plan.global_batch(s, structures, batch, seed) for s in range(3 * structures // size + 1)]
    )
    for epoch in range(len(row) // structures):
        assert sorted(row[epoch * structures : (epoch + 1) * structures]) == list(range(structures))


@given(st.integers(1, 60), st.integers(1, 20), st.integers(0, 200))
def test_a_step_is_the_same_whenever_it_is_asked_for(structures, batch, step):
    one = batch_plan.global_batch(step, structures, batch, 3)
    assert (one == batch_plan.global_batch(step, structures, batch, 3)).all()
    assert len(one) == min(batch, structures)


def test_epochs_are_shuffled_differently():
    assert (batch_plan.global_batch(0, 30, 30, 0) != batch_plan.global_batch(1, 30, 30, 0)).any()
    assert (batch_plan.global_batch(0, 30, 30, 0) != batch_plan.global_batch(0, 30, 30, 1)).any()


@given(st.lists(st.floats(1, 1000), min_size=1, max_size=64), st.integers(1, 8))
def test_shares_hold_everything_once_and_are_balanced(costs, ranks):
    costs = np.array(costs)
    shares = batch_plan.divide_batch(costs, ranks)
    assert sorted(np.concatenate(shares)) == list(range(len(costs)))
    loads = [costs[share].sum() for share in shares]
    assert max(loads) <= sum(loads) / ranks + costs.max() + 1e-9  # the bound of longest-first


@given(st.lists(st.integers(1, 60), min_size=1, max_size=200), st.integers(1, 40))
def test_shares_are_those_of_longest_first_one_at_a_time(costs, ranks):
    """With many equal costs, as ties must be broken alike on every machine."""
    costs, loads, shares = np.array(costs, float), [0.0] * ranks, [[] for _ in range(ranks)]
    for position in sorted(range(len(costs)), key=lambda k: -costs[k]):
        least = loads.index(min(loads))
        loads[least] += costs[position]
        shares[least].append(position)
    assert [share.tolist() for share in batch_plan.divide_batch(costs, ranks)] == [sorted(share) for share in shares]


def test_an_epoch_is_drawn_once():
    batch_plan.permutation.cache_clear()
    for step in range(10):
        batch_plan.global_batch(step, 40, 8, 0)
    assert batch_plan.permutation.cache_info().misses == 2, "of ten steps in two epochs"


def test_steps_for_counts_whole_epochs():
    assert batch_plan.steps_for(100, 16, 2) == 13
    assert batch_plan.steps_for(5, 16, 3) == 3
    assert batch_plan.steps_for(5, 16, 0.01) == 1


@example([200, 200, 200], 1, 300)  # two parts would hold as many edges, but not these
@given(st.lists(st.integers(0, 300), min_size=1, max_size=40), st.integers(1, 4), st.integers(1, 400))
def test_micro_batches_hold_everything_once_under_the_budget(edges, ranks, budget):
    edges = np.array(edges)
    shares = batch_plan.divide_batch(edges.astype(float), ranks)
    cut = [batch_plan.micro_batches(edges, shares, budget, rank) for rank in range(ranks)]
    assert len({len(parts) for parts in cut}) == 1, "every rank does as many"
    for share, parts in zip(shares, cut):
        assert sorted(np.concatenate(parts)) == sorted(share)
        assert all(edges[part].sum() <= budget or len(part) == 1 for part in parts)
    assert all(batch_plan.micro_batches(edges, shares, None, rank)[0] is shares[rank] for rank in range(ranks))
