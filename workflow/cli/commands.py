"""TODO: say what a reader finds here."""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from gnnscale.contract.errors import Problem
from gnnscale.contract.places import ROOT
from workflow.advise import largest_study, text
from workflow.cli import findings_output, live_table, output, site_output
from workflow.cli.invocation import Asked, run_root, settings_of
from workflow.config import site_files, study
from workflow.doctor import diagnosis, examine, new_site
from workflow.images import find
from workflow.jobs import cancel
from workflow.jobs import requests as queueing
from workflow.plan import done
from workflow.plan import stage as plan_stage
from workflow.run_directory import journal, lease, links, status

OK, SOME_FAILED, USAGE, STOPPED, CTRL_C = 0, 1, 2, 75, 130


def told(error: BaseException) -> int:
    """In a line; the traceback only where the mistake is ours. The exit code."""
    if isinstance(error, KeyboardInterrupt):
        return CTRL_C
    if isinstance(error, BrokenPipeError):  # the reader of a pipe, such as `head`, has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return STOPPED
    if isinstance(error, Problem):
        print(f"gnnscale: {error}", file=sys.stderr)
        return USAGE
    if isinstance(error, OSError):
        print(f"gnnscale: {error.filename or ''}: {(error.strerror or str(error)).lower()}", file=sys.stderr)
        return USAGE
    traceback.print_exception(error)
    return SOME_FAILED


def named_root(arguments: argparse.Namespace) -> Path:
    return run_root(arguments, study.called(getattr(arguments, "study", "default")))


def do_plan(arguments: argparse.Namespace) -> int:
    asked = Asked(arguments)
    planned = done.plan(asked.stages, asked.root, arguments.deep)
    if arguments.json:
        print(json.dumps(output.plan_json(planned, asked.site), indent=1))
    else:
        output.plan_text(asked.study_name, asked.study, planned, asked.site, asked.root)
    return OK


def do_run(arguments: argparse.Namespace) -> int:
    asked = Asked(arguments)
    asked.root.mkdir(parents=True, exist_ok=True)
    holder = lease.Lease(asked.root)
    holder.take()
    try:
        return drive(asked, holder)
    finally:
        holder.release()


def drive(asked: Asked, holder: lease.Lease) -> int:
    """Do what is not done, show it, and say at the end what came of it."""
    planned = done.plan(asked.stages, asked.root)
    left = [p for p in planned.values() if p.state != "done" and p.stage.id in asked.wanted]
    print(
        f"{asked.study.title}: {len(asked.wanted)} stages, {len(asked.wanted) - len(left)} done, {len(left)} to do"
        + (f", about {output.duration(done.wall_seconds(planned, asked.site))}" if left else "")
    )
    print(f"results: {asked.root}", flush=True)
    output.warn(planned, asked.site, asked.root)
    status.write_plan(asked.root, asked.study_name, asked.site_name, asked.stages)
    output.write_asked(asked.root, asked.study, asked.site)
    if not left:
        links.links(asked.root, asked.stages)
        print(f"nothing to do; report: {asked.root / 'report.html'}" if not asked.until else "nothing to do")
        return OK
    refuse(left, asked.site_name)
    site_files.check_host(asked.site_name, asked.site, asked.settings)
    site_files.check_arch(asked.site_name, asked.site, asked.settings)
    site_files.check_account(asked.site_name, asked.site)
    if asked.site.container.use:
        find.check(asked.site)
    if asked.site.batch and not (asked.root / "events.jsonl").exists():
        print(f"new here; whether all is as it should be: {asked.command('doctor')}", flush=True)
    stale = [job for job in journal.unfinished(asked.root) if job.stale({s.folder for s in asked.stages.values()})]
    if stale:
        print(
            f"{len(stale)} job(s) of stages that the study has no more may be in the queue; to end them: "
            f"{asked.command('cancel')} --stale"
        )
    requests = queueing.schedule([p.stage for p in left], asked.site)
    queueing.check_budget(requests, asked.site, asked.max_node_hours)
    from workflow.execute.dag import Dag  # Parsl takes half a second to import

    stop, began = Stop(), time.monotonic()
    dag = Dag(asked.wanted, asked.site, asked.site_name, asked.root, requests)
    try:
        watch(dag, asked, holder, stop)
        code = OK
    except BaseException as error:
        dag.stop()
        code = told(error)
    dag.close()
    if code := stop.code or code:
        with contextlib.suppress(BrokenPipeError):  # `| tee` has had the same Ctrl-C
            output.stopped(dag, asked)
        holder.release()
        os._exit(code)  # threads that wait for Parsl must not keep us
    links.links(asked.root, asked.stages)
    output.summary(dag, asked, time.monotonic() - began)
    return SOME_FAILED if dag.failures else OK


