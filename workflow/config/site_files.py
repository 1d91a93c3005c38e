"""Loads a site from three layers: its file in sites/, the user's own file, and the options --set.

A site given by the path of a file has no user's layer: the file is its user's own, and says all.
"""

from __future__ import annotations

import os
import platform
import re
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from types import UnionType
from typing import Any, NamedTuple, Union, get_args, get_origin

from pydantic import ValidationError

from gnnscale.contract.errors import UserError
from gnnscale.contract.places import SITES
from workflow.config import field_problems, site_rules, yaml_file
from workflow.config.field_problems import FieldPath, FieldProblem
from workflow.config.site import SiteConfig
from workflow.config.study import NAME


class Layer(NamedTuple):
    """Values of a site from one file or option; those of later layers win."""

    values: dict[str, Any]
    locate: Callable[[FieldPath], str]  # path of a field -> the file and line, or the option, that sets it


def list_sites() -> list[str]:
    """Return the sites in sites/ and those for which the user has a file of their own."""
    return sorted({path.stem for folder in (SITES, user_folder()) for path in folder.glob("*.yaml")})


def user_folder() -> Path:
    config = os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")  # "~" stays for users without a home
    return Path(config) / "gnnscale"


def user_file(name: str) -> Path:
    """Return the user's own file: account and paths for a site in sites/, or a whole site that is not there."""
    return user_folder() / f"{name}.yaml"


def load(typed: str, settings: Sequence[str] = ()) -> SiteConfig:
    """Load a site by its name or by the path of a file, or raise one error with all problems and where each comes from."""
    return merge_layers(layers_of(typed, settings))


def layers_of(typed: str, settings: Sequence[str]) -> list[Layer]:
    above = [layer_from_option(text) for text in settings]
    if is_path(typed):
        return [layer_from_own_file(typed), *above]
    name = site_name(typed)
    if name not in list_sites():
        raise UserError(
            f"no site {name!r} in sites/; {field_problems.suggest(name, list_sites())}",
            "or give the path of a YAML file",
        )
    path = SITES / f"{name}.yaml"
    layers = [layer_from_file(path, f"sites/{name}.yaml")] if path.exists() else []
    if user_file(name).exists() and not yaml_file.is_blank(user_file(name)):
        layers.append(layer_from_file(user_file(name), str(user_file(name))))
    return layers + above


def locate(typed: str, settings: Sequence[str], path: FieldPath) -> str:
    """Return the file and line, or the option, that sets a field of this site."""
    return last_layer_with(layers_of(typed, settings), path).locate(path)


# ------------------------------------------------------------------------------------------ a site by its name or file
def is_path(typed: str) -> bool:
    """Tell whether a site is given by a file of one's own; the path of a file that has a name as a site means that site."""
    if "/" not in typed and not typed.endswith((".yaml", ".yml")):
        return False
    path = Path(typed)
    return path.suffix != ".yaml" or path.resolve().parent not in (SITES.resolve(), user_folder().resolve())


def site_name(typed: str) -> str:
    """Return the name of a site for journal and messages: that of its file."""
    return re.sub(r"\.ya?ml$", "", Path(typed).name)


def type_anywhere(typed: str) -> str:
    """Return what names the same site in a command that is typed in another directory."""
    if not is_path(typed):
        return site_name(typed)
    return str(Path(typed).parent.resolve() / Path(typed).name)  # a link keeps its name, which is that of the site


def layer_from_own_file(typed: str) -> Layer:
    """Read a site's file that lies anywhere, or raise with what was probably meant."""
    path, name = Path(typed), site_name(typed)
    if not re.match(NAME, name):
        raise UserError(
            f"--site {typed}: jobs are recorded under a site's name, so it has letters, digits, '_', '.', '-'"
        )
    if path.is_dir():
        raise UserError(f"--site {typed}: is a directory, expected a YAML file", *suggest_files(path, name))
    if not path.exists():
        raise UserError(f"--site {typed}: no such file", *suggest_files(path.parent, name))
    layer = layer_from_file(path, typed)
    if "scheduler" not in layer.values and {"data", "sweeps"} & layer.values.keys():
        raise UserError(f"{typed}: this is a study, expected the file of a site", f"type --study {typed}")
    return layer


def suggest_files(folder: Path, name: str) -> list[str]:
    """Return hints at the nearest YAML file in a folder, and at a known site of a similar name."""
    files = [str(path) for path in sorted(folder.glob("*.y*ml"))]
    near = field_problems.did_you_mean(str(folder / f"{name}.yaml"), files)
    known = field_problems.did_you_mean(name, list_sites())
    return [
        *filter(None, [near]),
        f"among the sites in sites/, {known}" if known else "`sites list` lists the sites that have a name",
    ]


def load_file(path: Path, shown: str | None = None) -> SiteConfig:
    """Load one file, without the layers of a user."""
    return merge_layers([layer_from_file(path, shown or str(path))])


