"""`gnnscale fit POINTS.csv` finds the law of any points, and reports mistakes in one line."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from gnnscale.contract import files
from gnnscale.contract.scaling_results import Fit
from gnnscale.scaling.fitting.laws import LAWS
from gnnscale.stages.fit_csv import main
from tests.support.corpus import ROOT

TRUE = np.array([1.7, 400.0, 0.35, 900.0, 0.4])


def written(path, noise=0.0, names=("params", "tokens", "loss"), extra=""):
    rng = np.random.default_rng(0)
    n, d = (c.ravel() for c in np.meshgrid(np.geomspace(1e6, 1e9, 6), np.geomspace(1e8, 1e11, 6)))
    loss = LAWS["Hoffmann"](TRUE, N=n, D=d)[0] * np.exp(noise * rng.normal(size=36))
    rows = [f"run{k},{a!r},{b!r},{c!r}" for k, (a, b, c) in enumerate(zip(n.tolist(), d.tolist(), loss.tolist()))]
    path.write_text("\n".join([",".join(["name", *names]), *rows]) + "\n" + extra)
    return path


def fitted(tmp_path, *argv):
    assert main([*map(str, argv), "--out", str(tmp_path / "out")]) == 0
    return files.read_model(tmp_path / "out" / "fit.json", Fit)


def test_a_planted_law_comes_back_with_figure_and_page(tmp_path, capsys):
    found = fitted(tmp_path, written(tmp_path / "points.csv", noise=0.003), "--law", "hoffmann", "--bootstrap", "100")
    law = found.laws[0]
    for e, truth in zip(law.estimates.values(), TRUE):
        assert e.low < e.value < e.high and e.value == pytest.approx(truth, rel=0.3)
    assert law.estimates["alpha"].value == pytest.approx(0.35, abs=0.02)
    assert (
        law.chosen
        and law.identified
        and {other.law for other in found.laws[1:]} == {"OverTraining", "Kaplan", "KaplanFloor"}
    )
    said = capsys.readouterr().out
    assert "The best N for compute C ~ N D grows as C^a with a = 0.5" in said and "report.html" in said
    page = (tmp_path / "out" / "report.html").read_text()
    assert "<svg" in page and "Laws compared" in page and "<script" not in page
    assert (tmp_path / "out" / "law.svg").exists() and (tmp_path / "out" / "law.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.slow
def test_same_points_same_fit_by_other_names_and_from_flops(tmp_path):
    one = fitted(tmp_path, written(tmp_path / "a.csv", 0.003), "--bootstrap", "20")
    two = fitted(
        tmp_path,
        written(tmp_path / "b.csv", 0.003, ("Size of it", "seen", "val")),
        "--x",
        "Size of it",
        "--y",
        "seen",
        "--loss",
        "val",
        "--bootstrap",
        "20",
    )
    assert two.laws[0].estimates == one.laws[0].estimates
    header, *rows = (tmp_path / "a.csv").read_text().splitlines()
    cells = [row.split(",") for row in rows]
    flops = [f"{c[0]},{c[1]},{6 * float(c[1]) * float(c[2])!r},{c[3]}" for c in cells]
    (tmp_path / "c.csv").write_text("\n".join([header.replace("tokens", "C"), *flops]))
    three = fitted(tmp_path, tmp_path / "c.csv", "--flops", "C", "--bootstrap", "20")
    for name, e in one.laws[0].estimates.items():
        assert three.laws[0].estimates[name].value == pytest.approx(e.value, rel=1e-4)


@pytest.mark.parametrize("law", ["PowerD", "BrokenD", "PurePowers"])
def test_other_laws(tmp_path, law):
    path = written(tmp_path / "points.csv", 0.001)
    if law != "PurePowers":
        lines = path.read_text().splitlines()
        path.write_text("\n".join([lines[0], *(line for k, line in enumerate(lines[1:]) if k % 6 == 0)]))
        x = np.geomspace(1e2, 1e5, 20)
        loss = 0.1 + 20 / x**0.3 / (1 + x / 3e3) ** 0.4
        path.write_text("d,loss\n" + "\n".join(f"{a},{b}" for a, b in zip(x, loss)))
    found = fitted(tmp_path, path, "--law", law, "--bootstrap", "10")
    assert found.laws[0].law == law and len(found.laws) == 1


def test_rows_left_out_are_named_by_line(tmp_path):
    path = written(tmp_path / "points.csv", extra="x,1e7,1e9,nan\nx,1e7,0,3\nx,1e7,1e9,90\n")
    law = fitted(tmp_path, path, "--drop-highest", "1", "--bootstrap", "0").laws[0]
    assert law.excluded == {
        "line 38": "loss is not finite",
        "line 39": "tokens is not positive",
        "line 40": "one of the 1 of largest loss",
    }
    np.testing.assert_allclose([e.value for e in law.estimates.values()], TRUE, rtol=1e-5)


def test_more_unique_data_than_seen_is_left_out(tmp_path):
    """Rows with more unique data than seen data have no law: repetitions would be negative."""
    rng, law = np.random.default_rng(0), LAWS["DataConstrained"]
    n, u = np.exp(rng.uniform(10, 15, 40)), np.exp(rng.uniform(9, 12, 40))
    d = u * np.tile([1.0, 4.0, 16.0, 64.0], 10)
    loss = law(np.array([0.1, 3000.0, 0.8, 8.0, 0.5, 6.0, 4.0]), N=n, D=d, U=u)[0]
    rows = [f"{a},{b},{c},{e}" for a, b, c, e in zip(n, d, u, loss)]
    path = tmp_path / "points.csv"
    path.write_text("\n".join(["N,D,unique,loss", *rows, "1e6,500,16000,0.3"]) + "\n")
    asked = ("--law", "DataConstrained", "--unique", "unique", "--bootstrap", "0")
    found = fitted(tmp_path, path, *asked).laws[0]
    assert found.excluded == {"line 42": "unique is more than was seen"} and len(found.points) == 40
    flops = [f"{a},{6 * a * b!r},{c},{e}" for a, b, c, e in zip(n.tolist(), d.tolist(), u, loss)]
    path.write_text("\n".join(["N,C,unique,loss", *flops, "1e6,3e9,16000,0.3"]) + "\n")
    again = fitted(tmp_path, path, *asked, "--flops", "C").laws[0]
    assert again.excluded == found.excluded
    assert again.estimates["r_D"].value == pytest.approx(found.estimates["r_D"].value, rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize(
    "change",
    [
        lambda text: "\ufeff" + text,
        lambda text: text.replace(",", ";"),
        lambda text: text.replace(",", "\t"),
        lambda text: f"# made by, hand\n{text}# the end\n",
        lambda text: text.replace("\n", "\r\n"),
        lambda text: "\n".join(f"{line}D+00" if k else line for k, line in enumerate(text.splitlines())),
    ],
    ids=["a mark of byte order", "semicolons", "tabs", "comments", "of Windows", "of Fortran"],
)
def test_files_as_others_write_them(tmp_path, change):
    rows = [line.split(",", 1)[1] for line in written(tmp_path / "points.csv").read_text().splitlines()]
    path = tmp_path / "theirs.csv"
    path.write_bytes(change("\n".join(rows) + "\n").encode())
    law = fitted(tmp_path, path, "--bootstrap", "0").laws[0]
    np.testing.assert_allclose([e.value for e in law.estimates.values()], TRUE, rtol=1e-5)


def test_lines_are_those_of_the_file(tmp_path):
    """Count blank lines and comments as lines of the file."""
    path = written(tmp_path / "points.csv", extra="\n# a note\n\nx,1e7,1e9,-1\n")
    assert fitted(tmp_path, path, "--bootstrap", "0").laws[0].excluded == {"line 41": "loss is not positive"}


def test_seeds_count_once(tmp_path):
    """A row that is repeated, with losses above and below, counts once."""
    path = written(tmp_path / "points.csv")
    first = path.read_text().splitlines()[1].split(",")
    twice = [",".join([*first[:3], repr(float(first[3]) * k)]) for k in (1.02, 1 / 1.02)]
    found = fitted(tmp_path, written(path, extra="\n".join(twice) + "\n"), "--bootstrap", "0")
    np.testing.assert_allclose([e.value for e in found.laws[0].estimates.values()], TRUE, rtol=1e-4)
    assert "38 points, 36 different sizes" in found.findings[1]


@pytest.mark.parametrize(
    ("argv", "text", "words"),
    [
        (["--x", "parms"], None, "no column 'parms'; nearest: 'params'; there are: name, params, tokens, loss"),
        (["--law", "hofman"], None, "no law 'hofman'; nearest: 'Hoffmann'"),
        (["--law", "DataConstrained"], None, "which column is how many data are unique? Name it with --unique"),
        (["--confidence", "95"], None, "--confidence: found 95.0, which is out of range"),
        ([], "params,tokens,loss\n1e6,1e8,three\n", "line 2, column 'loss': found 'three', expected a number"),
        ([], "params,tokens,loss\n1e6,1e8,3\n", "1 different sizes for the 5 parameters of Hoffmann"),
        ([], "params,tokens,loss\n1e6,1e8,-3\n", "none of 1 rows can be used: loss is not positive"),
        ([], "", "no rows"),
        ([], "# a note\n\nparams,tokens,loss\n\n1e6,1e8,three\n", "line 5, column 'loss': found 'three'"),
        ([], "loss,params,tokens,loss\n1,1e6,1e8,3\n", "several columns are called 'loss'"),
        (
            [],
            "params,tokens,loss\n1,000,100,000,2.5\n",
            "line 2: more cells than the 3 columns named in the first line",
        ),
    ],
)
def test_mistakes_are_one_line(tmp_path, capsys, argv, text, words):
    path = written(tmp_path / "points.csv")
    if text is not None:
        path.write_text(text)
    assert main([str(path), *argv, "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert words in said and said.count("\n") == 1 and not (tmp_path / "out").exists()


@pytest.mark.slow
def test_as_a_command(tmp_path):
    command = [sys.executable, "-m", "gnnscale.stages.fit_csv", tmp_path / "nothing.csv"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2 and done.stderr.startswith("gnnscale fit: ") and "Traceback" not in done.stderr
