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

from gnnscale.contract.errors import UserError, print_error
from gnnscale.contract.exit_codes import DONE, FAILED, INTERRUPTED, STOPPED, USAGE
from gnnscale.contract.places import ROOT
from workflow.advise import advice_text, largest_study
from workflow.cli import findings_output, live_table, output, site_output
from workflow.cli.invocation import Invocation, run_directory, site_settings
from workflow.config import site_files, study
from workflow.doctor import diagnosis, examine, new_site
from workflow.images import apptainer, checks, image_file, push_image, verify_image
from workflow.jobs import cancel
from workflow.jobs import requests as queueing
from workflow.plan import done
from workflow.plan import stage as plan_stage
from workflow.run_directory import journal, lease, links, status


def report_error(error: BaseException) -> int:
    """In a line; the traceback only where the mistake is ours. The exit code."""
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED
    if isinstance(error, BrokenPipeError):  # the reader of a pipe, such as `head`, has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return STOPPED
    if isinstance(error, UserError | OSError):
        print_error(error, "gnnscale")
        return USAGE
    traceback.print_exception(error)
    return FAILED


def named_run_directory(arguments: argparse.Namespace) -> Path:
    return run_directory(arguments, study.study_name(getattr(arguments, "study", "default")))


def do_plan(arguments: argparse.Namespace) -> int:
    asked = Invocation(arguments)
    planned = done.judge_stages(asked.stages, asked.root, arguments.deep)
    if arguments.json:
        print(json.dumps(output.encode_plan(planned, asked.site), indent=1))
    else:
        output.print_plan(asked.study_name, asked.study, planned, asked.site, asked.root)
    return DONE


def do_run(arguments: argparse.Namespace) -> int:
    asked = Invocation(arguments)
    asked.root.mkdir(parents=True, exist_ok=True)
    holder = lease.Lease(asked.root)
    holder.take()
    try:
        return drive(asked, holder)
    finally:
        holder.release()


def drive(asked: Invocation, holder: lease.Lease) -> int:
    """Do what is not done, show it, and say at the end what came of it."""
    planned = done.judge_stages(asked.stages, asked.root)
    left = [p for p in planned.values() if p.state != "done" and p.stage.id in asked.wanted]
    print(
        f"{asked.study.title}: {len(asked.wanted)} stages, {len(asked.wanted) - len(left)} done, {len(left)} to do"
        + (f", about {output.format_duration(done.remaining_seconds(planned, asked.site))}" if left else "")
    )
    print(f"results: {asked.root}", flush=True)
    output.print_warnings(planned, asked.site, asked.root)
    status.write_plan(asked.root, asked.study_name, asked.site_name, asked.stages)
    output.write_resolved(asked.root, asked.study, asked.site)
    if not left:
        links.link_results(asked.root, asked.stages)
        print(f"nothing to do; report: {asked.root / 'report.html'}" if not asked.until else "nothing to do")
        return DONE
    raise_if_refused(left, asked.site_name)
    site_files.check_host(asked.site_name, asked.site, asked.settings)
    site_files.check_arch(asked.site_name, asked.site, asked.settings)
    site_files.check_account(asked.site_name, asked.site)
    if asked.site.container.use:
        checks.raise_if_faulty(asked.site)
    if asked.site.batch and not (asked.root / "events.jsonl").exists():
        print(f"new here; whether all is as it should be: {asked.command('doctor')}", flush=True)
    stale = [job for job in journal.unfinished_jobs(asked.root) if job.stale({s.folder for s in asked.stages.values()})]
    if stale:
        print(
            f"{len(stale)} job(s) of stages that the study has no more may be in the queue; to end them: "
            f"{asked.command('cancel')} --stale"
        )
    requests = queueing.schedule([p.stage for p in left], asked.site)
    queueing.check_budget(requests, asked.site, asked.max_node_hours)
    from workflow.execute.dag import Dag  # Parsl takes half a second to import

    stop, began = StopRequest(), time.monotonic()
    dag = Dag(asked.wanted, asked.site, asked.site_name, asked.root, requests)
    try:
        run_until_finished(dag, asked, holder, stop)
        code = DONE
    except BaseException as error:
        dag.stop()
        code = report_error(error)
    dag.close()
    if code := stop.code or code:
        with contextlib.suppress(BrokenPipeError):  # `| tee` has had the same Ctrl-C
            output.print_stopped(dag, asked)
        holder.release()
        os._exit(code)  # threads that wait for Parsl must not keep us
    links.link_results(asked.root, asked.stages)
    output.print_summary(dag, asked, time.monotonic() - began)
    return FAILED if dag.failures else DONE


