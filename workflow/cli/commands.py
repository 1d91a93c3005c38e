"""One function for each verb of the command line; each returns the exit code."""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from gnnscale.contract.command_name import COMMAND_VARIABLE, command_name
from gnnscale.contract.errors import UserError
from gnnscale.contract.exit_codes import DONE, FAILED, INTERRUPTED
from gnnscale.contract.places import IS_INSTALLED, ROOT, runs_folder
from workflow.advise import advice_text, largest_study
from workflow.cli import (
    completion,
    detached_output,
    findings_output,
    live_table,
    output,
    plan_output,
    site_output,
    status_output,
)
from workflow.cli.arguments import build_parser
from workflow.cli.drive import do_run
from workflow.cli.invocation import DEFAULT_SITE, Invocation, named_site, named_study, run_directory, site_settings
from workflow.config import data_folder, published_files, site_files, study_files
from workflow.doctor import diagnosis, examine, new_site
from workflow.jobs import cancel
from workflow.plan import done
from workflow.run_directory import journal, lease, links, status

WATCH_SECONDS = 1.0  # between two tables of `status --watch`


def named_run_directory(arguments: argparse.Namespace) -> Path:
    """Return the run directory without reading the study, whose file may be gone."""
    return run_directory(arguments, study_files.study_name(named_study(arguments)))


def do_plan(arguments: argparse.Namespace) -> int:
    invocation = Invocation(arguments)
    planned = done.judge_stages(invocation.stages, invocation.root, arguments.deep)
    if arguments.json:
        print(json.dumps(plan_output.encode_plan(planned, invocation.site), indent=1))
    else:
        plan_output.print_plan(invocation, planned, arguments.all)
    return DONE


def do_status(arguments: argparse.Namespace) -> int:
    root = named_run_directory(arguments)
    plan = status.read_plan(root)
    while True:
        rows, driver = status.read_statuses(root, plan), lease.live_driver(root)
        if arguments.json:
            print(json.dumps(status_output.encode_status(rows, driver), indent=1))
        else:
            status_output.print_status(
                root,
                plan,
                rows,
                driver,
                clear=arguments.watch and live_table.can_rewrite_lines(sys.stdout),
                in_full=arguments.all,
            )
        if not arguments.watch or driver is None:
            return FAILED if any(row.state == "failed" for row in rows) else DONE
        time.sleep(WATCH_SECONDS)


def do_logs(arguments: argparse.Namespace) -> int:
    root = named_run_directory(arguments)
    stage = output.find_stage(arguments.id, {s.id: s for s in status.read_plan(root).stages})
    status_output.print_logs(root / stage.folder, stage.id)
    return DONE


def do_cancel(arguments: argparse.Namespace) -> int:
    root = named_run_directory(arguments)
    plan = status.read_plan(root)
    typed = site_files.type_anywhere(getattr(arguments, "site", plan.typed_site))
    name, site = site_files.site_name(typed), site_files.load(typed, getattr(arguments, "set", ()))
    if not site.has_scheduler:
        raise UserError(f"site {name} has no batch jobs", "stop the driver with Ctrl-C; that also stops its stages")
    status.check_site_file(root, name, typed if site_files.is_path(typed) else "")
    stages = {stage.id: stage for stage in plan.stages}
    named = {output.find_stage(id, stages).id for id in arguments.id}
    folders = {stage.folder for stage in plan.stages}

    def is_wanted(job: journal.RecordedJob) -> bool:
        if arguments.stale:
            return job.is_stale(folders)
        return not named or bool(named & (job.stages.keys() - job.ended))

    lines = cancel.cancel_jobs(root, site, name, is_wanted)
    print("\n".join(lines) if lines else "no job of this study is in the queue")
    return DONE


def do_stop(arguments: argparse.Namespace) -> int:
    root = named_run_directory(arguments)
    detached_output.stop(root, lambda: site_files.load(status.read_plan(root).typed_site, site_settings(arguments)))
    return DONE


def do_explain(arguments: argparse.Namespace) -> int:
    invocation = Invocation(arguments)
    stage = output.find_stage(arguments.id, invocation.stages)
    plan_output.print_explanation(
        done.judge_stages(invocation.stages, invocation.root), stage, invocation.stages, invocation.root
    )
    return DONE


def do_report(arguments: argparse.Namespace) -> int:
    page = named_run_directory(arguments) / "report.html"
    if not page.exists():
        raise UserError(f"{page}: not made yet", "`run` makes it; `status` shows the progress")
    print(page)
    return DONE


def do_advise(arguments: argparse.Namespace) -> int:
    named = Path(arguments.finished)
    root = (named if named.is_dir() else runs_folder() / arguments.finished).resolve()
    typed = named_site(arguments)
    name, site = site_files.site_name(typed), site_files.load(typed, getattr(arguments, "set", []))
    advice = largest_study.compute_advice(root, site, name, arguments.gpu_hours, arguments.target, arguments.structures)
    print(json.dumps(advice, indent=1) if arguments.json else advice_text.format_advice(advice, root, site, name))
    return DONE


def check_study(arguments: argparse.Namespace) -> diagnosis.Finding:
    """Return the finding about the study that `doctor --study` names."""
    try:
        invocation = Invocation(arguments)
        return examine.examine_study(done.judge_stages(invocation.stages, invocation.root), invocation.site)
    except UserError as error:
        return diagnosis.bad_as("study", error)


