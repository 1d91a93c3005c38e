"""The README tells the truth: its tree is the disk's, its commands parse, its files exist."""

import re
import shlex
import subprocess
import sys

import pytest

from tests.support.corpus import ROOT

TEXT = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", TEXT, re.S)


def tree():
    """Paths of the annotated tree, by indentation."""
    (block,) = [body for kind, body in BLOCKS if kind == "text" and body.startswith("README.md")]
    stack, found = [], []
    for line in block.splitlines():
        indent, words = len(line) - len(line.lstrip()), line.split()
        if indent > 4:  # a description that goes on
            continue
        while stack and stack[-1][0] >= indent:
            stack.pop()
        names = [word for word in words if word == words[0] or word.endswith(".py")]
        found += ["".join(part for _, part in stack) + name for name in names]
        if words[0].endswith("/"):
            stack.append((indent, words[0]))
    return found


def commands():
    shell = "\n".join(body for kind, body in BLOCKS if kind == "sh")
    lines = [line.split("#")[0].strip() for line in shell.splitlines()]
    return [line for line in lines if line.startswith("python workflow/run.py")]


def test_everything_in_the_tree_exists():
    for path in tree():
        assert (ROOT / path).exists(), path


def test_everything_that_exists_is_in_the_tree():
    told = tree()
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    for name in listed:
        if name.endswith("__init__.py") or name.startswith(("tests/", ".git")):
            continue
        covered = name in told or any(
            entry.endswith("/") and name.startswith(entry) and not any(t.startswith(entry) and t != entry for t in told)
            for entry in told
        )
        assert covered, f"{name} is not in the README's tree"


@pytest.mark.parametrize("command", commands())
def test_commands_parse(command, tmp_path):
    words = shlex.split(command.replace("train/w56-d3-n2600", "x"))[1:]
    sys.path.insert(0, str(ROOT))
    before = sys.path[0]
    try:
        from workflow.cli.arguments import parser

        parser().parse_args(words[1:])
    finally:
        sys.path[0] = before


def test_make_targets_exist():
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.M)
    for target in re.findall(r"`?make (\w+)", TEXT):
        assert target in targets


def test_every_verb_is_in_the_readme():
    usage = subprocess.run(
        [sys.executable, ROOT / "workflow" / "run.py", "--help"], capture_output=True, text=True
    ).stdout
    for verb in re.findall(r"^    (\w+) ", usage, re.M):
        assert re.search(rf"run\.py {verb}\b|`{verb}`", TEXT), verb
