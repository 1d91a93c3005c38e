"""Turn the result of a trial job into findings: ok, bad (with a fix) or not checked (with why). Pure."""

from __future__ import annotations

import platform
import re
import sys
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

from gnnscale.contract.errors import UserError
from workflow.config import site_files
from workflow.config.site import Gpus, SiteConfig
from workflow.doctor.trial_job import RankReport, SeenDevice, TrialResult
from workflow.images.image_file import build_command
from workflow.run_directory.attempt import RUNTIME_ERROR, find_telling_line

FindingState = Literal["ok", "bad", "not checked"]
# Synchronized machines are within milliseconds of each other; files are judged by their age in tens of seconds.
MAX_CLOCK_SKEW_SECONDS = 5.0
# Characters of a temporary directory: the path of a socket may have 107, and libraries append names of their own.
MAX_TEMPORARY_LENGTH = 80
MIN_MEMORY_SHARE = 0.85  # of the site's figure: a part is reserved, and units differ
CHECKED_BY_JOB = "shared files, Python, modules, interface, GPUs, clocks and a collective over two ranks"

ACCELERATOR_OF_VENDOR = {"nvidia": "cuda", "amd": "cuda", "intel": "xpu"}  # as torch calls them
# Printed by the ssh with which a launcher that is not built for the scheduler reaches the other nodes.
SSH_WORDS = re.compile(
    r"Host key verification failed|\bssh: |\bssh_\w+: |Permission denied \(.*(publickey|password)|"
    r"execvp.*\bssh\b|REMOTE HOST IDENTIFICATION",
    re.I,
)
LAUNCH_WITHOUT_SSH = (
    'let PBS start the ranks. MPICH: --set \'launch.flags=[-launcher, rsh, -launcher-exec, pbs_tmrsh, -n, "{ranks}", -ppn, '
    '"{per_node}"]\'; Intel MPI: I_MPI_HYDRA_BOOTSTRAP=rsh and I_MPI_HYDRA_BOOTSTRAP_EXEC=pbs_tmrsh in env'
)
WORDS_OF_STEP = {
    "look around": "at its start",
    "import": "at `import torch`",
    "accelerators": "while listing its GPUs",
    "meet": "while the ranks connected",
}


class Finding(NamedTuple):
    """One checked subject: its state, what was seen, and what to do if it is bad."""

    what: str
    state: FindingState
    said: str
    fix: str = ""


class ChosenSite(NamedTuple):
    """A site and where its settings come from, so that a fix can name the line to change."""

    name: str
    settings: Sequence[str]
    site: SiteConfig

    def line(self, *path: str) -> str:
        """Return the file and line, or the option, that sets a field."""
        return site_files.locate(self.name, self.settings, list(path))


def ok(what: str, said: str) -> Finding:
    return Finding(what, "ok", said)


def bad(what: str, said: str, fix: str) -> Finding:
    return Finding(what, "bad", said, fix)


def bad_as(what: str, error: UserError) -> Finding:
    """Turn an error that the user can correct into a finding."""
    return Finding(what, "bad", error.message, error.hints[0] if error.hints else "")


def not_checked(what: str, said: str, fix: str = "") -> Finding:
    return Finding(what, "not checked", said, fix)


def describe_long_path(text: str) -> str:
    return f"{text} has {len(text)} characters; the path of a socket in it may be too long (107 are allowed)"


def judge(chosen: ChosenSite, trial: TrialResult) -> Iterator[Finding]:
    """Yield the findings of a trial job, whether or not it started."""
    job = f"job {trial.job} in {trial.queue}" if trial.queue else f"{trial.ranks} ranks on this machine"
    if trial.fault:
        yield bad("job", trial.fault, trial.hint)
    elif trial.status is not None and trial.status.is_hopeless:
        yield bad(
            "job",
            f"{job} would never start: {trial.status.reason}",
            f"{chosen.line('queues', trial.queue)}: its limits",
        )
    elif not trial.started:
        reason = f" ({trial.status.reason})" if trial.status and trial.status.reason not in ("", "None") else ""
        yield not_checked(
            "compute nodes",
            f"{job} had not started after {trial.waited:.0f} s{reason} and was cancelled: {CHECKED_BY_JOB}",
            f"a longer --wait, or --queue with one of: {', '.join(chosen.site.queues)}",
        )
    else:
        yield from judge_ended(chosen, trial, job)


