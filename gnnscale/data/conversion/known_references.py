"""Energies of isolated atoms that are known before any fit: given in the study, found in the files, or published."""

from __future__ import annotations

from collections.abc import Mapping

from ase.data import atomic_numbers, chemical_symbols

from gnnscale.contract import errors
from gnnscale.contract.dataset_card import ReferenceOrigin, ShardCard
from gnnscale.data.conversion.work_items import Conversion

MOST_LISTED = 8  # references that a line of text lists


def choose_known_references(
    conversion: Conversion, of_files: Mapping[str, float]
) -> tuple[dict[int, float], dict[int, ReferenceOrigin]]:
    """Return atomic number -> eV, and where each comes from: given ones win over the files', and these over published ones."""
    if conversion.settings.references == "fit" or conversion.settings.test_of is not None:
        return {}, {}
    known: dict[int, float] = {}
    origins: dict[int, ReferenceOrigin] = {}
    ordered: tuple[tuple[ReferenceOrigin, Mapping[str, float]], ...] = (
        ("published", conversion.card.references),
        ("file", of_files),
        ("given", conversion.settings.references),
    )
    for origin, energies in ordered:
        for symbol, energy in energies.items():
            known[atomic_numbers[symbol]], origins[atomic_numbers[symbol]] = energy, origin
    return known, origins


def check_symbols(name: str, references: Mapping[str, float] | str) -> None:
    """Raise a UserError if a given reference is of no element."""
    for symbol in references if isinstance(references, Mapping) else ():
        if symbol not in chemical_symbols[1:]:
            raise errors.UserError(
                f"source {name!r}: references: {symbol!r} is no element",
                "write symbols, such as references: {H: -13.6}",
            )


def wrong_references(name: str, wrong: str, origins: Mapping[int, ReferenceOrigin]) -> errors.UserError:
    """Return an error about references that cannot belong to the energies."""
    found = " and ".join(sorted(set(origins.values())))
    return errors.UserError(
        f"{name}: the reference energies ({found}) are not in the unit or of the kind of the structures' energies: {wrong}",
        "give them in eV under the source, such as references: {H: -13.6}; 1 Hartree is 27.2114 eV",
        "or write references: fit, to find them by least squares",
        kind="data",
    )


def describe_undetermined(undetermined: list[tuple[int, ...]]) -> list[str]:
    """Return a sentence for the card about references that the data do not determine alone."""
    together = ["–".join(chemical_symbols[z] for z in one) for one in undetermined if len(one) > 1]
    absent = [chemical_symbols[z] for one in undetermined if len(one) == 1 for z in one]
    said = []
    if together:
        said.append(
            f"Only sums of the reference energies of {'; '.join(together)} are determined, as their numbers of atoms are "
            "proportional in the training structures; the energies of single atoms are plausible and no more"
        )
    if absent:
        said.append(
            f"No training structure with an energy has {', '.join(absent)}; the references are plausible and no more"
        )
    return said


def describe_references(card: ShardCard) -> str:
    """Return where the references come from, with their values where they are few."""
    symbols: dict[str, list[str]] = {}
    for symbol, origin in card.reference_origins.items():
        symbols.setdefault(origin, []).append(symbol)
    said = []
    for where, named in symbols.items():
        few = ", ".join(f"{symbol} {card.references[symbol]:.3f}" for symbol in named)
        said.append(f"{where}: {few if len(named) <= MOST_LISTED else f'{len(named)} elements'}")
    return "; ".join(said) + " (eV)" if said else "none"
