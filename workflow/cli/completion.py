"""Shell completion: scripts for bash, zsh and fish, generated from the parser.

The names of sites and studies are listed when a key is pressed, so that a file added later is offered too.
"""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from typing import NamedTuple

from gnnscale.contract import places
from workflow.config.published_files import BY_NAME

# Kinds of values of options and arguments, by their names in the parser. Others take any word.
SITES, STUDIES, FOLDERS, FILES = "sites", "studies", "folders", "files"
KIND_OF_VALUE = {
    "site": SITES,
    "name": SITES,
    "study": STUDIES,
    "render_study": STUDIES,
    "finished": STUDIES,
    "root": FOLDERS,
    "out": FOLDERS,
    "to": FOLDERS,
    "words": FILES,
    "sets": " ".join(BY_NAME),
}


class Option(NamedTuple):
    flags: tuple[str, ...]
    text: str
    takes_value: bool
    value: str  # a kind of value, or words separated by spaces; "" for any word


class Verb(NamedTuple):
    name: str
    text: str
    options: tuple[Option, ...]
    positionals: tuple[str, ...]  # as Option.value


def completion_script(shell: str, parser: argparse.ArgumentParser) -> str:
    """Return the completion script of a shell."""
    return {"bash": bash_script, "zsh": zsh_script, "fish": fish_script}[shell](list_verbs(parser))


def list_verbs(parser: argparse.ArgumentParser) -> list[Verb]:
    """Return the verbs of the parser; the first, without a name, stands for the command itself."""
    (verbs,) = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    texts = {str(action.dest): action.help or "" for action in verbs._choices_actions}
    return [
        describe_verb("", parser, ""),
        *(describe_verb(name, each, texts[name]) for name, each in verbs.choices.items()),
    ]


def describe_verb(name: str, parser: argparse.ArgumentParser, text: str) -> Verb:
    actions = [action for action in parser._actions if not isinstance(action, argparse._SubParsersAction)]
    options = (
        Option(tuple(action.option_strings), action.help or "", action.nargs != 0, value_of(action))
        for action in actions
        if action.option_strings
    )
    return Verb(name, text, tuple(options), tuple(value_of(action) for action in actions if not action.option_strings))


def value_of(action: argparse.Action) -> str:
    return " ".join(map(str, action.choices)) if action.choices else KIND_OF_VALUE.get(action.dest, "")


# --------------------------------------------------------------------------------------------------- bash and zsh
BASH = """# Completion of gnnscale, written by `gnnscale completion {shell}`.
_gnnscale_names() {{  # of the YAML files in a folder
    local file
    for file in "$1"/*.yaml; do
        [ -e "$file" ] && file=${{file##*/}} && printf '%s\\n' "${{file%.yaml}}"
    done
}}

_gnnscale_offer() {{  # KIND or words
    local IFS=$' \\t\\n'
    case $1 in
        sites) COMPREPLY=($(compgen -W "$(_gnnscale_names {sites})" -- "$word") $(compgen -f -- "$word")) ;;
        studies) COMPREPLY=($(compgen -W "$(_gnnscale_names {studies})" -- "$word") $(compgen -f -- "$word")) ;;
        folders) COMPREPLY=($(compgen -d -- "$word")) ;;
        files) COMPREPLY=($(compgen -f -- "$word")) ;;
        *) COMPREPLY=($(compgen -W "$*" -- "$word")) ;;
    esac
}}

_gnnscale() {{
    local word="${{COMP_WORDS[COMP_CWORD]}}" verb="" option="" place=0 i
    COMPREPLY=()
    [ "$word" = "=" ] && word=""
    for ((i = 1; i < COMP_CWORD; i++)); do
        case "${{COMP_WORDS[i]}}" in
            {valued})  # the next word is its value, or the one after `=`
                option="${{COMP_WORDS[i]}}"
                ((i++))
                [ "${{COMP_WORDS[i]}}" = "=" ] && ((i < COMP_CWORD)) && ((i++))
                ;;
            -*) ;;
            *) if [ -z "$verb" ]; then verb="${{COMP_WORDS[i]}}"; else ((place++)); fi ;;
        esac
    done
    if ((i > COMP_CWORD)) || [ "${{COMP_WORDS[COMP_CWORD]}}" = "=" ]; then
        case "$option" in
{values}
        esac
        return
    fi
    case "$word" in
        -*)
            case "$verb" in
{options}
            esac
            return
            ;;
    esac
    case "$verb:$place" in
        :*) _gnnscale_offer {verbs} ;;
{positionals}
    esac
}}
complete -F _gnnscale gnnscale
"""
ZSH = "autoload -U +X bashcompinit && bashcompinit\n"


