"""The three questions: planted answers come back, with what they rest on; the same from a bare table of points."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest

from gnnscale.architectures.egnn import EGNNConfig
from gnnscale.contract import files
from gnnscale.contract.results import Errors, Evaluation, LayerFeatures, StageResult
from gnnscale.contract.scaling_results import Fit, Point
from gnnscale.contract.settings import ReportSettings, ScalingSettings
from gnnscale.contract.stage_spec import Runtime
from gnnscale.report.figures.study_figures import draw_figures
from gnnscale.report.questions.memory_techniques import answer_memory
from gnnscale.report.study_results import StudyResults
from gnnscale.report.three_questions import answer_questions
from gnnscale.scaling.analysis import fit_study
from gnnscale.scaling.points import to_csv
from gnnscale.stages.fit_csv import main
from tests.gnnscale.scaling.test_analysis import QUICK, run

WIDTHS, SIZES, DEPTHS = (12, 20, 36, 64), (500, 1000, 2000, 4000), (2, 3, 4, 6, 12)


def data_and_model(
    law=lambda n, d: 0.05 + 30 / n**0.5 + 6 / d**0.45, noise: float = 0.004, repeats=False
) -> list[Point]:
    """Make a grid with two seeds, and on request other numbers of epochs at one width, where steps bring less than data."""
    rng, points = np.random.default_rng(0), []
    for width in WIDTHS:
        n = EGNNConfig(width=width).body_parameters()
        for d in SIZES:
            for seed in (0, 1):
                loss = law(n, d) * math.exp(noise * rng.normal())
                points.append(
                    run(width, d, run=f"w{width}-n{d}-s{seed}", body_parameters=n, seed=seed, epochs=8.0, loss=loss)
                )
    n = EGNNConfig(width=36).body_parameters()
    for d in SIZES if repeats else ():
        for epochs in (2.0, 32.0):
            loss = law(n, d) * (epochs / 8) ** -0.1
            points.append(run(36, d, run=f"w36-n{d}-e{epochs:g}", body_parameters=n, epochs=epochs, loss=loss))
    return points


def deep_and_wide(seeds=(0, 1)) -> tuple[list[Point], dict[str, Evaluation]]:
    """Ours gains 2 % with each doubling of depth, the paper's loses past three layers and becomes smooth."""
    rng, points, evaluations = np.random.default_rng(1), [], {}
    for form in ("deferred", "paper"):
        for size in (20_000, 80_000):
            for depth in DEPTHS:
                c = EGNNConfig(depth=depth, form=form).for_parameters(size)
                factor = depth**-0.03 if form == "deferred" else 2 + 0.1 * max(0, depth - 3)
                keeps = 0.97 if form == "deferred" else 0.4
                layers = [
                    LayerFeatures(distance=0.6 * keeps**k, sample_distance=0.8, dirichlet=0.5 * keeps**k)
                    for k in range(depth + 1)
                ]
                for seed in seeds:
                    name, loss = f"{form}-{size}-d{depth}-s{seed}", 0.3 * factor * math.exp(0.004 * rng.normal())
                    last = {"cosine_distance": layers[-1].distance, "dirichlet_energy": layers[-1].dirichlet}
                    p = run(
                        c.width,
                        6000,
                        depth,
                        loss,
                        run=name,
                        model=c.label,
                        body_parameters=c.body_parameters(),
                        seed=seed,
                        epochs=8.0,
                        learning_rate=1e-3 if form == "paper" else 2e-3,
                        **last,
                    )
                    e = Errors(
                        structures=9, atoms=90, energy_mae=loss, energy_rmse=loss, force_mae=loss, force_rmse=loss
                    )
                    shared = {
                        f: getattr(p, f) for f in Evaluation.model_fields if f in Point.model_fields and f != "model"
                    }
                    points.append(p)
                    evaluations[name] = Evaluation(
                        **shared, model=c, steps=1, split="test", all=e, sources={"a": e}, layers=layers
                    )
    return points, evaluations


def study(points: list[Point], evaluations=None, runtimes=None, settings=QUICK) -> StudyResults:
    facts = {"key": "k", "outputs": {}, "digest": "d", "inputs": {}, "started": 1e9, "seconds": 50.0, "cpu_seconds": 50}
    results = {
        f"train/{name}": StageResult(id=f"train/{name}", peak_bytes=2**30 * (1 + k), **facts)
        for k, name in enumerate(runtimes or {})
    }
    about = ReportSettings(title="t", study="s")
    return StudyResults(about, points, fit_study(points, settings), evaluations or {}, {}, {}, results, runtimes or {})


