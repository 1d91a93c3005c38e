"""A new scheduler is two files: a copy of this tree gets one more, and a study runs there through the command line.

The two files lie in tests/support/toy_scheduler/. Its jobs are processes; a site's file is drafted by `sites new`.
"""

import json
import os
import shutil
import subprocess
import sys

import pytest

from tests.support.cluster import make_study
from tests.support.corpus import ROOT

FILES = ROOT / "tests" / "support" / "toy_scheduler"
LAUNCHER = """#!/bin/sh
test "$1" = -n || exit 3
shift 2
if [ "$1" = --on ]; then echo "$2" >> "$TOY_SPOOL.hosts"; shift 2; fi
TOY_RANK=0 TOY_LOCAL=0 TOY_SIZE=1 exec "$@"
"""
QUICK = ["scheduler.poll_seconds=0.3", "scheduler.late_seconds=0.5", "scheduler.signal_seconds=60"]


class Tree:
    """A copy of this tree with the two files, and the shell in which its commands run."""

    def __init__(self, folder):
        self.folder, self.spool = folder, folder / "spool"
        for name in ("gnnscale", "workflow", "datasets", "sites", "containers"):
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        for name in ("constraints.txt", "pyproject.toml"):
            shutil.copy(ROOT / name, folder / name)
        shutil.copy(FILES / "options" / "toy.py", folder / "workflow" / "config" / "schedulers" / "toy.py")
        shutil.copy(FILES / "commands" / "toy.py", folder / "workflow" / "scheduler" / "toy.py")
        for made in (self.spool, folder / "bin"):
            made.mkdir()
        (folder / "bin" / "toyrun").write_text(LAUNCHER)
        (folder / "bin" / "toyrun").chmod(0o755)

    def call(self, *words, code=0, **env):
        env = (
            os.environ
            | {
                "PYTHONPATH": str(self.folder),
                "TOY_SPOOL": str(self.spool),
                "PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}",
            }
            | env
        )
        command = [sys.executable, "workflow/run.py", *words]
        done = subprocess.run(command, cwd=self.folder, env=env, capture_output=True, text=True, timeout=300)
        assert done.returncode == code and "Traceback" not in done.stderr, done.stdout + done.stderr
        return done.stdout + done.stderr


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    return Tree(tmp_path_factory.mktemp("tree"))


def test_a_study_runs_by_two_files(tree):
    """The site's file is the one that `sites new` drafts; the training is started by the scheduler's own launcher."""
    said = tree.call("sites", "new", "toys")
    assert "kind: toy" in (tree.folder / "sites" / "toys.yaml").read_text(), said
    (tree.folder / "study.yaml").write_text(json.dumps(make_study(2)))
    words = ["--site", "toys", "--study", "study.yaml", "--root", "run"]
    asked = [word for each in QUICK for word in ("--set", each)]
    said = tree.call("run", *words, *asked)
    assert "stages done" in said, said
    records = [json.loads(path.read_text()) for path in (tree.folder / "run").glob("*/*/attempts/1/exit.json")]
    assert records and {record["code"] for record in records} == {0}
    assert {record["job"] for record in records} == {folder.name for folder in tree.spool.iterdir()}
    script = next((tree.folder / "run").glob("train/*/attempts/1/job.sh")).read_text()
    assert "#TOY --colour red" in script and "export RANK=$TOY_RANK" in script and "toyrun -n 1" in script


def test_every_rule_knows_it(tree):
    site = (ROOT / "sites" / "slurm.yaml").read_text()
    (tree.folder / "odd.yaml").write_text(site.replace("kind: slurm\n  exclusive: false", "kind: toy"))
    said = tree.call("plan", "--site", "odd.yaml", code=2)
    assert "srun belongs to Slurm, this site has Toy" in said
    said = tree.call("plan", "--site", "slurm", "--set", "scheduler.kind=tyo", code=2)
    assert "expected one of none, " in said and "did you mean 'toy'?" in said