def bash_script(verbs: list[Verb], shell: str = "bash") -> str:
    every = {flag: option for verb in verbs for option in verb.options for flag in option.flags}
    valued = {flag: option for flag, option in every.items() if option.takes_value}
    return BASH.format(
        shell=shell,
        sites=shlex.quote(str(places.SITES)),
        studies=shlex.quote(str(places.STUDIES)),
        valued=" | ".join(valued),
        values="\n".join(
            f"            {flag}) _gnnscale_offer {option.value} ;;" for flag, option in valued.items() if option.value
        ),
        options="\n".join(
            f'                "{verb.name}") _gnnscale_offer {" ".join(f for o in verb.options for f in o.flags)} ;;'
            for verb in verbs
            if verb.options
        ),
        verbs=" ".join(verb.name for verb in verbs if verb.name),
        positionals="\n".join(
            f"        {verb.name}:{place}) _gnnscale_offer {value} ;;"
            for verb in verbs
            for place, value in enumerate(verb.positionals)
            if value
        ),
    )


def zsh_script(verbs: list[Verb]) -> str:
    return ZSH + bash_script(verbs, "zsh")


# ---------------------------------------------------------------------------------------------------------- fish
def fish_script(verbs: list[Verb]) -> str:
    lines = [
        "# Completion of gnnscale, written by `gnnscale completion fish`.",
        "complete -c gnnscale -f",
        *(
            f"complete -c gnnscale -n __fish_use_subcommand -a {each.name} -d {quote_for_fish(each.text)}"
            for each in verbs[1:]
        ),
        *(fish_option("__fish_use_subcommand", option) for option in verbs[0].options),
    ]
    for verb in verbs[1:]:
        condition = quote_for_fish(f"__fish_seen_subcommand_from {verb.name}")
        lines += [fish_option(condition, option) for option in verb.options]
        lines += [f"complete -c gnnscale -n {condition} {fish_value(value)}" for value in verb.positionals if value]
    return "\n".join(lines) + "\n"


def fish_option(condition: str, option: Option) -> str:
    flags = " ".join(f"-l {flag[2:]}" if flag.startswith("--") else f"-s {flag[1:]}" for flag in option.flags)
    value = f" {fish_value(option.value) if option.value else '-x'}" if option.takes_value else ""
    return f"complete -c gnnscale -n {condition} {flags}{value} -d {quote_for_fish(option.text)}"


def fish_value(value: str) -> str:
    folders = {SITES: places.SITES, STUDIES: places.STUDIES}
    if value in folders:
        return f"-r -F -a {quote_for_fish(fish_names(folders[value]))}"
    if value == FILES:
        return "-r -F"
    return "-x -a '(__fish_complete_directories)'" if value == FOLDERS else f"-x -a {quote_for_fish(value)}"


def fish_names(folder: Path) -> str:
    return f"(for file in {quote_for_fish(str(folder))}/*.yaml; string replace -r '.*/(.*)\\.yaml$' '$1' $file; end)"


def quote_for_fish(text: str) -> str:
    """Quote a word for fish, where a backslash escapes within single quotes."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
