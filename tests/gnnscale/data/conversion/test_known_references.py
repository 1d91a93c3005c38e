"""References come from the study, the files, a publication or a fit, in this order, and the card says which."""

import numpy as np
import pytest

from gnnscale.contract import errors, files
from gnnscale.contract.dataset_card import ShardCard, Split
from gnnscale.data.conversion.known_references import check_symbols, describe_references
from gnnscale.train.normalisation import Normalisation, pool_normalisation
from tests.support import conversions, layouts

TRUE = {"H": -13.6, "C": -1030.0, "N": -1484.0, "O": -2041.0}
NUMBERS = {"H": 1, "C": 6, "N": 7, "O": 8}


def molecules():
    """Return molecules of three formulas and of water, each atom bound by about 4 eV."""
    rng, names = np.random.default_rng(0), {number: symbol for symbol, number in NUMBERS.items()}
    known = [s for seed in range(6) for s in layouts.make_molecules(seed=seed)]
    known += [s._replace(numbers=np.array([8, 1, 1, 1])) for s in known if len(s.numbers) == 4][:9]
    return [
        s._replace(energy=sum(TRUE[names[z]] for z in s.numbers) - 4.0 * len(s.numbers) + rng.normal(), group=f"{k}")
        for k, s in enumerate(known)
    ]


def atom(symbol, energy):
    one = layouts.make_molecules()[0]
    return one._replace(
        numbers=np.array([NUMBERS[symbol]]),
        positions=np.zeros((1, 3)),
        forces=np.zeros((1, 3)),
        energy=energy,
        is_reference=True,
    )


def convert(folder, structures=None, **more):
    return conversions.convert(folder, structures or molecules(), split=Split(validation=0.1, test=0.2), **more)


def test_each_reference_comes_from_the_first_that_knows_it(tmp_path):
    structures = [atom("H", -13.0), *molecules(), atom("C", -1029.0), atom("H", -13.2), atom("O", float("nan"))]
    published = {"O": -2040.0, "C": -1031.0}
    card = convert(tmp_path / "file", structures, published=published)
    assert card.reference_origins == {"H": "file", "C": "file", "N": "fitted", "O": "published"}
    assert card.references["H"] == -13.2, "of several states the lowest"
    assert card.references["C"] == -1029.0 and card.references["O"] == -2040.0
    card = convert(tmp_path / "given", structures, published=published, references={"H": -13.6})
    assert card.reference_origins["H"] == "given" and card.references["H"] == -13.6
    assert "given: H -13.600; file: C -1029.000; fitted: N " in describe_references(card)
    card = convert(tmp_path / "fit", structures, published=published, references="fit")
    assert set(card.reference_origins.values()) == {"fitted"} and set(card.shifts.values()) == {0.0}


def test_the_network_learns_the_same_whether_references_are_known_or_fitted(tmp_path):
    """A binding energy of 4 eV per atom is no part of what it learns."""
    fitted, known = convert(tmp_path / "fitted"), convert(tmp_path / "known", references=TRUE)
    one, two = pool_normalisation((fitted,), None), pool_normalisation((known,), None)
    assert isinstance(one, Normalisation)
    np.testing.assert_allclose(one.references, two.references, atol=1e-6)
    assert two.energy_scale == pytest.approx(one.energy_scale, rel=1e-6) and known.energy_rms < 1.0
    assert known.references == TRUE and all(-6 < shift < -2 for shift in known.shifts.values())


def test_the_card_says_which_references_are_not_determined_alone(tmp_path):
    methane = [s for s in molecules() if len(s.numbers) == 5]
    card = convert(tmp_path, methane)
    assert card.reference_origins == dict.fromkeys("HC", "fitted, not determined alone") and card.reference_rank == 1
    assert "Only sums of the reference energies of H–C are determined" in card.remarks[0]
    assert card.references["C"] == pytest.approx(TRUE["C"], rel=0.02)


@pytest.mark.parametrize(
    ("references", "words"),
    [
        ({"H": -0.5, "C": -37.8, "N": -54.5, "O": -75.0}, "1 Hartree is 27.2114 eV"),
        ({"Hh": -13.6}, "'Hh' is no element"),
    ],
)
def test_references_that_cannot_be_are_refused_with_what_to_type(references, words, tmp_path):
    with pytest.raises(errors.UserError) as refused:
        check_symbols("mine", references)
        convert(tmp_path, references=references)
    assert words in str(refused.value) and "references: {H: -13.6}" in str(refused.value)


def test_an_external_test_takes_no_references_of_its_own(tmp_path):
    card = convert(tmp_path, [atom("H", -13.0), *molecules()], test_of="other")
    assert not card.references and not card.reference_origins and describe_references(card) == "none"
    assert files.read_model(tmp_path / "card.json", ShardCard).counts == card.counts