def judge_ended(chosen: ChosenSite, trial: TrialResult, job: str) -> Iterator[Finding]:
    """Yield the findings of a job that ran."""
    reports = trial.reports
    where = f" on {format_hosts(trial)}" if format_hosts(trial) else ""
    all_finished = len(reports) == trial.ranks and all(rank.step == "done" for rank in reports)
    last_line = find_telling_line(trial.output_tail)
    ssh_line = next((line for line in trial.output_tail if SSH_WORDS.search(line)), "")
    if reports and not trial.was_listed:
        yield bad(
            "scheduler",
            f"{job} ran, and the scheduler never listed it",
            "a run could not follow its jobs: ask the scheduler for one by hand, and its administrators why it is hidden",
        )
    if all_finished:
        yield ok("job", f"{job}{where}, finished after {trial.waited:.0f} s")
    elif not reports and not trial.output_tail and trial.exit is None:
        yield bad(
            "shared files",
            f"{job} ended{where} ({final_state(trial)}) and wrote nothing in {trial.folder}",
            "choose a run directory that compute nodes can write: --root DIR on a shared file system",
        )
        return
    elif ssh_line:
        yield bad(
            "job", f"{job}{where}: the launcher uses ssh, which fails: {ssh_line[:160]}", suggest_launcher(chosen)
        )
        return
    elif not reports:
        yield bad(
            "job",
            f"{job}{where} started no rank: {last_line or final_state(trial)}",
            suggest_start_fix(chosen, last_line),
        )
        return
    else:
        finished = sum(rank.step == "done" for rank in reports)
        yield bad(
            "job",
            f"{job}{where}: {len(reports)} of {trial.ranks} ranks started, {finished} finished",
            f"read what they printed: {trial.folder}/attempts/1",
        )
    yield from judge_nodes(chosen, trial)
    if len(reports) >= trial.ranks:
        yield from judge_collective(chosen, trial)


def format_hosts(trial: TrialResult) -> str:
    named = sorted({rank.host for rank in trial.reports}) or list(trial.exit.hosts if trial.exit else ())
    if not named and trial.status is not None:
        return trial.status.nodes
    return ", ".join(named[:4]) + (", ..." if len(named) > 4 else "")


def final_state(trial: TrialResult) -> str:
    return trial.status.state.lower() if trial.status else "no end recorded"


def suggest_start_fix(chosen: ChosenSite, last_line: str) -> str:
    lowered = last_line.lower()
    if chosen.site.container.use and RUNTIME_ERROR.match(last_line):
        return f"{chosen.line('container')}: container; or its flags: {' '.join(chosen.site.container.options(True))}"
    if "no such file" in lowered or "not found" in lowered or "no module named" in lowered:
        python = chosen.site.python or sys.executable
        return f"{python} must exist on compute nodes too; or name theirs: --set python=PATH"
    if "module" in lowered:
        return f"{chosen.line('modules')}: modules"
    return f"{chosen.line('launch')}: launch"


def suggest_launcher(chosen: ChosenSite) -> str:
    """Return how ranks are started on other nodes without ssh."""
    line = chosen.line("launch", "command")
    return f"{line}: {LAUNCH_WITHOUT_SSH}" if chosen.site.launch.command == "mpiexec" else f"{line}: launch.command"


def group_by_host(reports: Sequence[RankReport]) -> dict[str, list[RankReport]]:
    by_host: dict[str, list[RankReport]] = {}
    for rank in reports:
        by_host.setdefault(rank.host, []).append(rank)
    return by_host


def judge_nodes(chosen: ChosenSite, trial: TrialResult) -> Iterator[Finding]:
    """Yield a finding for each property of the nodes; the first host with a fault stands for all."""
    reports, site = trial.reports, chosen.site
    elsewhere = [rank.host for rank in reports if rank.token != trial.token]
    faults = [f"{rank.host}: {rank.fault}" for rank in reports if rank.fault]
    if elsewhere or faults:
        yield bad(
            "shared files",
            faults[0] if faults else f"{elsewhere[0]} sees another directory at {trial.folder}",
            "--root DIR, shared",
        )
    elif site.has_scheduler:
        yield ok("shared files", "written on the nodes, read here")
    expected_arch = site.arch or platform.machine()
    if other := [rank for rank in reports if rank.arch != expected_arch]:
        yield bad(
            "nodes",
            f"{other[0].host} is {other[0].arch}, the site's file has {expected_arch}",
            f"{chosen.line('arch')}: arch",
        )
    if site.container.use:
        yield judge_image(chosen, reports)
    yield judge_packages(reports)
    if site.node.gpus is None and not trains_in_this_environment(site):
        yield judge_native_library(site, reports)
    if site.modules:
        yield judge_modules(chosen, reports)
    if site.launch.interface is not None:
        yield judge_interface(chosen, reports)
    yield judge_cores(chosen, reports)
    yield judge_memory(chosen, reports)
    if site.node.gpus is not None or any(rank.devices for rank in reports):
        yield judge_gpus(chosen, reports)
    if site.has_scheduler:
        yield judge_clocks(reports, trial.clock_lead)
    if long := [rank for rank in reports if len(rank.temporary) > MAX_TEMPORARY_LENGTH]:
        yield bad(
            "temporary files",
            f"{long[0].host}: {describe_long_path(long[0].temporary)}",
            "--set 'setup=[export TMPDIR=/tmp]'",
        )


