"""What came of a trial job, as lines for people: ok, bad with what to do, or not checked with why. Pure."""

from __future__ import annotations

import platform
import re
import sys
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

from workflow.config import site_files
from workflow.config.site import SiteConfig
from workflow.doctor.trial_job import Rank, Trial

State = Literal["ok", "bad", "not checked"]
CLOCK = (
    5.0  # s: machines that keep their time are within milliseconds; files are judged by their age in tens of seconds
)
SOCKET = (
    80  # characters of a temporary directory: a socket in it may have 107 in all, and libraries add names of their own
)
COMPUTE = "shared files, Python, modules, interface, GPUs, clocks and a collective over two ranks"


class Finding(NamedTuple):
    what: str
    state: State
    said: str
    fix: str = ""


class Where(NamedTuple):
    """The site as it was asked for, so that a fix can name the line that says it."""

    name: str
    settings: Sequence[str]
    site: SiteConfig

    def line(self, *path: str) -> str:
        return site_files.where(self.name, self.settings, list(path))


def ok(what: str, said: str) -> Finding:
    return Finding(what, "ok", said)


def bad(what: str, said: str, fix: str) -> Finding:
    return Finding(what, "bad", said, fix)


def unknown(what: str, said: str, fix: str = "") -> Finding:
    return Finding(what, "not checked", said, fix)


def long_path(text: str) -> str:
    return f"{text} has {len(text)} characters; a socket in it may have too long a name (107 are allowed)"


def judge(at: Where, done: Trial) -> Iterator[Finding]:
    """What came of the job. Pure: all that is known is in `done`."""
    job = f"job {done.job} in {done.queue}" if done.queue else f"{done.ranks} ranks on this machine"
    if done.fault:
        yield bad("job", done.fault, done.hint)
    elif done.seen is not None and done.seen.hopeless:
        yield bad(
            "job", f"{job} would wait for ever: {done.seen.reason}", f"{at.line('queues', done.queue)}: its limits"
        )
    elif not done.began:
        reason = f" ({done.seen.reason})" if done.seen and done.seen.reason not in ("", "None") else ""
        yield unknown(
            "compute nodes",
            f"{job} had not begun after {done.waited:.0f} s{reason} and was cancelled: {COMPUTE}",
            f"a longer --wait, or --queue with one of: {', '.join(at.site.queues)}",
        )
    else:
        yield from ended(at, done, job)


def ended(at: Where, done: Trial, job: str) -> Iterator[Finding]:
    told = done.told
    where = f" on {hosts(done)}" if hosts(done) else ""
    right = len(told) == done.ranks and all(rank.step == "done" for rank in told)
    last = done.printed[-1] if done.printed else ""
    if right:
        yield ok("job", f"{job}{where}, over after {done.waited:.0f} s")
    elif not told and not done.printed and done.exit is None:
        yield bad(
            "shared files",
            f"{job} ended{where} ({state(done)}) and left nothing in {done.folder}",
            "a run directory that compute nodes see and may write: --root DIR on a shared file system",
        )
        return
    elif not told:
        yield bad("job", f"{job}{where} started no rank: {last or state(done)}", start_fix(at, last))
        return
    else:
        came = sum(rank.step == "done" for rank in told)
        yield bad(
            "job",
            f"{job}{where}: {len(told)} of {done.ranks} ranks began, {came} came to their end",
            f"what they printed: {done.folder}/attempts/1",
        )
    yield from nodes(at, done)
    if len(told) >= done.ranks:
        yield from together(at, done)


def hosts(done: Trial) -> str:
    named = sorted({rank.host for rank in done.told}) or list(done.exit.hosts if done.exit else ())
    if not named and done.seen is not None:
        return done.seen.nodes
    return ", ".join(named[:4]) + (", ..." if len(named) > 4 else "")


def state(done: Trial) -> str:
    return done.seen.state.lower() if done.seen else "no word of its end"


