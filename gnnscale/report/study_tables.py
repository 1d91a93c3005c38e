"""Tables of runs, errors, sources, stages and provenance."""

from __future__ import annotations

from collections import Counter, defaultdict
from html import escape
from statistics import median

from gnnscale.contract.dataset_card import ShardCard
from gnnscale.contract.results import Errors, Evaluation, StageResult
from gnnscale.report.html import RawHtml, format_duration, render_table
from gnnscale.report.study_results import StudyResults, run_name
from gnnscale.scaling.words import format_number


def render_runs(study: StudyResults) -> str:
    main = next((law for law in study.fit.laws if law.law == "Hoffmann"), None)
    used, excluded = (set(main.points), main.excluded) if main else (set(), {})
    rows, classes = [], []
    for p in sorted(study.points, key=lambda p: (p.model, p.depth, p.body_parameters, p.structures, p.seed, p.run)):
        trained = next((r for need, r in study.results.items() if need == f"train/{run_name(p.run)}"), None)
        status = "in the laws" if p.run in used else excluded.get(p.run, "not used")
        rows.append(
            [run_name(p.run), f"{p.width} × {p.depth}", f"{p.body_parameters:,}", f"{p.structures:,}"]
            + [f"{p.epochs:g}" if p.epochs else "", f"{p.flops:.2e}" if p.flops else ""]
            + [f"{p.loss:.4g}", format_number(1e3 * p.energy_mae), format_number(1e3 * p.force_mae)]
            + [
                f"{p.seed}",
                format_duration(trained.seconds) if trained else "",
                RawHtml(f'<div class="status">{escape(status)}</div>'),
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
    missing = sorted(
        {run_name(n) for n in study.results if n.startswith("train/")} - {run_name(p.run) for p in study.points}
    )
    text = f'<p class="note">Trained but without an evaluation: {escape(", ".join(missing))}.</p>' if missing else ""
    return render_table([*heads, "training", RawHtml('<div class="status">status</div>')], rows, classes) + text


def render_source_errors(study: StudyResults) -> str:
    """Render the errors of the three best runs on each source, on each external test, and on unseen elements there."""
    by_source: dict[str, list[tuple[Evaluation, Errors]]] = defaultdict(list)
    for e in study.evaluations.values():
        apart = {f"{name}, unseen {' '.join(found.elements)}": found.errors for name, found in e.unseen.items()}
        for name, errors in (e.sources | apart).items():
            if not e.diverged and errors.structures:
                by_source[name].append((e, errors))
    rows = []
    for name, measured in sorted(by_source.items()):
        for e, errors in sorted(measured, key=lambda f: (f[0].loss, f[0].run))[:3]:
            rows.append(
                [
                    name,
                    run_name(e.run),
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
    note = f"The three runs of lowest loss, on the {splits} split; force errors are per component. {note_tests(study)}"
    return f'<p class="note">{escape(note.strip())}</p>' + render_table(heads, rows, numbers_from=2) if rows else ""


def note_tests(study: StudyResults) -> str:
    """Return sentences about external tests and unseen elements, where there are any."""
    evaluations, said = study.evaluations.values(), []
    tests = {name: source for e in evaluations for name, source in e.tests.items()}
    if tests:
        named = ", ".join(f"{name} (of {source})" for name, source in sorted(tests.items()))
        said.append(
            f"External tests, with the embedding and the references of their source: {named}. Laws are fitted to the errors "
            "on the splits of sources, and to those on external tests where a source has no such split."
        )
    if any(e.unseen for e in evaluations):
        said.append(
            "Structures with elements that the training split of their source lacks are in rows of their own and in no "
            "other error."
        )
    return " ".join(said)


def render_audit_line(study: StudyResults) -> str:
    """Render the one-line summary that the audit stage wrote."""
    found = next((result.values["found"] for need, result in study.results.items() if need.startswith("audit/")), None)
    where = "More in <code>audit.html</code> at the top of the run directory."
    return f"<p>{escape(str(found))}. {where}</p>" if found else ""


def render_dataset_cards(study: StudyResults) -> str:
    rows = []
    for name, c in study.cards.items():
        what = f"<b>{escape(name)}</b>: {escape(c.card.title)}"
        if c.card.mirrors:
            what += f"; replaces {escape(c.card.mirrors)}"
        origin = escape(f"{c.card.theory}. {c.card.citation}. Licence: {c.card.licence}.".replace("..", "."))
        what += f'<br><span class="soft">{origin}</span>'
        skipped = ", ".join(f"{n:,} {reason}" for reason, n in sorted(c.skipped.items())) or "none"
        what += f'<br><span class="soft">Elements: {" ".join(sorted(c.elements))}. Left out: {escape(skipped)}.</span>'
        what += f'<br><span class="soft">{escape(describe_references_and_split(c))}</span>'
        counts = [f"{c.counts[s].structures:,}" if s in c.counts else "0" for s in ("train", "validation", "test")]
        total, atoms = sum(x.structures for x in c.counts.values()), sum(x.atoms for x in c.counts.values())
        rows.append(
            [
                RawHtml(f'<div class="wide-text">{what}</div>'),
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
        '<p class="note">Structures per split, split by whole groups unless said otherwise; rms of the training split, '
        "of energies less the references of their elements and the mean binding energy where these are of atoms alone.</p>"
    )
    return note + render_table(heads, rows) if rows else ""


def describe_references_and_split(card: ShardCard) -> str:
    """Say where the reference energies come from, and what a reader must know of the split."""
    origins = Counter(card.reference_origins.values())
    counted = ", ".join(f"{count} {origin}" for origin, count in sorted(origins.items()))
    said = [f"An external test of {card.test_of}" if card.test_of else f"Reference energies: {counted or 'none'}"]
    return "".join(f"{sentence}. " for sentence in [*said, *card.remarks]).strip()


def group_by_kind(study: StudyResults) -> dict[str, list[StageResult]]:
    """Return the results of each kind of stage, in the order of their work."""
    kinds = defaultdict(list)
    for need, result in study.results.items():
        kinds[need.split("/")[0]].append(result)
    order = [k for k in ("convert", "train", "evaluate", "scaling") if k in kinds]
    return {kind: kinds[kind] for kind in [*order, *sorted(set(kinds) - set(order))]}


def render_timings(study: StudyResults) -> str:
    rows = []
    for kind, found in group_by_kind(study).items():
        seconds = [r.seconds for r in found]
        rows.append(
            [
                kind,
                str(len(seconds)),
                format_duration(sum(seconds)),
                format_duration(median(seconds)),
                format_duration(max(seconds)),
            ]
            + [
                format_duration(sum(r.cpu_seconds for r in found)),
                f"{max(r.peak_bytes for r in found) / 2**30:.2f} GiB",
            ]
            + [str(sum(r.attempts for r in found))]
        )
    return render_table(
        ["stage", "count", "total", "median", "longest", "CPU time", "peak memory of a rank", "attempts"], rows
    )


def render_cpu_shares(study: StudyResults) -> str:
    """Render where the CPU time went: into the work of each kind of stage, and into starting them all."""
    kinds = group_by_kind(study)
    spent = {kind: sum(r.cpu_seconds - r.start_cpu_seconds for r in found) for kind, found in kinds.items()}
    spent["start of all stages"] = sum(r.start_cpu_seconds for found in kinds.values() for r in found)
    total = sum(spent.values())
    rows = [[name, format_duration(seconds), f"{seconds / total:.1%}"] for name, seconds in spent.items() if total]
    note = (
        '<p class="note">The start of a stage is its interpreter and its imports. Not counted are this report and the '
        "driver.</p>"
    )
    return f"<h3>Where the CPU time went</h3>{note}{render_table(['work', 'CPU time', 'share'], rows)}" if rows else ""


def render_provenance(study: StudyResults) -> str:
    """Render each fact once, with the number of stages if they differ."""
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
    return render_table(["what", "value"], rows, numbers_from=2)
