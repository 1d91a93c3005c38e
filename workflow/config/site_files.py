"""The sites that there are, and one of them as it is asked for: its file, the user's own, and what --set says."""

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

from gnnscale.contract.errors import Problem
from gnnscale.contract.places import SITES
from workflow.config import site_rules, yaml_file
from workflow.config.site import SiteConfig


class Layer(NamedTuple):
    """One place that says something of a site; later ones win."""

    said: dict[str, Any]
    where: Callable[[list], str]  # a path in it -> the file and line, or the option, that says it


def names() -> list[str]:
    return sorted(path.stem for path in SITES.glob("*.yaml"))


def users_file(name: str) -> Path:
    """What is yours and not the site's: account, paths."""
    config = os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser(
        "~/.config"
    )  # left as it is where nobody has a home
    return Path(config) / "gnnscale" / f"{name}.yaml"


def load(name: str, settings: Sequence[str] = ()) -> SiteConfig:
    """The site, or one Problem with all that is wrong, each told with where it was said."""
    return resolve(layers_of(name, settings))


def layers_of(name: str, settings: Sequence[str]) -> list[Layer]:
    if name not in names():
        raise Problem(f"no site {name!r} in sites/; {yaml_file.nearest(name, names())}")
    layers = [from_file(SITES / f"{name}.yaml", f"sites/{name}.yaml")]
    if users_file(name).exists() and not yaml_file.is_blank(users_file(name)):
        layers.append(from_file(users_file(name), str(users_file(name))))
    return layers + [from_option(text) for text in settings]


def where(name: str, settings: Sequence[str], path: list[str | int]) -> str:
    """The file and line, or the option, that says it of this site."""
    return origin(layers_of(name, settings), path).where(path)


def load_file(path: Path, shown: str | None = None) -> SiteConfig:
    """One file alone."""
    return resolve([from_file(path, shown or str(path))])


def resolve(layers: list[Layer]) -> SiteConfig:
    merged: dict[str, Any] = {}
    for layer in layers:
        merged = merge(merged, layer.said)
    try:
        site = SiteConfig.model_validate(merged)
        found = site_rules.problems(site)
    except ValidationError as error:
        found = yaml_file.problems(error, SiteConfig)
    if found:
        raise Problem(*(f"{origin(layers, path).where(path)}: {text}" for path, text in found))
    return where_trained(site)


def where_trained(site: SiteConfig) -> SiteConfig:
    """With the nodes of the queue that trainings are to use, where these are others than the site's."""
    asked = site.queues.get(site.train.queue or "")
    if asked is None or asked.node is None:
        return site
    others = {name: queue.model_copy(update={"node": queue.node or site.node}) for name, queue in site.queues.items()}
    others[site.train.queue] = asked.model_copy(update={"node": None})
    return site.model_copy(update={"node": asked.node, "queues": others})


def from_file(path: Path, shown: str) -> Layer:
    said, root = yaml_file.read(path, shown)
    return Layer(said, lambda at: f"{shown}:{yaml_file.line_of(root, at)}")


def from_option(text: str) -> Layer:
    """--set a.b=c"""
    path, equals, value = text.partition("=")
    parts = path.strip().split(".")
    if not equals or not all(parts):
        raise Problem(f"--set {text}: expected NAME=VALUE, such as account=abc123 or train.nodes=[1,4]")
    kinds = kinds_of(parts)
    null = value.strip() in ("null", "~") and type(None) in kinds
    said: Any = None if null else value if str in kinds else yaml_file.value(value)
    for part in reversed(parts):
        said = {part: said}
    return Layer(said, lambda at: f"--set {text}")


def kinds_of(parts: list[str]) -> tuple[Any, ...]:
    """What the field may be. Where that is text, an account of digits, or 12:00:00, is taken as it is."""
    kind: Any = SiteConfig
    for part in parts:
        if get_origin(kind) is dict:
            kind = get_args(kind)[1]
            continue
        fields = [model.model_fields[part] for model in yaml_file.models_in(kind) if part in model.model_fields]
        kind = fields[0].annotation if fields else None
    return get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)


def merge(below: dict, above: dict) -> dict:
    """Mappings name by name, all else as a whole."""
    both = {n: merge(below[n], v) for n, v in above.items() if isinstance(v, dict) and isinstance(below.get(n), dict)}
    return below | above | both


def origin(layers: list[Layer], path: list) -> Layer:
    """The last layer that says the most of the path."""
    return max(enumerate(layers), key=lambda pair: (depth(pair[1].said, path), pair[0]))[1]


def depth(said: Any, path: list) -> int:
    """How many parts of the path are said here."""
    count = 0
    for part in path:
        in_list = isinstance(said, list) and isinstance(part, int) and part < len(said)
        if not in_list and not (isinstance(said, dict) and part in said):
            break
        said = said[part]
        count += 1
    return count


# ------------------------------------------------------------------------------------------- before anything is run
def check_account(name: str, site: SiteConfig) -> None:
    """Whoever has no account is told what to type, once."""
    rule = site.account_rule
    if rule.required and site.account is None:
        example = rule.example or "ACCOUNT"
        raise Problem(
            f"site {name} charges jobs to an account, and none is given",
            f"add `--set account={example}`, or write `account: {example}` into {users_file(name)}"
            + (f" ({example} is an example)" if rule.example else ""),
        )


def check_host(name: str, site: SiteConfig, settings: Sequence[str] = ()) -> None:
    """A driver on another machine could submit nothing, or to the wrong scheduler."""
    here = {platform.node(), socket.getfqdn()}
    if site.host and not any(re.search(site.host, host) for host in here):
        raise Problem(
            f"site {name} is run from hosts like {site.host!r} ({where(name, settings, ['host'])}), this one is "
            f"{platform.node()!r}",
            f"log in there; if this is the right machine: --set host={re.escape(platform.node())}",
            "`plan` and `sites render` work anywhere",
        )


def check_arch(name: str, site: SiteConfig, settings: Sequence[str] = ()) -> None:
    """Jobs use the driver's own interpreter and libraries, unless they are given another."""
    here = {"amd64": "x86_64", "arm64": "aarch64"}.get(platform.machine().lower(), platform.machine())
    if site.arch and site.python is None and here != site.arch:
        raise Problem(
            f"the nodes of site {name} are {site.arch} ({where(name, settings, ['arch'])}), this machine is {here}: its Python "
            "does not run there",
            "log in to a host of that kind, or name their Python: --set python=PATH",
            "`plan` and `sites render` work anywhere",
        )
