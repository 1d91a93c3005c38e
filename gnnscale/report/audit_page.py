"""The page audit.html: a table of checks, then each finding, then histograms of the data."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from gnnscale.audit.check_results import CHECK_TITLES, VERDICTS, Audit, Finding, Histogram, SourceSummary
from gnnscale.report.html import RawHtml, render_document, render_section, render_table

VERDICT_WORDS = {
    "error": "error",
    "warning": "warning",
    "note": "note",
    "unchecked": "could not be checked",
    "in order": "in order",
}
VERDICT_COLOURS = {
    "error": "#d55e00",
    "warning": "#e69f00",
    "note": "#0072b2",
    "unchecked": "#999999",
    "in order": "#009e73",
}
PLOT_WIDTH, PLOT_HEIGHT = 240, 64  # units of the SVG
MAX_ELEMENTS = 16  # the most frequent ones are shown
PLOTS_NOTE = (
    "The histograms show the structures by size, by energy per atom less the mean of their elements, by the largest force "
    "on an atom (logarithmic scale), and by the shortest distance over the sum of the two covalent radii. The first and "
    "the last bar include all values beyond."
)
AUDIT_CSS = """
.verdict { white-space: nowrap; font-weight: 600; }
.verdict::before { content: ""; display: inline-block; width: .62em; height: .62em; border-radius: 50%;
  margin-right: .5em; background: var(--mark); }
