"""The stage memory_levers: the same step in all ways, with less memory by each lever, as the planner predicts."""

import json
import math

import pytest

from gnnscale.architectures.memory import peak_bytes
from gnnscale.contract import files
from gnnscale.contract.results import LeverComparison, MeasuredStep
from gnnscale.contract.scaling_results import Estimate
from gnnscale.contract.settings import LeverSettings
from gnnscale.contract.stage_spec import Runtime
from gnnscale.report import lever_words
from gnnscale.report.questions.memory_techniques import answer_memory
from gnnscale.stages import memory_levers
from tests.gnnscale.report.test_three_questions import data_and_model, study
from tests.support.corpus import ROOT, make_stage_directory, read_result, run_stage
from workflow.config import site_files
from workflow.config.study import Study
from workflow.jobs import requests as queueing
from workflow.plan import build
from workflow.plan.memory_fit import fit_lever_comparison

pytestmark = pytest.mark.slow
MODEL = {"kind": "egnn", "form": "edge", "width": 32, "depth": 3, "cutoff": 4.0}
ASKED = LeverSettings(model=MODEL, batch=40, steps=1)


@pytest.fixture(scope="module")
def table(converted, tmp_path_factory):
    """Return the comparison on one rank."""
    made = make_stage_directory(tmp_path_factory.mktemp("one"), "memory_levers/all", ASKED, converted, edge_chunk=512)
    done = run_stage(made, timeout=400)
    assert done.returncode == 0, done.stderr
    assert (
        read_result(made).values == {"ways": 4, "ranks": 1}
        and json.loads((made / "progress.json").read_text())["done"] == 16
    )
    return files.read_model(made / "levers.json", LeverComparison)


def test_every_way_takes_the_same_step(table):
    plain, *others = table.ways
    assert plain.relative == Estimate(value=1, low=1, high=1)
    for way in others:
        assert math.isclose(way.loss, plain.loss, rel_tol=1e-5 if way.precision == "fp32" else 1e-2), way.name
        assert way.seconds > 0 and way.relative.low <= way.relative.value <= way.relative.high


def test_each_lever_saves_memory_as_the_planner_predicts(table):
    assert [w.name for w in table.ways] == [
        "plain",
        "each layer checkpointed",
        "edges in chunks of 512",
        "edges in chunks of 512, bf16",
    ]
    peaks = [w.peak_bytes for w in table.ways]
    assert sorted(peaks, reverse=True) == peaks
    for way in table.ways[:3]:
        foretold = peak_bytes(table.model, table.atoms, table.edges, way.runtime.memory_levers, sources=2).peak
        assert abs(way.peak_bytes / foretold - 1) < 0.15, (way.name, way.peak_bytes, foretold)


def test_two_ranks_take_the_step_of_one(table, converted, tmp_path):
    made = make_stage_directory(tmp_path, "memory_levers/all", ASKED, converted, edge_chunk=512, ranks=2)
    done = run_stage(made, ranks=2, timeout=400)
    assert done.returncode == 0, done.stderr
    found = files.read_model(made / "levers.json", LeverComparison)
    assert (found.ranks, found.structures, found.atoms, found.edges) == (2, table.structures, table.atoms, table.edges)
    assert [w.runtime.zero_stage for w in found.ways] == [0, 0, 1, 2, 0, 1, 2, 2]
    for way in found.ways:
        same = 1e-5 if way.precision == "fp32" else 1e-2
        assert math.isclose(way.loss, table.ways[0].loss, rel_tol=same), way.name
    assert max(w.peak_bytes for w in found.ways) < table.ways[0].peak_bytes, "of a rank, which has half of the batch"


def test_a_batch_larger_than_the_data_is_refused(converted, tmp_path):
    made = make_stage_directory(tmp_path, "memory_levers/all", ASKED.model_copy(update={"batch": 1000}), converted)
    done = run_stage(made)
    assert done.returncode == 64 and "a batch of 1000 structures asked for, the shards hold" in done.stderr


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("forces", ["direct", "gradient"])
def test_the_ways(forces, ranks):
    count = {("direct", 1): 4, ("direct", 2): 8, ("gradient", 1): 3, ("gradient", 2): 5}[forces, ranks]
    asked = ASKED.model_copy(update={"model": ASKED.model.model_copy(update={"forces": forces})})
    found = memory_levers.list_ways(Runtime(ranks=ranks, edge_chunk=10_000), asked, 4000)
    assert len(found) == count == len({w.name for w in found}) and found[0].runtime == Runtime(ranks=ranks)
    assert found[-1].precision == "bf16" and {w.precision for w in found[:-1]} == {"fp32"}
    assert {w.runtime.edge_chunk for w in found} == {None, 500}, "several chunks in a small batch too"
    assert any(w.runtime.zero_stage for w in found) == (ranks > 1)


