"""The README and the pages of docs/ are true: commands parse, links lead somewhere, code imports, settings are valid."""

import ast
import importlib
import importlib.util
import re
import shlex
import subprocess
from functools import cache
from pathlib import Path

import pytest
import yaml

from gnnscale import __version__
from gnnscale.stages import fit_csv
from tests.support.drawing import drawing
from workflow.cli.arguments import build_parser
from workflow.config import site_files, study_files, sweeps

ROOT = Path(__file__).resolve().parents[2]
PAGES = {
    str(path.relative_to(ROOT)): path.read_text()
    for path in (
        *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "examples/README.md")),
        *sorted((ROOT / "docs").glob("*.md")),
    )
}
LISTED = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
REPOSITORY = "https://github.com/gnnscale/gnnscale"
PROGRAMS = ("gnnscale ", "python workflow/run.py")
INVENTED = {"mycluster", "mycluster.yaml"}  # sites and studies that pages tell their reader to make


def blocks(kind):
    """(page, text) of every fenced block of one kind."""
    return [
        (page, body)
        for page, text in PAGES.items()
        for body in re.findall(rf"^```{kind}\n(.*?)^```", text, re.S | re.M)
    ]


def commands():
    """(page, command) of every line of shell, and of every command in running text."""
    found = [(page, line.split(" #")[0].strip()) for page, body in blocks("sh") for line in body.splitlines()]
    for page, text in PAGES.items():
        outside = re.sub(r"^```.*?^```", "", text, flags=re.S | re.M)
        found += [(page, each) for each in re.findall(r"`((?:gnnscale|make|python) [^`\n]+)`", outside)]
    found = [(page, part.strip()) for page, line in found for part in line.split("&&")]
    return sorted({each for each in found if each[1] and not each[1].startswith("#")})


def verbs():
    return set(re.findall(r"^    (\w+) ", build_parser().format_help(), re.M))


OURS = [each for each in commands() if each[1].startswith(PROGRAMS)]
OTHERS = [each for each in commands() if not each[1].startswith(PROGRAMS)]


# ------------------------------------------------------------------------------------------------------------ commands
@pytest.mark.parametrize(("page", "command"), OURS)
def test_commands_parse(page, command):
    words = shlex.split(command)
    words = words[1:] if words[0] == "gnnscale" else words[2:]
    if len(words) < 2:  # the program or a verb is named, and no command given
        assert not words or words[0].startswith("-") or words[0] in verbs(), f"{page}: {command}"
        return
    placeholders = {"VERB", "NAME", "RUN", "STAGE", "FILE", "DIR"} & set(words)
    asked = build_parser().parse_args(["run" if word == "VERB" else word for word in words])
    site, named = getattr(asked, "site", "local"), getattr(asked, "study", "default")
    assert site in site_files.list_sites() or site in INVENTED or placeholders, f"{page}: no site {site}"
    assert named in study_files.list_studies() or named.endswith(".yaml") or placeholders, f"{page}: no study {named}"
    if words[:2] in (["sites", "show"], ["sites", "render"]) and not placeholders:
        _, action, *named = words
        assert not named or named[0] in site_files.list_sites(), f"{page}: {command}"
        assert action == "show" or not named[1:] or named[1] in study_files.list_studies(), f"{page}: {command}"
    if words[0] == "fit":
        fit_csv.build_parser().parse_args(words[1:])


@pytest.mark.parametrize(("page", "command"), OTHERS)
def test_other_commands_name_what_exists(page, command):
    words = [word for word in shlex.split(command) if word not in (".venv/bin/python",)]
    words = words if words[0] in ("make", "python", "pip", "source", ".ci/run") else ["python", *words]
    if words[0] == "make":
        targets = re.findall(r"^([\w./-]+):", (ROOT / "Makefile").read_text().replace("$(VENV)", ".venv"), re.M)
        assert words[1] in targets, f"{page}: make {words[1]}"
    elif words[1] == "-m" and words[2] not in ("pip", "pytest"):
        assert importlib.util.find_spec(words[2]), f"{page}: no module {words[2]}"
    elif words[1].endswith(".py"):
        assert (ROOT / words[1]).exists(), f"{page}: no file {words[1]}"


def test_commands_were_found():
    assert len(OURS) > 40 and len(OTHERS) > 10


def test_every_verb_is_shown_with_a_command():
    shown = {words[1] for _, command in OURS if len(words := shlex.split(command)) > 1}
    assert verbs() and not verbs() - shown


