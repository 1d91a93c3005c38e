"""The lines and the JSON of `data`: which published sets there are, what of them is here, and the progress of a download."""

from __future__ import annotations

import os
import socket
import sys
import time
from pathlib import Path
from typing import Any

from gnnscale.contract import datasets
from gnnscale.contract.command_name import command_name
from gnnscale.contract.dataset_card import DatasetCard
from gnnscale.contract.errors import UserError, print_error
from gnnscale.contract.exit_codes import DONE, FAILED, INTERRUPTED
from workflow.cli import live_table
from workflow.cli.findings_output import progress_writer
from workflow.cli.output import format_duration
from workflow.config.data_folder import missing_files
from workflow.config.published_files import PublishedFile, PublishedSet
from workflow.fetch.download import Transfer
from workflow.fetch.fetch_set import curl_commands, fetch
from workflow.fetch.http_ranges import NoNetwork

PLAIN_SECONDS = 30.0  # between two lines of progress where lines cannot be rewritten
MAX_COMMANDS = 6  # of curl, in a message


def licence_of(published: PublishedSet) -> str:
    """Return the licence of the set, or else the one on the card of the script that reads it."""
    script: Any = datasets.load_script(published.dataset)
    card: DatasetCard = script.card(script.Options(raw=""))
    return published.licence or card.licence


# ---------------------------------------------------------------------------------------------------------------- list
def print_sets(chosen: list[PublishedSet], folder: Path, in_full: bool) -> None:
    """Print a line for each set, and in full also where it is published and a line for each file."""
    print(f"{folder}\n")
    for each in chosen:
        print(f"  {each.name:24}{describe_state(each, folder):18}{format_size(each.gigabytes):>10}  {licence_of(each)}")
        if in_full:
            print(f"    {each.page}; addresses as in {each.origin}: {describe_trial(each)}")
            print("\n".join(f"    {describe_file(file, folder / each.name)}" for file in each.files))
    if not in_full:
        print(f"\nto get one: {command_name()} data fetch NAME; its files: {command_name()} data list NAME")


def describe_state(published: PublishedSet, folder: Path) -> str:
    left, count = len(missing_files(published, folder / published.name)), len(published.files)
    return "here" if not left else f"{count - left} of {count} files" if left < count else "not here"


def describe_trial(published: PublishedSet) -> str:
    return f"tried on {published.tried}" if published.tried else "not tried"


def describe_file(file: PublishedFile, folder: Path) -> str:
    state = "here" if (folder / file.final_name).exists() else "missing"
    size = f"{file.size:,} bytes" if file.size else format_size(file.gigabytes)
    return f"{state:8} {file.final_name:28} {size:>22}  {'md5 ' + file.md5 if file.md5 else 'no checksum known':36}  {file.url}"


def format_size(gigabytes: float) -> str:
    if not gigabytes:
        return "size ?"
    return f"{gigabytes:,.1f} GB" if gigabytes >= 1 else f"{1e3 * gigabytes:,.1f} MB"


def encode_set(published: PublishedSet, folder: Path) -> dict[str, Any]:
    """Return a set as JSON has it."""
    here = folder / published.name
    files = [file._asdict() | {"here": (here / file.final_name).exists()} for file in published.files]
    return published._asdict() | {"licence": licence_of(published), "folder": str(here), "files": files}


# --------------------------------------------------------------------------------------------------------------- fetch
def fetch_sets(chosen: list[PublishedSet], folder: Path, options: str) -> int:
    """Fetch all sets and return the exit code; a set that fails does not keep the next ones from being fetched."""
    code = DONE
    for each in chosen:
        target = folder / each.name
        print(f"{each.name}: {describe_work(each, target)} ({licence_of(each)})", flush=True)
        try:
            fetch(each, target, ProgressLine().update)
            print(f"{target}: complete", flush=True)
        except NoNetwork as error:
            print_error(UserError(error.message, *network_hints(each, target, options)), "gnnscale")
            return FAILED
        except UserError as error:
            print_error(error, "gnnscale")
            code = FAILED
        except KeyboardInterrupt:  # threads may wait for a server, and what is on disk is consistent at any time
            print("\nstopped; the same command continues", flush=True)
            os._exit(INTERRUPTED)
    return code


def describe_work(published: PublishedSet, target: Path) -> str:
    """Return how much of a set is to be fetched."""
    if not (left := missing_files(published, target)):
        return "all files are here; checking them"
    size = format_size(published._replace(files=tuple(left)).gigabytes)
    return f"fetching {len(left)} of {len(published.files)} files, {size}"


def network_hints(published: PublishedSet, target: Path, options: str) -> list[str]:
    """List what to do on a machine without a network."""
    commands = curl_commands(published, target)
    again = f"{command_name()} data fetch {published.name}{options}"
    if len(commands) > MAX_COMMANDS:
        commands = [f"{command_name()} data curl {published.name}{options} > get.sh    # and run get.sh there"]
    return [
        f"`data fetch` works on the machine where it is typed, here {socket.gethostname()}; "
        "on a cluster type it on a login or data-transfer node",
        "behind a proxy: export https_proxy=http://HOST:PORT",
        "or get the files on another machine:",
        *(f"  {line}" for line in commands),
        f"copy them to {target}; then this checks and unpacks them: {again}",
    ]


class ProgressLine:
    """The progress of a download: one line that is rewritten on a terminal, and a line now and then anywhere else."""

    def __init__(self) -> None:
        self.began = self.printed = time.monotonic()
        self.is_live = live_table.can_rewrite_lines(sys.stdout)
        self.rewrite = progress_writer(sys.stdout)

    def update(self, transfer: Transfer) -> None:
        now = time.monotonic()
        if self.is_live:
            self.rewrite("" if transfer.is_complete else describe_progress(transfer, now - self.began))
        elif now - self.printed > PLAIN_SECONDS:
            self.printed = now
            print(f"  {describe_progress(transfer, now - self.began)}", flush=True)


def describe_progress(transfer: Transfer, seconds: float) -> str:
    """Return how much has arrived, how fast, and how long the rest takes; the rest of files that are asked for so far."""
    received, expected = transfer.received, transfer.expected
    if received >= expected:
        return f"{received / 1e9:,.2f} GB received; checking and unpacking" if received else "asking"
    speed = received / max(seconds, 1e-3)
    left = f", {format_duration((expected - received) / speed)} left" if received else ""
    return f"{received / 1e9:,.2f} of {expected / 1e9:,.2f} GB, {speed / 1e6:,.1f} MB/s{left}"
