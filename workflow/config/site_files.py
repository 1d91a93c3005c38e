"""Loads a site from three layers: its file in sites/, the user's own file, and the options --set."""

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


def load(name: str, settings: Sequence[str] = ()) -> SiteConfig:
    """Load a site, or raise one error with all problems, each with the file and line or option that causes it."""
    return merge_layers(layers_of(name, settings))


def layers_of(name: str, settings: Sequence[str]) -> list[Layer]:
    if name not in list_sites():
        raise UserError(f"no site {name!r} in sites/; {field_problems.suggest(name, list_sites())}")
    path = SITES / f"{name}.yaml"
    layers = [layer_from_file(path, f"sites/{name}.yaml")] if path.exists() else []
    if user_file(name).exists() and not yaml_file.is_blank(user_file(name)):
        layers.append(layer_from_file(user_file(name), str(user_file(name))))
    return layers + [layer_from_option(text) for text in settings]


def locate(name: str, settings: Sequence[str], path: FieldPath) -> str:
    """Return the file and line, or the option, that sets a field of this site."""
    return last_layer_with(layers_of(name, settings), path).locate(path)


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


def merge_mappings(below: dict, above: dict) -> dict:
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
def check_account(name: str, site: SiteConfig) -> None:
    """Raise if jobs are charged to an account and none is given, with what to type."""
    rule = site.account_rule
    if rule.required and site.account is None:
        example = rule.example or "ACCOUNT"
        raise UserError(
            f"site {name} charges jobs to an account, and none is given",
            f"add `--set account={example}`, or write `account: {example}` into {user_file(name)}"
            + (f" ({example} is an example)" if rule.example else ""),
        )


def check_host(name: str, site: SiteConfig, settings: Sequence[str] = ()) -> None:
    """Raise on the wrong host, from which a driver could submit nothing, or to another scheduler."""
    here = {platform.node(), socket.getfqdn()}
    if site.host and not any(re.search(site.host, host) for host in here):
        raise UserError(
            f"site {name} is run from hosts like {site.host!r} ({locate(name, settings, ['host'])}), this one is "
            f"{platform.node()!r}",
            f"log in there; if this is the right machine: --set host={re.escape(platform.node())}",
            "`plan` and `sites render` work anywhere",
        )


def check_arch(name: str, site: SiteConfig, settings: Sequence[str] = ()) -> None:
    """Raise if jobs would run the driver's interpreter on nodes of another architecture."""
    here = {"amd64": "x86_64", "arm64": "aarch64"}.get(platform.machine().lower(), platform.machine())
    if site.arch and site.python is None and here != site.arch:
        raise UserError(
            f"the nodes of site {name} are {site.arch} ({locate(name, settings, ['arch'])}), this machine is "
            f"{here}: its Python does not run there",
            "log in to a host of that kind, or name their Python: --set python=PATH",
            "`plan` and `sites render` work anywhere",
        )