def merge_layers(layers: list[Layer]) -> SiteConfig:
    merged: dict[str, Any] = {}
    for layer in layers:
        merged = merge_mappings(merged, layer.values)
    try:
        site = SiteConfig.model_validate(merged)
    except ValidationError as error:
        raise located_error(layers, field_problems.find_problems(error, SiteConfig)) from None
    if problems := site_rules.find_problems(site):
        raise located_error(layers, problems)
    return with_training_nodes(site)


def located_error(layers: list[Layer], problems: list[FieldProblem]) -> UserError:
    lines = [f"{last_layer_with(layers, path).locate(path)}: {text}" for path, text in problems]
    return UserError("\n".join(lines))


def with_training_nodes(site: SiteConfig) -> SiteConfig:
    """Return the site with the nodes of the queue that trainings use, if that queue has nodes of its own."""
    name = site.train.queue or ""
    used = site.queues.get(name)
    if used is None or used.node is None:
        return site
    others = {name: queue.model_copy(update={"node": queue.node or site.node}) for name, queue in site.queues.items()}
    others[name] = used.model_copy(update={"node": None})
    return site.model_copy(update={"node": used.node, "queues": others})


def layer_from_file(path: Path, shown: str) -> Layer:
    values, root = yaml_file.read_mapping(path, shown)
    return Layer(values, lambda at: f"{shown}:{yaml_file.line_of(root, at)}")


def layer_from_option(text: str) -> Layer:
    """Return the layer of `--set a.b=c`."""
    path, equals, value = text.partition("=")
    parts = path.strip().split(".")
    if not equals or not all(parts):
        raise UserError(f"--set {text}: expected NAME=VALUE, such as account=abc123 or train.nodes=[1,4]")
    kinds = field_types(parts)
    null = value.strip() in ("null", "~") and type(None) in kinds
    values: Any = None if null else value if str in kinds else yaml_file.parse_value(value)
    for part in reversed(parts):
        values = {part: values}
    return Layer(values, lambda at: f"--set {text}")


def field_types(parts: list[str]) -> tuple[Any, ...]:
    """Return the types that a field may have: where it is text, an account of digits, or 12:00:00, stays text."""
    kind: Any = SiteConfig
    for part in parts:
        if get_origin(kind) is dict:
            kind = get_args(kind)[1]
            continue
        fields = [model.model_fields[part] for model in field_problems.models_of(kind) if part in model.model_fields]
        kind = fields[0].annotation if fields else None
    return get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)


def merge_mappings(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Merge mappings name by name; any other value of the upper layer replaces the lower one as a whole."""
    both = {
        n: merge_mappings(below[n], v)
        for n, v in above.items()
        if isinstance(v, dict) and isinstance(below.get(n), dict)
    }
    return below | above | both


def last_layer_with(layers: list[Layer], path: FieldPath) -> Layer:
    """Return the last of the layers that hold the longest part of the path."""
    return max(enumerate(layers), key=lambda pair: (matching_depth(pair[1].values, path), pair[0]))[1]


def matching_depth(values: Any, path: FieldPath) -> int:
    """Count the leading parts of the path that these values hold."""
    count = 0
    for part in path:
        in_list = isinstance(values, list) and isinstance(part, int) and part < len(values)
        if not in_list and not (isinstance(values, dict) and part in values):
            break
        values = values[part]
        count += 1
    return count


# -------------------------------------------------------------------------------------------- checks before a run
def check_account(typed: str, site: SiteConfig) -> None:
    """Raise if jobs are charged to an account and none is given, with what to type."""
    rule = site.account_rule
    if rule.required and site.account is None:
        example = rule.example or "ACCOUNT"
        own_file = typed if is_path(typed) else user_file(site_name(typed))
        raise UserError(
            f"site {site_name(typed)} charges jobs to an account, and none is given",
            f"add `--set account={example}`, or write `account: {example}` into {own_file}"
            + (f" ({example} is an example)" if rule.example else ""),
        )


def check_host(typed: str, site: SiteConfig, settings: Sequence[str] = ()) -> None:
    """Raise on a host that is not one of the site's: a driver there could not submit, or would submit to another scheduler."""
    host_names = {platform.node(), socket.getfqdn()}
    if site.host and not any(re.search(site.host, name) for name in host_names):
        raise UserError(
            f"site {site_name(typed)} must be run from a host that matches {site.host} "
            f"({locate(typed, settings, ['host'])}), this host is {platform.node()}",
            f"log in there; if this is the right machine: --set host={re.escape(platform.node())}",
            "`plan` and `sites render` work anywhere",
        )


def check_arch(typed: str, site: SiteConfig, settings: Sequence[str] = ()) -> None:
    """Raise if jobs would run the driver's interpreter on nodes of another architecture."""
    this_arch = {"amd64": "x86_64", "arm64": "aarch64"}.get(platform.machine().lower(), platform.machine())
    if site.arch and site.python is None and this_arch != site.arch:
        raise UserError(
            f"the nodes of site {site_name(typed)} are {site.arch} ({locate(typed, settings, ['arch'])}), this machine is "
            f"{this_arch}: its Python does not run there",
            "log in to a host of that kind, or name their Python: --set python=PATH",
            "`plan` and `sites render` work anywhere",
        )