# ---------------------------------------------------------------------------------------------------------- the questions
def test_data_or_parameters():
    """By the law, from each seed, and how much of it is of the steps."""
    points = data_and_model(repeats=True)
    first = answer_questions(study(points))[0]
    law = lambda n, d: 0.05 + 30 / n**0.5 + 6 / d**0.45  # noqa: E731
    n, d = EGNNConfig(width=64).body_parameters(), 4000
    found = re.search(
        r"^Data: .*twice the data lower the loss by ([\d.]+) % \[([\d.]+), ([\d.]+)\], twice the parameters by "
        r"([\d.]+) % \[([\d.]+), ([\d.]+)\]",
        first.answer,
    )
    data, low, high, model, lower, higher = map(float, found.groups())
    assert low < 100 * (1 - law(n, 2 * d) / law(n, d)) < high and low < data < high
    assert lower < 100 * (1 - law(2 * n, d) / law(n, d)) < higher and lower < model < higher
    said = " ".join(first.evidence)
    for seed in (0, 1):
        mine = {(p.width, p.structures): p.loss for p in points if p.seed == seed and p.epochs == 8}
        assert f"{100 * (1 - mine[64, 4000] / mine[64, 2000]):.1f} % and" in said and f"with seed {seed}" in said
    assert "over 16 runs of the grid" in said
    traded = next(s for s in first.evidence if s.startswith("More data or more steps"))
    assert "4 times the epochs on the same structures by −13 %" in traded  # 4^-0.1
    assert any("every run of the grid makes 8 epochs" in s for s in first.unsupported)


def test_a_fall_has_a_positive_exponent_and_an_interval_around_it():
    said = " ".join(answer_questions(study(data_and_model()))[0].evidence)
    for axis in "DN":
        value, low, high = map(
            float,
            re.search(rf"loss falls as a power of {axis} with exponent ([\d.]+) \[([\d.]+), ([\d.]+)\]", said).groups(),
        )
        assert low < value < high
    assert "exponent −" not in said


def test_two_by_two_runs_with_one_seed_decide_nothing():
    points = [p for p in data_and_model() if p.width in (36, 64) and p.structures > 1000 and p.seed == 0]
    first = answer_questions(study(points))[0]
    assert first.answer.startswith("One seed does not show which is better: at the largest point")


def test_a_model_that_matters_more_is_said_so():
    first = answer_questions(study(data_and_model(lambda n, d: 0.01 + 80 / n**0.6 + 0.3 / d**0.3)))[0]
    assert first.answer.startswith("Parameters: at the largest point")


def test_without_a_law_that_holds_it_is_measured():
    """Losses that steepen with the data: no sum of powers, but neighbours tell."""
    first = answer_questions(study(data_and_model(lambda n, d: 2 * math.exp(-d / 2000) / n**0.1)))[0]
    assert (
        first.answer.startswith("Data: ")
        and "with every one of 2 seeds, measured from the neighbouring runs" in first.answer
    )
    assert any("An interval from a law" in s for s in first.unsupported)


def test_width_or_depth():
    points, evaluations = deep_and_wide()
    asked = study(points, evaluations)
    answer = answer_questions(asked)[1]
    assert (
        "For egnn-deferred: depth; the best depth is 12" in answer.answer and "with no over-smoothing." in answer.answer
    )
    assert "For egnn-paper: width; the best depth is" in answer.answer and "with over-smoothing." in answer.answer
    line = next(s for s in answer.evidence if s.startswith("egnn-deferred of N ≈ 80,000") or "deferred of N ≈ 8" in s)
    change, low, high = map(float, re.search(r"([\d.]+) % lower \[([\d.]+), ([\d.]+)\] against depth 3", line).groups())
    assert low < 100 * (1 - 4**-0.03) < high and low < change < high
    assert any("the deepest tried" in s for s in answer.unsupported)
    assert answer_questions(asked)[0].answer.startswith("This study does not answer the question")
    drawn = {f.name: f for f in draw_figures(asked)}
    assert (
        {"depths", "layers"} <= set(drawn)
        and "width_depth" not in drawn
        and "two columns" not in drawn["layers"].caption
    )
    said = asked.fit.findings
    assert said[0].startswith("That width beats depth past 3 layers (arXiv 2504.08112) is seen here for egnn-paper")
    assert "is contradicted for egnn-deferred" in said[0] and not any(law.chosen for law in asked.fit.laws)


def test_one_seed_decides_nothing():
    answer = answer_questions(study(*deep_and_wide(seeds=(0,))))[1]
    assert answer.answer.count("no difference beyond the scatter of the seeds") == 2
    assert "one seed: no interval" in answer.evidence[0] and any("one seed" in s for s in answer.unsupported)


def test_memory_is_told_by_what_was_used():
    points, fitted = data_and_model(), study(data_and_model()[:4])
    runtimes = {p.run: Runtime(edge_chunk=4096, zero_stage=1, ranks=2) if p.width > 30 else Runtime() for p in points}
    results = study(points[:4], runtimes=runtimes).results
    answer = answer_memory(fitted._replace(points=points, runtimes=runtimes, results=results))
    assert answer.answer == "This study used edges in chunks of 4,096 with ZeRO 1 over 2 ranks in 16 of 32 trainings."
    peaks = [1 + k for k, p in enumerate(points) if p.width > 30]
    assert f"{min(peaks):.2f} to {max(peaks):.2f} GiB" in next(
        s for s in answer.evidence if s.startswith("Edges in chunks")
    )
    assert "no step was taken both with and without" in answer.unsupported[0]
    assert answer_memory(fitted).answer == "Not recorded in these points."


