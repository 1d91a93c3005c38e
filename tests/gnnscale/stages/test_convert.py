"""The stages convert and convert_part: on any number of ranks, in parts, and after a kill, the shards are the same."""

import json
import os
import random
import signal
import subprocess
import sys
import time
import tracemalloc

import numpy as np
import pytest

from gnnscale.contract import errors, files, stage_run
from gnnscale.contract.dataset_card import ShardCard
from gnnscale.contract.settings import ConvertSettings, PartSettings
from gnnscale.data.conversion import parallel, work_items
from gnnscale.data.conversion.shard_writer import REFERENCE
from gnnscale.data.storage import adios, mapped
from gnnscale.data.storage.manifest import composition
from gnnscale.data.storage.packed import content_digest
from gnnscale.job import stage_process
from gnnscale.stages import convert
from gnnscale.stages import convert_part as part_stage
from tests.support import layouts
from tests.support.corpus import ENV, make_stage_directory, read_result, run_stage

ITEM, SHARD = 96, 40  # structures: a work item of each file, in three shards
SMALL = f"""
from gnnscale.data.conversion import work_items
from gnnscale.data.storage import adios
from gnnscale.job import stage_process
from gnnscale.stages import convert
work_items.STRUCTURES_PER_ITEM, adios.STRUCTURES_PER_SHARD = {ITEM}, {SHARD}
stage_process.run(convert.main)
"""
HELD = """
import os, sys, time
from pathlib import Path
from gnnscale.stages import convert

class HeldWriter(convert.ShardWriter):
    def __init__(self, *words):
        while len(list(Path(sys.argv[1], "lots").glob("*.json"))) >= int(os.environ["MOST"]):
            time.sleep(0.01)
        super().__init__(*words)

convert.ShardWriter = HeldWriter
"""  # before SMALL: with so many shards no other lot is begun, so that a kill comes in time


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    """Six files of 96 frames: molecules with a flaw in some, so that there is something to skip."""
    folder = tmp_path_factory.mktemp("raw")
    for number in range(6):
        known = [s for seed in range(11) for s in layouts.make_molecules(seed=100 * number + seed)][:96]
        for k in (5, 50, 95):
            known[k].positions[1] = known[k].positions[0] + 0.03
        known[20] = known[20]._replace(
            numbers=np.array([8]), positions=np.zeros((1, 3)), forces=np.zeros((1, 3)), energy=-2041.0 - number % 4
        )
        (folder / f"{number}").mkdir()
        layouts.write_extxyz(folder / f"{number}", known)
    return folder


def asked(raw, kind=ConvertSettings, **more):
    return kind(dataset="extxyz", name="mine", options={"raw": str(raw)}, **more)


