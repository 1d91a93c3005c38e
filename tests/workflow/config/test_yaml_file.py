"""A wrong file gets one line for each problem: where, what was found, what was expected."""

from typing import Annotated, Literal

import pytest
from pydantic import Discriminator, Field, Tag

from gnnscale.contract.errors import UserError
from gnnscale.schema import Record
from workflow.config import yaml_file
from workflow.config.site import SiteConfig
from workflow.config.study import Study

GOOD = """title: x
data:
  - {name: a, dataset: generated, options: {source: bulk, structures: 10}}
train:
  model: {kind: egnn, width: 8}
  optim: {learning_rate: 3e-4}
sweeps:
  - name: s
    over: {model.width: [8, 16]}
"""


def load(tmp_path, text, kind=Study):
    path = tmp_path / "f.yaml"
    path.write_text(text)
    return yaml_file.load(path, kind, "f.yaml")


def test_exponents_are_numbers(tmp_path):
    assert load(tmp_path, GOOD).train.optim.learning_rate == 3e-4


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("width: 8}", "widht: 8}", "f.yaml:5: unknown name 'widht'; did you mean 'width'?"),
        (
            "dataset: generated",
            "dataset: generatd",
            "f.yaml:3: data.0.dataset: found 'generatd': no such file in datasets/; did you mean 'generated'?",
        ),
        ("width: 8}", "width: eight}", "f.yaml:5: train.model.width: found 'eight': input should be a valid integer"),
        ("kind: egnn", "kind: egn", "f.yaml:5: train.model.kind: found 'egn', expected "),
        ("title: x\n", "", "f.yaml:1: title is missing"),
        ("sweeps:", "sweep:", "f.yaml:7: unknown name 'sweep'; did you mean 'sweeps'?"),
        (
            "title: x",
            "title: 12:30:00",
            'f.yaml:1: 12:30:00 is unquoted, which YAML reads as the number 45000; write "12:30:00"',
        ),
        ("title: x", "title: x\ntitle: y", "f.yaml:2: not YAML: 'title' appears twice"),
        ("title: x", "title: [x", "f.yaml:2: not YAML"),
        (
            "learning_rate: 3e-4",
            "learning_rate: -1",
            "f.yaml:6: train.optim.learning_rate: found -1: input should be gr",
        ),
    ],
)
def test_every_problem_is_reported_with_its_line(tmp_path, old, new, expected):
    with pytest.raises(UserError) as caught:
        load(tmp_path, GOOD.replace(old, new))
    assert any(line.startswith(expected) for line in str(caught.value).splitlines()), str(caught.value)


def test_all_problems_at_once(tmp_path):
    with pytest.raises(UserError) as caught:
        load(tmp_path, GOOD.replace("width: 8}", "width: 0, deph: 3}").replace("title: x", "titel: x"))
    assert len(str(caught.value).splitlines()) == 4


def test_a_site_with_an_unquoted_date_is_refused(tmp_path):
    text = """title: t
scheduler: {kind: none}
node: {core_gflops: 1, step_seconds: 0.1, start_seconds: 1}
verified: {level: live, date: 2026-01-02}
"""
    with pytest.raises(UserError, match=r"f.yaml:4: verified.date"):
        load(tmp_path, text, SiteConfig)