def do_doctor(arguments: argparse.Namespace) -> int:
    name, settings = named_site(arguments), site_settings(arguments)
    site, findings = site_files.load(name, settings), list[diagnosis.Finding]()
    say = findings_output.progress_writer(sys.stderr)
    if not arguments.json:
        print(f"{name}: {site.title}")
    colour, width = live_table.has_colours(sys.stdout), findings_output.label_width(site)
    study_finding = [check_study(arguments)] if hasattr(arguments, "study") else []
    checked = examine.examine(
        diagnosis.ChosenSite(name, settings, site),
        named_run_directory(arguments),
        not arguments.no_job,
        arguments.queue,
        60 * arguments.wait,
        say,
    )
    try:
        for each in itertools.chain(study_finding, checked):
            say("")
            findings.append(each)
            if not arguments.json:
                print(findings_output.format_finding(each, colour, width), flush=True)
    except KeyboardInterrupt:
        say("")
        print("stopped; if a job was submitted, it was cancelled", file=sys.stderr)
        return INTERRUPTED
    if arguments.json:
        print(json.dumps(findings_output.encode_findings(name, findings), indent=1))
    else:
        print(findings_output.summarize(findings))
    return FAILED if any(each.state == "bad" for each in findings) else DONE


def recorded_site(root: Path, site: str) -> str:
    """Return what names the site of a recorded job in a command: its name, or the path of its file."""
    plan = status.read_plan(root)
    return plan.typed_site if plan.site == site else site


def do_clean(arguments: argparse.Namespace) -> int:
    invocation = Invocation(arguments)
    driver = lease.live_driver(invocation.root)
    if driver is not None:
        raise UserError(
            f"{invocation.root}: a driver is running here (pid {driver['pid']} on {driver['host']})",
            f"stop it first: {command_name()} stop --root {invocation.root}",
        )
    unfinished = [
        job for job in journal.unfinished_jobs(invocation.root) if not status.is_fully_withdrawn(invocation.root, job)
    ]
    if unfinished and arguments.yes:
        raise UserError(
            f"{invocation.root}: {len(unfinished)} job(s) may still be running here "
            f"({', '.join(job.id or job.name for job in unfinished[:8])})",
            f"end them first: {invocation.command('cancel', recorded_site(invocation.root, unfinished[0].site))}",
        )
    links.remove_results(invocation.root, invocation.stages, everything=arguments.all, confirmed=arguments.yes)
    return DONE


def do_image(arguments: argparse.Namespace) -> int:
    from workflow.cli import image_verbs  # which no other verb needs

    site = site_files.load(named_site(arguments), [*site_settings(arguments), "container.use=true"])
    image_verbs.run_action(site, arguments)
    return DONE


def do_sites(arguments: argparse.Namespace) -> int:
    action, name, settings = arguments.action, arguments.name, getattr(arguments, "set", [])
    if action in ("show", "render") and not name:
        raise UserError(f"sites {action}: no site is given; known: {', '.join(site_files.list_sites())}")
    if action == "new":
        site_output.output_new_site(name, new_site.draft_site_file())
    elif action == "render":
        arguments.site, arguments.study = name, arguments.render_study or named_study(arguments)
        site_output.output_scripts(Invocation(arguments), arguments.out)
    else:
        for each in [name] if name else site_files.list_sites():
            site_output.print_site(each, site_files.load(each, settings), action)
    return DONE


def do_data(arguments: argparse.Namespace) -> int:
    from workflow.cli import data_output  # with the libraries of HTTP and TLS, which no other verb needs

    names = arguments.sets or ([] if arguments.action != "list" else list(published_files.BY_NAME))
    if not names:
        raise UserError(
            f"data {arguments.action}: no data set is named", f"known: {', '.join(published_files.BY_NAME)}"
        )
    chosen = [published_files.find_set(name) for name in names]
    site = site_files.load(named_site(arguments), getattr(arguments, "set", []))
    folder = arguments.to.expanduser().absolute() if arguments.to else data_folder.data_folder(site)
    if arguments.action == "curl":
        print("\n".join(line for each in chosen for line in data_output.curl_commands(each, folder / each.name)))
    elif arguments.action == "fetch":
        words = [f"--to {shlex.quote(str(arguments.to))}"] if arguments.to else []
        typed = site_files.type_anywhere(named_site(arguments))
        words += [f"--site {shlex.quote(typed)}"] if typed != DEFAULT_SITE else []
        return data_output.fetch_sets(chosen, folder, "".join(f" {word}" for word in words))
    elif arguments.json:
        print(json.dumps([data_output.encode_set(each, folder) for each in chosen], indent=1))
    else:
        data_output.print_sets(chosen, folder, in_full=bool(arguments.sets))
    return DONE


def do_fit(arguments: argparse.Namespace) -> NoReturn:
    """Replace this process by the program that fits points of a CSV file; it needs NumPy, which this one never imports."""
    path = [] if IS_INSTALLED else [str(ROOT)]  # an installed package needs no path
    path += filter(None, [os.environ.get("PYTHONPATH")])
    variables = {COMMAND_VARIABLE: command_name()} | ({"PYTHONPATH": os.pathsep.join(path)} if path else {})
    words = [sys.executable, "-m", "gnnscale.stages.fit_csv", *arguments.words]
    sys.stdout.flush()
    os.execve(sys.executable, words, os.environ | variables)


def do_completion(arguments: argparse.Namespace) -> int:
    print(completion.completion_script(arguments.shell, build_parser()), end="")
    return DONE


VERBS: dict[str, Callable[[argparse.Namespace], int]] = {
    "run": do_run,
    "plan": do_plan,
    "status": do_status,
    "logs": do_logs,
    "explain": do_explain,
    "report": do_report,
    "advise": do_advise,
    "doctor": do_doctor,
    "stop": do_stop,
    "cancel": do_cancel,
    "clean": do_clean,
    "sites": do_sites,
    "image": do_image,
    "data": do_data,
    "fit": do_fit,
    "completion": do_completion,
}
