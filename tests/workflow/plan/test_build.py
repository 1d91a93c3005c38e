"""Keys change with everything that determines a result, and with nothing else; plans give reasons."""

import json

import pytest

from gnnscale.contract import errors, files, places, source_code
from gnnscale.contract.results import StageResult
from workflow.cli.plan_output import encode_plan
from workflow.config import site_files, study_files
from workflow.plan import build, cost, keys
from workflow.plan.done import judge_stages

_, SMOKE = study_files.load("smoke")
SITE = site_files.load("local")


def stages(root, asked=SMOKE, site=SITE):
    return build.build_stages("smoke", asked, site, root)


def with_train(asked=SMOKE, **changes):
    return asked.model_copy(update={"train": asked.train.model_copy(update=changes)})


def finish(stage, all_stages, root, digest="d"):
    folder = root / stage.folder
    folder.mkdir(parents=True, exist_ok=True)
    files.write_model(folder / "spec.json", stage.spec(all_stages))
    (folder / "out").write_text(digest)
    inputs = {
        need: files.read_model(root / all_stages[need].folder / "result.json", StageResult).digest
        for need in stage.needs
    }
    result = StageResult(
        id=stage.id,
        key=stage.key,
        outputs=files.describe_outputs(folder, ["out"]),
        digest=digest + stage.id,
        inputs=inputs,
        started=0,
        seconds=1,
        cpu_seconds=1,
        peak_bytes=1,
    )
    files.write_model(folder / "result.json", result)


@pytest.fixture
def done(tmp_path):
    found = stages(tmp_path)
    for stage in found.values():
        finish(stage, found, tmp_path)
    return found, tmp_path


def states(all_stages, root):
    return {id: each.state for id, each in judge_stages(all_stages, root).items()}


def test_every_stage_comes_after_what_it_needs(tmp_path):
    seen = set()
    for stage in stages(tmp_path).values():
        assert set(stage.needs) <= seen
        seen.add(stage.id)
    assert "report/all" in seen and len(seen) == 13


def test_what_is_done_stays_done_on_any_site_and_at_any_path(done, tmp_path_factory):
    found, root = done
    assert set(states(found, root).values()) == {"done"}
    other = SITE.model_copy(update={"node": SITE.node.model_copy(update={"core_gflops": 1.0})})
    elsewhere = tmp_path_factory.mktemp("copy") / "x"
    root.rename(elsewhere)
    assert set(states(stages(elsewhere, site=other), elsewhere).values()) == {"done"}


def test_a_changed_setting_touches_exactly_what_depends_on_it(done):
    _, root = done
    changed = stages(root, with_train(seed=7))
    for id, state in states(changed, root).items():
        assert state == ("done" if id.startswith(("convert/", "audit/")) else "run"), id
    narrower = SMOKE.model_copy(update={"scaling": SMOKE.scaling.model_copy(update={"bootstrap": 9})})
    touched = {id for id, state in states(stages(root, narrower), root).items() if state != "done"}
    assert touched == {"scaling/all", "report/all"}


def test_changed_code_touches_exactly_what_depends_on_it(done, monkeypatch):
    _, root = done
    path = places.ROOT / "gnnscale" / "stages" / "evaluate.py"
    read = source_code.read_source
    monkeypatch.setattr(
        keys, "read_source", lambda file: read(file)._replace(**({"digest": "changed"} if file == path else {}))
    )
    changed = stages(root)
    kinds = {id.split("/")[0] for id, state in states(changed, root).items() if state != "done"}
    assert kinds == {"evaluate", "scaling", "report"}
    reasons = {each.reason for each in judge_stages(changed, root).values() if each.stage.kind == "evaluate"}
    assert reasons == {"code changed: gnnscale/stages/evaluate.py"}


def test_reasons_name_the_setting(done):
    _, root = done
    optim = SMOKE.train.optim.model_copy(update={"epochs": 3.0})
    planned = judge_stages(stages(root, with_train(optim=optim)), root)
    assert planned["train/w8-d2-n24"].reason == "optim.epochs: 2.0 -> 3.0"
    assert planned["evaluate/w8-d2-n24"].reason == "a stage that it needs has changed"


def test_a_lost_output_is_made_again_and_what_follows_waits_for_the_outcome(done):
    found, root = done
    (root / found["convert/bulk"].folder / "out").unlink()
    planned = judge_stages(found, root)
    assert planned["convert/bulk"].reason == "output out is missing"
    assert planned["convert/organic"].state == "done"
    assert planned["train/w8-d2-n24"].state == "check"
    finish(found["convert/bulk"], found, root)
    assert set(states(found, root).values()) == {"done"}, "it came out the same: nothing else runs"
    finish(found["convert/bulk"], found, root, digest="another")
    planned = judge_stages(found, root)
    assert planned["train/w8-d2-n24"].reason == "convert/bulk was made again and its result has changed"


def test_a_training_with_checkpoints_resumes(tmp_path):
    found = stages(tmp_path)
    (tmp_path / found["train/w8-d2-n24"].folder / "checkpoints" / "step-000000004").mkdir(parents=True)
    assert states(found, tmp_path)["train/w8-d2-n24"] == "resume"