.finding { margin: 0 0 1.1rem; } .finding .verdict { margin-right: .5rem; }
.finding p { margin: .2rem 0; } h3 { font-size: 1rem; margin: 1.8rem 0 .4rem; }
.checks td { white-space: normal; }
.plots { display: grid; grid-template-columns: repeat(auto-fill, minmax(175px, 1fr)); gap: .8rem 1.4rem; }
.plots figure { margin: 0; } .plots svg { background: none; overflow: visible; } .plots rect { fill: var(--bar); }
.plots text { fill: var(--soft); font-size: 7.5px; text-anchor: middle; }
.plots figcaption { font-size: .75rem; margin: .15rem 0 0; display: flex; justify-content: space-between; }
.plots .what { display: block; color: var(--ink); margin-bottom: .2rem; }
:root { --bar: #0072b2; } @media (prefers-color-scheme: dark) { :root { --bar: #56b4e9; } }
"""


def render_audit_page(audit: Audit) -> str:
    structures = sum(source.structures for source in audit.sources.values())
    atoms = sum(source.atoms for source in audit.sources.values())
    drawn = "".join(render_plots(name, source) for name, source in audit.sources.items())
    body = [
        f"<style>{AUDIT_CSS}</style>",
        "<h1>Audit of the data</h1>",
        f'<p class="soft">{structures:,} structures with {atoms:,} atoms: {escape(", ".join(audit.sources))}.</p>',
        f'<p class="lead">{escape(summarise_verdicts(audit))}</p>',
        render_section("Checks", render_checks(audit)),
        render_section(
            "Errors and warnings",
            render_findings(audit, ("error", "warning")) or "<p>No errors and no warnings.</p>",
        ),
        render_section("Structures to leave out", render_remedy(audit)),
        render_section("Notes", render_findings(audit, ("note",))),
        render_section("The data", render_sources(audit) + f'<p class="note">{PLOTS_NOTE}</p>' + drawn),
        render_section("Duplicates", render_twins(audit)),
    ]
    return render_document("Audit of the data", body)


def summarise_verdicts(audit: Audit) -> str:
    counts = {verdict: len(audit.list_checks(verdict)) for verdict in VERDICTS}
    made = sum(counts.values()) - counts["unchecked"]
    parts = [
        f"{counts[severity]} {'ends' if counts[severity] == 1 else 'end'} with {VERDICT_WORDS[severity]}s"
        for severity in ("error", "warning")
        if counts[severity]
    ]
    checks = (
        f"Of {made} checks that could be made, {' and '.join(parts)}"
        if parts
        else f"All {made} checks that could be made are in order"
    )
    unmade = f" {counts['unchecked']} could not be made." if counts["unchecked"] else ""
    left = audit.quarantined
    noun = "1 structure has" if left == 1 else f"{left:,} structures have"
    return f"{checks}.{unmade} {noun if left else 'No structure has'} to be left out."


def render_checks(audit: Audit) -> str:
    rows = []
    for check in audit.list_checks(*VERDICTS):
        grave = [f for f in audit.findings if f.check == check and f.severity != "note"]
        count = sum(finding.count for finding in grave)
        verdict = RawHtml(render_verdict(audit.verdict(check)))
        rows.append([CHECK_TITLES[check], verdict, render_coverage(audit, check), f"{count:,}" if count else ""])
    heads = ["check", "verdict", "checked", "structures concerned"]
    return f'<div class="checks">{render_table(heads, rows, numbers_from=3)}</div>'


def render_coverage(audit: Audit, check: str) -> RawHtml:
    """Render how much of each source was checked, with a mark by each source if there are several."""
    lines = []
    for each in audit.coverage:
        if each.check == check:
            mark = f'<span style="color: {VERDICT_COLOURS[audit.verdict(check, each.source)]}">●</span> '
            name = f"{mark}{escape(each.source)}: " if len(audit.sources) > 1 else ""
            lines.append(f"{name}{escape(each.describe())}")
    return RawHtml("<br>".join(lines))


def render_verdict(severity: str) -> str:
    return f'<span class="verdict" style="--mark: {VERDICT_COLOURS[severity]}">{VERDICT_WORDS[severity]}</span>'


def render_findings(audit: Audit, severities: tuple[str, ...]) -> str:
    blocks = []
    for check, title in CHECK_TITLES.items():
        mine = [finding for finding in audit.findings if finding.check == check and finding.severity in severities]
        if mine:
            blocks.append(f"<h3>{escape(title)}</h3>" + "".join(map(render_finding, mine)))
    return "".join(blocks)


def render_finding(finding: Finding) -> str:
    share = f" {format_share(finding.count, finding.examined)} of the source." if finding.count else ""
    kept = (
        f" In quarantine.json: {format_share(finding.quarantined, finding.count)} of them."
        if finding.quarantined
        else ""
    )
    text = f"{render_verdict(finding.severity)} <b>{escape(finding.source)}</b>: {escape(finding.sentence)}"
    more = ""
    if finding.examples:
        rows = [
            [example.origin, RawHtml(f'<div class="wide-text">{escape(example.description)}</div>')]
            for example in finding.examples
        ]
        few = "all of them" if finding.count == len(rows) else f"the worst {len(rows)} of them"
        listed = render_table(["place in the raw files", "description"], rows, numbers_from=9)
        more = f'<details class="note"><summary>{few}</summary>{listed}</details>'
    return f'<div class="finding"><p>{text}<span class="soft">{share}{kept}</span></p>{more}</div>'


def render_remedy(audit: Audit) -> str:
    before = f" {audit.left_out:,} were left out already and stay on the list." if audit.left_out else ""
    if not audit.quarantined:
        return f"<p>No structure has to be left out.{before}</p>"
    noun = "1 structure" if audit.quarantined == 1 else f"{audit.quarantined:,} structures"
    return (
        f"<p>quarantine.json lists {noun} to leave out, with reasons. The study still contains them. To leave them out, name "
        f"this file in the sources of the study, as below, and run the study again.{before}</p>"
        "<pre class='scroll'>data:\n  - {name: ..., dataset: ..., quarantine: runs/.../quarantine.json}</pre>"
    )


# ----------------------------------------------------------------------------------------------------------- the data
def render_sources(audit: Audit) -> str:
    rows = []
    for name, source in audit.sources.items():
        shares = " / ".join(f"{100 * n / source.structures:.3g}" for n in source.splits.values())
        labels = [format_share(n, source.structures) for n in source.labels.values()]
        rows.append(
            [
                name,
                f"{source.structures:,}",
                f"{source.groups:,}",
                f"{source.atoms / source.structures:.1f}",
                shares,
                *labels,
                format_share(source.periodic, source.structures),
            ]
        )
    heads = [
        "source",
        "structures",
        "groups",
        "atoms each",
        "train / validation / test, %",
        "energy",
        "forces",
        "stress",
        "periodic",
    ]
    return render_table(heads, rows)


def format_share(count: int, of: int) -> str:
    """Format a share, rounded, but never to all or none."""
    return "all" if count == of else "none" if not count else f"{min(99.9, 100 * count / of):.2g} %"


def render_plots(name: str, source: SourceSummary) -> str:
    total = sum(source.elements.values())
    shares = ", ".join(
        f"{symbol} {format_share(n, total)}" for symbol, n in list(source.elements.items())[:MAX_ELEMENTS]
    )
    others = len(source.elements) - MAX_ELEMENTS
    if others > 0:
        shares += f", and {others} more element{'' if others == 1 else 's'}"
    plots = [
        draw_elements(source),
        draw_histogram(source.sizes, "atoms of a structure", whole=True),
        draw_histogram(source.energies, "energy residual, eV/atom"),
        draw_histogram(source.forces, "largest force, eV/Å", powers=True),
        draw_histogram(source.contacts, "shortest contact / radii"),
    ]
    note = f'<p class="note">Atoms by element: {escape(shares)}.</p>'
    return f'<h3>{escape(name)}</h3>{note}<div class="plots">{"".join(plots)}</div>'


def draw_elements(source: SourceSummary) -> str:
    """Draw the numbers of atoms of the most frequent elements."""
    most = list(source.elements.items())[:MAX_ELEMENTS]
    wide, top = PLOT_WIDTH / MAX_ELEMENTS, most[0][1]
    drawn = draw_bars([n / top for _, n in most], wide)
    names = "".join(
        f'<text x="{(k + 0.45) * wide:.1f}" y="{PLOT_HEIGHT + 10}">{escape(z)}</text>' for k, (z, _) in enumerate(most)
    )
    return frame_plot("atoms by element", drawn + names, PLOT_HEIGHT + 12)


def draw_histogram(found: Histogram | None, what: str, powers: bool = False, whole: bool = False) -> str:
    if found is None:
        return ""
    top = max(found.counts)
    ends = [found.edges[0], (found.edges[0] + found.edges[-1]) / 2, found.edges[-1]]
    if whole:  # bins are centred at whole numbers
        ends = [ends[0] + 0.5, ends[1], ends[2] - 0.5]
    labels = "".join(f"<span>{f'{10**e:.2g}' if powers else f'{e:.3g}'}</span>" for e in ends)
    drawn = draw_bars([n / top for n in found.counts], PLOT_WIDTH / len(found.counts))
    return frame_plot(what, drawn, PLOT_HEIGHT + 1, f"<figcaption>{labels}</figcaption>")


def draw_bars(shares: list[float], wide: float) -> str:
    return "".join(
        f'<rect x="{k * wide:.1f}" y="{PLOT_HEIGHT * (1 - share):.1f}" width="{0.9 * wide:.1f}" '
        f'height="{PLOT_HEIGHT * share:.1f}"/>'
        for k, share in enumerate(shares)
        if share
    )


def frame_plot(what: str, drawn: str, height: int, caption: str = "") -> str:
    svg = f'<svg viewBox="0 0 {PLOT_WIDTH} {height}" role="img" aria-label="{escape(what, quote=True)}">{drawn}'
    svg += f'<path d="M0 {PLOT_HEIGHT + 0.5}H{PLOT_WIDTH}" stroke="var(--line)"/></svg>'
    return f'<figure><span class="what note">{escape(what)}</span>{svg}{caption}</figure>'


def render_twins(audit: Audit) -> str:
    rows: Sequence = [
        [
            f"{t.source}, {t.split}",
            f"{t.twin_source}, {t.twin_split}",
            f"{t.count.equal:,}",
            f"{t.count.near - t.count.equal:,}",
        ]
        for t in audit.leakage.twins
    ]
    note = '<p class="note">Structures of the first split with an equal or nearly equal structure in the second.</p>'
    return (
        note + render_table(["structures of", "with a twin in", "equal", "nearly equal"], list(rows), numbers_from=2)
        if rows
        else ""
    )
