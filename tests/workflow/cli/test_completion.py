"""Shell completion: bash itself completes what a user has typed so far."""

import shutil
import subprocess

import pytest

from workflow.cli.arguments import SHELLS, build_parser
from workflow.cli.completion import completion_script, list_verbs
from workflow.config import site_files, study_files

ASK = """
source {script}
COMP_WORDS=({words}) COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))
_gnnscale
printf '%s\\n' "${{COMPREPLY[@]}}"
"""


@pytest.fixture(scope="module")
def scripts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("completion")
    for shell in SHELLS:
        (folder / shell).write_text(completion_script(shell, build_parser()))
    return folder


@pytest.fixture
def complete(scripts, tmp_path):
    (tmp_path / "mine.yaml").touch()
    (tmp_path / "points.csv").touch()
    (tmp_path / "elsewhere").mkdir()

    def ask(words):
        """Return what bash offers after these words, the last of which is not finished."""
        asked = ASK.format(script=scripts / "bash", words=f"gnnscale {words}")
        done = subprocess.run(
            ["bash", "-c", asked], cwd=tmp_path, capture_output=True, text=True, check=True, timeout=60
        )
        assert done.stderr == ""
        return done.stdout.split()

    return ask


def test_verbs(complete):
    assert complete("''") == [verb.name for verb in list_verbs(build_parser())[1:]]
    assert complete("pl") == ["plan"] and complete("--site local stat") == ["status"]
    assert complete("plan ''") == []


def test_names_of_sites_and_studies(complete):
    assert set(complete("plan --site ''")) == {*site_files.list_sites(), "elsewhere", "mine.yaml", "points.csv"}
    assert complete("--site mi") == ["mine.yaml"] and complete("sites show mi") == ["mine.yaml"]
    assert complete("--site pol") == ["polaris"] and complete("--site = pol") == ["polaris"]
    assert complete("plan --study sm") == ["smoke"]
    assert set(complete("--study ''")) == {*study_files.list_studies(), "elsewhere", "mine.yaml", "points.csv"}
    assert complete("sites show lu") == ["lumi"] and complete("sites render lumi sm") == ["smoke"]


def test_options_and_their_values(complete):
    assert complete("doctor --no") == ["--no-job"] and complete("doctor --queue debug --no") == ["--no-job"]
    assert "--no-job" not in complete("plan -") and {"--deep", "--json", "--site"} <= set(complete("plan -"))
    assert complete("run --until ev") == ["evaluate"] and complete("advise x --target en") == ["energy_mae"]
    assert complete("--root ''") == ["elsewhere"]
    assert complete("sites ''") == ["list", "show", "validate", "render", "new"]
    assert complete("fit po") == ["points.csv"] and complete("completion z") == ["zsh"]
    assert complete("plan --max-node-hours ''") == [], "any number"


@pytest.mark.parametrize("shell", SHELLS)
def test_scripts_are_read_without_an_error(scripts, shell):
    if shutil.which(shell) is None:
        pytest.skip(f"no {shell} here")
    subprocess.run([shell, "-n", scripts / shell], check=True, timeout=60)


def test_fish_is_offered_every_verb_and_option(scripts):
    text = (scripts / "fish").read_text()
    for verb in list_verbs(build_parser())[1:]:
        assert f"-n __fish_use_subcommand -a {verb.name} " in text
        for option in verb.options:
            flags = [flag[2:] for flag in option.flags if flag.startswith("--")]
            assert any(
                f"__fish_seen_subcommand_from {verb.name}'" in line and f"-l {flags[0]}" in line
                for line in text.splitlines()
            )