def start_fix(at: Where, last: str) -> str:
    low = last.lower()
    if "no such file" in low or "not found" in low or "no module named" in low:
        python = at.site.python or sys.executable
        return f"{python} must be there on compute nodes too; or name theirs: --set python=PATH"
    if "module" in low:
        return f"{at.line('modules')}: modules"
    return f"{at.line('launch')}: launch"


def each_host(told: Sequence[Rank]) -> dict[str, list[Rank]]:
    found: dict[str, list[Rank]] = {}
    for rank in told:
        found.setdefault(rank.host, []).append(rank)
    return found


def nodes(at: Where, done: Trial) -> Iterator[Finding]:
    """What the ranks see, one line a doubt; the first host at which it is not as it should be stands for all."""
    told, site = done.told, at.site
    foreign = [rank.host for rank in told if rank.token != done.token]
    faults = [f"{rank.host}: {rank.fault}" for rank in told if rank.fault]
    if foreign or faults:
        yield bad(
            "shared files", faults[0] if faults else f"{foreign[0]} sees another {done.folder}", "--root DIR, shared"
        )
    elif site.batch:
        yield ok("shared files", "written there, seen here")
    mine = platform.machine()
    if other := [rank for rank in told if rank.arch != (site.arch or mine)]:
        yield bad(
            "nodes",
            f"{other[0].host} is {other[0].arch}, the site's file says {site.arch or mine}",
            f"{at.line('arch')}: arch",
        )
    if site.container.use:
        yield same_image(at, told)
    yield packages(told)
    if site.modules:
        yield modules(at, told)
    if site.launch.interface is not None:
        yield interface(at, told)
    yield cores(at, told)
    yield memory(at, told)
    if site.node.gpus is not None or any(rank.devices for rank in told):
        yield gpus(at, told)
    if site.batch:
        yield clocks(told, done.clock_lead)
    if long := [rank for rank in told if len(rank.temporary) > SOCKET]:
        yield bad(
            "temporary files", f"{long[0].host}: {long_path(long[0].temporary)}", "--set 'setup=[export TMPDIR=/tmp]'"
        )


def same_image(at: Where, told: Sequence[Rank]) -> Finding:
    wanted = at.site.container.digest or ""
    if early := [rank for rank in told if rank.step == "look around"]:
        return unknown("image", f"rank {early[0].rank} did not come so far")
    if other := [rank for rank in told if rank.image != wanted]:
        found = f"in image {other[0].image[:12]}" if other[0].image else "outside of any"
        return bad(
            "image",
            f"rank {other[0].rank} on {other[0].host} runs {found}, not in {wanted[:12]}",
            f"{at.line('container')}: container",
        )
    return ok("image", f"{wanted[:12]} on all nodes")


def packages(told: Sequence[Rank]) -> Finding:
    lacking = [(rank, name) for rank in told for name, version in rank.packages.items() if not version]
    failed = [rank for rank in told if rank.step == "import" and rank.error]
    if failed:
        return bad("Python", f"{failed[0].host}: {failed[0].error}", f"of {failed[0].python}: install what is missing")
    if lacking:
        return bad(
            "Python",
            f"{lacking[0][0].host}: no {lacking[0][1]} for {lacking[0][0].python}",
            "python -m pip install -e .",
        )
    versions = {tuple(rank.packages.items()) for rank in told if rank.packages}
    if len(versions) > 1:
        return bad(
            "Python", "nodes have different versions of packages", "one environment for all, on a shared file system"
        )
    listed = ", ".join(f"{name} {version}" for name, version in next(iter(versions), ()))
    return ok("Python", f"{told[0].python}: {listed}") if listed else unknown("Python", "no rank came so far")


def modules(at: Where, told: Sequence[Rank]) -> Finding:
    loaded = told[0].modules
    absent = [
        name for name in at.site.modules if not any(each == name or each.startswith(f"{name}/") for each in loaded)
    ]
    if absent and told[0].image:
        return unknown("modules", "inside of an image it cannot be seen which are loaded around it")
    if absent:
        return bad(
            "modules",
            f"{told[0].host}: {', '.join(absent)} not loaded",
            f"{at.line('modules')}: see `module spider {absent[0]}`",
        )
    return ok("modules", ", ".join(at.site.modules))


