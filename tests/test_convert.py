"""The stage convert: what its card says is what the shards hold."""

import json

import numpy as np
import pytest

from gnnscale import convert, files
from gnnscale.data import shards
from gnnscale.specs import ConvertSettings, ShardCard
from tests.corpus import directory, execute, result


def test_the_card_agrees_with_the_shards(converted):
    for made in converted.values():
        packed = shards.read(made / "shards")
        card = files.read_model(made / "card.json", ShardCard)
        assert card.content == shards.content(packed)
        assert sum(count.structures for count in card.counts.values()) == len(packed.energy) == 48
        assert sum(count.atoms for count in card.counts.values()) == len(packed.numbers)
        assert card.force_rms > 0.1 and card.energy_rms > 0


def test_the_result_lists_every_file_and_what_was_skipped(converted):
    made = converted["convert/organic"]
    done = result(made)
    assert {"card.json", "shards/manifest.json", "shards/00000.bp/data.0"} <= set(done.outputs)
    assert done.values["skipped"] == sum(json.loads((made / "card.json").read_text())["skipped"].values())


def test_references_recover_planted_energies_and_survive_collinearity():
    rng = np.random.default_rng(0)
    counts = rng.integers(0, 9, (60, 3)).astype(float)
    true = np.array([-13.6, -1000.0, -2000.0])
    found, rank = convert.fit_references(counts, counts @ true)
    np.testing.assert_allclose(found, true, rtol=1e-9)
    assert rank == 3
    assert convert.fit_references(counts[:0], np.empty(0))[1] == 0, "a source without energies"
    pairs = np.repeat(rng.integers(1, 9, (60, 1)), 2, axis=1).astype(float)  # MO: metal and oxygen in step
    counts = np.hstack([pairs, np.zeros((60, 1))])  # and an element that is never seen
    found, rank = convert.fit_references(counts, pairs @ np.array([-5.0, -9.0]))
    assert rank == 1
    np.testing.assert_allclose(found, -7.0, rtol=1e-9), "the mean energy of an atom, also for the unseen"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dataset": "generatd", "name": "x"}, "known: "),
        ({"dataset": "generated", "name": "x", "options": {"source": "bulk", "structures": 4, "frames": 3}}, "frames"),
        ({"dataset": "generated", "name": "x", "options": {"source": "bulk", "structures": 3}}, "no structure falls"),
    ],
)
def test_bad_input_is_told_in_words(tmp_path, settings, message):
    made = directory(tmp_path, "convert/x", ConvertSettings(**settings))
    done = execute(made)
    assert done.returncode == 64
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not (made / "result.json").exists()
    assert message in (made / "error.json").read_text()
