"""A longer training may begin where a shorter one began its decay; that must change nothing but the time it takes."""

from __future__ import annotations

import shutil

import pytest
import torch

from tests.support.corpus import TINY
from tests.support.training import prepare_training, read_metrics, read_weights, train_here
from workflow.plan import shared_steps

SHORT, LONG = {"epochs": 4}, {"epochs": 6}  # 20 steps of which 12 are stable; 30 steps, 18


@pytest.fixture(scope="module")
def short(tmp_path_factory, converted):
    return train_here(prepare_training(tmp_path_factory.mktemp("origin"), converted, "short", optim=SHORT))


@pytest.fixture(scope="module")
def alone(tmp_path_factory, converted):
    return train_here(prepare_training(tmp_path_factory.mktemp("alone"), converted, "long", optim=LONG))


def test_begun_from_a_shorter_one_it_is_the_same_training(short, alone, converted, capsys):
    made = longer(short.parent.parent, converted, "long", optim=LONG)
    assert "beginning at step 12" in said(made, capsys)
    assert equal(made, alone)
    assert (made / "model.json").read_text() == (alone / "model.json").read_text(), "what it saw, and what that cost"
    steps = [line.step for line in read_metrics(made)]
    assert steps[0] == 1 and steps == sorted(set(steps)) and steps[-1] == 30
    assert read_metrics(made)[-1].model_dump(exclude={"seconds"}) == read_metrics(alone)[-1].model_dump(
        exclude={"seconds"}
    )


@pytest.mark.parametrize("other", [{"seed": 1}, {"structures": 39}, {"optim": {"learning_rate": 1e-3}}])
def test_one_that_went_another_way_is_no_beginning(short, converted, other, capsys):
    changes = {"optim": LONG | other.get("optim", {})} | {k: v for k, v in other.items() if k != "optim"}
    made = longer(short.parent.parent, converted, f"other-{next(iter(other))}", **changes)
    assert "beginning at" not in said(made, capsys)


def test_a_torn_or_missing_beginning_is_done_without(short, alone, converted, tmp_path, capsys):
    root = tmp_path / "train"
    shutil.copytree(short, root / "short", symlinks=True)
    (pinned,) = (root / "short/checkpoints").glob("pinned-*")
    part = next(pinned.glob("*.safetensors"))
    content = part.read_bytes()
    part.unlink()  # the newest checkpoint may be the same file by another name
    part.write_bytes(content[:-100])
    made = longer(tmp_path, converted, "long", optim=LONG)
    assert "beginning at" not in said(made, capsys)
    assert equal(made, alone)


def longer(root, converted, name, **changes):
    made = prepare_training(root, converted, name, {"shorter": ["../gone", "../short"]}, **changes)
    spec = (made / "spec.json").read_text()
    (made / "spec.json").write_text(spec.replace("0" * 16, "1" * 16))  # another length, another key
    return made


def said(made, capsys) -> str:
    train_here(made)
    return capsys.readouterr().out


def equal(one, other) -> bool:
    a, b = read_weights(one), read_weights(other)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_who_may_begin_where():
    def run(epochs, **changes):
        optim = TINY.optim.model_copy(update={"epochs": epochs} | changes)
        return TINY.model_copy(update={"optim": optim}), float(epochs)

    runs = {
        "one": run(1),
        "four": run(4),
        "two": run(2),
        "fast": run(3, learning_rate=0.1),
        "falling": run(3, cooldown=1.0),
        "falls": run(1, cooldown=1.0),
    }
    found = shared_steps.shorter_runs(runs)
    assert found == {"one": (), "two": ("one",), "four": ("two", "one"), "fast": (), "falling": (), "falls": ()}
    assert shared_steps.shared_cost(4.0, runs["four"][0], [2.0, 1.0]) == pytest.approx(2.0 * (1 - TINY.optim.cooldown))