def raise_if_refused(left: list[plan_stage.PlannedStage], site: str) -> None:
    """Before anything is started, what cannot be done."""
    refused = [p for p in left if p.state == "refused"]
    if refused:
        raise UserError(
            f"{len(refused)} training(s) do not fit into the memory of a rank of site {site}; nothing was started",
            *(f"{p.stage.id} {p.reason}" for p in refused[:5]),
            *(["..."] if len(refused) > 5 else []),
        )


def run_until_finished(dag: Any, asked: Invocation, holder: lease.Lease, stop: StopRequest) -> None:
    """Until every stage has come to its end, or somebody wants it to stop."""
    with live_table.ProgressDisplay(asked.root, status.read_plan(asked.root)) as seen:
        dag.submit()
        while not dag.complete and not stop.asked:
            seen.update(dag.states, dag.banner)
            holder.renew()
            time.sleep(0.1)
        if stop.asked:
            dag.stop()
        seen.update(dag.states)


class StopRequest:
    """Ctrl-C or SIGTERM, noted; the loop looks at it."""

    def __init__(self):
        self.asked, self.code = False, DONE
        signal.signal(signal.SIGINT, lambda *_: self.note(INTERRUPTED))
        signal.signal(signal.SIGTERM, lambda *_: self.note(STOPPED))

    def note(self, code: int) -> None:
        self.asked, self.code = True, code


def do_status(arguments: argparse.Namespace) -> int:
    root = named_run_directory(arguments)
    found = status.read_plan(root)
    while True:
        rows, driver = status.read_statuses(root, found), lease.live_driver(root)
        if arguments.json:
            print(json.dumps(output.encode_status(rows, driver), indent=1))
        else:
            output.print_status(
                root, found, rows, driver, clear=arguments.watch and live_table.can_rewrite_lines(sys.stdout)
            )
        if not arguments.watch or driver is None:
            return FAILED if any(row.state == "failed" for row in rows) else DONE
        time.sleep(1.0)


def do_logs(arguments: argparse.Namespace) -> int:
    root = named_run_directory(arguments)
    stage = output.find_stage(arguments.id, {s.id: s for s in status.read_plan(root).stages})
    output.print_logs(root / stage.folder, stage.id)
    return DONE


def do_cancel(arguments: argparse.Namespace) -> int:
    root = named_run_directory(arguments)
    found = status.read_plan(root)
    name = getattr(arguments, "site", found.site)
    site = site_files.load(name, getattr(arguments, "set", ()))
    if not site.batch:
        raise UserError(f"site {name} has no batch jobs", "a driver is stopped with Ctrl-C, and its stages with it")
    known = {stage.id: stage for stage in found.stages}
    named, folders = {output.find_stage(id, known).id for id in arguments.id}, {stage.folder for stage in found.stages}

    def wanted(job: journal.RecordedJob) -> bool:
        if arguments.stale:
            return job.stale(folders)
        return not named or bool(named & (job.stages.keys() - job.ended))

    said = cancel.cancel_jobs(root, site, name, wanted)
    print("\n".join(said) if said else "no job of this study is in the queue")
    return DONE


def do_explain(arguments: argparse.Namespace) -> int:
    asked = Invocation(arguments)
    stage = output.find_stage(arguments.id, asked.stages)
    output.print_explanation(done.judge_stages(asked.stages, asked.root), stage, asked.stages, asked.root)
    return DONE


def do_report(arguments: argparse.Namespace) -> int:
    page = named_run_directory(arguments) / "report.html"
    if not page.exists():
        raise UserError(f"{page}: not made yet", "`run` makes it, `status` shows how far it is")
    print(page)
    return DONE


