"""What a site's file must not say: checks that take more than one field, each told with the path that is wrong. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator

from workflow.config.capacity import for_trainings, span
from workflow.config.site import PBS, BatchScheduler, SiteConfig, Slurm
from workflow.config.walltime import seconds
from workflow.config.yaml_file import nearest

Problems = Iterator[tuple[list, str]]

# What the planner and the driver decide for each job: a site's file that said it again would be obeyed or not by luck.
DECIDED = {
    "slurm": {
        "--account": "account:",
        "--partition": "queues.NAME.partition",
        "--qos": "queues.NAME.qos",
        "--time": "the planner's estimate and queues.NAME.max_walltime",
        "--nodes": "train.nodes",
        "--ntasks": "launch.ranks_per_node",
        "--ntasks-per-node": "launch.ranks_per_node",
        "--job-name": "the driver",
        "--output": "the driver",
        "--error": "the driver",
        "--open-mode": "the driver",
        "--chdir": "the driver",
        "--signal": "scheduler.signal_seconds",
        "--exclusive": "scheduler.exclusive",
        "--requeue": "the driver",
        "--no-requeue": "the driver",
        "--array": "the driver",
        "--dependency": "the driver",
        "--wait": "the driver",
        "--cpus-per-task": "launch.threads_per_rank",
        "--exclude": "the driver, when a node fails",
        "--comment": "the driver",
        "--wrap": "the driver",
        "--parsable": "the driver",
        "--quiet": "the driver",
        "--test-only": "the driver",
        "--hold": "the driver",
    },
    "pbs": {
        "-A": "account:",
        "-q": "queues.NAME.partition",
        "-N": "the driver",
        "-o": "the driver",
        "-e": "the driver",
        "-j": "the driver",
        "-J": "the driver",
        "-r": "the driver",
        "-W": "the driver",
        "-z": "the driver",
        "-I": "the driver",
        "-h": "the driver",
        "-l walltime": "the planner's estimate and queues.NAME.max_walltime",
        "-l select": "scheduler.select and train.nodes",
        "-l nodes": "train.nodes",
        "-l ncpus": "node.cores",
    },
}
SHORT = {
    "-A": "--account",
    "-p": "--partition",
    "-q": "--qos",
    "-t": "--time",
    "-N": "--nodes",
    "-n": "--ntasks",
    "-J": "--job-name",
    "-o": "--output",
    "-e": "--error",
    "-D": "--chdir",
    "-a": "--array",
    "-d": "--dependency",
    "-W": "--wait",
    "-x": "--exclude",
    "-w": "--nodelist",
    "-C": "--constraint",
    "-c": "--cpus-per-task",
    "-G": "--gpus",
    "-Q": "--quiet",
    "-H": "--hold",
    "-L": "--licenses",
    "-M": "--clusters",
    "-F": "--nodefile",
}
FILLED = ("ranks", "nodes", "per_node", "threads")


def option(text: str, kind: str) -> str:
    """The name of an option as the lists above have it, however it was written."""
    word = re.split(r"[=\s]", text.strip(), maxsplit=1)[0]
    if kind == "pbs":
        name = re.match(r"-l\s*(\w+)", text.strip())
        return f"-l {name[1]}" if name else word[:2]
    return word if word.startswith("--") else SHORT.get(word[:2], word[:2])


def problems(site: SiteConfig) -> list[tuple[list, str]]:
    if not isinstance(site.scheduler, BatchScheduler):
        return [*machine(site)]
    return [*accounts(site), *queues(site), *directives(site), *launches(site), *jobs(site)]


def accounts(site: SiteConfig) -> Problems:
    rule = site.account_rule
    if site.account is not None and rule.pattern and not re.fullmatch(rule.pattern, site.account):
        such = f", such as {rule.example}" if rule.example else ""
        yield ["account"], f"account: found {site.account!r}, which is no account of this site ({rule.pattern}{such})"


def queues(site: SiteConfig) -> Problems:
    if not site.queues:
        yield ["queues"], "queues: a site with a scheduler has at least one"
    elif not any(queue.production for queue in site.queues.values()) and site.train.queue is None:
        yield ["queues"], "queues: none is for production; set production: true, or train.queue"
    used = {site.train.queue, site.serial and site.serial.queue}
    for name, queue in site.queues.items():
        if queue.qos is not None and isinstance(site.scheduler, PBS):
            yield ["queues", name, "qos"], f"queues.{name}.qos: PBS has no QOS; its queue goes into `partition`"
        signal, start = site.scheduler.signal_seconds, (queue.node or site.node).start_seconds
        if (queue.production or name in used) and queue.longest <= signal + start:
            yield (
                ["queues", name, "max_walltime"],
                f"queues.{name}.max_walltime: {queue.max_walltime} is not longer than "
                f"scheduler.signal_seconds ({signal}) and node.start_seconds ({start:g}): jobs would stop as they "
                "start",
            )


def directives(site: SiteConfig) -> Problems:
    """Options that something else decides, or that would not be an option at all."""
    written = [(["scheduler", "directives", i], d) for i, d in enumerate(site.scheduler.directives)]
    written += [(["queues", n, "directives", i], d) for n, q in site.queues.items() for i, d in enumerate(q.directives)]
    kind = site.scheduler.kind
    for path, text in written:
        at, name = ".".join(map(str, path)), option(text, kind)
        if not text.startswith("-") or "\n" in text:
            yield path, f"{at}: found {text!r}, expected an option such as -x or --name=value, without #SBATCH or #PBS"
        elif name in DECIDED[kind]:
            yield path, f"{at}: {text!r} is not for here: {name} is decided by {DECIDED[kind][name]}; remove it"
        elif name in site.scheduler.forbidden:
            yield path, f"{at}: {text!r}: {site.scheduler.forbidden[name]}; remove it"


def machine(site: SiteConfig) -> Problems:
    """One without a scheduler."""
    launch, gpus = site.launch, site.node.gpus
    if site.queues:
        yield ["queues"], "queues: this site has no scheduler"
    if launch.command != "none":
        yield (
            ["launch", "command"],
            "launch.command: without a scheduler the driver starts `launch.ranks` itself; remove it",
        )
    if gpus and launch.ranks > gpus.count:
        yield (
            ["launch", "ranks"],
            f"launch.ranks: {launch.ranks} ranks need a GPU each, node.gpus.count is {gpus.count}",
        )


def launches(site: SiteConfig) -> Problems:
    launch, slurm = site.launch, isinstance(site.scheduler, Slurm)
    if launch.command in ("srun", "ibrun") and not slurm:
        yield (
            ["launch", "command"],
            f"launch.command: {launch.command} is of Slurm, this site has {site.scheduler.kind}",
        )
    if launch.command == "none" and site.ranks_per_node * site.train.nodes[1] > 1:
        yield (
            ["launch", "command"],
            f"launch.command: none starts one rank, {site.ranks_per_node} on each of up to "
            f"{site.train.nodes[1]} nodes are asked for; srun or mpiexec",
        )
    for index, flag in enumerate(launch.flags):
        path, at = ["launch", "flags", index], f"launch.flags.{index}"
        try:
            flag.format_map(dict.fromkeys(FILLED, 1))
        except KeyError as error:
            field = error.args[0]
            yield path, f"{at}: {flag!r}: {{{field}}} is not known; {nearest(field, list(FILLED))}"
        except (ValueError, AttributeError, TypeError) as error:
            yield (
                path,
                f"{at}: {flag!r}: {error}; expected text with {{ranks}} or the like, a brace itself is {{{{ or }}}}",
            )
        if launch.command == "srun" and option(flag, "slurm") in site.scheduler.forbidden:
            yield path, f"{at}: {flag!r}: {site.scheduler.forbidden[option(flag, 'slurm')]}; remove it"


def jobs(site: SiteConfig) -> Problems:
    """Trainings and serial stages against the queues that are to take them."""
    known, train, serial = site.queues, site.train, site.serial
    if train.queue is not None and train.queue not in known:
        yield ["train", "queue"], f"train.queue: no queue {train.queue!r}; {nearest(train.queue, list(known))}"
    elif 0 < (most := max((queue.nodes[1] for queue in for_trainings(site).values()), default=0)) < train.nodes[0]:
        yield ["train", "nodes"], f"train.nodes: found {train.nodes[0]} or more, but no queue takes more than {most}"
    if serial is None:
        return
    if serial.queue not in known:
        yield ["serial", "queue"], f"serial.queue: no queue {serial.queue!r}; {nearest(serial.queue, list(known))}"
        return
    queue = known[serial.queue]
    if queue.nodes[0] > 1:
        yield ["serial", "queue"], f"serial.queue: queue {serial.queue} takes {span(queue)}, these stages need one"
    if seconds(serial.walltime) > seconds(queue.max_walltime):
        yield (
            ["serial", "walltime"],
            f"serial.walltime: found {serial.walltime}, queue {serial.queue} allows {queue.max_walltime}",
        )
