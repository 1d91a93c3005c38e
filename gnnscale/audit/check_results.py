"""What an audit finds, as files: audit.json for programs, quarantine.json for a conversion to leave out."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Literal, NamedTuple

import numpy as np
from pydantic import Field

from gnnscale.audit.duplicates import Leakage
from gnnscale.audit.measure import MeasuredSource
from gnnscale.schema import Spec

Severity = Literal["error", "warning", "note"]
MAX_EXAMPLES = 10  # examples of a finding

CHECK_TITLES = {  # in the order of the page
    "finite": "Every number is finite",
    "labels": "No label is missing",
    "energy outliers": "Energies are near those of the same composition",
    "force outliers": "Forces are of one scale",
    "overlap": "No atoms overlap",
    "isolated": "Every atom has a neighbour within the cutoff",
    "net force": "Forces on a structure add up to zero",
    "periodicity": "Cells and periodicity agree with the atoms",
    "units": "Lengths, energies and forces are in their units",
    "slope": "Forces are the slope of the energy",
    "copies": "No structure comes twice",
    "leaks": "Nothing held out is trained on",
    "groups": "No group straddles splits",
    "splits": "Splits have their shares, and no element is held out alone",
    "references": "Every element's reference energy is determined",
}


class Example(Spec):
    source: str
    place: str = Field(description="unit and number, by which it is found in the raw files")
    said: str


class Finding(Spec):
    """One kind of defect in one source, or in several together."""

    check: str = Field(description="a key of CHECKS")
    severity: Severity
    source: str
    count: int = Field(description="structures concerned; 0 where it is the source as a whole")
    of: int = Field(description="structures looked at")
    sentence: str
    quarantined: int = Field(0, description="of these, in quarantine.json")
    examples: tuple[Example, ...] = Field((), description="the worst first")


class Quarantined(Spec):
    source: str
    unit: str
    number: int
    reasons: tuple[str, ...]


class Quarantine(Spec):
    """quarantine.json, as the setting `quarantine` of a source takes it."""

    structures: tuple[Quarantined, ...]


class Histogram(Spec):
    """Structures (of elements: atoms) in bins; edges are one more than counts."""

    edges: tuple[float, ...]
    counts: tuple[int, ...]


class SourceSummary(Spec):
    """One source in numbers."""

    structures: int
    atoms: int
    groups: int
    splits: dict[str, int] = Field(description="structures")
    labels: dict[str, int] = Field(description="structures that have it: energy, forces, stress")
    periodic: int
    elements: dict[str, int] = Field(description="atoms, by falling number")
    sizes: Histogram = Field(description="atoms of a structure")
    energies: Histogram | None = Field(description="eV/atom, less what its elements have on the mean")
    forces: Histogram | None = Field(description="log10 of eV/Angstrom, the largest of a structure")
    contacts: Histogram = Field(description="smallest distance of a structure, over the sum of covalent radii")


class Audit(Spec):
    """audit.json"""

    format: Literal[1] = 1
    sources: dict[str, SourceSummary]
    findings: tuple[Finding, ...]
    leakage: Leakage
    quarantined: int = Field(
        description="structures that would better be left out; those of quarantine.json that are new"
    )
    left_out: int = Field(
        0, description="structures that were quarantined before and are not here; quarantine.json has them"
    )

    def verdict(self, check: str) -> Severity | None:
        found = {finding.severity for finding in self.findings if finding.check == check}
        return next((severity for severity in ("error", "warning", "note") if severity in found), None)

    def said(self) -> str:
        """In one line."""
        structures = sum(source.structures for source in self.sources.values())
        parts = []
        for severity, words in (("error", "errors"), ("warning", "doubts")):
            checks = [name for name in CHECK_TITLES if self.verdict(name) == severity]
            if checks:
                parts.append(f"{words} as to {', '.join(checks)}")
        found = "; ".join(parts) or "nothing is wrong or doubtful"
        left = f"; {self.quarantined:,} structures are surely wrong, and in quarantine.json" if self.quarantined else ""
        sources = f"{len(self.sources)} source{'' if len(self.sources) == 1 else 's'}"
        return f"{structures:,} structures of {sources} audited: {found}{left}"


class Flagged(NamedTuple):
    """A finding, and which structures are surely wrong by it."""

    finding: Finding
    source: MeasuredSource | None = None
    wrong: np.ndarray = np.empty(0, np.int64)
    reason: str = ""


def flag_structures(
    check: str,
    severity: Severity,
    source: MeasuredSource,
    which: np.ndarray,
    badness: np.ndarray,
    said: Callable[[int], str],
    sentence: str,
    wrong: np.ndarray | None = None,
    reason: str = "",
) -> Flagged:
    """`which`: (n,) structures; badness: (n,); said: of a structure; sentence: with {} for the number and its noun."""
    wrong = np.empty(0, np.int64) if wrong is None else wrong
    worst = np.flatnonzero(
        badness >= np.partition(badness, -min(MAX_EXAMPLES, len(badness)))[-min(MAX_EXAMPLES, len(badness))]
    )
    order = sorted(worst, key=lambda k: (-badness[k], source.place(which[k])))[:MAX_EXAMPLES]
    examples = tuple(Example(source=source.name, place=source.place(which[k]), said=said(int(which[k]))) for k in order)
    noun = f"{len(which):,} structures"
    if len(which) == 1:
        noun, sentence = "1 structure", sentence.replace("{} have", "{} has").replace("{} are", "{} is")
    finding = Finding(
        check=check,
        severity=severity,
        source=source.name,
        count=len(which),
        of=len(source.shards),
        sentence=sentence.replace("{}", noun),
        quarantined=len(wrong),
        examples=examples,
    )
    return Flagged(finding, source, wrong, reason)


def flag_source(check: str, severity: Severity, source: MeasuredSource, sentence: str) -> Flagged:
    finding = Finding(
        check=check, severity=severity, source=source.name, count=0, of=len(source.shards), sentence=sentence
    )
    return Flagged(finding)


def collect_quarantine(flagged: Iterable[Flagged]) -> Quarantine:
    """Each structure once, with all its reasons."""
    found = []
    for each in flagged:
        for k in each.wrong:
            shards = each.source.shards
            unit, number = shards.units[shards.unit[k]], int(shards.number[k])
            found.append(Quarantined(source=each.source.name, unit=unit, number=number, reasons=(each.reason,)))
    return merge_quarantined(found)


def merge_quarantined(found: Iterable[Quarantined]) -> Quarantine:
    """In an order that does not depend on that of the shards."""
    reasons: dict[tuple[str, str, int], set[str]] = {}
    for each in found:
        reasons.setdefault((each.source, each.unit, each.number), set()).update(each.reasons)
    return Quarantine(
        structures=tuple(
            Quarantined(source=s, unit=u, number=n, reasons=tuple(sorted(why)))
            for (s, u, n), why in sorted(reasons.items())
        )
    )