# ----------------------------------------------------------------------------------------------------- links and names
def slug(heading):
    """Return the anchor of a heading, as GitHub and MyST make it."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def anchors(text):
    return {
        slug(heading) for heading in re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```", "", text, flags=re.S | re.M), re.M)
    }


@cache
def links():
    found = []
    for page, text in PAGES.items():
        outside = re.sub(r"^```(?!\{image).*?^```", "", text, flags=re.S | re.M)
        found += [(page, link) for link in re.findall(r"\]\(([^)\s]+)\)", outside)]
        found += [(page, link) for link in re.findall(r"^(?::::|```)\{(?:figure|image)\} (\S+)", text, re.M)]
    return sorted(set(found))


@pytest.mark.parametrize(("page", "link"), links())
def test_links_lead_somewhere(page, link):
    path, _, anchor = link.partition("#")
    if path.startswith(REPOSITORY):
        path = re.sub(rf"^{REPOSITORY}/?(?:(?:blob|tree)/main/)?", "", path)
        assert (ROOT / path).exists(), f"{page}: {link}"
    elif not path.startswith("http"):
        target = (ROOT / page).parent / path if path else ROOT / page
        assert target.exists(), f"{page}: {link}"
        assert not anchor or anchor in anchors(target.read_text()), f"{page}: no heading for {link}"


@pytest.mark.parametrize("page", PAGES)
def test_files_that_are_named_exist(page):
    folders = "gnnscale|workflow|tests|docs|datasets|sites|containers|examples"
    for name in re.findall(rf"`((?:{folders})/[\w./-]+)`", PAGES[page]):
        if not re.search(r"[A-Z]{3}", name) and page != "CHANGELOG.md":
            assert (ROOT / name).exists(), f"{page}: {name}"


def test_figures_of_studies_are_those_that_pages_show():
    shown = {link for page, link in links() if link.startswith("studies/")}
    there = {name.removeprefix("docs/") for name in LISTED if name.startswith("docs/studies/")}
    assert {name for name in there if not name.endswith("/points.csv")} == shown


def test_the_readme_is_short_and_begins_with_a_figure():
    text = PAGES["README.md"]
    assert len(text.encode()) <= 8000
    assert re.search(r"!\[[^]]+\]\(docs/[^)]+\.png\)", "\n".join(text.splitlines()[:12]))


# ---------------------------------------------------------------------------------------------------- code in the pages
@pytest.mark.parametrize(("page", "code"), blocks("python"))
def test_python_in_pages_imports(page, code):
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom):
            module = importlib.import_module(node.module)
            for alias in node.names:
                if not hasattr(module, alias.name):
                    importlib.import_module(f"{node.module}.{alias.name}")


@pytest.mark.parametrize(("page", "text"), blocks("yaml"))
def test_yaml_in_pages_is_valid(page, text, tmp_path, monkeypatch):
    """A whole study, a user's file of a site, or a section of a study."""
    said = yaml.safe_load(text)
    if yours := re.match(r"# ~/\.config/gnnscale/(\w+)\.yaml", text):
        (tmp_path / "gnnscale").mkdir()
        (tmp_path / "gnnscale" / f"{yours[1]}.yaml").write_text(text)
        monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
        site_files.load(yours[1])
        return
    data = [{"name": "bulk", "dataset": "generated", "options": {"source": "bulk", "structures": 9}}]
    whole = {"title": "Mine", "sweeps": [{"name": "one"}], "data": data} | said
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(whole))
    _, loaded = study_files.load(str(path))
    assert sweeps.expand_runs(loaded)


def test_directives_name_what_exists():
    for page, text in PAGES.items():
        for name in re.findall(r"^```\{settings\} (\S+)", text, re.M) + re.findall(
            r"^\.\. auto\w+:: (\S+)", text, re.M
        ):
            module, attribute = name.rsplit(".", 1)
            assert hasattr(importlib.import_module(module), attribute), f"{page}: {name}"


# ------------------------------------------------------------------------------------------------------ the architecture
def test_the_drawing_is_the_present_one():
    assert drawing().DRAWING.read_text() == drawing().drawing(), "run: python docs/draw_rooms.py"


def test_every_file_is_in_a_room_that_says_what_it_holds():
    rooms = drawing().rooms()
    for name in LISTED:
        if re.match(r"(gnnscale|workflow)/.*\.py$", name) and name.count("/__init__.py") + name.count("/") != 2:
            package, room, *_ = name.removesuffix(".py").split("/")
            assert f"{package}/{room}" in rooms, name
    for room in rooms.values():
        assert len(room.purpose.split()) > 2, f"{room.name}: its __init__.py has no sentence that says what it holds"


def test_rooms_and_folders_of_the_page_are_those_of_the_disk():
    page = PAGES["docs/architecture.md"]
    described = set(re.findall(r"^\| `(\w+)/` \|", page, re.M)) | set(re.findall(r"^```\{rooms\} (\w+)", page, re.M))
    there = {name.split("/")[0] for name in LISTED if "/" in name and not name.startswith(".")}
    assert described == there


# ---------------------------------------------------------------------------------------------------- beside the pages
def test_versions_agree():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert cited["version"] == __version__ and cited["repository-code"] == REPOSITORY
    assert f"## {__version__}" in PAGES["CHANGELOG.md"] and "## Unreleased" in PAGES["CHANGELOG.md"]


def test_pre_commit_runs_what_is_installed():
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    for hook in config["repos"][0]["hooks"]:
        program, flag, module, *_ = hook["entry"].split()
        assert (program, flag) == (".venv/bin/python", "-m") and importlib.util.find_spec(module), hook["id"]
