"""A report on a small planted study: complete, self-contained, harmless, the same bytes twice, also of part of one."""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
import sys
from html import escape
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from gnnscale.architectures.egnn import EGNNConfig
from gnnscale.contract import errors as contract_errors
from gnnscale.contract import files, stage_run
from gnnscale.contract.dataset_card import DatasetCard, ShardCard, Split, SplitCount
from gnnscale.contract.results import Errors, Evaluation, LayerFeatures, Metrics, StageResult, UnseenElements
from gnnscale.contract.settings import PublishedErrors, ReportSettings, ScalingSettings, Settings
from gnnscale.contract.stage_spec import StageSpec
from gnnscale.stages.report import main as report
from gnnscale.stages.scaling import main as scaling
from tests.support.corpus import ROOT

WIDTHS, SIZES, DEEP = (16, 32, 64, 128), (250, 500, 1000, 2000), ((45, 6), (90, 6))
FIGURES = {"loss_data", "loss_parameters", "surface", "compute", "width_depth", "sources", "learning"}
EVIL = '<script>alert("x")</script> & $co'
PUBLISHED = (
    PublishedErrors(
        source="crystals",
        test="hot",
        model="SNAP",
        errors={"force_mae": 87.25},
        citation=f"Li {EVIL}",
        note="other split",
    ),
    PublishedErrors(
        source=EVIL, model="GAP", errors={"energy_rmse_per_structure": 23.5, "force_rmse": 87.0}, citation="Kovacs 2021"
    ),
)


def spec(directory: Path, settings: Settings, needs: list[str]) -> stage_run.Run:
    directory.mkdir(parents=True, exist_ok=True)
    name = f"{settings.kind}/{directory.name}"
    links = {need: f"../../{need}" for need in needs}
    files.write_model(
        directory / "spec.json", StageSpec(id=name, key="k", settings=settings, code={"a.py": "c"}, needs=links)
    )
    return stage_run.Run(directory)


def result(root: Path, name: str, seconds: float) -> None:
    facts = {"python": "3.11", "host": f"node-{len(name) % 2}", "commit": "0123abcd", "processor": EVIL, "cores": 2}
    usage = {"seconds": seconds, "cpu_seconds": 1.9 * seconds, "start_cpu_seconds": 0.4, "peak_bytes": 3 * 2**29}
    r = StageResult(id=name, key="k", outputs={}, digest="d", inputs={}, started=1e9, provenance=facts, **usage)
    files.write_model(root / name / "result.json", r)


def errors(energy: float, force: float) -> Errors:
    return Errors(
        structures=300,
        atoms=6000,
        energy_mae=energy,
        energy_rmse=1.4 * energy,
        energy_rmse_per_structure=28 * energy,
        force_mae=force,
        force_rmse=1.5 * force,
    )


