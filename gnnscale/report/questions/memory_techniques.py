"""TODO: say what a reader finds here."""

from __future__ import annotations

from collections import defaultdict

from gnnscale.contract.stage_spec import Runtime
from gnnscale.report import lever_words
from gnnscale.report.questions.answer import Answer
from gnnscale.report.study_results import StudyResults, run_name
from gnnscale.scaling.words import join_names


def answer_memory(study: StudyResults) -> Answer:
    """What was measured side by side; and what the trainings used, which differ in more than that."""
    question, found = "What do the techniques for memory bring?", study.levers
    answer = answer_from_trainings(study, question)
    if found is None:
        return answer
    trained = (answer.answer, *answer.evidence) if study.runtimes else ()
    return Answer(
        question,
        lever_words.state_least_memory(found),
        (*lever_words.list_evidence(found), *trained),
        tuple(lever_words.list_limits(found)),
    )


def answer_from_trainings(study: StudyResults, question: str) -> Answer:
    rows = group_by_technique(study)
    if not rows:
        return Answer(question, "Not recorded in these points.", (), ())
    used = [f"{name} in {len(runs)} of {len(study.runtimes)} trainings" for name, runs in rows.items() if name]
    plain = "No training of this study used any: all fitted into memory without."
    lead = f"This study used {join_names(used)}." if used else plain
    evidence = []
    for name, runs in rows.items():
        done = [r for run in runs if (r := study.results.get(f"train/{run}"))]
        if done:
            peak, n = (
                [r.peak_bytes / 2**30 for r in done],
                [p.body_parameters for p in study.points if run_name(p.run) in runs],
            )
            sizes = f", N up to {max(n):,}" if n else ""
            seconds, text = sum(r.seconds for r in done), f"{name[:1].upper()}{name[1:]}" if name else "None"
            evidence.append(
                f"{text}: {len(done)} trainings{sizes}; peak memory of a rank {min(peak):.2f} to "
                f"{max(peak):.2f} GiB, all included; {seconds:,.0f} s in all."
            )
    return Answer(
        question,
        lead,
        tuple(evidence),
        (
            "What each technique saves or costs: no step was taken both with and without; `levers:` in the study's file asks "
            "for that.",
        ),
    )


def group_by_technique(study: StudyResults) -> dict[str, list[str]]:
    """Runs by what they used, "" for nothing; in the order of how many."""
    found = defaultdict(list)
    for run, runtime in sorted(study.runtimes.items()):
        found[name_techniques(runtime)].append(run)
    return dict(sorted(found.items(), key=lambda item: -len(item[1])))


def name_techniques(runtime: Runtime) -> str:
    return " with ".join(
        name
        for name, used in (
            (f"edges in chunks of {runtime.edge_chunk or 0:,}", runtime.edge_chunk is not None),
            ("activation checkpointing", runtime.activation_checkpointing),
            (f"ZeRO {runtime.zero_stage} over {runtime.ranks} ranks", runtime.zero_stage > 0),
            (f"micro-batches of {runtime.micro_batch_edges or 0:,} edges", runtime.micro_batch_edges is not None),
        )
        if used
    )