def interface(at: Where, told: Sequence[Rank]) -> Finding:
    name = at.site.launch.interface
    for rank in told:
        if name not in rank.interfaces and rank.step != "look around":
            there = (
                ", ".join(n for n, address in rank.interfaces.items() if address and n != "lo")
                or "none with an address"
            )
            return bad(
                "interface",
                f"{rank.host} has no {name}; it has {there}",
                f"{at.line('launch', 'interface')}: interface",
            )
        if not rank.interfaces.get(name):
            return bad(
                "interface",
                f"{name} of {rank.host} has no IPv4 address",
                f"{at.line('launch', 'interface')}: interface",
            )
    return ok("interface", f"{name}: {', '.join(sorted({rank.interfaces[name] for rank in told})[:4])}")


def cores(at: Where, told: Sequence[Rank]) -> Finding:
    """Threads of a rank against the cores that it was given."""
    threads, fewest = at.site.launch.threads_per_rank, min(told, key=lambda rank: rank.cores)
    if not fewest.cores:
        return unknown("cores", "no rank came so far")
    if fewest.cores < threads:
        return bad(
            "cores",
            f"rank {fewest.rank} on {fewest.host} may use {fewest.cores}, and starts {threads} threads",
            f"{at.line('launch', 'threads_per_rank')}: threads_per_rank, or how launch.flags bind",
        )
    return ok("cores", f"{fewest.cores} or more a rank, {threads} threads")


def memory(at: Where, told: Sequence[Rank]) -> Finding:
    """Of a job on a node, against what plans count on; with GPUs they count on theirs."""
    least = min(told, key=lambda rank: rank.memory)
    if not least.memory:
        return unknown("memory", "no rank came so far")
    planned = (
        0.0
        if at.site.node.gpus
        else at.site.rank_bytes * at.site.ranks_per_node
        if at.site.batch
        else at.site.rank_bytes
    )
    if least.memory < 0.85 * planned:
        return bad(
            "memory",
            f"a job has {least.memory / 1e9:,.1f} GB on {least.host}, plans count on {planned / 1e9:,.1f}",
            f"{at.line('node', 'memory_gb')}: node.memory_gb, or ask for more: scheduler.directives",
        )
    return ok("memory", f"{least.memory / 1e9:,.0f} GB a node")


def gpus(at: Where, told: Sequence[Rank]) -> Finding:
    """Kind and number on each node, and that no two ranks have the same one."""
    said, gpus_line = at.site.node.gpus, f"{at.line('node', 'gpus')}: node.gpus"
    if not any(rank.accelerator for rank in told):
        return unknown("GPUs", "no rank came so far")
    for host, ranks in each_host(told).items():
        seen = max(ranks, key=lambda rank: len(rank.devices)).devices
        count = max(len(seen), len({rank.device for rank in ranks if rank.device}))
        if said is None and not at.site.batch:
            return ok(
                "GPUs",
                f"{count} x {seen[0].name}; none in the site's file, so trainings share the first, and "
                "estimates are for cores",
            )
        if said is None:
            return bad(
                "GPUs",
                f"{host} has {count} x {seen[0].name}, the site's file has none",
                f"{at.line('node')}: node.gpus",
            )
        if count == 0:
            build = f", and its torch ({ranks[0].packages.get('torch', '?')}) may be built for none"
            return bad("GPUs", f"{host} shows none, the site's file says {said.count} x {said.model}{build}", gpus_line)
        kind = {"nvidia": "cuda", "amd": "cuda", "intel": "xpu"}[said.vendor]
        if ranks[0].accelerator != kind:
            return bad("GPUs", f"{host} has {seen[0].name}, the site's file says {said.vendor}", gpus_line)
        if count < said.count and len(ranks) >= said.count:
            return bad("GPUs", f"{host} gives its ranks {count}, the site's file says {said.count}", gpus_line)
        if not alike(said.model, seen[0].name):
            return bad("GPUs", f"{host} has {seen[0].name}, the site's file says {said.model}", gpus_line)
        if seen[0].memory < 0.85e9 * said.memory_gb:
            return bad(
                "GPUs",
                f"{seen[0].name} of {host} has {seen[0].memory / 1e9:.0f} GB, the site's file says {said.memory_gb:g}",
                gpus_line,
            )
        taken = [rank.device for rank in ranks if rank.device]
        if len(taken) > len(set(taken)) and len(ranks) <= said.count:
            return bad("GPUs", f"two ranks on {host} have the same one", f"{at.line('launch')}: flags, before_rank")
    return ok("GPUs", f"{said.count} x {seen[0].name}, {seen[0].memory / 1e9:.0f} GB")


