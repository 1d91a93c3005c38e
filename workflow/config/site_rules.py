"""Cross-field checks of a site file; every problem carries the path of the field that is wrong. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator

from workflow.config.capacity import format_node_range, training_queues
from workflow.config.container import MPI_MODULES, PODMAN_RUNTIMES
from workflow.config.field_problems import FieldProblem, format_value, suggest
from workflow.config.scheduler_kinds import LAUNCHERS
from workflow.config.site import SiteConfig
from workflow.config.walltime import to_seconds

FLAG_FIELDS = ("ranks", "nodes", "per_node", "threads")


def problem(text: str, *path: str | int) -> FieldProblem:
    """Return the problem of the field at `path`, which the message begins with."""
    return FieldProblem([*path], f"{'.'.join(map(str, path))}: {text}")


def find_problems(site: SiteConfig) -> list[FieldProblem]:
    if not site.has_scheduler:
        return [*check_without_scheduler(site), *check_driver(site), *check_container_flags(site)]
    return [
        *check_container_flags(site),
        *check_driver(site),
        *check_account(site),
        *check_queues(site),
        *check_directives(site),
        *check_launch(site),
        *check_queue_choices(site),
    ]


def check_container_flags(site: SiteConfig) -> Iterator[FieldProblem]:
    """Find options with which stages of one job would share a container, or would outlive the process that started them."""
    if site.container.runtime not in PODMAN_RUNTIMES:
        return
    for option in site.container.options(has_ranks=False):
        if option in MPI_MODULES:
            yield problem(f"{option} is for ranks that a launcher starts; move it to rank_flags", "container", "flags")
    for option in site.container.options(has_ranks=True):
        if option.partition("=")[0] == "--pid":
            text = f"{option!r}: a stage looks whether the process that started it lives; remove it"
            yield problem(text, "container", "flags" if option in site.container.options(False) else "rank_flags")


def check_driver(site: SiteConfig) -> Iterator[FieldProblem]:
    """Find a way of a driver that this site's scheduler or its queues do not have."""
    driver = site.driver
    if driver.way == "job" and not site.has_scheduler:
        yield problem("found 'job', this site has no scheduler", "driver", "way")
    if driver.options and driver.way != "scrontab":
        yield problem("these are for driver.way: scrontab", "driver", "options")
    if driver.way == "job" and site.has_scheduler:
        yield from check_driver_job(site)


def check_driver_job(site: SiteConfig) -> Iterator[FieldProblem]:
    """Find a queue for a driver's job that is none, or in which the driver would have no time."""
    driver, notice = site.driver, site.batch_scheduler.signal_seconds
    if driver.queue not in site.queues:
        found = (
            suggest(driver.queue, list(site.queues)) if driver.queue else f"one of {', '.join(site.queues)} is needed"
        )
        yield problem(f"found {format_value(driver.queue)}; {found}", "driver", "queue")
    elif to_seconds(driver.walltime) > site.queues[driver.queue].longest_seconds:
        yield problem(f"{driver.walltime} is more than queue {driver.queue} allows", "driver", "walltime")
    if to_seconds(driver.walltime) <= notice:
        yield problem(f"{driver.walltime} is not longer than scheduler.signal_seconds ({notice})", "driver", "walltime")


def check_account(site: SiteConfig) -> Iterator[FieldProblem]:
    """Find an account that does not look like an account of this site."""
    rule = site.account_rule
    if site.account is not None and rule.pattern and not re.fullmatch(rule.pattern, site.account):
        example = f", such as {rule.example}" if rule.example else ""
        yield problem(f"found {site.account!r}, which is no account of this site ({rule.pattern}{example})", "account")


def check_queues(site: SiteConfig) -> Iterator[FieldProblem]:
    """Find queues in which no job could do its work."""
    if not site.queues:
        yield problem("a site with a scheduler has at least one", "queues")
    elif not any(queue.production for queue in site.queues.values()) and site.train.queue is None:
        yield problem("none is for production; set production: true in one of them, or train.queue", "queues")
    used = {site.train.queue, site.serial and site.serial.queue}
    for name, queue in site.queues.items():
        if queue.qos is not None and not site.batch_scheduler.has_qos:
            title = site.batch_scheduler.title
            yield problem(f"{title} has no QOS; its queue goes into `partition`", "queues", name, "qos")
        signal, start = site.batch_scheduler.signal_seconds, (queue.node or site.node).start_seconds
        if (queue.production or name in used) and queue.longest_seconds <= signal + start:
            yield problem(
                f"{queue.max_walltime} is not longer than scheduler.signal_seconds ({signal}) and node.start_seconds "
                f"({start:g}): jobs would stop as they start",
                *("queues", name, "max_walltime"),
            )