def test_a_list_or_nothing_is_no_study(tmp_path):
    for text in ("- a\n", "", "just words\n"):
        with pytest.raises(UserError, match=r"f.yaml:1"):
            load(tmp_path, text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"a: 1\n{[a]: 1}: 2\n", "f.yaml:2: not YAML: a name must be a word, not a list or mapping"),
        (b"title: x\ndescription: 'a\x07'\n", "f.yaml:2: not YAML: the character U+0007 is not allowed"),
        ("title: x\ndescription: é\n".encode("latin-1"), "f.yaml:2: byte 0xe9 is not UTF-8"),
        (b"title: x\ndescription: 2026-13-45\n", "f.yaml:2: not YAML: '2026-13-45' is not a timestamp"),
        (b"title: x\ndescription: !!bool maybe\n", "f.yaml:2: not YAML: 'maybe' is not a bool"),
        (b"title: &a [*a]\n", "f.yaml: cannot be read: something in it contains itself"),
        (
            b"title: " + 3000 * b"[" + 3000 * b"]",
            "f.yaml: cannot be read: something in it contains itself, or is nested too deeply",
        ),
    ],
)
def test_text_that_is_not_yaml_is_reported_in_words(tmp_path, text, expected):
    path = tmp_path / "f.yaml"
    path.write_bytes(text)
    with pytest.raises(UserError) as caught:
        yaml_file.load(path, Study, "f.yaml")
    assert str(caught.value).startswith(expected)


@pytest.mark.parametrize("text", ["{[a]: 1}", "a: \x07", "2026-13-45", 3000 * "["])
def test_a_value_that_is_no_yaml_is_text(text):
    assert yaml_file.parse_value(text) == text


# ---------------------------------------------------------------------------------------------------- tagged unions
class Circle(Record):
    kind: Literal["circle"]
    radius: float


class Square(Record):
    kind: Literal["square"]
    side: float


class Turn(Record):
    degrees: float


Shape = Annotated[Circle | Square, Field(discriminator="kind")]


class Drawing(Record):
    shape: Shape
    more: list[Shape] = []
    named: dict[str, Shape | None] = {}
    turn: Annotated[
        Annotated[float, Tag("angle")] | Annotated[Turn, Tag("turn")],
        Discriminator(lambda value: "turn" if isinstance(value, dict) else "angle"),
    ] = 0.0


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "shape: {kind: circel, radius: 1}",
            "f.yaml:1: shape.kind: found 'circel', expected one of circle, square; did you mean 'circle'?",
        ),
        ("shape: {kind: dpa4}", "f.yaml:1: shape.kind: found 'dpa4', expected one of circle, square"),
        ("shape: {radius: 1}", "f.yaml:1: shape.kind is missing"),
        ("shape: {kind: circle}", "f.yaml:1: shape.radius is missing"),
        ("shape: {kind: circle, radius: x}", "f.yaml:1: shape.radius: found 'x': "),
        ("shape: {kind: circle, radus: 1}", "f.yaml:1: unknown name 'radus'; did you mean 'radius'?"),
        ("shape: {kind: square, side: 1, radius: 1}", "f.yaml:1: unknown name 'radius'; known: kind, side"),
        ("shape: {kind: square, side: 1}\nmore:\n- {kind: circle, radius: x}", "f.yaml:3: more.0.radius: found 'x'"),
        (
            "shape: {kind: square, side: 1}\nnamed:\n  circle: {kind: circle, radius: x}",
            "f.yaml:3: named.circle.radius: found 'x'",
        ),
        ("shape: {kind: square, side: 1}\nturn: {degrees: x}", "f.yaml:2: turn.degrees: found 'x'"),
        ("shape: {kind: square, side: 1}\nturn: x", "f.yaml:2: turn: found 'x'"),
    ],
)
def test_tags_of_unions_come_from_the_models(tmp_path, text, expected):
    """No list of tags is kept; a name of a mapping may be spelled like a tag."""
    with pytest.raises(UserError) as caught:
        load(tmp_path, text, Drawing)
    assert any(line.startswith(expected) for line in str(caught.value).splitlines()), str(caught.value)


@pytest.mark.parametrize(("old", "new"), [("surely", "quarantine_above"), ("outlier", "report_above")])
def test_the_former_name_of_a_field_leads_to_the_present_one(tmp_path, old, new):
    path = tmp_path / "f.yaml"
    path.write_text(f"title: t\ndata:\n- dataset: generated\n  name: bulk\naudit:\n  {old}: 50\n")
    with pytest.raises(UserError, match=rf"f\.yaml:6: unknown name '{old}'; it is called '{new}' now"):
        yaml_file.load(path, Study, "f.yaml")