def judge_image(chosen: ChosenSite, reports: Sequence[RankReport]) -> Finding:
    expected = chosen.site.container.digest or ""
    if early := [rank for rank in reports if rank.step == "look around"]:
        return not_checked("image", f"rank {early[0].rank} ended before this was checked")
    if other := [rank for rank in reports if rank.image != expected]:
        found = f"in image {other[0].image[:12]}" if other[0].image else "outside any image"
        return bad(
            "image",
            f"rank {other[0].rank} on {other[0].host} runs {found}, not in {expected[:12]}",
            f"{chosen.line('container')}: container",
        )
    return ok("image", f"{expected[:12]} on all nodes")


def judge_packages(reports: Sequence[RankReport]) -> Finding:
    lacking = [(rank, name) for rank in reports for name, version in rank.packages.items() if not version]
    failed = [rank for rank in reports if rank.step == "import" and rank.error]
    if failed:
        return bad("Python", f"{failed[0].host}: {failed[0].error}", f"install what is missing for {failed[0].python}")
    if lacking:
        return bad(
            "Python",
            f"{lacking[0][0].host}: {lacking[0][0].python} has no {lacking[0][1]}",
            "python -m pip install -e .",
        )
    versions = {tuple(rank.packages.items()) for rank in reports if rank.packages}
    if len(versions) > 1:
        return bad(
            "Python",
            "nodes have different versions of packages",
            "use one environment for all nodes, on a shared file system",
        )
    listed = ", ".join(f"{name} {version}" for name, version in next(iter(versions), ()))
    return (
        ok("Python", f"{reports[0].python}: {listed}")
        if listed
        else not_checked("Python", "every rank ended before this was checked")
    )


def trains_in_this_environment(site: SiteConfig) -> bool:
    """Return whether trainings use the CPUs of this machine and the interpreter that runs this program."""
    has_own_python = site.python is not None and site.python != sys.executable
    return site.node.gpus is None and not (site.has_scheduler or site.container.use or has_own_python)


def judge_native_library(site: SiteConfig, reports: Sequence[RankReport]) -> Finding:
    """Name the instruction set that the first rank trains with, or the reason of a rank that has no native library."""
    rank = next((rank for rank in reports if rank.native_hint), reports[0])
    hint = f"build the image with this code: {build_command()}" if site.container.use else rank.native_hint
    where = f"{rank.host}: " if site.has_scheduler else ""
    return find_native_library(rank.native, f"{where}{rank.native_reason}", hint if rank.native_hint else "")


def find_native_library(instruction_set: str, reason: str, hint: str) -> Finding:
    """Return the finding for a machine that has the native library, has switched it off, or misses it."""
    if instruction_set:
        return ok("native library", f"for {instruction_set}")
    if not hint:
        return ok("native library", f"{reason}; PyTorch trains instead")
    return bad("native library", f"{reason}; PyTorch trains instead, several times slower", hint)


def judge_modules(chosen: ChosenSite, reports: Sequence[RankReport]) -> Finding:
    loaded = reports[0].modules
    not_loaded = [
        name for name in chosen.site.modules if not any(each == name or each.startswith(f"{name}/") for each in loaded)
    ]
    if not_loaded and reports[0].image:
        return not_checked("modules", "modules loaded outside an image are not visible in it")
    if not_loaded:
        return bad(
            "modules",
            f"{reports[0].host}: {', '.join(not_loaded)} not loaded",
            f"{chosen.line('modules')}: see `module spider {not_loaded[0]}`",
        )
    return ok("modules", ", ".join(chosen.site.modules))


