"""Structures on which a model is evaluated: a split of its sources, and external tests of them.

Structures with elements that the training split of their source lacks are told apart: a network has no embedding of such an
element that it has learned, and its energy is counted from no reference, so their errors say nothing about the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from ase.data import atomic_numbers, chemical_symbols

from gnnscale.contract import files
from gnnscale.contract.dataset_card import ShardCard, SplitName
from gnnscale.data.loading.corpus import STRUCTURES_PER_BLOCK, Corpus, load_corpus


class HeldOut(NamedTuple):
    """Structures of one split of all sources, or of one external test; `corpus.source` is the number in the model."""

    corpus: Corpus
    names: tuple[str, ...]  # by the number of the source; the name of a test in place of that of its source


class SignedErrors(NamedTuple):
    """Predictions less labels: of the energy per atom (S,) in eV, of force components (A, 3) in eV/Angstrom."""

    energy: np.ndarray
    forces: np.ndarray
    natoms: np.ndarray  # (S,)


class MeasuredPart(NamedTuple):
    """Errors on one source or external test."""

    name: str
    source: str
    seen: SignedErrors
    unseen: SignedErrors  # of structures with an element that the training split of the source lacks
    unseen_elements: tuple[str, ...]

    @property
    def is_test(self) -> bool:
        return self.name != self.source


def load_held_out(sources: dict[str, Path], tests: dict[str, Path], split: SplitName, cutoff: float) -> list[HeldOut]:
    """Load a split of the sources, and each external test of them; what is empty is left out."""
    names = tuple(sources)
    loaded = [HeldOut(load_corpus(sources, split, cutoff), names)]
    for name, path in tests.items():
        number = names.index(str(files.read_model(path / "card.json", ShardCard).test_of))
        test = number_as(load_corpus({name: path}, "test", cutoff), number)
        loaded.append(HeldOut(test, (*names[:number], name)))
    return [each for each in loaded if len(each.corpus)]


def number_as(corpus: Corpus, source: int) -> Corpus:
    """Return the corpus of one source with the number by which a model knows that source."""
    changed = {"readers": corpus.readers * (source + 1), "source": np.full(len(corpus), source)}
    return Corpus(**(corpus._asdict() | changed))  # _replace would take the number of structures for that of fields


def divide_errors(
    held_out: HeldOut, errors: SignedErrors, cards: Sequence[ShardCard], names: Sequence[str]
) -> list[MeasuredPart]:
    """Divide errors by source, and by whether all elements were trained on; `cards` and `names` are of the sources."""
    natoms, source = held_out.corpus.natoms, held_out.corpus.source
    unseen, elements = find_unseen(held_out.corpus, cards)
    parts = []
    for number in np.unique(source):
        masks = [(source == number) & which for which in (~unseen, unseen)]
        seen, apart = (SignedErrors(errors.energy[m], errors.forces[np.repeat(m, natoms)], natoms[m]) for m in masks)
        parts.append(MeasuredPart(held_out.names[number], names[number], seen, apart, elements[number]))
    return parts


def find_unseen(corpus: Corpus, cards: Sequence[ShardCard]) -> tuple[np.ndarray, list[tuple[str, ...]]]:
    """Find structures with elements that the training split of their source lacks, (S,) bool; and these, by source."""
    trained = np.zeros((len(cards), len(chemical_symbols)), bool)
    for number, card in enumerate(cards):
        trained[number, [atomic_numbers[symbol] for symbol in card.trained_elements]] = True
    unseen, lacking = np.zeros(len(corpus), bool), np.zeros_like(trained)
    for begin in range(0, len(corpus), STRUCTURES_PER_BLOCK):
        block = np.arange(begin, min(begin + STRUCTURES_PER_BLOCK, len(corpus)))
        packed = corpus.select(block)
        of_atoms = np.repeat(corpus.source[block].astype(np.int64), packed.natoms)
        new = ~trained[of_atoms, packed.numbers]  # (A,)
        unseen[block] = np.logical_or.reduceat(new, packed.ptr[:-1])
        lacking[of_atoms[new], packed.numbers[new]] = True
    return unseen, [tuple(chemical_symbols[z] for z in np.flatnonzero(row)) for row in lacking]


def count_in_summary(parts: Sequence[MeasuredPart]) -> list[MeasuredPart]:
    """Return the parts that the errors over all are of: held-out splits, and the tests of a source that has no such split."""
    have_split = {part.source for part in parts if not part.is_test and len(part.seen.energy)}
    return [part for part in parts if not part.is_test or part.source not in have_split]


def join_errors(parts: Sequence[MeasuredPart]) -> SignedErrors:
    return SignedErrors(*(np.concatenate(arrays) for arrays in zip(*(part.seen for part in parts))))