def train_and_evaluate(root: Path, width: int, depth: int, d: int, rng: np.random.Generator) -> None:
    name, n = f"w{width}-d{depth}-n{d}", 7 * depth * width**2
    diverged = (width, d) == (128, 250)
    loss = (0.12 + 6 / n**0.35 + 9 / d**0.5) * (1.03 if depth == 6 else 1) * np.exp(0.005 * rng.normal())
    common = {
        "atoms": 20 * d,
        "epochs": 4.0,
        "learning_rate": 2e-3,
        "steps": d // 4,
        "atoms_seen": 80 * d,
        "flops": 60.0 * n * 80 * d,
        "seed": 0,
        "subset": "random",
        "split": "test",
    }
    by_source = {EVIL: errors(0.03 * loss, 0.1 * loss), "crystals": errors(0.012 * loss**1.5, 0.2 * loss**0.7)}
    evaluation = Evaluation(
        run=name,
        model=EGNNConfig(width=width, depth=depth),
        parameters=n + 5000,
        body_parameters=n,
        structures=d,
        diverged=diverged,
        loss=loss,
        all=errors(0.02 * loss, 0.15 * loss),
        sources=by_source | {"crystals.hot": errors(0.04567, 0.3)},
        tests={"crystals.hot": "crystals"},
        unseen={"crystals.hot": UnseenElements(elements=("Pu",), errors=errors(9.0, 9.0))},
        layers=[LayerFeatures(distance=0.5, sample_distance=0.8, dirichlet=0.6)] * (depth + 1),
        **common,
    )
    files.write_model(root / "evaluate" / name / "errors.json", evaluation)
    result(root, f"evaluate/{name}", 2.0)
    steps = np.arange(0, d // 4, 2) + 1
    lines = []
    for k in steps:
        now = loss * (1 + 4 * np.exp(-k / (0.1 * d))) * np.exp(0.1 * rng.normal())
        held = loss * (1 + 4 * np.exp(-k / (0.1 * d))) if k % 50 == 1 else None
        seen = {"structures_seen": 16 * int(k), "atoms_seen": 320 * int(k), "seconds": 0.1 * k, "validation": held}
        lines.append(
            Metrics(step=k, loss=now, energy=now / 2, forces=now / 2, rate=2e-3, gradient=1.0, **seen).model_dump_json()
        )
    files.write(root / "train" / name / "metrics.jsonl", "\n".join(lines) + "\n")
    result(root, f"train/{name}", 0.01 * d * width)


def convert(root: Path, name: str) -> None:
    card = DatasetCard(
        name=name,
        title=f"Small molecules {EVIL}",
        mirrors="ANI-1x",
        theory="GFN2-xTB, tblite",
        citation="Bannwarth 2019",
        licence="CC0",
        structures=3000,
        atoms_per_structure=20,
        neighbours_per_atom=15,
        seconds_per_structure=0.01,
    )
    counts = {
        split: SplitCount(structures=n, groups=n // 10, atoms=20 * n, edges=300 * n)
        for split, n in (("train", 2400), ("validation", 150), ("test", 450))
    }
    shard = ShardCard(
        card=card,
        cutoff=5.0,
        split=Split(),
        counts=counts,
        elements={"H": 30000, "C": 20000, "O": 10000},
        trained_elements=("H", "C", "O"),
        references={"H": -13.6, "C": -1030.0, "O": -2040.0},
        reference_origins={"H": "file", "C": "fitted", "O": "file"},
        reference_rank=3,
        shifts=dict.fromkeys("HCO", -4.0),
        remarks=("Frames were split one by one",),
        energy_rms=0.31,
        force_rms=1.2,
        skipped={"not converged": 12},
        content="abc",
    )
    files.write_model(root / "convert" / name / "card.json", shard)
    result(root, f"convert/{name}", 40.0)


def make(root: Path, failed: tuple[str, ...] = (), bootstrap: int = 40) -> list[str]:
    """Make a study's stages up to scaling and return the ids that the report needs.

    Those in `failed` were trained and have no evaluation.
    """
    rng = np.random.default_rng(0)
    runs = [(w, 3, d) for w in WIDTHS for d in SIZES] + [(w, depth, 2000) for w, depth in DEEP]
    for width, depth, d in runs:
        train_and_evaluate(root, width, depth, d, rng)
    for name in ("organic", "crystals"):
        convert(root, name)
    names = [f"w{w}-d{depth}-n{d}" for w, depth, d in runs]
    evaluated = [f"evaluate/{name}" for name in names if name not in failed]
    scaling(spec(root / "scaling" / "all", ScalingSettings(bootstrap=bootstrap), evaluated))
    result(root, "scaling/all", 3.0)
    return ["scaling/all", *evaluated, *(f"train/{name}" for name in names), "convert/organic", "convert/crystals"]


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> tuple[Path, stage_run.Outputs]:
    root = tmp_path_factory.mktemp("study")
    needs = make(root)
    settings = ReportSettings(title=f"Title {EVIL}", study="smoke", description=EVIL, published=PUBLISHED)
    return root / "report" / "all", report(spec(root / "report" / "all", settings, needs))


class Page(HTMLParser):
    """Tags, attributes and text, as a browser finds them."""

    def __init__(self, text: str):
        super().__init__()
        self.tags, self.attributes, self.text = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data):
        self.text.append(data)


def test_page_needs_nothing_else(study):
    text = (study[0] / "report.html").read_text()
    page = Page(text)
    assert {"script", "link", "iframe", "object", "embed", "img"}.isdisjoint(page.tags)
    links = [v for name, v in page.attributes if name in ("src", "href", "xlink:href", "action", "data", "poster")]
    assert all(v.startswith("#") for v in links)
    assert not re.search(r"https?://|@import|url\((?!#)", text)
    assert not [name for name, _ in page.attributes if name.startswith("on")]


def test_ids_are_unique_and_found(study):
    page = Page((study[0] / "report.html").read_text())
    ids = [v for name, v in page.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    used = {v[1:] for name, v in page.attributes if name == "xlink:href"}
    used |= {m for _, v in page.attributes for m in re.findall(r"url\(#([^)]*)\)", v or "")}
    assert used and used <= set(ids)


def test_strings_from_files_are_text(study):
    page = Page((study[0] / "report.html").read_text())
    text = "".join(page.text)
    assert text.count(EVIL) >= 6  # title twice, description, theory's title, processor, the source's name
    assert "script" not in page.tags


def test_every_figure_in_both_formats(study):
    directory, outputs = study
    assert {Path(n).stem for n in outputs.files if n.startswith("figures/")} == FIGURES
    for name in FIGURES:
        svg = (directory / "figures" / f"{name}.svg").read_text()
        assert svg.startswith("<?xml") and "<svg" in svg and "dc:date" not in svg
        png = (directory / "figures" / f"{name}.png").read_bytes()
        assert png.startswith(b"\x89PNG") and b"tEXt" not in png
        assert f'id="{name}-' in (directory / "report.html").read_text()
    assert sorted(outputs.files) == sorted(
        str(p.relative_to(directory)) for p in directory.rglob("*.*") if p.suffix in (".svg", ".png", ".html", ".csv")
    )


def test_numbers_and_units(study):
    text = "".join(Page((study[0] / "report.html").read_text()).text).replace("\u00a0", " ")
    fit = json.loads((study[0] / "../../scaling/all/fit.json").read_text())
    assert all(sentence.replace("^", "") in text for sentence in fit["findings"] + fit["unsupported"])  # raised
    joint = next(law for law in fit["laws"] if law["law"] == "Hoffmann" and law["target"] == "energy_mae")
    assert f"{joint['estimates']['alpha']['value']:.3g} [" in text
    assert f"{1000 * joint['estimates']['E']['value']:.3g} [" in text  # meV/atom, as the others of its row
    for words in (
        "meV/atom",
        "meV/Å",
        "FLOP",
        "12 not converged",
        "Frames were split one by one.",
        "Reference energies: 2 file, 1 fitted.",
        "crystals.hot (of crystals)",
        "crystals.hot, unseen Pu",
        "45.7",  # meV/atom on the external test
        "GFN2-xTB",
        "0123abcd",
        "node-0",
        "diverged",
        "1.50 GiB",
        "5,376 – 344,064",
        "2 cores",
    ):
        assert words in text, words
    row = next(
        line for line in (study[0] / "report.html").read_text().splitlines() if "<tr><td>w64-d3-n1000</td>" in line
    )
    evaluation = files.read_model(study[0] / "../../evaluate/w64-d3-n1000/errors.json", Evaluation)
    assert f">{1000 * evaluation.all.force_mae:.3g}<" in row and f">{1000 * evaluation.all.energy_mae:.3g}<" in row


def test_published_errors_stand_beside_those_of_the_runs(study):
    """Each run and each published model has a row for each source and test, and the file has the numbers of the page."""
    with open(study[0] / "beside_published.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    runs = len(WIDTHS) * len(SIZES) + len(DEEP)
    assert [sum(row["where"] == name for row in rows) for name in ("crystals", "crystals.hot", EVIL)] == [
        runs,
        runs + 1,
        runs + 1,
    ]
    evaluation = files.read_model(study[0] / "../../evaluate/w64-d3-n1000/errors.json", Evaluation)
    own = next(row for row in rows if row["where"] == EVIL and row["run"] == "w64-d3-n1000")
    e = evaluation.sources[EVIL]
    assert own["model"] == "egnn-deferred, direct forces" and own["trained_on"] == "1000" and not own["citation"]
    assert float(own["force RMSE, meV/Å"]) == pytest.approx(1e3 * e.force_rmse, rel=1e-3)
    assert float(own["energy RMSE, meV a structure"]) == pytest.approx(1e3 * e.energy_rmse_per_structure, rel=1e-3)
    assert float(own["cpu_seconds"]) == pytest.approx(1.9 * 640)
    assert [row["run"] for row in rows if "diverged" in row["model"]] == ["w128-d3-n250"] * 3
    snap = next(row for row in rows if row["model"] == "SNAP")
    assert snap["where"] == "crystals.hot" and snap["force MAE, meV/Å"] == "87.25" and snap["parameters"] == ""
    assert snap["force RMSE, meV/Å"] == "" and snap["note"] == "other split"
    table = (study[0] / "report.html").read_text().partition("Beside published errors")[2].partition("<section>")[0]
    parts = {part.partition("</h3>")[0]: part for part in table.split("<h3>")[1:]}
    assert list(parts) == [escape(EVIL), "crystals", "crystals.hot"]
    assert "The study lists no published errors" in parts["crystals"] and "a structure" not in parts["crystals.hot"]
    assert f"{escape(f'Li {EVIL}')}. other split." in parts["crystals.hot"] and ">87.2<" in parts["crystals.hot"]
    assert "energy RMSE, meV a structure" in parts[escape(EVIL)] and ">23.5<" in parts[escape(EVIL)]


def test_the_shares_of_the_cpu_time_add_up(study):
    """Each second is counted once: in the work of a kind, or in the start of all stages."""
    table = (study[0] / "report.html").read_text().partition("Where the CPU time went")[2].partition("</table>")[0]
    rows = re.findall(r'<td>([\w ]+)</td><td class="number">([\d.]+ \w+)</td><td class="number">([\d.]+)%</td>', table)
    runs = len(WIDTHS) * len(SIZES) + len(DEEP)
    found = {name: spent for name, spent, _ in rows}
    assert {"convert", "train", "evaluate", "scaling"} <= found.keys() and found[
        "evaluate"
    ] == f"{runs * (3.8 - 0.4):.3g} s"
    assert rows[-1][:2] == ("start of all stages", f"{(2 * runs + 3) * 0.4:.3g} s")
    assert abs(sum(float(share) for *_, share in rows) - 100) < 0.05 * len(rows)


def test_the_three_questions_are_answered_with_evidence(study):
    """The split of compute and the slopes of both frontiers, found again from the points."""
    text = "".join(Page((study[0] / "report.html").read_text()).text).replace("\u00a0", " ")
    fit = json.loads((study[0] / "../../scaling/all/fit.json").read_text())
    joint = next(law for law in fit["laws"] if law["law"] == "Hoffmann" and law["target"] == "loss")
    e, a = joint["estimates"], joint["allocation"]["value"]
    assert a == pytest.approx(e["beta"]["value"] / (e["alpha"]["value"] + e["beta"]["value"]), rel=1e-9)
    assert f"The best N grows with exponent {a:.3g} [" in text and "Not supported by this evidence:" in text
    assert f"The loss falls as a power of N with exponent {e['alpha']['value']:.3g} [" in text
    E, A, B, alpha, beta = (e[name]["value"] for name in ("E", "A", "B", "alpha", "beta"))
    n, d = 7 * 3 * 128**2, 2000
    for words, (k, m) in (("twice the data lower the loss by", (1, 2)), ("twice the parameters by", (2, 1))):
        share = 1 - (E + A / (k * n) ** alpha + B / (m * d) ** beta) / (E + A / n**alpha + B / d**beta)
        assert f"{words} {100 * share:.1f} % [" in text
    assert "The deeper network has the lower loss in 0 of 2 pairs" in text
    assert "No training of this study used any" in text and "peak memory of a rank 1.50 to 1.50 GiB" in text
    assert "of C in FLOP (" in text and "of C in GPU-seconds" in text
    assert "unique atoms, and 60,000 to 480,000 force components seen" in text


@pytest.mark.slow
def test_same_input_same_bytes(study, tmp_path):
    directory, outputs = study
    run = stage_run.Run(directory)
    before = {name: (directory / name).read_bytes() for name in outputs.files}
    report(run)
    assert {name: (directory / name).read_bytes() for name in outputs.files} == before


@pytest.mark.slow
def test_partial_studies(tmp_path):
    """Failed runs are absent; without trainings, cards or depths there is a shorter report, not a traceback."""
    failed = tuple(f"w{w}-d3-n{d}" for w in WIDTHS for d in SIZES if w > 16 and d > 250) + (
        "w45-d6-n2000",
        "w90-d6-n2000",
    )
    needs = [
        n for n in make(tmp_path, failed, bootstrap=20) if n.startswith(("scaling", "evaluate")) or n.endswith(failed)
    ]
    outputs = report(spec(tmp_path / "report" / "all", ReportSettings(title="Partial", study="smoke"), needs))
    text = (tmp_path / "report" / "all" / "report.html").read_text()
    assert "Trained but without an evaluation: w128-d3-n1000, w128" in text and "do not determine" in text
    drawn = {Path(name).stem for name in outputs.files if name.startswith("figures/")}
    assert drawn == FIGURES - {"surface", "width_depth", "learning", "loss_parameters"}  # one model has all sizes


def test_nothing_usable(tmp_path):
    make(tmp_path, tuple(f"w{w}-d3-n{d}" for w in WIDTHS for d in SIZES if (w, d) != (128, 250)), bootstrap=0)
    only = ["evaluate/w128-d3-n250"]
    scaling(spec(tmp_path / "scaling" / "all", ScalingSettings(bootstrap=0), only))
    outputs = report(
        spec(tmp_path / "report" / "all", ReportSettings(title="None", study="smoke"), ["scaling/all", *only])
    )
    assert outputs.files == ["report.html"]
    assert "there are no usable points" in (tmp_path / "report" / "all" / "report.html").read_text()


def test_a_stage_without_what_it_needs_refuses(tmp_path):
    with pytest.raises(contract_errors.UserError, match="nothing to fit"):
        scaling(spec(tmp_path / "scaling" / "all", ScalingSettings(), []))
    with pytest.raises(contract_errors.UserError, match="needs the stage scaling"):
        report(spec(tmp_path / "report" / "all", ReportSettings(title="t", study="s"), []))


@pytest.mark.slow
def test_drawing_leaves_nothing_behind(tmp_path):
    code = "from gnnscale.report.figures import style; import os; style.plt.figure().savefig('x.png'); os._exit(0)"
    env = {k: v for k, v in os.environ.items() if k != "MPLCONFIGDIR"} | {
        "TMPDIR": str(tmp_path),
        "HOME": str(tmp_path),
    }
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=env | {"PYTHONPATH": str(ROOT)}, check=True)
    assert [path.name for path in tmp_path.iterdir()] == ["x.png"]