def check_directives(site: SiteConfig) -> Iterator[FieldProblem]:
    """Find options that another field or the driver sets, that the site refuses, or that are not options at all."""
    for index, text in enumerate(site.batch_scheduler.directives):
        yield from check_directive(site, text, "scheduler", "directives", index)
    for name, queue in site.queues.items():
        for index, text in enumerate(queue.directives):
            yield from check_directive(site, text, "queues", name, "directives", index)


def check_directive(site: SiteConfig, text: str, *path: str | int) -> Iterator[FieldProblem]:
    scheduler = site.batch_scheduler
    name, decided, word = scheduler.option_name(text), scheduler.decided_elsewhere, scheduler.directive_word
    if not text.startswith("-") or "\n" in text:
        yield problem(f"found {text!r}, expected an option such as -x or --name=value, without {word}", *path)
    elif name in decided:
        yield problem(f"{text!r} does not belong here: {name} is decided by {decided[name]}; remove it", *path)
    elif name in scheduler.forbidden:
        yield problem(f"{text!r}: {scheduler.forbidden[name]}; remove it", *path)


def check_without_scheduler(site: SiteConfig) -> Iterator[FieldProblem]:
    """Find fields that have no meaning without a scheduler."""
    launch, gpus = site.launch, site.node.gpus
    if site.queues:
        yield problem("this site has no scheduler", "queues")
    if launch.command != "none":
        yield problem("without a scheduler the driver itself starts `launch.ranks`; remove it", "launch", "command")
    if gpus and launch.ranks > gpus.count:
        yield problem(f"{launch.ranks} ranks need a GPU each, node.gpus.count is {gpus.count}", "launch", "ranks")


def check_launch(site: SiteConfig) -> Iterator[FieldProblem]:
    """Find launchers and flags that cannot start the ranks of a training."""
    launch, owner = site.launch, LAUNCHERS.get(site.launch.command)
    if owner is not None and not isinstance(site.scheduler, owner):
        found = f"{launch.command} belongs to {owner.title}, this site has {site.batch_scheduler.title}"
        yield problem(found, "launch", "command")
    if launch.command == "none" and site.ranks_per_node * site.train.nodes[1] > 1:
        yield problem(
            f"none starts one rank, but trainings have {site.ranks_per_node} on each of up to {site.train.nodes[1]} "
            f"nodes; expected {' or '.join([*site.batch_scheduler.launchers, 'mpiexec'])}",
            *("launch", "command"),
        )
    for index, flag in enumerate(launch.flags):
        yield from check_flag(site, flag, "launch", "flags", index)


def check_flag(site: SiteConfig, flag: str, *path: str | int) -> Iterator[FieldProblem]:
    try:
        flag.format_map(dict.fromkeys(FLAG_FIELDS, 1))
    except KeyError as error:
        field = error.args[0]
        yield problem(f"{flag!r}: {{{field}}} is not known; {suggest(field, list(FLAG_FIELDS))}", *path)
    except (ValueError, AttributeError, TypeError) as error:
        yield problem(f"{flag!r}: {error}; expected {{ranks}} or the like; a brace itself is {{{{ or }}}}", *path)
    scheduler, forbidden = site.batch_scheduler, site.batch_scheduler.forbidden
    if site.launch.command in scheduler.launchers and (name := scheduler.option_name(flag)) in forbidden:
        yield problem(f"{flag!r}: {forbidden[name]}; remove it", *path)


def check_queue_choices(site: SiteConfig) -> Iterator[FieldProblem]:
    """Find trainings and serial stages that the queues chosen for them cannot take."""
    queues, train = site.queues, site.train
    if train.queue is not None and train.queue not in queues:
        yield problem(f"no queue {train.queue!r}; {suggest(train.queue, list(queues))}", "train", "queue")
    elif 0 < (most := max((queue.nodes[1] for queue in training_queues(site).values()), default=0)) < train.nodes[0]:
        yield problem(f"found {train.nodes[0]} or more, but no queue takes more than {most}", "train", "nodes")
    if site.serial is None:
        return
    name, walltime = site.serial.queue, site.serial.walltime
    if name not in queues:
        yield problem(f"no queue {name!r}; {suggest(name, list(queues))}", "serial", "queue")
        return
    queue = queues[name]
    if queue.nodes[0] > 1:
        yield problem(f"queue {name} takes {format_node_range(queue)}, these stages need one", "serial", "queue")
    if to_seconds(walltime) > to_seconds(queue.max_walltime):
        yield problem(f"found {walltime}, queue {name} allows {queue.max_walltime}", "serial", "walltime")