def judge_interface(chosen: ChosenSite, reports: Sequence[RankReport]) -> Finding:
    name = chosen.site.launch.interface or ""
    for rank in reports:
        if name not in rank.interfaces and rank.step != "look around":
            present = (
                ", ".join(n for n, address in rank.interfaces.items() if address and n != "lo")
                or "none with an address"
            )
            return bad(
                "interface",
                f"{rank.host} has no {name}; it has {present}",
                f"{chosen.line('launch', 'interface')}: interface",
            )
        if not rank.interfaces.get(name):
            return bad(
                "interface",
                f"{name} of {rank.host} has no IPv4 address",
                f"{chosen.line('launch', 'interface')}: interface",
            )
    return ok("interface", f"{name}: {', '.join(sorted({rank.interfaces[name] for rank in reports})[:4])}")


def judge_cores(chosen: ChosenSite, reports: Sequence[RankReport]) -> Finding:
    """Compare the threads of a rank with the cores that it may use."""
    threads, fewest = chosen.site.launch.threads_per_rank, min(reports, key=lambda rank: rank.cores)
    if not fewest.cores:
        return not_checked("cores", "every rank ended before this was checked")
    if fewest.cores < threads:
        return bad(
            "cores",
            f"rank {fewest.rank} on {fewest.host} starts {threads} threads on {fewest.cores} core(s)",
            f"{chosen.line('launch', 'threads_per_rank')}: threads_per_rank, or how launch.flags bind",
        )
    return ok("cores", f"{fewest.cores} or more per rank, {threads} threads")


def judge_memory(chosen: ChosenSite, reports: Sequence[RankReport]) -> Finding:
    """Compare the memory of a job on a node with the memory that plans assume; with GPUs they assume none."""
    least = min(reports, key=lambda rank: rank.memory)
    if not least.memory:
        return not_checked("memory", "every rank ended before this was checked")
    planned = (
        0.0
        if chosen.site.node.gpus
        else chosen.site.rank_bytes * chosen.site.ranks_per_node
        if chosen.site.has_scheduler
        else chosen.site.rank_bytes
    )
    if least.memory < MIN_MEMORY_SHARE * planned:
        return bad(
            "memory",
            f"a job has {least.memory / 1e9:,.1f} GB on {least.host}, plans assume {planned / 1e9:,.1f}",
            f"{chosen.line('node', 'memory_gb')}: node.memory_gb, or request more: scheduler.directives",
        )
    return ok("memory", f"{least.memory / 1e9:,.0f} GB per node")


def judge_gpus(chosen: ChosenSite, reports: Sequence[RankReport]) -> Finding:
    """Check the kind and number of GPUs on each node, and that no two ranks share one."""
    stated = chosen.site.node.gpus
    if not any(rank.accelerator for rank in reports):
        return not_checked("GPUs", "every rank ended before this was checked")
    first = next(iter(group_by_host(reports).values()))
    if stated is None:
        return judge_unstated_gpus(chosen, first)
    for ranks in group_by_host(reports).values():
        if fault := gpu_fault(chosen, stated, ranks):
            return fault
    seen = devices_of(first)
    return ok("GPUs", f"{stated.count} x {seen[0].name}, {seen[0].memory / 1e9:.0f} GB")


def devices_of(ranks: Sequence[RankReport]) -> tuple[SeenDevice, ...]:
    """Return the GPUs of a node, as the rank that sees most of them lists them."""
    return max(ranks, key=lambda rank: len(rank.devices)).devices


def count_gpus(ranks: Sequence[RankReport]) -> int:
    """Count the GPUs of a node, whether each rank sees all of them or its own."""
    return max(len(devices_of(ranks)), len({rank.device for rank in ranks if rank.device}))


def judge_unstated_gpus(chosen: ChosenSite, ranks: Sequence[RankReport]) -> Finding:
    """Return the finding for a node with GPUs of which the site's file has none."""
    found = f"{count_gpus(ranks)} x {devices_of(ranks)[0].name}"
    if chosen.site.has_scheduler:
        return bad(
            "GPUs", f"{ranks[0].host} has {found}, the site's file has none", f"{chosen.line('node')}: node.gpus"
        )
    return ok("GPUs", f"{found}; none in the site's file, so trainings share the first, and estimates are for cores")