def refuse(left: list[plan_stage.Planned], site: str) -> None:
    """Before anything is started, what cannot be done."""
    refused = [p for p in left if p.state == "refused"]
    if refused:
        raise Problem(
            f"{len(refused)} training(s) do not fit into the memory of a rank of site {site}; nothing was started",
            *(f"  {p.stage.id} {p.reason}" for p in refused[:5]),
            *(["  ..."] if len(refused) > 5 else []),
        )


def watch(dag: Any, asked: Asked, holder: lease.Lease, stop: Stop) -> None:
    """Until every stage has come to its end, or somebody wants it to stop."""
    with live_table.Screen(asked.root, status.read_plan(asked.root)) as seen:
        dag.submit()
        while not dag.complete and not stop.asked:
            seen.update(dag.states, dag.banner)
            holder.renew()
            time.sleep(0.1)
        if stop.asked:
            dag.stop()
        seen.update(dag.states)


class Stop:
    """Ctrl-C or SIGTERM, noted; the loop looks at it."""

    def __init__(self):
        self.asked, self.code = False, OK
        signal.signal(signal.SIGINT, lambda *_: self.note(CTRL_C))
        signal.signal(signal.SIGTERM, lambda *_: self.note(STOPPED))

    def note(self, code: int) -> None:
        self.asked, self.code = True, code


def do_status(arguments: argparse.Namespace) -> int:
    root = named_root(arguments)
    found = status.read_plan(root)
    while True:
        rows, driver = status.rows(root, found), lease.alive(root)
        if arguments.json:
            print(json.dumps(output.status_json(rows, driver), indent=1))
        else:
            output.status_text(root, found, rows, driver, clear=arguments.watch and live_table.live(sys.stdout))
        if not arguments.watch or driver is None:
            return SOME_FAILED if any(row.state == "failed" for row in rows) else OK
        time.sleep(1.0)


def do_logs(arguments: argparse.Namespace) -> int:
    root = named_root(arguments)
    stage = output.pick(arguments.id, {s.id: s for s in status.read_plan(root).stages})
    output.logs(root / stage.folder, stage.id)
    return OK


def do_cancel(arguments: argparse.Namespace) -> int:
    root = named_root(arguments)
    found = status.read_plan(root)
    name = getattr(arguments, "site", found.site)
    site = site_files.load(name, getattr(arguments, "set", ()))
    if not site.batch:
        raise Problem(f"site {name} has no batch jobs", "a driver is stopped with Ctrl-C, and its stages with it")
    known = {stage.id: stage for stage in found.stages}
    named, folders = {output.pick(id, known).id for id in arguments.id}, {stage.folder for stage in found.stages}

    def wanted(job: journal.Known) -> bool:
        if arguments.stale:
            return job.stale(folders)
        return not named or bool(named & (job.stages.keys() - job.ended))

    said = cancel.cancel(root, site, name, wanted)
    print("\n".join(said) if said else "no job of this study is in the queue")
    return OK


def do_explain(arguments: argparse.Namespace) -> int:
    asked = Asked(arguments)
    stage = output.pick(arguments.id, asked.stages)
    output.explain(done.plan(asked.stages, asked.root), stage, asked.stages, asked.root)
    return OK


def do_report(arguments: argparse.Namespace) -> int:
    page = named_root(arguments) / "report.html"
    if not page.exists():
        raise Problem(f"{page}: not made yet", "`run` makes it, `status` shows how far it is")
    print(page)
    return OK


def do_advise(arguments: argparse.Namespace) -> int:
    named = Path(arguments.of)
    root = (named if named.is_dir() else ROOT / "runs" / arguments.of).resolve()
    name = getattr(arguments, "site", "local")
    site = site_files.load(name, getattr(arguments, "set", []))
    found = largest_study.advice(root, site, name, arguments.gpu_hours, arguments.target, arguments.structures)
    print(json.dumps(found, indent=1) if arguments.json else text.text(found, root, site, name))
    return OK


