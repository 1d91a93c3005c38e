"""report.html: one file that needs nothing else, built of plain strings. Whatever came from a file is escaped."""

from __future__ import annotations

import re
from collections import defaultdict
from html import escape
from statistics import median

from gnnscale.contract.scaling_results import Estimate, LawFit
from gnnscale.report.figures import levers
from gnnscale.report.figures.style import Drawn
from gnnscale.report.html import Raw, document, section, table
from gnnscale.report.study_results import TARGETS, Study, short
from gnnscale.report.three_questions import answers, compared, section_of
from gnnscale.scaling.fitting.laws import JOINT_FORMS, MAX_EXPONENT
from gnnscale.scaling.grid import WHERE_MODEL
from gnnscale.scaling.words import format_estimate, format_number, format_percent, with_greek_letters

FIRST = 3  # sentences of the findings that make the summary


def page(study: Study, figures: list[Drawn]) -> str:
    s, findings, asked = study.settings, study.fit.findings, answers(study)
    said = {text for a in asked for text in (*a.evidence, *a.unsupported)}
    body = [
        f"<h1>{escape(s.title)}</h1>",
        f'<p class="soft">Study {escape(s.study)}. {escape(s.description)}</p>',
        f'<p class="lead">{prose(" ".join(findings[:FIRST]))}</p>',
        key_numbers(study),
        section("The three questions", section_of(asked, prose)),
        section("Findings", bullets(tuple(text for text in findings[FIRST:] if text not in said))),
        section("What the data do not support", f'<div class="limits">{bullets(study.fit.unsupported)}</div>'),
        section("Figures", "".join(figure(f) for f in figures)),
        section("Fitted laws", laws(study)),
        section("Joint laws of the loss compared", compared(rivals(study))),
        section("Runs", runs(study)),
        section("Errors by source", source_errors(study)),
        section("Sources", audited(study) + cards(study)),
        section("Levers for memory", levers.rows(study)),
        section("Time and memory", timings(study)),
        section("Provenance", provenance(study)),
    ]
    return document(s.title, body)


# --------------------------------------------------------------------------------------------------------------- blocks
def key_numbers(study: Study) -> str:
    trained = [r for need, r in study.results.items() if need.startswith("train/")]
    facts = [("runs", str(len(study.points)))]
    if study.points:
        facts += [
            ("body parameters", reach([p.body_parameters for p in study.points])),
            ("training structures", reach([p.structures for p in study.points])),
        ]
    if all(p.epochs for p in study.points):  # of others' points, some do not say
        facts.append(("epochs", reach([p.epochs for p in study.points])))
    if trained:
        facts.append(("training time, all runs", duration(sum(r.seconds for r in trained))))
        machines = {f"{r.provenance.get('processor', '?')}, {r.provenance.get('cores', '?')} cores" for r in trained}
        facts.append(("machine" if len(machines) == 1 else "machines", "; ".join(sorted(machines))))
    items = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in facts)
    return f'<dl class="keys">{items}</dl>'


def reach(values: list[float]) -> str:
    low, high = (f"{v:,.9g}" for v in (min(values), max(values)))
    return low if low == high else f"{low} – {high}"


def bullets(sentences: tuple[str, ...]) -> str:
    return "<ul>" + "".join(f"<li>{prose(s)}</li>" for s in sentences) + "</ul>" if sentences else ""


def prose(text: str) -> str:
    """Our own sentences: exponents raised, no line that begins with a percent sign."""
    return re.sub(r"\^([\w.]*\w)", r"<sup>\1</sup>", escape(text)).replace(" %", "\u00a0%")