# ------------------------------------------------------------------------------------------------------------ from a table
@pytest.mark.slow
def test_the_same_from_a_bare_table(tmp_path, capsys):
    """points.csv alone gives the fit and the answers of the stages; of two questions at once."""
    points = [*data_and_model(), *(p for p in deep_and_wide()[0] if p.run.startswith("paper-2"))]
    points = [p.model_copy(update={"energy_mae": math.nan, "force_mae": math.nan}) for p in points]
    (tmp_path / "points.csv").write_text(to_csv(points))
    assert main([str(tmp_path / "points.csv"), "--bootstrap", "20", "--out", str(tmp_path / "out")]) == 0
    asked = study(points, settings=ScalingSettings(bootstrap=20, targets=("loss",)))
    assert files.read_model(tmp_path / "out" / "fit.json", Fit) == asked.fit
    said = capsys.readouterr().out
    for answer in answer_questions(asked):
        assert answer.answer in said and all(text in said for text in (*answer.evidence, *answer.unsupported))
    assert "<h3>" in (tmp_path / "out" / "report.html").read_text() and list(
        (tmp_path / "out" / "figures").glob("*.svg")
    )


@pytest.mark.slow
def test_a_table_of_others_with_some_of_the_columns(tmp_path):
    """Model, depth and seed by other names, no energies: the same law as of all columns, seeds counted where not given."""
    points = data_and_model()
    deep = run(30, 4000, 6, 9.9, run="deep")
    rows = [f"{p.body_parameters},{p.structures},{p.loss!r},ours,{p.depth}" for p in (*points, deep)]
    (tmp_path / "mine.csv").write_text(
        "\n".join(["params,structures,loss,form,layers", *rows, "500,500,nan,ours,3"]) + "\n"
    )
    assert main([str(tmp_path / "mine.csv"), "--bootstrap", "0", "--out", str(tmp_path / "out")]) == 0
    found = files.read_model(tmp_path / "out" / "fit.json", Fit)
    law = next(law for law in found.laws if law.law == "Hoffmann")
    own = next(law for law in fit_study(points, QUICK).laws if law.law == "Hoffmann")
    assert {law.target for law in found.laws} == {"loss"} and len(law.points) == 32
    for name, e in own.estimates.items():
        assert law.estimates[name].value == pytest.approx(e.value, rel=1e-6)
    assert set(law.excluded.values()) == {"another depth", "loss is not finite"}


@pytest.mark.slow
def test_what_a_table_does_not_say_is_not_made_up(tmp_path, capsys):
    """No epochs, no rates: nothing is said of either. An empty cell is as good as no column."""
    points, out = data_and_model(), ["--bootstrap", "20", "--out", str(tmp_path / "out")]
    rows = [f"{p.body_parameters},{p.structures},{p.loss!r},3" for p in points]
    (tmp_path / "bare.csv").write_text("\n".join(["params,structures,loss,depth", *rows]) + "\n")
    assert main([str(tmp_path / "bare.csv"), *out]) == 0
    bare, page = capsys.readouterr().out, (tmp_path / "out" / "report.html").read_text()
    assert "epochs" not in bare and "learning rate" not in bare
    assert "<dt>epochs" not in page and "0.00e+00" not in page and "no learning rate" not in page
    empty = [f"{row},,,,,,ours" for row in rows]
    header = "params,structures,loss,depth,epochs,lr,seed,diverged,subset,model"
    (tmp_path / "bare.csv").write_text("\n".join([header, *empty]) + "\n")
    assert main([str(tmp_path / "bare.csv"), *out]) == 0
    assert capsys.readouterr().out.replace("ours, ", "") == bare
    told = [f"{row},8,0.002" for row in rows]
    (tmp_path / "told.csv").write_text("\n".join(["params,structures,loss,depth,epochs,lr", *told]) + "\n")
    assert main([str(tmp_path / "told.csv"), *out]) == 0
    said = capsys.readouterr().out
    assert "every run of the grid makes 8 epochs" in said and "no learning rate was tuned" in said


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("0,500,0.3,ours,3", "line 2: found params '0' and structures '500', expected sizes of 1 and more"),
        ("900,500,0.3,ours,three", "line 2, column 'layers': found 'three', expected a number"),
        ("900,500,0.3,ours,3.5", "line 2, column 'layers': found 3.5"),
        ("900,500,nan,ours,3", "no row has a loss that is a number"),
    ],
)
def test_mistakes_in_a_table_are_one_line(tmp_path, capsys, row, words):
    (tmp_path / "mine.csv").write_text(f"params,structures,loss,form,layers\n{row}\n")
    assert main([str(tmp_path / "mine.csv"), "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert words in said and said.count("\n") == 1 and not (tmp_path / "out").exists()
