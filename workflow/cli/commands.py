"""One function for each verb of the command line; each returns the exit code."""

from __future__ import annotations

import argparse
import itertools
import json
import os
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
from workflow.cli import completion, findings_output, live_table, output, plan_output, site_output, status_output
from workflow.cli.arguments import build_parser
from workflow.cli.drive import do_run
from workflow.cli.invocation import Invocation, run_directory, site_settings
from workflow.config import site_files, study_files
from workflow.doctor import diagnosis, examine, new_site
from workflow.images import apptainer, image_file, push_image, verify_image
from workflow.jobs import cancel
from workflow.plan import done
from workflow.run_directory import journal, lease, links, status

STATUS_SECONDS = 1.0  # between two looks of `status --watch`


def named_run_directory(arguments: argparse.Namespace) -> Path:
    """Return the run directory without reading the study, whose file may be gone."""
    return run_directory(arguments, study_files.study_name(getattr(arguments, "study", "default")))


def do_plan(arguments: argparse.Namespace) -> int:
    invocation = Invocation(arguments)
    planned = done.judge_stages(invocation.stages, invocation.root, arguments.deep)
    if arguments.json:
        print(json.dumps(plan_output.encode_plan(planned, invocation.site), indent=1))
    else:
        plan_output.print_plan(invocation.study_name, invocation.study, planned, invocation.site, invocation.root)
    return DONE


def do_status(arguments: argparse.Namespace) -> int:
    root = named_run_directory(arguments)
    found = status.read_plan(root)
    while True:
        rows, driver = status.read_statuses(root, found), lease.live_driver(root)
        if arguments.json:
            print(json.dumps(status_output.encode_status(rows, driver), indent=1))
        else:
            status_output.print_status(
                root, found, rows, driver, clear=arguments.watch and live_table.can_rewrite_lines(sys.stdout)
            )
        if not arguments.watch or driver is None:
            return FAILED if any(row.state == "failed" for row in rows) else DONE
        time.sleep(STATUS_SECONDS)


def do_logs(arguments: argparse.Namespace) -> int:
    root = named_run_directory(arguments)
    stage = output.find_stage(arguments.id, {s.id: s for s in status.read_plan(root).stages})
    status_output.print_logs(root / stage.folder, stage.id)
    return DONE


def do_cancel(arguments: argparse.Namespace) -> int:
    root = named_run_directory(arguments)
    found = status.read_plan(root)
    name = getattr(arguments, "site", found.site)
    site = site_files.load(name, getattr(arguments, "set", ()))
    if not site.has_scheduler:
        raise UserError(f"site {name} has no batch jobs", "stop the driver with Ctrl-C; that also stops its stages")
    known = {stage.id: stage for stage in found.stages}
    named, folders = {output.find_stage(id, known).id for id in arguments.id}, {stage.folder for stage in found.stages}

    def wanted(job: journal.RecordedJob) -> bool:
        if arguments.stale:
            return job.is_stale(folders)
        return not named or bool(named & (job.stages.keys() - job.ended))

    lines = cancel.cancel_jobs(root, site, name, wanted)
    print("\n".join(lines) if lines else "no job of this study is in the queue")
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
    name = getattr(arguments, "site", "local")
    site = site_files.load(name, getattr(arguments, "set", []))
    found = largest_study.compute_advice(root, site, name, arguments.gpu_hours, arguments.target, arguments.structures)
    print(json.dumps(found, indent=1) if arguments.json else advice_text.format_advice(found, root, site, name))
    return DONE


def check_study(arguments: argparse.Namespace) -> diagnosis.Finding:
    """Return the finding about the study that `doctor --study` names."""
    try:
        invocation = Invocation(arguments)
        return examine.examine_study(done.judge_stages(invocation.stages, invocation.root), invocation.site)
    except UserError as error:
        return diagnosis.bad_as("study", error)