# ---------------------------------------------------------------------------------------------------------- in the plan
def asked(**more):
    data = [{"name": "bulk", "dataset": "generated", "options": {"source": "bulk", "structures": 100}}]
    return Study.model_validate({"title": "t", "data": data, "sweeps": [{"name": "one"}], **more})


def stages(site, **more):
    return build.build_stages("t", asked(**more), site, ROOT / "nowhere")


def test_a_study_that_asks_for_it_has_one_more_stage():
    local = site_files.load("local")
    without, with_it = stages(local), stages(local, levers={"model": MODEL})
    assert with_it.keys() - without.keys() == {"memory_levers/all"}
    mine, report = with_it["memory_levers/all"], with_it["report/all"]
    assert (
        mine.needs == ("convert/bulk",)
        and "memory_levers/all" in report.needs
        and report.key != without["report/all"].key
    )
    assert (
        mine.levers.runtime.edge_chunk and not mine.levers.refusal and "gnnscale/stages/memory_levers.py" in mine.code
    )
    assert {id: s.key for id, s in with_it.items() if s.kind == "train"} == {
        id: s.key for id, s in without.items() if s.kind == "train"
    }


def test_it_is_a_job_of_its_own_with_all_ranks():
    site = site_files.load("slurm", ["train.nodes=[2, 2]", "launch.ranks_per_node=2"])
    found = stages(site, levers={"model": MODEL})
    requests = queueing.schedule(list(found.values()), site)
    assert requests["memory_levers/all"].ranks == 4 and found["memory_levers/all"].levers.runtime.ranks == 4


def test_a_step_that_does_not_fit_is_refused():
    site = site_files.load("local", ["node.memory_gb=2"])
    large = LeverSettings(model=MODEL | {"width": 2048}, batch=256)
    said = fit_lever_comparison(large, 1, 20.0, 400.0, site, 1).refusal
    assert "the plain step of `levers` needs" in said and "levers.batch" in said


# ------------------------------------------------------------------------------------------------------------ in words
def ways(*rows, ranks=2):
    found = [
        MeasuredStep(
            name=name,
            runtime=Runtime(ranks=ranks, **runtime),
            precision=precision,
            peak_bytes=peak,
            seconds=time,
            relative=Estimate(value=time, low=0.9 * time, high=1.1 * time),
            loss=loss,
        )
        for name, runtime, precision, peak, time, loss in rows
    ]
    size = {"parameters": 5_000_000, "structures": 64, "atoms": 999, "edges": 28_000}
    return LeverComparison(model=MODEL, ranks=ranks, device="H", ways=found, **size)


TABLE = ways(
    ("plain", {}, "fp32", 1000, 1.0, 2.0),
    ("each layer checkpointed", {"activation_checkpointing": True}, "fp32", 500, 1.3, 2.0),
    ("each layer checkpointed, ZeRO 1", {"activation_checkpointing": True, "zero_stage": 1}, "fp32", 400, 1.4, 2.0),
    ("edges in chunks of 9", {"edge_chunk": 9}, "fp32", 200, 0.5, 2.000002),
    ("edges in chunks of 9, bf16", {"edge_chunk": 9}, "bf16", 100, 0.25, 2.02),
)


def test_the_answer_gives_the_least_memory_of_each_kind():
    points = data_and_model()[:4]
    answer = answer_memory(study(points)._replace(levers=TABLE))
    assert answer.answer == (
        "Relative to the plain step, over everything in memory: with edges in chunks of 9, 20 % of its memory at 50 % "
        "[45, 55] of its time; with each layer checkpointed, ZeRO 1, 40 % of its memory at 140 % [126, 154] of its time."
    )
    text = " ".join(answer.evidence)
    assert (
        "equal within 1e-06" in text
        and "in bf16 the loss differs by 0.01" in text
        and "27 %" in text
        and "133 %" in text
    )
    assert not any("ZeRO" in s for s in answer.unsupported)
    alone = answer_memory(study(points)._replace(levers=TABLE.model_copy(update={"ranks": 1})))
    assert any("ZeRO" in s for s in alone.unsupported)


def test_the_table_and_the_figure_have_a_row_each(tmp_path):
    from gnnscale.report.figures.study_figures import draw_figures

    asked = study(data_and_model()[:4])
    rows, drawn = (
        lever_words.render_levers(asked._replace(levers=TABLE)),
        draw_figures(asked._replace(levers=TABLE)),
    )
    assert rows.count("<tr") == 1 + len(TABLE.ways) and "40 %" in rows
    assert (
        "levers" in {f.name for f in drawn}
        and "levers" not in {f.name for f in draw_figures(asked)}
        and not lever_words.render_levers(asked)
    )