def alike(said: str, found: str) -> bool:
    """Whether a word with a digit of what the file says, such as A100 or MI250X, is in what the GPU calls itself."""
    names = [word for word in re.findall(r"[A-Za-z]*\d+[A-Za-z]*", said) if not re.fullmatch(r"\d+GB", word, re.I)]
    return not names or any(name.lower() in found.lower().replace("graphics", "") for name in names)


def clocks(told: Sequence[Rank], lead_here: float) -> Finding:
    """Of the nodes against this machine, both by the file server's: so it does not matter when they were read."""
    far = max(told, key=lambda rank: abs(rank.clock_lead - lead_here))
    by = far.clock_lead - lead_here
    if abs(by) > CLOCK:
        return bad("clock of nodes", f"{far.host} is {by:+.0f} s from this machine", "tell whoever runs the machines")
    return ok("clock of nodes", f"within {max(0.1, abs(by)):.1f} s of this machine's")


def together(at: Where, done: Trial) -> Iterator[Finding]:
    """Did the ranks meet, and do they add up?"""
    told = done.told
    first = told[0]
    if any(rank.size != done.ranks for rank in told):
        wrong = next(rank for rank in told if rank.size != done.ranks)
        yield bad(
            "collective",
            f"{len(told)} processes were started, and each takes itself for one of {wrong.size} "
            f"(launcher: {wrong.launcher})",
            f"{at.line('launch', 'command')}: launch.command",
        )
        return
    if done.ranks < 2:
        yield unknown("collective", "a training has one rank here")
        return
    late = [rank for rank in told if rank.step not in ("done", "reduce")]
    if late or any(rank.step != "done" for rank in told):
        one = (late or [rank for rank in told if rank.step != "done"])[0]
        doing = {
            "look around": "at its start",
            "import": "at `import torch`",
            "accelerators": "as it looked at its GPUs",
        }
        step = doing.get(one.step, "as the ranks met" if one.step == "meet" else "in the sum over ranks")
        why = one.error or (done.printed[-1] if done.printed else "no word")
        yield bad(
            "collective",
            f"rank {one.rank} on {one.host} ended {step}: {why[:160]}",
            f"{at.line('launch', 'interface')}: interface, and the network's settings in env",
        )
        return
    if not all(rank.sum_is_right for rank in told):
        yield bad(
            "collective",
            f"{first.backend}: the sum over {done.ranks} ranks is wrong",
            "do not train here; tell the site",
        )
        return
    slowest = max(rank.seconds for rank in told)
    bytes = first.mebibytes * 2**20 * 2 * (done.ranks - 1) / done.ranks  # that each rank sends, in a ring
    nodes = len(each_host(told))
    yield ok(
        "collective",
        f"{first.backend}, {done.ranks} ranks on {nodes} node{'s' if nodes > 1 else ''}: "
        f"{first.mebibytes} MiB in {slowest * 1000:.1f} ms, {bytes / slowest / 1e9:.2f} GB/s each",
    )
