"""Sphinx directives that draw tables from the code, so that a page cannot say something else than the program.

```{settings} gnnscale.contract.settings.OptimSettings     fields of a checked record, with type, default and meaning
```{schedulers}                                            the same for each scheduler that a site's file may name
```{commands}                                              the verbs of the command line
```{command-options}                                       one verb with its options, or the options that all share
```{sites}                                                 the files in sites/
```{datasets}                                              the scripts in datasets/
```{checks}                                                what an audit looks for
```{laws}                                                  the forms of scaling laws
```{rooms} gnnscale                                        the packages of the drawing, and what each imports
```{recorded-program}                                      the blocks that a small network is recorded as
"""

from __future__ import annotations

import argparse
import inspect
import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any, get_args

import draw_rooms
from docutils import nodes
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

ROOT = Path(__file__).resolve().parent.parent
TAGS = ("kind", "format")  # fields with one value, which tell records apart


def words(text: str) -> list[nodes.Node]:
    """Split plain text at its backticks into text and literals."""
    parts = text.split("`")
    return [nodes.literal("", part) if k % 2 else nodes.Text(part) for k, part in enumerate(parts) if part]


def code(text: str) -> list[nodes.Node]:
    return [nodes.literal("", text)] if text else []


def table(head: list[str], rows: list[list[list[nodes.Node]]], widths: list[int], kind: str = "") -> nodes.Node:
    """Build a table of which each cell is a list of inline nodes."""

    def line(cells: list[list[nodes.Node]]) -> nodes.row:
        return nodes.row("", *(nodes.entry("", nodes.paragraph("", "", *cell)) for cell in cells))

    made = nodes.table(classes=[kind] if kind else [])
    columns = [nodes.colspec(colwidth=width) for width in widths]
    made += nodes.tgroup(
        "",
        *columns,
        nodes.thead("", line([[nodes.Text(name)] for name in head])),
        nodes.tbody("", *map(line, rows)),
        cols=len(head),
    )
    return made


# ------------------------------------------------------------------------------------------------------------- settings
def readable_type(field: FieldInfo) -> str:
    """Write a field's type as a YAML author would say it."""
    shown = str(field.annotation) if get_args(field.annotation) else getattr(field.annotation, "__name__", "")
    shown = re.sub(r"typing\.|<class '([^']*)'>", r"\1", shown)
    shown = re.sub(r"Literal\[([^]]*)\]", lambda found: found[1].replace(", ", " | "), shown)
    shown = re.sub(r"(?:\w+\.)+(\w+)", r"\1", shown).replace("NoneType", "null").replace("None", "null")
    shown = re.sub(r"Annotated\[(\w+),.*?\](?=[\s,\]|]|$)", r"\1", shown)
    return shown.replace("'", "")


def readable_default(field: FieldInfo) -> str:
    if field.default_factory is not None:
        value = field.default_factory()
    elif field.default is PydanticUndefined:
        return "required"
    else:
        value = field.default
    if isinstance(value, BaseModel):
        return "its defaults"
    if value is None:
        return "null"
    if isinstance(value, str):
        return value or '""'
    return str(value).lower() if isinstance(value, bool) else re.sub(r"[()']", "", str(value)) or "none"


def found(path: str) -> Any:
    module, name = path.rsplit(".", 1)
    return getattr(import_module(module), name)


def settings_table(record: type[BaseModel], without: tuple[str, ...] = ()) -> nodes.Node:
    rows = [
        [code(name), code(readable_type(field)), code(readable_default(field)), words(field.description or "")]
        for name, field in record.model_fields.items()
        if name not in (*TAGS, *without)
    ]
    return table(["field", "type", "default", "meaning"], rows, [18, 22, 15, 45], "settings")


class Settings(SphinxDirective):
    """List the fields of a pydantic model."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        return [settings_table(found(self.arguments[0]))]


class Schedulers(SphinxDirective):
    """List the fields of each scheduler; those that all share come first."""

    def run(self) -> list[nodes.Node]:
        kinds = import_module("workflow.config.scheduler_kinds").KINDS
        shared = found("workflow.config.batch_scheduler.BatchScheduler").model_fields
        drawn: list[nodes.Node] = [settings_table(found("workflow.config.batch_scheduler.BatchScheduler"))]
        for kind, options in kinds.items():
            drawn.append(nodes.paragraph("", "", *words(f"With `kind: {kind}` ({options.title}) also:")))
            drawn.append(settings_table(options, tuple(shared)))
        return drawn


# ------------------------------------------------------------------------------------------------------- command line
def the_parser() -> argparse.ArgumentParser:
    return import_module("workflow.cli.arguments").build_parser()


def verbs() -> tuple[dict[str, argparse.ArgumentParser], dict[str, str]]:
    """Return the verbs' parsers and their one-line help."""
    (actions,) = [a for a in the_parser()._actions if isinstance(a, argparse._SubParsersAction)]
    return dict(actions.choices), {choice.dest: choice.help or "" for choice in actions._choices_actions}