def gpu_fault(chosen: ChosenSite, stated: Gpus, ranks: Sequence[RankReport]) -> Finding | None:
    """Return what is wrong with the GPUs of one node, or None."""
    host, seen, count = ranks[0].host, devices_of(ranks), count_gpus(ranks)
    node_line, launch_line = f"{chosen.line('node', 'gpus')}: node.gpus", f"{chosen.line('launch')}: flags, before_rank"
    if count == 0:
        build = f", and its torch ({ranks[0].packages.get('torch') or '?'}) may be built for none"
        return bad("GPUs", f"{host} shows none, the site's file has {stated.count} x {stated.model}{build}", node_line)
    if ranks[0].accelerator != ACCELERATOR_OF_VENDOR[stated.vendor]:
        return bad("GPUs", f"{host} has {seen[0].name}, the site's file has {stated.vendor}", node_line)
    if count < stated.count and len(ranks) >= stated.count:
        return bad("GPUs", f"{host} gives its ranks {count}, the site's file has {stated.count}", node_line)
    if not is_same_gpu(stated.model, seen[0].name):
        return bad("GPUs", f"{host} has {seen[0].name}, the site's file has {stated.model}", node_line)
    if seen[0].memory < MIN_MEMORY_SHARE * 1e9 * stated.memory_gb:
        size = f"{seen[0].memory / 1e9:.0f} GB, the site's file has {stated.memory_gb:g}"
        return bad("GPUs", f"{seen[0].name} of {host} has {size}", node_line)
    taken = [rank.device for rank in ranks if rank.device]
    if len(taken) > len(set(taken)) and len(ranks) <= stated.count:
        return bad("GPUs", f"two ranks on {host} have the same one", launch_line)
    return None


def is_same_gpu(stated: str, found: str) -> bool:
    """Return whether a word with a digit of the file's name, such as A100 or MI250X, is in the GPU's own name."""
    names = [word for word in re.findall(r"[A-Za-z]*\d+[A-Za-z]*", stated) if not re.fullmatch(r"\d+GB", word, re.I)]
    return not names or any(name.lower() in found.lower().replace("graphics", "") for name in names)


def judge_clocks(reports: Sequence[RankReport], lead_here: float) -> Finding:
    """Compare the clocks of nodes with this machine's, both relative to the file server's, whenever they were read."""
    farthest = max(reports, key=lambda rank: abs(rank.clock_lead - lead_here))
    skew = farthest.clock_lead - lead_here
    if abs(skew) > MAX_CLOCK_SKEW_SECONDS:
        return bad(
            "clock of nodes", f"{farthest.host} is {skew:+.0f} s from this machine", "report it to the administrators"
        )
    return ok("clock of nodes", f"within {max(0.1, abs(skew)):.1f} s of this machine's")


def judge_collective(chosen: ChosenSite, trial: TrialResult) -> Iterator[Finding]:
    """Check that the ranks found each other and that their sum is right."""
    reports = trial.reports
    if alone := next((rank for rank in reports if rank.size != trial.ranks), None):
        yield bad(
            "collective",
            f"{len(reports)} processes were started, and each believes it is one of {alone.size} "
            f"(launcher: {alone.launcher})",
            f"{chosen.line('launch', 'command')}: launch.command",
        )
    elif trial.ranks < 2:
        yield not_checked("collective", "trainings have one rank here")
    elif unfinished := [rank for rank in reports if rank.step != "done"]:
        yield judge_unfinished(chosen, trial, unfinished)
    elif not all(rank.sum_is_right for rank in reports):
        yield bad(
            "collective",
            f"{reports[0].backend}: the sum over {trial.ranks} ranks is wrong",
            "do not train here; report it to the administrators",
        )
    else:
        yield ok("collective", describe_speed(trial))


def judge_unfinished(chosen: ChosenSite, trial: TrialResult, unfinished: Sequence[RankReport]) -> Finding:
    """Return the finding for ranks that ended early; one that did not reach the sum explains the others."""
    rank = next((rank for rank in unfinished if rank.step != "reduce"), unfinished[0])
    why = rank.error or find_telling_line(trial.output_tail) or "no output"
    return bad(
        "collective",
        f"rank {rank.rank} on {rank.host} ended {WORDS_OF_STEP.get(rank.step, 'in the sum over ranks')}: {why[:160]}",
        f"{chosen.line('launch', 'interface')}: interface, and the network's settings in env",
    )


def describe_speed(trial: TrialResult) -> str:
    """Return how long the sum over ranks took."""
    first, nodes = trial.reports[0], len(group_by_host(trial.reports))
    slowest = max(rank.seconds or 0.0 for rank in trial.reports)
    sent_bytes = first.mebibytes * 2**20 * 2 * (trial.ranks - 1) / trial.ranks  # by each rank of a ring
    return (
        f"{first.backend}, {trial.ranks} ranks on {nodes} node{'s' if nodes > 1 else ''}: "
        f"{first.mebibytes} MiB in {slowest * 1000:.1f} ms, {sent_bytes / slowest / 1e9:.2f} GB/s each"
    )
