"""Results of an audit as files: audit.json, and quarantine.json with the structures that a conversion leaves out."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Literal, NamedTuple

import numpy as np
from pydantic import Field

from gnnscale.audit.duplicates import Leakage
from gnnscale.audit.measure import MeasuredSource
from gnnscale.schema import Record

Severity = Literal["error", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")  # the gravest first
Verdict = Literal["error", "warning", "unchecked", "in order"]
VERDICTS: tuple[Verdict, ...] = ("error", "warning", "unchecked", "in order")
MAX_EXAMPLES = 10  # of one finding

CHECK_TITLES = {  # in the order of the page
    "finite": "Every number is finite",
    "labels": "No label is missing",
    "energy outliers": "Energies agree with those of the same composition",
    "force outliers": "Forces have one scale, and a likely one",
    "overlap": "No atoms overlap",
    "isolated": "Every atom has a neighbour within the cutoff",
    "net force": "Forces on a structure add up to zero",
    "periodicity": "Cells and periodicity agree with the atoms",
    "lengths": "Lengths are in Å",
    "energy unit": "Energies are in eV",
    "totals": "Energies are totals of a structure, and not per atom",
    "slope": "Forces are minus the gradient of the energy",
    "stress": "Stress is the strain derivative of the energy over the volume",
    "shared units": "Sources agree in units where they share compositions",
    "copies": "No structure occurs twice",
    "contradictions": "Structures that are equal have equal labels",
    "leaks": "No held-out structure is in a training split",
    "groups": "No group lies in more than one split",
    "splits": "Splits have usual shares, and every held-out element is also trained on",
    "references": "The reference energy of every element is determined",
}


class Example(Record):
    """One structure that a finding concerns."""

    source: str
    origin: str = Field(description="unit and number of the structure in the raw files")
    description: str


class Finding(Record):
    """One kind of defect in one source, or in several together."""

    check: str = Field(description="a key of CHECK_TITLES")
    severity: Severity
    source: str
    count: int = Field(description="structures concerned; 0 if the finding concerns the source as a whole")
    examined: int = Field(description="structures examined")
    sentence: str
    quarantined: int = Field(0, description="of these, in quarantine.json")
    examples: tuple[Example, ...] = Field((), description="the worst first")


class Coverage(Record):
    """The part of a source that a check has examined, and the reason where it could not examine any."""

    check: str = Field(description="a key of CHECK_TITLES")
    source: str
    examined: int = Field(description="0 if the check could not be made")
    noun: str = Field("structures", description="what was examined")
    reason: str = Field("", description="why the check could not be made")

    def describe(self) -> str:
        """Describe in a few words how much was checked, or why nothing."""
        return f"{self.examined:,} {self.noun}" if self.examined else self.reason


class Quarantined(Record):
    """A structure to leave out, by its origin in the raw files."""

    source: str
    unit: str
    number: int
    reasons: tuple[str, ...]


class Quarantine(Record):
    """Content of quarantine.json, which the setting `quarantine` of a source names."""

    structures: tuple[Quarantined, ...]


class Histogram(Record):
    """Numbers of structures in bins; there is one edge more than there are counts."""

    edges: tuple[float, ...]
    counts: tuple[int, ...]


class SourceSummary(Record):
    """The numbers that describe one source."""

    structures: int
    atoms: int
    groups: int
    splits: dict[str, int] = Field(description="structures")
    labels: dict[str, int] = Field(description="structures that have the label: energy, forces, stress")
    periodic: int
    elements: dict[str, int] = Field(description="atoms, by falling number")
    sizes: Histogram = Field(description="atoms of a structure")
    energies: Histogram | None = Field(description="eV/atom, less the mean of its elements")
    forces: Histogram | None = Field(description="log10 of the largest force of a structure in eV/Angstrom")
    contacts: Histogram = Field(description="smallest distance of a structure, over the sum of covalent radii")


class Audit(Record):
    """Content of audit.json."""

    format: Literal[2] = 2
    sources: dict[str, SourceSummary]
    findings: tuple[Finding, ...]
    coverage: tuple[Coverage, ...] = Field(description="of each check in each source to which it applies")
    leakage: Leakage
    quarantined: int = Field(description="structures to leave out that this audit found; they are in quarantine.json")
    left_out: int = Field(
        0,
        description="structures that an earlier audit found and the conversion left out; quarantine.json lists them too",
    )

    def verdict(self, check: str, source: str | None = None) -> Verdict:
        """Return the gravest verdict of a check, in one source or in all."""
        found: set[str] = {f.severity for f in self.findings if f.check == check and source in (None, f.source)}
        covered = [c for c in self.coverage if c.check == check and source in (None, c.source)]
        found |= {"in order" if each.examined else "unchecked" for each in covered}
        return next((verdict for verdict in VERDICTS if verdict in found), "in order")

    def list_checks(self, *verdicts: Verdict) -> list[str]:
        """List the checks that apply to any of the sources and end with one of the verdicts."""
        applied = {each.check for each in self.coverage}
        return [check for check in CHECK_TITLES if check in applied and self.verdict(check) in verdicts]

    def summarise(self) -> str:
        """Summarise the audit in one line."""
        structures = sum(source.structures for source in self.sources.values())
        parts = []
        severities: tuple[tuple[Verdict, str], ...] = (("error", "errors"), ("warning", "warnings"))
        for severity, words in severities:
            checks = self.list_checks(severity)
            if checks:
                parts.append(f"{words} in {', '.join(checks)}")
        found = "; ".join(parts) or "no errors or warnings"
        left = (
            f"; {self.quarantined:,} structures are to be left out and listed in quarantine.json"
            if self.quarantined
            else ""
        )
        sources = f"{len(self.sources)} source{'' if len(self.sources) == 1 else 's'}"
        return f"{structures:,} structures of {sources} audited: {found}; {self.summarise_coverage()}{left}"

    def summarise_coverage(self) -> str:
        """Say how many checks are in order, and which could not be made in some source."""
        unchecked = self.list_checks("unchecked")
        made = f"{len(self.list_checks('in order'))} checked and in order"
        where = "" if len(self.sources) == 1 else " in some source"
        return f"{made}, {len(unchecked)} could not be checked{where} ({', '.join(unchecked)})" if unchecked else made


class Flagged(NamedTuple):
    """A finding with the structures that have to be left out because of it."""

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
    describe: Callable[[int], str],
    sentence: str,
    wrong: np.ndarray | None = None,
    reason: str = "",
) -> Flagged:
    """Make a finding about some structures of a source, with the worst of them as examples.

    which: (n,) structures; badness: (n,) sorts the examples; describe: text of an example; sentence: {} stands for
    the number of structures and its noun; wrong: structures to leave out, for `reason`.
    """
    wrong = np.empty(0, np.int64) if wrong is None else wrong
    worst = np.flatnonzero(
        badness >= np.partition(badness, -min(MAX_EXAMPLES, len(badness)))[-min(MAX_EXAMPLES, len(badness))]
    )
    order = sorted(worst, key=lambda k: (-badness[k], source.origin(int(which[k]))))[:MAX_EXAMPLES]
    examples = tuple(
        Example(source=source.name, origin=source.origin(int(which[k])), description=describe(int(which[k])))
        for k in order
    )
    noun = f"{len(which):,} structures"
    if len(which) == 1:
        noun, sentence = "1 structure", sentence.replace("{} have", "{} has").replace("{} are", "{} is")
    finding = Finding(
        check=check,
        severity=severity,
        source=source.name,
        count=len(which),
        examined=len(source.shards),
        sentence=sentence.replace("{}", noun),
        quarantined=len(wrong),
        examples=examples,
    )
    return Flagged(finding, source, wrong, reason)


Report = Flagged | Coverage  # a check yields one coverage for each source, and any number of findings


def cover(
    check: str, source: MeasuredSource, examined: np.ndarray | int, reason: str, noun: str = "structures"
) -> Coverage:
    """State how many structures (or `noun`) a check has examined; the reason is kept if there are none."""
    count = int(np.sum(examined))
    return Coverage(check=check, source=source.name, examined=count, noun=noun, reason="" if count else reason)


def describe_all_as(text: str) -> Callable[[int], str]:
    """Return a description of examples that is the same for all structures."""
    return lambda structure: text


def flag_source(check: str, severity: Severity, source: MeasuredSource, sentence: str) -> Flagged:
    finding = Finding(
        check=check, severity=severity, source=source.name, count=0, examined=len(source.shards), sentence=sentence
    )
    return Flagged(finding)


def collect_quarantine(flagged: Iterable[Flagged]) -> Quarantine:
    """List each structure to leave out once, with all its reasons."""
    found = []
    for each in flagged:
        if each.source is None:
            continue
        shards = each.source.shards
        for k in each.wrong:
            unit, number = shards.units[shards.unit[k]], int(shards.number[k])
            found.append(Quarantined(source=each.source.name, unit=unit, number=number, reasons=(each.reason,)))
    return merge_quarantined(found)


def merge_quarantined(found: Iterable[Quarantined]) -> Quarantine:
    """Merge the reasons of each structure; the order does not depend on that of the shards."""
    reasons: dict[tuple[str, str, int], set[str]] = {}
    for each in found:
        reasons.setdefault((each.source, each.unit, each.number), set()).update(each.reasons)
    return Quarantine(
        structures=tuple(
            Quarantined(source=s, unit=u, number=n, reasons=tuple(sorted(why)))
            for (s, u, n), why in sorted(reasons.items())
        )
    )
