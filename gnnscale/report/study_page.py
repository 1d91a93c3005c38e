"""The page report.html: a single file that loads nothing else; all text that comes from files is escaped."""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape

from gnnscale.report import lever_words
from gnnscale.report.beside_published import render_beside_published
from gnnscale.report.figures.style import DrawnFigure
from gnnscale.report.html import format_duration, render_document, render_prose, render_section
from gnnscale.report.law_tables import render_law_comparison, render_laws, select_joint_laws
from gnnscale.report.questions.answer import render_answers
from gnnscale.report.study_results import StudyResults
from gnnscale.report.study_tables import (
    render_audit_line,
    render_cpu_shares,
    render_dataset_cards,
    render_provenance,
    render_runs,
    render_source_errors,
    render_timings,
)
from gnnscale.report.three_questions import answer_questions

SENTENCES_OF_SUMMARY = 3  # the first findings form the summary


def render_study_page(study: StudyResults, figures: list[DrawnFigure]) -> str:
    s, findings, questions = study.settings, study.fit.findings, answer_questions(study)
    in_answers = {text for a in questions for text in (*a.evidence, *a.unsupported)}
    body = [
        f"<h1>{escape(s.title)}</h1>",
        f'<p class="soft">Study {escape(s.study)}. {escape(s.description)}</p>',
        f'<p class="lead">{render_prose(" ".join(findings[:SENTENCES_OF_SUMMARY]))}</p>',
        render_key_numbers(study),
        render_section("Beside published errors", render_beside_published(study)),
        render_section("The three questions", render_answers(questions, render_prose)),
        render_section(
            "Findings",
            render_bullets(tuple(text for text in findings[SENTENCES_OF_SUMMARY:] if text not in in_answers)),
        ),
        render_section(
            "What the data do not support", f'<div class="limits">{render_bullets(study.fit.unsupported)}</div>'
        ),
        render_section("Figures", "".join(render_figure(f) for f in figures)),
        render_section("Fitted laws", render_laws(study)),
        render_section("Joint laws of the loss compared", render_law_comparison(select_joint_laws(study))),
        render_section("Runs", render_runs(study)),
        render_section("Errors by source", render_source_errors(study)),
        render_section("Sources", render_audit_line(study) + render_dataset_cards(study)),
        render_section("Memory levers", lever_words.render_levers(study)),
        render_section("Time and memory", render_timings(study) + render_cpu_shares(study)),
        render_section("Provenance", render_provenance(study)),
    ]
    return render_document(s.title, body)


# --------------------------------------------------------------------------------------------------------------- blocks
def render_key_numbers(study: StudyResults) -> str:
    trained = [r for need, r in study.results.items() if need.startswith("train/")]
    facts = [("runs", str(len(study.points)))]
    if study.points:
        facts += [
            ("body parameters", format_range([p.body_parameters for p in study.points])),
            ("training structures", format_range([p.structures for p in study.points])),
        ]
    if all(p.epochs for p in study.points):  # points of other projects may have no epochs
        facts.append(("epochs", format_range([p.epochs for p in study.points])))
    if trained:
        facts.append(("training time, all runs", format_duration(sum(r.seconds for r in trained))))
        machines = {f"{r.provenance.get('processor', '?')}, {r.provenance.get('cores', '?')} cores" for r in trained}
        facts.append(("machine" if len(machines) == 1 else "machines", "; ".join(sorted(machines))))
    items = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in facts)
    return f'<dl class="keys">{items}</dl>'


def format_range(values: Sequence[float]) -> str:
    low, high = (f"{v:,.9g}" if v == round(v) else f"{v:.3g}" for v in (min(values), max(values)))
    return low if low == high else f"{low} – {high}"


def render_bullets(sentences: tuple[str, ...]) -> str:
    return "<ul>" + "".join(f"<li>{render_prose(s)}</li>" for s in sentences) + "</ul>" if sentences else ""


def render_figure(f: DrawnFigure) -> str:
    """Render a figure inline; its ids begin with the name of the figure, as two figures may use the same ids."""
    svg = f.svg[f.svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", svg)  # HTML defines these prefixes
    svg = re.sub(r'\bid="', f'id="{f.name}-', svg)
    svg = re.sub(r'href="#', f'href="#{f.name}-', svg).replace("url(#", f"url(#{f.name}-")
    label = escape(f.caption, quote=True)
    svg = svg.replace("<svg", f'<svg role="img" aria-label="{label}"', 1)
    kind = "wide" if f.wide else "half"
    caption = f"<figcaption>{render_prose(f.caption)} <code>figures/{f.name}.svg</code></figcaption>"
    return f'<figure class="{kind}">{svg}{caption}</figure>\n'