def start(made, before="", **env):
    """Start the stage with small work items and shards, in a process of its own."""
    command = [sys.executable, "-c", before + SMALL, str(made)]
    return subprocess.Popen(
        command, env=os.environ | ENV | env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def here(made):
    """Run the stage in this process, which has imported everything already."""
    run = stage_run.Run(made)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(work_items, "STRUCTURES_PER_ITEM", ITEM)
        patch.setattr(adios, "STRUCTURES_PER_SHARD", SHARD)
        stage_process.run_and_record(
            run, part_stage.main if run.spec.settings.kind == "convert_part" else convert.main, first=True
        )
    return made


def finish(process):
    out, err = process.communicate(timeout=600)
    assert process.returncode == 0, out + err
    return out


def outcome(made):
    """Return everything that later stages can see, byte for byte."""
    done = read_result(made)
    return done.digest, done.values, files.read_model(made / "card.json", ShardCard)


@pytest.fixture(scope="module")
def undisturbed(raw, tmp_path_factory):
    return here(make_stage_directory(tmp_path_factory.mktemp("one"), "convert/mine", asked(raw)))


# ------------------------------------------------------------------------------------------------- same shards
def test_what_is_expected_comes_out(undisturbed, raw):
    _, values, card = outcome(undisturbed)
    assert values["structures"] == 6 * (96 - 4) and values["skipped"] == 6 * 4
    assert card.skipped == {"atoms closer than 0.1 A": 18, REFERENCE: 6}
    assert card.references["O"] == -2044.0 and card.reference_origins["O"] == "file"  # the lowest: the ground state
    made = mapped.open_shards(undisturbed / "shards", check=True)
    assert len(made.manifest.shards) == 18 and made.manifest.shards[0].name == "00000-000.bp"
    origins = [made.origin(k) for k in range(len(made))]
    assert len(set(origins)) == len(made) and "0/mine.extxyz number 5" not in origins
    assert origins[:6] == [f"0/mine.extxyz number {k}" for k in (0, 1, 2, 3, 4, 6)]
    assert origins[-1] == "5/mine.extxyz number 94"  # 95 is left out


def test_in_parts(undisturbed, raw, tmp_path):
    needs = {}
    for part in range(4):
        needs[f"convert_part/mine.{part}"] = here(
            make_stage_directory(tmp_path, f"convert_part/mine.{part}", asked(raw, PartSettings, part=part, parts=4))
        )
    whole = here(make_stage_directory(tmp_path, "convert/mine", asked(raw), needs))
    assert outcome(whole) == outcome(undisturbed)
    one = next(whole.glob("shards/*.bp/data.0"))
    assert one.stat().st_nlink == 2, "a hard link: no second copy"
    assert sorted(read_result(made).values["structures"] for made in needs.values()) == [92, 92, 184, 184]


def test_more_parts_than_work_items_and_a_part_that_is_missing(undisturbed, raw, tmp_path):
    needs = {}
    for part in range(9):
        made = make_stage_directory(tmp_path, f"convert_part/mine.{part}", asked(raw, PartSettings, part=part, parts=9))
        needs[f"convert_part/mine.{part}"] = here(made)
    assert sorted(read_result(made).values["structures"] for made in needs.values()) == [0, 0, 0, *[92] * 6]
    assert outcome(here(make_stage_directory(tmp_path, "convert/mine", asked(raw), needs))) == outcome(undisturbed)
    del needs["convert_part/mine.0"]
    with pytest.raises(errors.UserError, match="work item 0 was never finished"):
        here(make_stage_directory(tmp_path, "convert/less", asked(raw), needs))


@pytest.mark.slow
def test_on_two_ranks(undisturbed, raw, tmp_path):
    made = make_stage_directory(tmp_path, "convert/mine", asked(raw))
    both = [start(made, RANK=str(r), LOCAL_RANK=str(r), WORLD_SIZE="2") for r in range(2)]
    for process in both:
        finish(process)
    assert outcome(made) == outcome(undisturbed)
    assert not list(made.glob(".rank*"))
    assert json.loads((made / "progress.json").read_text())["done"] == 576  # read, before atoms are looked at


@pytest.mark.slow
def test_the_first_rank_reports_the_failure_of_another(raw, tmp_path):
    made = make_stage_directory(tmp_path, "convert/mine", asked(tmp_path / "raw"))
    (tmp_path / "raw").mkdir()
    for k, folder in enumerate(sorted(raw.iterdir())):
        text = (folder / "mine.extxyz").read_text()
        (tmp_path / "raw" / f"{k}.extxyz").write_text(text if k < 5 else text.replace("energy=", "energie="))
    both = [start(made, RANK=str(r), LOCAL_RANK=str(r), WORLD_SIZE="2") for r in range(2)]
    errors_printed = [process.communicate(timeout=600)[1] for process in both]
    assert [process.returncode for process in both] == [64, 64]
    assert all(word in errors_printed[0] for word in ("rank 1: ", "no energy under the key", "5.extxyz"))
    assert "Traceback" not in errors_printed[0]
    (tmp_path / "raw" / "5.extxyz").write_text((raw / "5" / "mine.extxyz").read_text())
    assert read_result(here(made)).values["structures"] == 552


@pytest.mark.slow
def test_an_error_from_before_the_first_rank_began(raw, tmp_path, monkeypatch):
    """An old error counts, unless its rank overwrites it as its next attempt begins."""
    made = make_stage_directory(tmp_path, "convert/mine", asked(raw))
    past = {"done": 0, "time": time.time() - 60, "error": "no energy"}
    parallel.heartbeat_path(made, 1).write_text(json.dumps(past))
    for name, value in {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(parallel, "START_SECONDS", 3.0)
    began = time.monotonic()
    with pytest.raises(errors.UserError, match="rank 1: no energy"):
        here(made)
    assert time.monotonic() - began > 3.0, "the time that the other rank has to begin"
    monkeypatch.setattr(parallel, "START_SECONDS", 600.0)
    other = start(made, RANK="1", LOCAL_RANK="1", WORLD_SIZE="2")
    assert read_result(here(made)).values["structures"] == 552
    finish(other)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_killed_at_random_points_it_resumes(undisturbed, raw, tmp_path, seed):
    """Kill it twice, and then alter one shard, as a disk might."""
    rng, made, seen = random.Random(seed), make_stage_directory(tmp_path, "convert/mine", asked(raw)), 0
    for _ in range(2):
        wanted = seen + rng.randint(1, 4)
        process = start(made, HELD, MOST=str(wanted))
        while process.poll() is None and len(list(made.glob("shard_notes/*.json"))) < wanted:
            time.sleep(0.002)
        time.sleep(rng.random() * 0.05)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert not (made / "result.json").exists()
        before, seen = seen, len(list(made.glob("shard_notes/*.json")))
        assert seen > before, "what was done is kept"
    kept = {path: path.stat().st_mtime_ns for path in sorted(made.glob("shards/*.bp/data.0"))[: seen - 1]}
    spoiled = rng.choice([*kept])
    content = bytearray(spoiled.read_bytes())
    content[rng.randrange(len(content))] ^= 1
    spoiled.write_bytes(content)
    assert outcome(here(made)) == outcome(undisturbed)
    item = spoiled.parent.name.split("-")[0]
    again = [path for path, when in kept.items() if path.stat().st_mtime_ns != when]
    assert spoiled in again and all(path.parent.name.startswith(item) for path in again)


@pytest.mark.slow
def test_stopped_on_request_it_resumes(undisturbed, raw, tmp_path):
    made = make_stage_directory(tmp_path, "convert/mine", asked(raw))
    process = start(made, HELD, MOST="1")
    while process.poll() is None and not list(made.glob("shard_notes/*.json")):
        time.sleep(0.002)
    process.terminate()
    assert process.wait(600) == 75 and "stopped" in process.communicate()[0]
    assert outcome(here(made)) == outcome(undisturbed)


@pytest.mark.slow
def test_memory_does_not_grow_with_the_data(tmp_path):
    """Ten times the structures, in one file that cannot be divided, need the memory of one shard."""
    peaks = []
    for count in (1, 1, 10):
        folder = tmp_path / f"raw{len(peaks)}"
        folder.mkdir()
        path = layouts.write_extxyz(folder, [s for seed in range(20) for s in layouts.make_crystals(seed=seed)])
        path.write_text(path.read_text() * count)
        made = make_stage_directory(tmp_path, f"convert/{len(peaks)}", asked(folder))
        tracemalloc.start()
        here(made)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    shards_made = len(list(made.glob("shards/*.bp")))
    assert shards_made >= 45
    metadata = sum(path.stat().st_size for path in made.glob("shard_notes/*.json"))
    assert peaks[2] < peaks[1] + 8 * metadata, f"{peaks}, metadata {metadata}"  # as objects larger than as text


# ------------------------------------------------------------------------------------------------------------ quarantine
def test_quarantined_structures_are_left_out_and_counted(undisturbed, raw, tmp_path):
    rows = [
        ("mine", "0/mine.extxyz", 1, ["net force", "outlier"]),
        ("mine", "5/mine.extxyz", 94, ["outlier"]),
        ("other", "0/mine.extxyz", 2, ["outlier"]),
        ("mine", "0/mine.extxyz", 5, ["both this and too close"]),
    ]
    listed = [dict(zip(("source", "unit", "number", "reasons"), row)) for row in rows]
    (tmp_path / "list.json").write_text(json.dumps({"structures": listed}), "utf-8-sig")  # as some editors do
    lines = ["source,unit,number,reasons", *(f"{s},{u},{n},{'; '.join(sorted(r))}" for s, u, n, r in rows)]
    (tmp_path / "list.csv").write_text("\n".join(lines) + "\n", "utf-8-sig")
    cards = []
    for kind in ("json", "csv"):
        made = make_stage_directory(tmp_path, f"convert/{kind}", asked(raw, quarantine=str(tmp_path / f"list.{kind}")))
        cards.append(outcome(here(made))[2])
    assert cards[0] == cards[1]
    assert cards[0].skipped == {
        "atoms closer than 0.1 A": 17,
        REFERENCE: 6,
        "quarantined: both this and too close": 1,
        "quarantined: net force; outlier": 1,
        "quarantined: outlier": 1,
    }
    whole, less = adios.read(undisturbed / "shards"), adios.read(made / "shards")
    assert len(less.energy) == len(whole.energy) - 2
    np.testing.assert_array_equal(np.delete(whole.energy, [1, -1]), less.energy)


@pytest.mark.parametrize(
    ("text", "words"),
    [("{}", "unreadable"), ('{"structures": [{"unit": "a"}]}', "entry 1: 'number' is missing"), (None, "no such list")],
)
def test_a_broken_quarantine_list(raw, tmp_path, text, words):
    if text is not None:
        (tmp_path / "list.json").write_text(text)
    made = make_stage_directory(tmp_path, "convert/mine", asked(raw, quarantine=str(tmp_path / "list.json")))
    with pytest.raises(errors.BadFile, match=words):
        here(made)


# ----------------------------------------------------------------------------------------------------------- the card
def test_the_card_agrees_with_the_shards(converted):
    for made in converted.values():
        packed = adios.read(made / "shards")
        card = files.read_model(made / "card.json", ShardCard)
        assert card.content == content_digest(packed)
        assert sum(count.structures for count in card.counts.values()) == len(packed.energy) == 48
        assert sum(count.atoms for count in card.counts.values()) == len(packed.numbers)
        assert card.force_rms > 0.1 and card.energy_rms > 0


def test_the_card_by_another_route(undisturbed):
    """Compute the card from all arrays at once, by least squares on the structures themselves."""
    packed, (_, _, card) = adios.read(undisturbed / "shards"), outcome(undisturbed)
    train, (_, counts) = packed.split == 0, composition(packed)
    mean = packed.energy[train].sum() / counts[train].sum()
    fitted, _, rank, _ = np.linalg.lstsq(counts[train], packed.energy[train] - mean * counts[train].sum(1), rcond=1e-10)
    baselines = np.array([card.baselines[symbol] for symbol in card.elements])
    np.testing.assert_allclose(counts @ baselines, counts @ (mean + fitted), rtol=1e-8)  # alone they are not determined
    assert card.reference_rank == 4 and rank == 3 and list(card.elements) == ["H", "C", "N", "O"]
    left = (packed.energy - counts @ (mean + fitted))[train] / packed.natoms[train]
    assert card.energy_rms == pytest.approx(np.sqrt((left**2).mean()), rel=1e-8)
    forces = packed.forces[np.repeat(train, packed.natoms)].astype(float)
    assert card.force_rms == pytest.approx(np.sqrt((forces**2).mean()), rel=1e-8)
    assert card.counts["train"].edges == packed.nedges[train].sum()
    assert card.counts["train"].groups == len(np.unique(packed.group[train]))


def test_the_result_lists_every_file_and_what_was_skipped(converted):
    made = converted["convert/organic"]
    done = read_result(made)
    assert {"card.json", "shards/manifest.json", "shards/00000-000.bp/data.0"} <= set(done.outputs)
    assert done.values["skipped"] == sum(json.loads((made / "card.json").read_text())["skipped"].values())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dataset": "generatd", "name": "x"}, "known: "),
        ({"dataset": "generated", "name": "x", "options": {"source": "bulk", "structures": 4, "frames": 3}}, "frames"),
        (
            {"dataset": "generated", "name": "x", "options": {"source": "bulk", "structures": 3}},
            "1 group are too few for 3 splits",
        ),
    ],
)
def test_bad_input_is_reported_in_words(tmp_path, settings, message):
    made = make_stage_directory(tmp_path, "convert/x", ConvertSettings(**settings))
    done = run_stage(made)
    assert done.returncode == 64
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not (made / "result.json").exists()
    assert message in (made / "error.json").read_text()
