"""The study of benchmarks from raw files to the table beside published errors, on the first frames of its sets."""

import csv
import json
import os
import subprocess
import sys
from itertools import islice

import ase.io
import h5py
import pytest
import yaml

from tests.support.corpus import ENV, ROOT
from tests.support.raw import require_sample
from workflow.config.published_files import find_set
from workflow.run import main

pytestmark = pytest.mark.slow

STUDY = ROOT / "workflow" / "studies" / "benchmarks.yaml"
FRAMES, ENTRIES, CONFORMATIONS = 30, 2, 8  # of a file, of a file of the alloy, of a molecule
MOLECULES = ("3bpa", "3bpa-mixedT", "ethanol")
TESTS = ("MD", "methanol", "dimers", "H-removal", "mode-874", "mode-3005")


def shorten(sample, to):
    """Write the beginning of a file in its own format."""
    to.parent.mkdir(parents=True, exist_ok=True)
    if to.suffix == ".json":
        to.write_text(json.dumps(json.loads(sample.read_text())[:ENTRIES]))
    elif to.suffix == ".h5":
        with h5py.File(sample) as whole, h5py.File(to, "w") as file:
            whole.visititems(lambda name, item: copy_array(file, name, item))
    elif to.suffix == ".traj":
        ase.io.write(to, ase.io.read(sample, f":{FRAMES}"))
    else:
        with open(sample) as lines, open(to, "w") as file:
            for _ in range(FRAMES):
                if head := next(lines, ""):
                    file.writelines((head, *islice(lines, int(head) + 1)))


def copy_array(file, name, item):
    """Copy an array of HDF5; of energies and coordinates, those of the first conformations."""
    if isinstance(item, h5py.Dataset):
        file[name] = item[:CONFORMATIONS] if name.split("/")[-1].startswith(("energies", "coordinates")) else item[...]


def lay_out(folder, study):
    for source in study["data"]:
        published = find_set(
            "oc20_relaxations/traj" if source["name"] == "oc20" else source["options"]["raw"][5:].split("/")[0]
        )
        for file in published.files:
            if not (to := folder / published.name / file.name).exists():
                shorten(require_sample(f"{published.name}/{file.name}"), to)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Run the study as it is, but for its length and the width of its networks."""
    folder = tmp_path_factory.mktemp("benchmarks")
    study = yaml.safe_load(STUDY.read_text())
    lay_out(folder / "data", study)
    study["train"]["model"]["width"] = 8
    assert study["train"]["optim"]["epochs"].keys() == {"flops"}, "the length is one number"
    study["train"]["optim"]["epochs"]["flops"] = 1e8
    study["sweeps"] = [sweep for sweep in study["sweeps"] if sweep["name"] != "long"]
    (folder / "benchmarks.yaml").write_text(yaml.safe_dump(study))
    words = ["--study", str(folder / "benchmarks.yaml"), "--root", str(folder / "run")]
    command = [sys.executable, str(ROOT / "workflow" / "run.py"), "run", *words]
    command += ["--set", f"filesystems.data={folder / 'data'}"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=os.environ | ENV, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "run"


def test_a_plan_names_the_sets_to_download(tmp_path, capsys):
    assert (
        main(["plan", "--study", "benchmarks", "--set", f"filesystems.data={tmp_path}", "--root", str(tmp_path)]) == 0
    )
    text = capsys.readouterr().out
    assert "(56 MB to download)" in text and "data fetch oc20_relaxations/traj bpa3_train" in text


def test_every_set_has_rows_of_every_network_beside_the_published_ones(finished):
    with open(finished / "beside_published.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    own = [row for row in rows if not row["citation"]]
    names = {*MOLECULES[:2], *(f"ethanol.{test}" for test in TESTS), "alloy", "mptrj", "mad", "oc20", "ani1"}
    assert {row["where"] for row in own} == names, "ethanol itself has no test split"
    networks = {"moments, gradient forces", "moments, direct forces", "egnn-deferred, gradient forces"}
    for name in names - {"ani1"}:
        assert {row["model"] for row in own if row["where"] == name} == networks, name
    assert all(float(row["cpu_seconds"]) > 0 and int(row["trained_on"]) > 10 for row in own)
    assert {row["force MAE, meV/Å"] for row in own if row["where"] == "ani1"} == {""}, "it has no forces"
    mace = next(row for row in rows if row["model"] == "MACE")
    assert (mace["where"], mace["force RMSE, meV/Å"], mace["energy RMSE, meV a structure"]) == ("3bpa", "8.8", "3")
    assert "15 %" in mace["note"], "the difference of protocol"


def test_protocols_are_those_that_were_published(finished):
    cards = {
        path.parent.name.rsplit("-", 1)[0]: json.loads(path.read_text()) for path in finished.glob("data/*/card.json")
    }
    for name in MOLECULES:
        assert set(cards[name]["reference_origins"].values()) == {"file"}, name
    assert cards["ethanol"]["counts"]["test"]["structures"] == 0
    tests = sum(ENTRIES for file in find_set("MoNbTaW").files if "Test" in file.name)
    assert cards["alloy"]["counts"]["test"]["structures"] == tests
    assert {name for name, card in cards.items() if card["test_of"]} == {f"ethanol.{test}" for test in TESTS}
    assert any("one by one" in remark or "frame" in remark for remark in cards["3bpa"]["remarks"])


def test_no_law_is_made_of_runs_on_different_sets(finished):
    fit = json.loads((finished / "fit.json").read_text())
    assert not fit["laws"] and len(fit["findings"]) == 1 and "8 different sets of sources" in fit["findings"][0]
    page = (finished / "report.html").read_text()
    assert "Beside published errors" in page and "The three questions" not in page
