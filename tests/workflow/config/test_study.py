"""A study expands into exactly the runs of its sweeps; every study in the folder is valid."""

import pytest

from gnnscale.architectures.egnn import EGNNConfig
from gnnscale.contract import places
from gnnscale.contract.errors import UserError
from workflow.config import study, study_files
from workflow.config.study import Study, Sweep
from workflow.config.sweeps import expand_runs

DATA = [{"name": "a", "dataset": "generated", "options": {"source": "bulk", "structures": 10}}]


def of(*sweeps, **train):
    return Study(title="t", data=DATA, train=train, sweeps=[Sweep(**sweep) for sweep in sweeps])


def test_all_combinations_for_each_case():
    asked = of(
        {
            "name": "s",
            "over": {"model.width": [8, 16], "structures": [5, 9]},
            "cases": [{"model.depth": 2}, {"model.depth": 4}],
        }
    )
    assert [run.name for run in expand_runs(asked)] == [
        "w8-d2-n5",
        "w8-d2-n9",
        "w16-d2-n5",
        "w16-d2-n9",
        "w8-d4-n5",
        "w8-d4-n9",
        "w16-d4-n5",
        "w16-d4-n9",
    ]


def test_a_run_that_two_sweeps_ask_for_is_one_run():
    asked = of({"name": "s", "over": {"model.width": [8, 16]}}, {"name": "t", "cases": [{"model.width": 8}]})
    runs = {run.name: run.sweeps for run in expand_runs(asked)}
    assert runs == {"w8-d3-nall": ("s", "t"), "w16-d3-nall": ("s",)}


def test_names_tell_whatever_else_is_swept():
    asked = of({"name": "s", "over": {"seed": [0, 1], "optim.learning_rate": [0.001, 0.002]}})
    assert [run.name for run in expand_runs(asked)] == [
        "w64-d3-nall-learning_rate0.001",
        "w64-d3-nall",
        "w64-d3-nall-learning_rate0.001-seed1",
        "w64-d3-nall-seed1",
    ]


def test_a_width_can_be_asked_for_by_parameters():
    asked = of(
        {"name": "s", "cases": [{"model.width": {"parameters": 20_000}, "model.depth": depth} for depth in (2, 8)]}
    )
    for run in expand_runs(asked):
        assert run.settings.model.body_parameters() == pytest.approx(20_000, rel=0.1)
        other = [EGNNConfig(width=run.settings.model.width + d, depth=run.settings.model.depth) for d in (-1, 1)]
        best = abs(run.settings.model.body_parameters() - 20_000)
        assert all(best <= abs(model.body_parameters() - 20_000) for model in other)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model.widht": [1]}, "did you mean 'model.width'"),
        ({"model.width": ["x"]}, "found 'x'"),
        ({"model.width": [{"parametres": 3}]}, "parameters: N"),
        ({"optim.epochs": [-1]}, "optim.epochs: found -1"),
        ({"nothing": [1]}, "no setting is called 'nothing'"),
    ],
)
def test_a_wrong_sweep_is_reported_in_words(changes, message):
    with pytest.raises(UserError, match=message):
        expand_runs(of({"name": "s", "over": changes}))


@pytest.mark.parametrize("name", study_files.list_studies())
def test_every_study_in_the_folder_expands(name):
    _, asked = study_files.load(name)
    runs = expand_runs(asked)
    assert len({run.name for run in runs}) == len(runs) > 0


def test_the_nearest_name_of_an_unknown_study_is_suggested():
    with pytest.raises(UserError, match="did you mean 'default'"):
        study_files.load("defalt")


def test_a_study_can_be_a_file_anywhere(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text((places.STUDIES / "smoke.yaml").read_text())
    assert study_files.load(str(path))[0] == "mine"
    with pytest.raises(UserError, match="directories are named after"):
        study_files.load(str(tmp_path / "a; rm -rf.yaml"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model.width": {"parameters": "abc"}}, "model.width.parameters: found 'abc', expected a number above 0"),
        ({"model.width": {"parameters": -5}}, "model.width.parameters: found -5"),
        ({"model.width": {"parameters": float("nan")}}, "model.width.parameters: found nan"),
        ({"model.width": {"parameters": True}}, "model.width.parameters: found True"),
        ({"model.kind": "x", "model.width": {"parameters": 5000}}, "model.kind: found 'x', expected "),
        ({"model": 5}, "model: found 5"),
        ({"optim.epochs": float("inf")}, "optim.epochs: found inf, expected a finite number"),
        ({"optim.epochs": "inf"}, "optim.epochs: found inf, expected a finite number"),
    ],
)
def test_a_wrong_case_is_reported_in_words(changes, message):
    with pytest.raises(UserError, match=message):
        expand_runs(of({"name": "s", "cases": [changes]}))


def test_a_width_by_parameters_leaves_the_sweep_as_it_was():
    asked = of({"name": "s", "over": {"model": [{"width": {"parameters": 20_000}}]}})
    first, second = expand_runs(asked), expand_runs(asked)
    assert first == second and first[0].settings.model.body_parameters() == pytest.approx(20_000, rel=0.1)


def test_runs_that_differ_in_the_last_digits_have_names_of_their_own():
    runs = expand_runs(of({"name": "s", "over": {"optim.learning_rate": [0.001, 0.0010000001, 0.004]}}))
    near, nearer, far = (run.name for run in runs)
    assert far == "w64-d3-nall-learning_rate0.004" and near != nearer
    assert near.startswith("w64-d3-nall-learning_rate0.001-") and nearer.startswith("w64-d3-nall-learning_rate0.001-")
    assert [
        run.name
        for run in expand_runs(of({"name": "s", "over": {"optim.learning_rate": [0.0010000001, 0.004, 0.001]}}))
    ] == [nearer, far, near], "in whichever order"


def test_a_name_fits_into_a_directory():
    """The name of a run that differs in every setting still fits, with its key appended."""
    fields = {
        "model.form": "edge",
        "model.cutoff": 4.5,
        "model.radial": 9,
        "model.forces": "gradient",
        "subset": "prefix",
        "model.source_heads": True,
        "subset_seed": 1,
        "seed": 2,
        "optim.batch": 8,
        "optim.optimizer": "muon",
        "optim.learning_rate": 0.0123456,
        "optim.scale_rate": False,
        "optim.weight_decay": 0.01,
        "optim.warmup": 7,
        "optim.cooldown": 0.3,
        "optim.clip": 3.0,
        "optim.precision": "bf16",
        "optim.ema": 0.9,
        "optim.loss": "huber",
        "optim.energy_weight": 2.0,
    }
    over = {name: [value] for name, value in fields.items()} | {"optim.force_weight": [2, 3]}
    runs = expand_runs(of({"name": "s", "over": over}))
    assert len({run.name for run in runs}) == 2 and all(len(run.name) <= 120 for run in runs)


def test_a_path_in_the_home_of_an_unknown_user_is_reported():
    data = [DATA[0] | {"quarantine": "~nosuchuser/x.json"}]
    with pytest.raises(UserError, match=r"source 'a': '~nosuchuser/x\.json' is not a path"):
        study.conversions(Study(title="t", data=data, sweeps=[Sweep(name="s")]))


@pytest.mark.parametrize(
    ("typed", "name"),
    [("mine-0.1", "mine-0.1"), ("a/mine-0.1.yaml", "mine-0.1"), ("x.yml", "x"), ("default", "default")],
)
def test_what_a_study_is_called(typed, name):
    assert study_files.study_name(typed) == name
