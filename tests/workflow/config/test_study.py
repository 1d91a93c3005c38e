"""A study expands into exactly the runs of its sweeps; every study in the folder is valid."""

import pytest
from pydantic import ValidationError

from gnnscale.architectures.egnn import EGNNConfig
from gnnscale.contract import places
from gnnscale.contract.dataset_card import Split
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


# ------------------------------------------------------------------------------------------------ sources of a run
SEVERAL = [DATA[0] | {"name": name} for name in ("3bpa", "alloy", "mad")]


def of_several(over, **train):
    return Study(title="t", data=SEVERAL, train=train, sweeps=[Sweep(name="s", over=over)])


def test_a_run_has_some_of_the_sources_and_its_name_says_which():
    asked = of_several({"sources": [None, ["3bpa"], ["mad", "3bpa"], ["mad", "alloy", "3bpa"]]})
    runs = {run.name: run.settings.sources for run in expand_runs(asked)}
    assert runs == {"w64-d3-nall": None, "3bpa-w64-d3-nall": ("3bpa",), "3bpa-mad-w64-d3-nall": ("3bpa", "mad")}
    kept = expand_runs(of_several({"sources": [["alloy"], None]}, sources=["alloy"]))
    assert [run.name for run in kept] == ["w64-d3-nall", "all-w64-d3-nall"], "named only where it differs"


def test_an_unknown_source_of_a_run_is_refused_with_the_nearest_name(tmp_path):
    with pytest.raises(UserError, match="sweep 's': sources: the study has no source '3bp'; did you mean '3bpa'"):
        expand_runs(of_several({"sources": [["3bp"]]}))
    with pytest.raises(UserError, match=r"train\.sources: the study has no source 'gold'; known: 3bpa, alloy, mad"):
        expand_runs(of_several({"seed": [0]}, sources=["gold"]))
    with pytest.raises(UserError, match=r"sources: found \[\]"):
        expand_runs(of_several({"sources": [[]]}))
    path = tmp_path / "mine.yaml"
    smoke = (places.STUDIES / "smoke.yaml").read_text()
    path.write_text(smoke.replace("    over:\n", "    over:\n      sources: [[bulk], [bulc]]\n"))
    line = smoke.splitlines().index("  - name: grid") + 1
    with pytest.raises(UserError, match=rf"mine\.yaml:{line}: sweep 'grid': sources: .*did you mean 'bulk'"):
        study_files.load(str(path))


# --------------------------------------------------------------------------------------- splits and tests of a source
def with_source(**more):
    of_study = {name: more.pop(name) for name in ("published",) if name in more}
    data = [{"name": "md", "dataset": "extxyz", "options": {"raw": "a.xyz", "group": "run", "limit": 9}} | more]
    split = {"validation": 0.1, "test": 0.2, "seed": 3}
    return Study(title="t", data=data, split=split, sweeps=[{"name": "s"}], **of_study)


def test_a_source_is_split_as_the_study_says_where_it_says_nothing_itself():
    assert study.conversions(with_source())["md"].split == Split(validation=0.1, test=0.2, seed=3)
    own = study.conversions(with_source(split={"by": "frame", "test": 0.3}))["md"].split
    assert own == Split(by="frame", validation=0.1, test=0.3, seed=3)


def test_external_tests_have_the_options_of_their_source_but_for_amounts_and_groups(tmp_path):
    asked = with_source(tests={"hot": {"raw": str(tmp_path / "b.xyz"), "energy": "E"}}, references={"H": -13.6})
    ((name, settings),) = study.external_tests(asked).items()
    assert name == settings.name == "md.hot" and settings.test_of == "md" and settings.dataset == "extxyz"
    assert settings.options == {"raw": str(tmp_path / "b.xyz"), "energy": "E"}
    assert study.conversions(asked)["md"].references == {"H": -13.6}
    assert str(tmp_path / "b.xyz") in study.paths_read(asked)


def test_no_test_share_is_allowed_where_there_are_external_tests_only():
    asked = with_source(split={"test": 0}, tests={"hot": {"raw": "b.xyz"}})
    assert asked.split_of(asked.data[0]) == Split(validation=0.1, test=0, seed=3)
    with pytest.raises(
        ValidationError, match=r"'md': with split.test 0 nothing is left.*tests: \{NAME: \{raw: FILE\}\}"
    ):
        with_source(split={"test": 0})


def test_a_test_that_is_the_training_data_is_refused():
    with pytest.raises(UserError, match="its test 'same' has the options of the source"):
        study.external_tests(with_source(tests={"same": {}}))


def test_published_errors_are_on_a_source_or_test_that_there_is(tmp_path):
    row = {"source": "md", "model": "GAP", "errors": {"force_rmse": 87}, "citation": "Kovacs 2021"}
    kept = with_source(tests={"hot": {"raw": "b.xyz"}}, published=[row | {"test": "hot"}])
    assert [each.where for each in kept.published] == ["md.hot"]
    for change, message in (
        ({"source": "mdd"}, "published errors of 'GAP' are on 'mdd'; did you mean 'md'"),
        ({"test": "cold"}, "are on 'md.cold'"),
        ({"errors": {"force": 87}}, "force_rmse"),
        ({"errors": {"force_rmse": 0}}, "greater than 0"),
        ({"errors": {}}, "at least 1"),
    ):
        with pytest.raises(ValidationError, match=message):
            with_source(published=[row | change])


def test_names_of_tests_are_checked():
    with pytest.raises(ValidationError, match="'a b' is no name"):
        with_source(tests={"a b": {"raw": "b.xyz"}})
    twins = [{"name": "a", "dataset": "generated", "tests": {"b": {}}}, {"name": "a.b", "dataset": "generated"}]
    with pytest.raises(ValidationError, match=r"called 'a\.b'"):
        Study(title="t", data=twins, sweeps=[{"name": "s"}])
