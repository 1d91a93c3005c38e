"""Groups stay together; subsets are nested, exact and stratified."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from gnnscale.contract.dataset_card import Split
from gnnscale.data.storage import splits

sizes = st.lists(st.integers(0, 40), min_size=1, max_size=5).filter(lambda s: sum(s) > 0)


def sources_of(counts):
    order = np.random.default_rng(0).permutation(sum(counts))
    return np.repeat(np.arange(len(counts)), counts)[order]


@given(sizes, st.integers(0, 99))
def test_subsets_are_nested_and_exact(counts, seed):
    sources, names = sources_of(counts), tuple("abcde"[: len(counts)])
    previous: set[int] = set()
    for count in range(0, len(sources) + 1, 3):
        chosen = splits.choose_subset(sources, names, count, seed)
        assert len(chosen) == count == len(set(chosen))
        assert previous <= set(chosen)
        previous = set(chosen)


@given(sizes)
def test_subsets_are_stratified(counts):
    sources, names = sources_of(counts), tuple("abcde"[: len(counts)])
    count = len(sources) // 2
    chosen = splits.choose_subset(sources, names, count, 0)
    for index, size in enumerate(counts):
        assert abs((sources[chosen] == index).sum() - size * count / len(sources)) <= 1


@given(sizes, st.integers(0, 40))
def test_a_prefix_is_the_beginning_of_each_source(counts, count):
    sources, names = sources_of(counts), tuple("abcde"[: len(counts)])
    chosen = splits.choose_subset(sources, names, count, 0, "prefix")
    assert len(chosen) == min(count, len(sources))
    for index, size in enumerate(counts):
        of_source = np.flatnonzero(sources == index)
        mine = chosen[sources[chosen] == index]
        assert (mine == of_source[: len(mine)]).all()
        assert abs(len(mine) - size * min(1, count / len(sources))) <= 1
    assert (chosen == splits.choose_subset(sources, names, count, 1, "prefix")).all(), "no seed"


def test_the_seed_matters_and_a_source_does_not_depend_on_its_neighbours():
    sources = np.repeat([0, 1], 50)
    one, two = (set(splits.choose_subset(sources, ("a", "b"), 20, seed)) for seed in (0, 1))
    assert one != two
    assert {k for k in one if k < 50} != {k - 50 for k in one if k >= 50}, "each source has an order of its own"
    swapped = {(k + 50) % 100 for k in splits.choose_subset(np.repeat([0, 1], 50), ("b", "a"), 20, 0)}
    assert swapped == one


def test_splits_have_the_shares_asked_for_and_follow_the_seed():
    groups = [f"molecule-{k}" for k in range(4000)]
    found = np.array([splits.split_of(g, Split(validation=0.1, test=0.2)) for g in groups])
    shares = [(found == k).mean() for k in range(3)]
    assert np.allclose(shares, [0.7, 0.1, 0.2], atol=0.03)
    other = np.array([splits.split_of(g, Split(validation=0.1, test=0.2, seed=1)) for g in groups])
    assert (found != other).mean() > 0.2


def test_the_hash_is_the_same_on_every_machine():
    assert splits.group_hash("methane") == 393886718847954838
