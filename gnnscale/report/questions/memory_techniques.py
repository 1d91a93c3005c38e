"""The third question of the report, how much memory each technique saves and what it costs."""

from __future__ import annotations

from collections import defaultdict

from gnnscale.contract.stage_spec import Runtime
from gnnscale.report import lever_words
from gnnscale.report.questions.answer import Answer
from gnnscale.report.study_results import StudyResults, run_name
from gnnscale.scaling.words import join_names

QUESTION = "How much memory do the memory techniques save, and what do they cost?"
NO_COMPARISON = (
    "The saving or cost of one technique: no step was taken both with and without it; the entry `levers:` of a study file "
    "requests such steps."
)


def answer_memory(study: StudyResults) -> Answer:
    """Answer from steps measured side by side, if there are any, and from the techniques that the trainings used."""
    found, answer = study.levers, answer_from_trainings(study)
    if found is None:
        return answer
    trained = (answer.answer, *answer.evidence) if study.runtimes else ()
    return Answer(
        QUESTION,
        lever_words.state_least_memory(found),
        (*lever_words.list_evidence(found), *trained),
        tuple(lever_words.list_limits(found)),
    )


def answer_from_trainings(study: StudyResults) -> Answer:
    rows = group_by_technique(study)
    if not rows:
        return Answer(QUESTION, "Not recorded in these points.")
    used = [f"{name} in {len(runs)} of {len(study.runtimes)} trainings" for name, runs in rows.items() if name]
    plain = "No training of this study used any: all fitted into memory without them."
    lead = f"This study used {join_names(used)}." if used else plain
    evidence = [sentence for name, runs in rows.items() if (sentence := describe_trainings(study, name, runs))]
    return Answer(QUESTION, lead, tuple(evidence), (NO_COMPARISON,))


def describe_trainings(study: StudyResults, technique: str, runs: list[str]) -> str:
    """Describe the memory and time of the trainings that used a technique; "" if none is finished."""
    done = [r for run in runs if (r := study.results.get(f"train/{run}"))]
    if not done:
        return ""
    n = [p.body_parameters for p in study.points if run_name(p.run) in runs]
    sizes = f", N up to {max(n):,}" if n else ""
    peak, seconds = [r.peak_bytes / 2**30 for r in done], sum(r.seconds for r in done)
    text = f"{technique[:1].upper()}{technique[1:]}" if technique else "None"
    return (
        f"{text}: {len(done)} trainings{sizes}; peak memory of a rank {min(peak):.2f} to {max(peak):.2f} GiB; "
        f"{seconds:,.0f} s in total."
    )


def group_by_technique(study: StudyResults) -> dict[str, list[str]]:
    """Return the runs by the techniques they used ("" for none), the most frequent first."""
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