def do_advise(arguments: argparse.Namespace) -> int:
    named = Path(arguments.of)
    root = (named if named.is_dir() else ROOT / "runs" / arguments.of).resolve()
    name = getattr(arguments, "site", "local")
    site = site_files.load(name, getattr(arguments, "set", []))
    found = largest_study.compute_advice(root, site, name, arguments.gpu_hours, arguments.target, arguments.structures)
    print(json.dumps(found, indent=1) if arguments.json else advice_text.format_advice(found, root, site, name))
    return DONE


def check_study(arguments: argparse.Namespace) -> diagnosis.Finding:
    try:
        asked = Invocation(arguments)
        return examine.examine_study(done.judge_stages(asked.stages, asked.root), asked.site)
    except UserError as problem:
        said, *fix = str(problem).splitlines()
        return diagnosis.bad("study", said, fix[0] if fix else "")


def do_doctor(arguments: argparse.Namespace) -> int:
    name, settings = getattr(arguments, "site", "local"), site_settings(arguments)
    site, found = site_files.load(name, settings), []
    say = findings_output.progress_writer(sys.stderr)
    if not arguments.json:
        print(f"{name}: {site.title}")
    first = [check_study(arguments)] if hasattr(arguments, "study") else []
    asked = examine.examine(
        diagnosis.ChosenSite(name, settings, site),
        named_run_directory(arguments),
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
                    findings_output.format_finding(
                        each, live_table.has_colours(sys.stdout), findings_output.label_width(site)
                    ),
                    flush=True,
                )
    except KeyboardInterrupt:
        say("")
        print("stopped; its job was cancelled, if it had one", file=sys.stderr)
        return INTERRUPTED
    print(
        json.dumps(findings_output.encode_findings(name, found), indent=1)
        if arguments.json
        else findings_output.summarize(found)
    )
    return FAILED if any(each.state == "bad" for each in found) else DONE


def do_clean(arguments: argparse.Namespace) -> int:
    asked = Invocation(arguments)
    driver = lease.live_driver(asked.root)
    if driver is not None:
        raise UserError(
            f"{asked.root}: a driver is at work here (pid {driver['pid']} on {driver['host']})", "stop it first"
        )
    at_work = [job for job in journal.unfinished_jobs(asked.root) if not status.is_fully_withdrawn(asked.root, job)]
    if at_work and arguments.yes:
        raise UserError(
            f"{asked.root}: {len(at_work)} job(s) may still be at work here "
            f"({', '.join(job.id or job.name for job in at_work[:8])})",
            f"end them first: {asked.command('cancel', at_work[0].site)}",
        )
    links.remove_results(asked.root, asked.stages, everything=arguments.all, do=arguments.yes)
    return DONE


def do_image(arguments: argparse.Namespace) -> int:
    from workflow.images import build_image

    site = site_files.load(getattr(arguments, "site", "local"), [*site_settings(arguments), "container.use=true"])
    if not image_file.has_image_file(site):
        raise UserError(
            f"{site.container.runtime} keeps its images itself; this makes files, for Apptainer and Singularity"
        )
    if arguments.action == "build":
        build_image.build(site, arguments.base, print_line)
    elif arguments.action == "verify":
        verify_image.verify(site, print_line)
    elif arguments.action == "inspect":
        site_output.print_image(
            image_file.image_file(site), apptainer.inspect_image(image_file.require_image(site)), arguments.json
        )
    elif not arguments.to:
        raise UserError("push: where? --to DIRECTORY or --to oras://HOST/NAME:TAG")
    else:
        push_image.push(site, arguments.to, print_line)
    return DONE


def print_line(line: str) -> None:
    print(line, flush=True)


def do_sites(arguments: argparse.Namespace) -> int:
    action, name, settings = arguments.action, arguments.name, getattr(arguments, "set", [])
    if action in ("show", "render") and not name:
        raise UserError(f"which site? known: {', '.join(site_files.names())}")
    if action == "new":
        site_output.output_new_site(name, new_site.draft_site_file())
    elif action == "render":
        arguments.site, arguments.study = name, arguments.of or getattr(arguments, "study", "default")
        site_output.output_scripts(Invocation(arguments), arguments.out)
    elif action == "validate" and name and name.endswith((".yaml", ".yml")):
        site_files.load_file(Path(name))
        print(f"{name}: valid")
    else:
        for each in [name] if name else site_files.names():
            site_output.print_site(each, site_files.load(each, settings), action)
    return DONE


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