def figure(f: Drawn) -> str:
    """Inline; ids get the figure's name in front, as two figures may use the same."""
    svg = f.svg[f.svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", svg)  # HTML knows them
    svg = re.sub(r'\bid="', f'id="{f.name}-', svg)
    svg = re.sub(r'href="#', f'href="#{f.name}-', svg).replace("url(#", f"url(#{f.name}-")
    label = escape(f.caption, quote=True)
    svg = svg.replace("<svg", f'<svg role="img" aria-label="{label}"', 1)
    kind = "wide" if f.wide else "half"
    caption = f"<figcaption>{prose(f.caption)} <code>figures/{f.name}.svg</code></figcaption>"
    return f'<figure class="{kind}">{svg}{caption}</figure>\n'


# --------------------------------------------------------------------------------------------------------------- tables
PLACES = {"the whole grid": "grid", "the largest data size": "largest D", "the largest model": "largest N"}


def laws(study: Study) -> str:
    """For each target the joint law, the one to go by, and one along each axis; the others that were tried are in fit.json."""
    fit, rows, classes, notes, last = study.fit, [], [], defaultdict(list), ""
    for law in [law for target in TARGETS for law in tabulated(fit.laws, target)]:
        name, unit, factor = TARGETS[law.target]
        place = PLACES.get(law.where.split(":")[0], law.where)
        e = law.estimates
        alpha, beta = (
            e.get(p, e.get("gamma") if axis in law.formula else None) for p, axis in (("alpha", "N"), ("beta", "D"))
        )
        state = "yes, drawn" if law.chosen else "yes" if law.identified else "no"
        rows.append(
            [
                Raw("" if name == last else f"{name}<br>{unit}"),
                nowrap(pretty(law.formula)),
                f"{place}, {len(law.points)}",
            ]
            + [interval(e.get("E"), factor), interval(alpha), interval(beta), format_percent(law.log_rms), state]
        )
        classes.append("chosen" if law.chosen else "" if law.identified else "out")
        last = name
        if law.notes:
            notes[f"{law.formula.removeprefix('L = ')}, {place}: {'; '.join(law.notes)}."].append(name)
    heads = ["target L", "law", "runs", "E", "exponent of N", "exponent of D", "rms residual", "determined"]
    intro = (
        f'<p class="note">N: body parameters, D: unique training structures. Huber loss (10⁻³) of the logarithm, '
        f"exponents bounded to (0, {MAX_EXPONENT:g}]. Brackets: {format_percent(fit.confidence)} intervals from {fit.bootstrap:,} "
        f"resamplings of the runs (seed {fit.seed}). Grey: not every parameter is determined. Where the joint law is "
        "not, figures go by its part of least AICc among the determined ones. A, B and every law tried are in fit.json.</p>"
    )
    reasons = "".join(f"<li>{escape(', '.join(names))}: {pretty(text)}</li>" for text, names in notes.items())
    more = f'<details class="note"><summary>Why a law is not determined, and other notes</summary><ul>{reasons}</ul></details>'
    return intro + table(heads, rows, classes, 3) + (more if reasons else "") if rows else ""


def tabulated(laws: tuple[LawFit, ...], target: str) -> list[LawFit]:
    mine = [law for law in laws if law.target == target and not law.where.startswith(WHERE_MODEL)]
    whole = [law for law in mine if law.law == "Hoffmann" or law.chosen]
    for axis in "ND":  # with its floor where that is determined, else without
        along = [law for law in mine if law.law in (f"Power{axis}", f"PurePower{axis}") and "largest" in law.where]
        whole += along[:1] if along and along[0].identified else along[1:2]
    return whole


def rivals(study: Study) -> list[LawFit]:
    mine = [law for law in study.fit.laws if law.target == "loss" and not law.where.startswith(WHERE_MODEL)]
    return [law for law in mine if law.law in JOINT_FORMS]


def runs(study: Study) -> str:
    main = next((law for law in study.fit.laws if law.law == "Hoffmann"), None)
    used, excluded = (set(main.points), main.excluded) if main else (set(), {})
    rows, classes = [], []
    for p in sorted(study.points, key=lambda p: (p.model, p.depth, p.body_parameters, p.structures, p.seed, p.run)):
        trained = next((r for need, r in study.results.items() if need == f"train/{short(p.run)}"), None)
        status = "in the laws" if p.run in used else excluded.get(p.run, "not used")
        rows.append(
            [short(p.run), f"{p.width} × {p.depth}", f"{p.body_parameters:,}", f"{p.structures:,}"]
            + [f"{p.epochs:g}" if p.epochs else "", f"{p.flops:.2e}" if p.flops else ""]
            + [f"{p.loss:.4g}", format_number(1e3 * p.energy_mae), format_number(1e3 * p.force_mae)]
            + [
                f"{p.seed}",
                duration(trained.seconds) if trained else "",
                Raw(f'<div class="status">{escape(status)}</div>'),
            ]
        )
        classes.append("" if p.run in used else "out")
    heads = [
        "run",
        "width × depth",
        "N",
        "D",
        "epochs",
        "FLOP",
        "loss",
        "energy MAE, meV/atom",
        "force MAE, meV/Å",
        "seed",
    ]
    missing = sorted({short(n) for n in study.results if n.startswith("train/")} - {short(p.run) for p in study.points})
    text = f'<p class="note">Trained but without an evaluation: {escape(", ".join(missing))}.</p>' if missing else ""
    return table([*heads, "training", Raw('<div class="status">status</div>')], rows, classes) + text


def source_errors(study: Study) -> str:
    """Of the best run on each source, and of the run with the lowest loss."""
    by_source: dict[str, list] = defaultdict(list)
    for e in study.evaluations.values():
        for name, errors in e.sources.items():
            if not e.diverged:
                by_source[name].append((e, errors))
    rows = []
    for name, found in sorted(by_source.items()):
        for e, errors in sorted(found, key=lambda f: (f[0].loss, f[0].run))[:3]:
            rows.append(
                [
                    name,
                    short(e.run),
                    f"{errors.structures:,}",
                    *(format_number(1e3 * v) for v in (errors.energy_mae, errors.energy_rmse)),
                    *(format_number(1e3 * v) for v in (errors.force_mae, errors.force_rmse)),
                ]
            )
    heads = [
        "source",
        "run",
        "structures",
        "energy MAE, meV/atom",
        "energy RMSE, meV/atom",
        "force MAE, meV/Å",
        "force RMSE, meV/Å",
    ]
    splits = ", ".join(sorted({e.split for e in study.evaluations.values()}))
    note = f'<p class="note">The three runs of lowest loss, on the {splits} split; force errors are per component.</p>'
    return note + table(heads, rows, numbers_from=2) if rows else ""


def audited(study: Study) -> str:
    """The audit in a line, as its stage says it."""
    found = next((result.values["found"] for need, result in study.results.items() if need.startswith("audit/")), None)
    where = "More in <code>audit.html</code> at the top of the run directory."
    return f"<p>{escape(str(found))}. {where}</p>" if found else ""


def cards(study: Study) -> str:
    rows = []
    for name, c in study.cards.items():
        what = f"<b>{escape(name)}</b>: {escape(c.card.title)}"
        if c.card.mirrors:
            what += f"; in place of {escape(c.card.mirrors)}"
        origin = escape(f"{c.card.theory}. {c.card.citation}. Licence: {c.card.licence}.".replace("..", "."))
        what += f'<br><span class="soft">{origin}</span>'
        skipped = ", ".join(f"{n:,} {reason}" for reason, n in sorted(c.skipped.items())) or "none"
        what += f'<br><span class="soft">Elements: {" ".join(sorted(c.elements))}. Left out: {escape(skipped)}.</span>'
        counts = [f"{c.counts[s].structures:,}" if s in c.counts else "0" for s in ("train", "validation", "test")]
        total, atoms = sum(x.structures for x in c.counts.values()), sum(x.atoms for x in c.counts.values())
        rows.append(
            [
                Raw(f'<div class="wide-text">{what}</div>'),
                *counts,
                f"{atoms / max(total, 1):.1f}",
            ]
            + [format_number(1e3 * c.energy_rms), format_number(1e3 * c.force_rms)]
        )
    heads = [
        "source",
        "train",
        "validation",
        "test",
        "atoms each",
        "energy rms, meV/atom",
        "force rms, meV/Å",
    ]
    note = (
        '<p class="note">Structures per split, split by whole groups; rms of the training split, of energies less the '
        "references of their elements.</p>"
    )
    return note + table(heads, rows) if rows else ""


def timings(study: Study) -> str:
    kinds = defaultdict(list)
    for need, result in study.results.items():
        kinds[need.split("/")[0]].append(result)
    order = [k for k in ("convert", "train", "evaluate", "scaling") if k in kinds] + sorted(
        set(kinds) - {"convert", "train", "evaluate", "scaling"}
    )
    rows = []
    for kind in order:
        seconds = [r.seconds for r in kinds[kind]]
        rows.append(
            [kind, str(len(seconds)), duration(sum(seconds)), duration(median(seconds)), duration(max(seconds))]
            + [
                duration(sum(r.cpu_seconds for r in kinds[kind])),
                f"{max(r.peak_bytes for r in kinds[kind]) / 2**30:.2f} GiB",
            ]
            + [str(sum(r.attempts for r in kinds[kind]))]
        )
    return table(
        ["stage", "count", "total", "median", "longest", "CPU time", "peak memory of a rank", "attempts"], rows
    )


def provenance(study: Study) -> str:
    """Each fact once, with how many stages it holds for where they differ."""
    facts: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for result in study.results.values():
        for name, value in result.provenance.items():
            facts[name][str(value)] += 1
    rows = []
    for name, values in sorted(facts.items()):
        text = "; ".join(f"{v} ({n} stages)" if len(values) > 1 else v for v, n in sorted(values.items()))
        rows.append([name, text])
    seeds = ", ".join(str(s) for s in sorted({p.seed for p in study.points}))
    rows.append(["seeds of weights and data order", seeds or "none"])
    rows.append(["seed of the bootstrap", str(study.fit.seed)])
    return table(["what", "value"], rows, numbers_from=2)


# ---------------------------------------------------------------------------------------------------------------- words
def interval(e: Estimate | None, factor: float = 1.0) -> str:
    if e is None:
        return "–"
    if factor == 1.0 and e.value > 0.99 * MAX_EXPONENT:  # of an exponent
        return f"at its bound of {MAX_EXPONENT:g}"
    return format_estimate(e, factor)


def nowrap(html: str) -> Raw:
    return Raw(f'<span class="formula">{html}</span>')


def pretty(formula: str) -> str:
    """E + A/N^alpha -> E + A/N<sup>α</sup>"""
    return re.sub(r"\^(\w+)", r"<sup>\1</sup>", escape(with_greek_letters(formula)))


def duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.3g} s"
    if seconds < 7200:
        return f"{seconds / 60:.1f} min"
    return f"{seconds / 3600:.1f} h"
