"""The verb `data`: what is listed, what is fetched, and what is told where there is no network."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time

import pytest

from tests.support.corpus import ENV, ROOT
from tests.support.file_server import serving
from workflow.config import published_files
from workflow.config.published_files import PublishedFile, PublishedSet
from workflow.run import main

CONTENT = b"published content"


@pytest.fixture(autouse=True)
def toy(monkeypatch):
    """Publish a set on a server of this machine, which the script of ANI-1x reads."""
    with serving() as server:
        server.files["a.h5"] = CONTENT
        file = PublishedFile("a.h5", f"{server.url}/a.h5", 0.0001, len(CONTENT), hashlib.md5(CONTENT).hexdigest())
        made = PublishedSet("ani1x/toy", "https://example.org/toy", "a test", (file,))
        monkeypatch.setitem(published_files.BY_NAME, "ani1x/toy", made)
        yield server


def test_fetching_twice(tmp_path, capsys, toy):
    words = ["data", "fetch", "ani1x/toy", "--set", f"filesystems.data={tmp_path}"]
    assert main(words) == 0
    assert (tmp_path / "ani1x" / "toy" / "a.h5").read_bytes() == CONTENT
    assert capsys.readouterr().out.splitlines() == [
        "ani1x/toy: fetching 1 of 1 files, 0.1 MB (CC0)",
        f"{tmp_path}/ani1x/toy: complete",
    ]
    asked = toy.asked["a.h5"]
    assert main(words) == 0 and toy.asked["a.h5"] == asked
    assert "all files are here; checking them" in capsys.readouterr().out


def test_a_fault_is_told_with_the_exit_code_of_a_failure(tmp_path, capsys, toy):
    toy.odd["a.h5"] = "gone"
    assert main(["data", "fetch", "ani1x/toy", "--to", str(tmp_path)]) == 1
    told = capsys.readouterr().err
    assert told.startswith("gnnscale: http://127.0.0.1") and "404" in told and len(told.splitlines()) == 2


def test_no_network_is_told_with_the_commands_for_another_machine(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    assert main(["data", "fetch", "ani1x/toy", "ani1x/toy", "--to", str(tmp_path)]) == 1
    told = capsys.readouterr().err
    assert "login or data-transfer node" in told and "export https_proxy" in told
    assert f"curl --fail --location --continue-at - --output {tmp_path}/ani1x/toy/a.h5.part" in told
    assert f"data fetch ani1x/toy --to {tmp_path}" in told and len(told.splitlines()) < 12


def test_many_files_are_not_all_told_but_printed_by_a_command(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    assert main(["data", "fetch", "alexandria", "--to", str(tmp_path)]) == 1
    told = capsys.readouterr().err
    assert f"data curl alexandria --to {tmp_path} > get.sh" in told and len(told.splitlines()) < 12
    assert main(["data", "curl", "alexandria", "--to", str(tmp_path)]) == 0
    assert capsys.readouterr().out.count("curl --fail") == published_files.ALEXANDRIA_FILES


def test_the_list(tmp_path, capsys):
    (tmp_path / "qm7x").mkdir()
    (tmp_path / "qm7x" / "1000.hdf5").touch()
    assert main(["data", "list", "--to", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert all(any(line.split()[:1] == [name] for line in lines) for name in published_files.BY_NAME)
    assert "1 of 9 files" in next(line for line in lines if "qm7x" in line)
    assert main(["data", "list", "qm7x", "--to", str(tmp_path)]) == 0
    told = capsys.readouterr().out
    assert "not tried" in told and "here     1000.hdf5" in told and "missing  2000.hdf5" in told
    assert main(["data", "list", "qm7x", "--json", "--to", str(tmp_path)]) == 0
    (entry,) = json.loads(capsys.readouterr().out)
    assert entry["licence"] == "CC-BY 4.0" and [file["here"] for file in entry["files"]] == [True] + 8 * [False]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["fetch"], "data fetch: no data set is named"),
        (["fetch", "ani1"], "did you mean 'ani1x'?"),
        (["fetch", "oc20"], "choose one of oc20/200K, oc20/2M"),
        (["fetch", "extxyz"], "no published data set 'extxyz'"),
    ],
)
def test_wrong_names(words, told, capsys):
    assert main(["data", *words]) == 2
    assert told in capsys.readouterr().err


def test_a_study_whose_own_path_is_wrong_is_told_how_to_fetch(tmp_path, capsys):
    source = {"name": "a", "dataset": "mptrj", "options": {"raw": str(tmp_path / "nowhere")}}
    (tmp_path / "mine.yaml").write_text(json.dumps({"title": "t", "data": [source], "sweeps": [{"name": "s"}]}))
    assert main(["plan", "--study", str(tmp_path / "mine.yaml"), "--root", str(tmp_path / "run")]) == 2
    told = capsys.readouterr().err
    assert f"{tmp_path}/nowhere: no such file" in told and "data fetch mptrj; then raw: data:mptrj" in told


PROGRAM = """
import signal, sys
from workflow.config import published_files
from workflow.config.published_files import PublishedFile, PublishedSet
from workflow.fetch import partial_file
from workflow.run import main
signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell in the background had ignored
partial_file.RANGE_BYTES = 1 << 16
file = PublishedFile("a.h5", "{url}/a.h5", 0.001, {size}, "{md5}")
published_files.BY_NAME["ani1x/toy"] = PublishedSet("ani1x/toy", "page", "a test", (file,))
sys.exit(main(["data", "fetch", "ani1x/toy", "--to", "{folder}"]))
"""


def test_ctrl_c_ends_it_at_once_and_the_same_command_continues(tmp_path, toy):
    content = bytes(range(256)) * 4000
    toy.files["a.h5"], toy.seconds_per_block = content, 0.02
    program = PROGRAM.format(url=toy.url, size=len(content), md5=hashlib.md5(content).hexdigest(), folder=tmp_path)
    start = [sys.executable, "-c", program]
    process = subprocess.Popen(start, cwd=ROOT, env=os.environ | ENV, stdout=subprocess.PIPE, text=True)
    while toy.sent["a.h5"] < 400_000:
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    assert process.wait() == 130 and "stopped; the same command continues" in process.stdout.read()
    toy.seconds_per_block, before = 0.0, toy.sent["a.h5"]
    assert subprocess.run(start, cwd=ROOT, env=os.environ | ENV, capture_output=True).returncode == 0
    assert (tmp_path / "ani1x" / "toy" / "a.h5").read_bytes() == content
    assert toy.sent["a.h5"] - before < len(content)