def shared() -> set[str]:
    return {action.dest for action in the_parser()._actions}


def option_rows(parser: argparse.ArgumentParser, left_out: set[str]) -> list[list[list[nodes.Node]]]:
    rows = []
    for action in parser._actions:
        if action.dest in left_out or isinstance(action, argparse._SubParsersAction) or action.dest == "help":
            continue
        shown = str(action.metavar or action.dest.upper())
        takes = "" if action.nargs == 0 else f" {shown}"
        name = ", ".join(f"{option}{takes}" for option in action.option_strings) or shown
        choices = f"one of {', '.join(map(str, action.choices))}" if action.choices else ""
        about = (action.help or "").replace("%%", "%")
        rows.append([code(name), words("; ".join(filter(None, [about, choices])))])
    return rows


class Commands(SphinxDirective):
    """List the verbs of the command line."""

    def run(self) -> list[nodes.Node]:
        _, helps = verbs()
        rows = [[code(f"gnnscale {name}"), words(text)] for name, text in helps.items()]
        return [table(["command", "what it does"], rows, [25, 75], "settings")]


class CommandOptions(SphinxDirective):
    """List the options of one verb, or without a name those that all verbs share."""

    optional_arguments = 1

    def run(self) -> list[nodes.Node]:
        if not self.arguments:
            return [table(["option", "meaning"], option_rows(the_parser(), set()), [35, 65], "settings")]
        verb = self.arguments[0]
        parser = import_module("gnnscale.stages.fit_csv").build_parser() if verb == "fit" else verbs()[0][verb]
        rows = option_rows(parser, shared())
        return [table(["argument or option", "meaning"], rows, [35, 65], "settings")]


# -------------------------------------------------------------------------------------------------- sites and data sets
class Sites(SphinxDirective):
    """List the files in sites/."""

    def run(self) -> list[nodes.Node]:
        files = import_module("workflow.config.site_files")
        rows = []
        for name in files.list_sites():
            site = files.load_file(files.SITES / f"{name}.yaml")
            kind = site.batch_scheduler.title if site.has_scheduler else "none"
            runtime = "" if site.container.runtime == "none" else site.container.runtime
            rows.append([code(name), words(site.title), words(kind), words(runtime), words(site.verified.level)])
        return [
            table(["--site", "machine", "scheduler", "containers", "verified"], rows, [15, 43, 12, 18, 12], "settings")
        ]


class Datasets(SphinxDirective):
    """List the scripts in datasets/ by the first sentence of each, with the options that it takes."""

    def run(self) -> list[nodes.Node]:
        datasets = import_module("gnnscale.contract.datasets")
        rows = []
        for name in datasets.dataset_names():
            script = datasets.load_script(name)
            about = " ".join((script.__doc__ or "").split("\n\n")[0].split())
            options: list[nodes.Node] = []
            for option in script.Options.model_fields:
                options += [*([nodes.Text(", ")] if options else []), nodes.literal("", option)]
            rows.append([code(name), words(about), options])
        return [table(["dataset", "what it holds", "options"], rows, [12, 53, 35], "settings")]


class Checks(SphinxDirective):
    """List what an audit looks for."""

    def run(self) -> list[nodes.Node]:
        rows = [[words(name), words(text)] for name, text in found("gnnscale.audit.check_results.CHECK_TITLES").items()]
        return [table(["check", "what has to hold"], rows, [25, 75])]


class Laws(SphinxDirective):
    """List the forms of scaling laws."""

    def run(self) -> list[nodes.Node]:
        laws = found("gnnscale.scaling.fitting.laws.LAWS")
        rows = [[code(name), code(law.formula), words(", ".join(law.axes))] for name, law in laws.items()]
        return [table(["--law", "form", "sizes"], rows, [22, 60, 18], "settings")]