def test_a_training_needs_its_own_sources_alone_and_so_does_its_evaluation(tmp_path):
    sweep = SMOKE.sweeps[0].model_copy(update={"over": {"sources": [["bulk"], None], "structures": [24]}})
    raw = {"source": "organic", "structures": 20}
    data = [SMOKE.data[0].model_copy(update={"tests": {"other": raw}}), SMOKE.data[1]]
    found = stages(tmp_path, SMOKE.model_copy(update={"sweeps": [sweep], "data": data}))
    needs = {id: {need.split("/")[1] for need in stage.needs if "convert" in need} for id, stage in found.items()}
    assert needs["train/bulk-w8-d2-n24"] == needs["evaluate/bulk-w8-d2-n24"] == {"bulk"}
    assert needs["train/w8-d2-n24"] == {"organic", "bulk"}
    assert needs["evaluate/w8-d2-n24"] == {"organic", "bulk", "organic.other"} == needs["report/all"]
    assert found["train/bulk-w8-d2-n24"].core_seconds < found["train/w8-d2-n24"].core_seconds * 1.01
    (entry,) = [e for e in encode_plan(judge_stages(found, tmp_path), SITE)["stages"] if e["id"] == "train/w8-d2-n24"]
    assert entry["parameters"] == SMOKE.train.model.parameters(2), "an external test is no source"


def test_the_estimate_grows_with_the_work():
    sizes = [cost.SourceSize(1000, 15, 20)]
    small, wide, long, deep = (
        cost.train_seconds(settings, sizes, SITE)
        for settings in (
            SMOKE.train,
            with_train(model=SMOKE.train.model.model_copy(update={"width": 256})).train,
            with_train(optim=SMOKE.train.optim.model_copy(update={"epochs": 40.0})).train,
            with_train(model=SMOKE.train.model.model_copy(update={"depth": 12, "width": 3})).train,
        )
    )
    assert wide > small and deep > small and long > 5 * small - SITE.node.start_seconds * 5


# ------------------------------------------------------------------------------------------------- conversions in parts
def with_source(number, **changes):
    data = list(SMOKE.data)
    data[number] = data[number].model_copy(update=changes)
    return SMOKE.model_copy(update={"data": data})


def test_parts_change_no_key_and_are_gone_once_their_source_is_converted(tmp_path):
    whole, divided = stages(tmp_path), stages(tmp_path, with_source(1, parts=3))
    assert {id: stage.key for id, stage in divided.items() if not id.startswith("convert_part/")} == {
        id: stage.key for id, stage in whole.items()
    }
    parts = tuple(f"convert_part/bulk.{k}" for k in range(3))
    assert divided["convert/bulk"].needs == parts and not divided["convert/organic"].needs
    assert divided["train/w8-d2-n24"].needs == whole["train/w8-d2-n24"].needs
    assert len({divided[id].key for id in parts}) == 3
    assert list(divided).index("convert/bulk") > max(list(divided).index(id) for id in parts)
    assert sum(divided[id].core_seconds for id in parts) > whole["convert/bulk"].core_seconds / 2
    for id in parts:
        finish(divided[id], divided, tmp_path)
    assert states(divided, tmp_path)["convert/bulk"] == "run" and states(divided, tmp_path)[parts[0]] == "done"
    finish(divided["convert/bulk"], divided, tmp_path)
    for parts in (1, 3, 5):  # whoever asks for it now
        again = stages(tmp_path, with_source(1, parts=parts))
        assert states(again, tmp_path)["convert/bulk"] == "done" and again.keys() == whole.keys()


def test_what_a_list_of_quarantined_structures_says_of_a_source_counts(tmp_path):
    def write(name, *rows):
        listed = [dict(zip(("source", "unit", "number", "reasons"), (*row, ["outlier"]))) for row in rows]
        (tmp_path / name).write_text(json.dumps({"structures": listed}))
        return stages(tmp_path, with_source(1, quarantine=str(tmp_path / name)))["convert/bulk"].key

    one = write("a.json", ("bulk", "structures 0 to 59", 3))
    assert write("b.json", ("bulk", "structures 0 to 59", 3), ("organic", "structures 0 to 59", 9)) == one
    assert write("b.json", ("bulk", "structures 0 to 59", 4)) != one != stages(tmp_path)["convert/bulk"].key
    with pytest.raises(errors.UserError, match=r"source 'bulk'.*no such list"):
        stages(tmp_path, with_source(1, quarantine=str(tmp_path / "nowhere.json")))


def test_external_tests_are_audited_evaluated_and_reported_but_not_trained_on(tmp_path):
    first, other = SMOKE.data
    tested = first.model_copy(update={"tests": {"more": {"structures": 20}}})
    asked = SMOKE.model_copy(update={"data": [tested, other]})
    found, test = stages(tmp_path, asked), f"convert/{first.name}.more"
    need_it = {stage.kind for stage in found.values() if test in stage.needs}
    assert need_it == {"audit", "evaluate", "report"}
    before = stages(tmp_path)
    same = {id for id in before if found[id].key == before[id].key}
    assert {found[id].kind for id in same} == {"convert", "train"}, "what was trained stays valid"
    by_validation = asked.model_copy(update={"evaluate": asked.evaluate.model_copy(update={"split": "validation"})})
    assert test not in stages(tmp_path, by_validation)