def its_study(arguments: argparse.Namespace) -> diagnosis.Finding:
    try:
        asked = Asked(arguments)
        return examine.of_study(done.plan(asked.stages, asked.root), asked.site)
    except Problem as problem:
        said, *fix = str(problem).splitlines()
        return diagnosis.bad("study", said, fix[0] if fix else "")


def do_doctor(arguments: argparse.Namespace) -> int:
    name, settings = getattr(arguments, "site", "local"), settings_of(arguments)
    site, found = site_files.load(name, settings), []
    say = findings_output.say_to(sys.stderr)
    if not arguments.json:
        print(f"{name}: {site.title}")
    first = [its_study(arguments)] if hasattr(arguments, "study") else []
    asked = examine.examine(
        diagnosis.Where(name, settings, site),
        named_root(arguments),
        not arguments.no_job,
        arguments.queue,
        60 * arguments.wait,
        say,
    )
    try:
        for each in itertools.chain(first, asked):
            say("")
            found.append(each)
            if not arguments.json:
                print(
                    findings_output.text(each, live_table.coloured(sys.stdout), findings_output.width(site)), flush=True
                )
    except KeyboardInterrupt:
        say("")
        print("stopped; its job was cancelled, if it had one", file=sys.stderr)
        return CTRL_C
    print(
        json.dumps(findings_output.as_json(name, found), indent=1) if arguments.json else findings_output.summary(found)
    )
    return SOME_FAILED if any(each.state == "bad" for each in found) else OK


def do_clean(arguments: argparse.Namespace) -> int:
    asked = Asked(arguments)
    driver = lease.alive(asked.root)
    if driver is not None:
        raise Problem(
            f"{asked.root}: a driver is at work here (pid {driver['pid']} on {driver['host']})", "stop it first"
        )
    at_work = [job for job in journal.unfinished(asked.root) if not status.all_withdrawn(asked.root, job)]
    if at_work and arguments.yes:
        raise Problem(
            f"{asked.root}: {len(at_work)} job(s) may still be at work here "
            f"({', '.join(job.id or job.name for job in at_work[:8])})",
            f"end them first: {asked.command('cancel', at_work[0].site)}",
        )
    links.clean(asked.root, asked.stages, everything=arguments.all, do=arguments.yes)
    return OK


def do_image(arguments: argparse.Namespace) -> int:
    from workflow.images import build_image

    site = site_files.load(getattr(arguments, "site", "local"), [*settings_of(arguments), "container.use=true"])
    if not find.is_file(site):
        raise Problem(
            f"{site.container.runtime} keeps its images itself; this makes files, for Apptainer and Singularity"
        )
    if arguments.action == "build":
        build_image.build(site, arguments.base, say)
    elif arguments.action == "verify":
        build_image.verify(site, say)
    elif arguments.action == "inspect":
        site_output.image(find.file_of(site), find.inspect(find.existing(site)), arguments.json)
    elif not arguments.to:
        raise Problem("push: where? --to DIRECTORY or --to oras://HOST/NAME:TAG")
    else:
        build_image.push(site, arguments.to, say)
    return OK


def say(line: str) -> None:
    print(line, flush=True)


def do_sites(arguments: argparse.Namespace) -> int:
    action, name, settings = arguments.action, arguments.name, getattr(arguments, "set", [])
    if action in ("show", "render") and not name:
        raise Problem(f"which site? known: {', '.join(site_files.names())}")
    if action == "new":
        site_output.new_site(name, new_site.survey())
    elif action == "render":
        arguments.site, arguments.study = name, arguments.of or getattr(arguments, "study", "default")
        site_output.scripts(Asked(arguments), arguments.out)
    elif action == "validate" and name and name.endswith((".yaml", ".yml")):
        site_files.load_file(Path(name))
        print(f"{name}: valid")
    else:
        for each in [name] if name else site_files.names():
            site_output.site(each, site_files.load(each, settings), action)
    return OK


VERBS = {
    "run": do_run,
    "plan": do_plan,
    "status": do_status,
    "logs": do_logs,
    "explain": do_explain,
    "report": do_report,
    "advise": do_advise,
    "doctor": do_doctor,
    "cancel": do_cancel,
    "clean": do_clean,
    "sites": do_sites,
    "image": do_image,
}