class RecordedProgram(SphinxDirective):
    """List the blocks of a network of one layer as they are recorded: what each reads and writes, and its parameters."""

    OPERANDS = (
        ("EMBED", "out . . parameter base"),
        ("LINEAR", "in out parameter parameter base"),
        ("SILU", "in out"),
        ("NORM", "in out . ."),
        ("LENGTH", "in out"),
        ("SCALE", "in out parameter base"),
        ("MESSAGES", "in out out parameter"),
        ("EDGE_MESSAGES", "in out out parameter parameter parameter"),
        ("DIRECT", "in in out out ."),
    )

    def run(self) -> list[nodes.Node]:
        recording, registry = (import_module(f"gnnscale.{name}") for name in ("models.recording", "models.registry"))
        config = found("gnnscale.architectures.egnn.EGNNConfig")(width=64, depth=1)
        program = recording.record(registry.build(config, 2, 20.0))
        variables, blocks = recording.read_code(program.code)
        names = {place.offset: place.name for place in program.packing.places}
        labels = [
            f"v{k}" if v.root < 0 else f"v{v.root}[{v.first}:{v.first + v.columns}]" for k, v in enumerate(variables)
        ]
        rows, operands_of = [], dict(self.OPERANDS)
        for op, operands in blocks:
            by_role: dict[str, list[str]] = {"in": [], "out": [], "base": [], "parameter": []}
            for role, operand in zip(operands_of[op.name].split(), operands, strict=True):
                if operand >= 0 and role != ".":
                    by_role[role].append(names.get(operand, "") if role == "parameter" else labels[operand])
            read = ", ".join(by_role["in"]) + "".join(f" + {base}" for base in by_role["base"])
            parameters = ", ".join(name.removeprefix("backbone.") for name in by_role["parameter"])
            cells = (op.name.lower().replace("_", " "), read.removeprefix(" + "), ", ".join(by_role["out"]), parameters)
            rows.append([code(cell) for cell in cells])
        return [table(["block", "reads", "writes", "parameters"], rows, [18, 16, 16, 50], "settings")]


class Rooms(SphinxDirective):
    """List the rooms of one package from top to bottom: what each holds and which rooms it imports."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        rows = []
        for room in draw_rooms.from_top_to_bottom(self.arguments[0]):
            below = ", ".join(sorted(name.removeprefix(f"{self.arguments[0]}/") for name in room.imports))
            rows.append([code(room.name.split("/")[1]), words(room.purpose), words(below)])
        return [table(["room", "what it holds", "imports"], rows, [18, 47, 35], "settings")]


# -------------------------------------------------------------------------------------------------------- docstrings
def with_fields(app: Sphinx, what: str, name: str, member: object, options: object, lines: list[str]) -> None:
    """Take docstrings as plain text in which backticks mark code, and give a record the list of its fields."""
    lines[:] = [escaped(line) for line in lines]
    if what == "class" and isinstance(member, type):
        fields = {name: meaning(info) for name, info in getattr(member, "model_fields", {}).items() if name not in TAGS}
        fields = fields or dict(commented_fields(member))
        lines += ["", *(f"- ``{field}`` {escaped(text)}" for field, text in fields.items()), ""]


def without_fields(
    app: Sphinx, what: str, name: str, member: object, options: object, signature: str, returned: str
) -> tuple[str, str] | None:
    """Leave out the signature of a record, as its fields are listed below it."""
    is_record = hasattr(member, "model_fields") or hasattr(member, "_fields")
    return ("", "") if what == "class" and is_record else None


def commented_fields(member: type) -> Iterator[tuple[str, str]]:
    """Yield the fields of a NamedTuple with the comments that stand beside them in its source."""
    if hasattr(member, "_fields"):
        source = inspect.getsource(member)
        for field in member._fields:
            found = re.search(rf"^    {field}: [^#\n]*(?:  # (.*))?$", source, re.M)
            yield field, f": {found[1]}" if found and found[1] else ""


def meaning(field: FieldInfo) -> str:
    default = readable_default(field)
    text = " ".join((field.description or "").split())
    ends = "" if default == "required" else f", by default `{default}`"
    return f"(`{readable_type(field)}`{ends})" + (f": {text}" if text else "")


def escaped(line: str) -> str:
    parts = line.split("`")
    if len(parts) % 2 == 0:  # a backtick without a partner
        return re.sub(r"([\\*_|`])", r"\\\1", line)
    plain = [re.sub(r"([\\*_|])", r"\\\1", part) if k % 2 == 0 else part for k, part in enumerate(parts)]
    return "".join(part if k % 2 == 0 else f"``{part}``" if part else "" for k, part in enumerate(plain))


def is_field(app: Sphinx, what: str, name: str, member: object, skip: bool, options: object) -> bool | None:
    """Leave fields out of a record's members, as they are listed already."""
    return True if type(member).__name__ == "_tuplegetter" or name.startswith("model_") else None


def setup(app: Sphinx) -> dict[str, bool]:
    for name, directive in {
        "settings": Settings,
        "commands": Commands,
        "command-options": CommandOptions,
        "sites": Sites,
        "datasets": Datasets,
        "checks": Checks,
        "laws": Laws,
        "schedulers": Schedulers,
        "rooms": Rooms,
        "recorded-program": RecordedProgram,
    }.items():
        app.add_directive(name, directive)
    app.connect("autodoc-process-docstring", with_fields)
    app.connect("autodoc-process-signature", without_fields)
    app.connect("autodoc-skip-member", is_field)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