def do_doctor(arguments: argparse.Namespace) -> int:
    name, settings = getattr(arguments, "site", "local"), site_settings(arguments)
    site, found = site_files.load(name, settings), list[diagnosis.Finding]()
    say = findings_output.progress_writer(sys.stderr)
    if not arguments.json:
        print(f"{name}: {site.title}")
    colour, width = live_table.has_colours(sys.stdout), findings_output.label_width(site)
    first = [check_study(arguments)] if hasattr(arguments, "study") else []
    checked = examine.examine(
        diagnosis.ChosenSite(name, settings, site),
        named_run_directory(arguments),
        not arguments.no_job,
        arguments.queue,
        60 * arguments.wait,
        say,
    )
    try:
        for each in itertools.chain(first, checked):
            say("")
            found.append(each)
            if not arguments.json:
                print(findings_output.format_finding(each, colour, width), flush=True)
    except KeyboardInterrupt:
        say("")
        print("stopped; if a job was submitted, it was cancelled", file=sys.stderr)
        return INTERRUPTED
    as_json = json.dumps(findings_output.encode_findings(name, found), indent=1)
    print(as_json if arguments.json else findings_output.summarize(found))
    return FAILED if any(each.state == "bad" for each in found) else DONE


def do_clean(arguments: argparse.Namespace) -> int:
    invocation = Invocation(arguments)
    driver = lease.live_driver(invocation.root)
    if driver is not None:
        raise UserError(
            f"{invocation.root}: a driver is running here (pid {driver['pid']} on {driver['host']})", "stop it first"
        )
    at_work = [
        job for job in journal.unfinished_jobs(invocation.root) if not status.is_fully_withdrawn(invocation.root, job)
    ]
    if at_work and arguments.yes:
        raise UserError(
            f"{invocation.root}: {len(at_work)} job(s) may still be running here "
            f"({', '.join(job.id or job.name for job in at_work[:8])})",
            f"end them first: {invocation.command('cancel', at_work[0].site)}",
        )
    links.remove_results(invocation.root, invocation.stages, everything=arguments.all, confirmed=arguments.yes)
    return DONE


def do_image(arguments: argparse.Namespace) -> int:
    from workflow.images import build_image

    site = site_files.load(getattr(arguments, "site", "local"), [*site_settings(arguments), "container.use=true"])
    if not image_file.has_image_file(site):
        raise UserError(
            f"{site.container.runtime} manages its images itself; `image` is for the image files of Apptainer and Singularity"
        )
    if arguments.action == "build":
        build_image.build(site, arguments.base, print_line)
    elif arguments.action == "verify":
        verify_image.verify(site, print_line)
    elif arguments.action == "inspect":
        site_output.print_image(
            image_file.locate_image(site), apptainer.inspect_image(image_file.require_image(site)), arguments.json
        )
    elif not arguments.to:
        raise UserError("image push: no destination is given", "add --to DIRECTORY or --to oras://HOST/NAME:TAG")
    else:
        push_image.push(site, arguments.to, print_line)
    return DONE


def print_line(line: str) -> None:
    print(line, flush=True)


def do_sites(arguments: argparse.Namespace) -> int:
    action, name, settings = arguments.action, arguments.name, getattr(arguments, "set", [])
    if action in ("show", "render") and not name:
        raise UserError(f"sites {action}: no site is given; known: {', '.join(site_files.list_sites())}")
    if action == "new":
        site_output.output_new_site(name, new_site.draft_site_file())
    elif action == "render":
        arguments.site, arguments.study = name, arguments.render_study or getattr(arguments, "study", "default")
        site_output.output_scripts(Invocation(arguments), arguments.out)
    elif action == "validate" and name and name.endswith((".yaml", ".yml")):
        site_files.load_file(Path(name))
        print(f"{name}: valid")
    else:
        for each in [name] if name else site_files.list_sites():
            site_output.print_site(each, site_files.load(each, settings), action)
    return DONE


def do_fit(arguments: argparse.Namespace) -> NoReturn:
    """Become the program that fits points of a CSV file; it needs NumPy, which this one never imports."""
    path = [] if IS_INSTALLED else [str(ROOT)]  # an installed package is found without
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
    "cancel": do_cancel,
    "clean": do_clean,
    "sites": do_sites,
    "image": do_image,
    "fit": do_fit,
    "completion": do_completion,
}
