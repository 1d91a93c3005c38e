"""The download of a published set into its folder: what is missing, a few files at a time, by one process at a time."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path

from gnnscale.contract import files
from gnnscale.contract.errors import UserError
from workflow.config.data_folder import missing_files
from workflow.config.published_files import PublishedFile, PublishedSet
from workflow.fetch.download import Stopped, Transfer, check_content, download, downloaded
from workflow.fetch.http_ranges import NoNetwork
from workflow.fetch.unpack import unpack

FILES_AT_A_TIME = 2
REPORT_SECONDS = 0.5  # between two looks at the progress
LOCK_NAME = ".fetch.lock"

Report = Callable[[Transfer], None]


def fetch(published: PublishedSet, folder: Path, report: Report) -> None:
    """Download, check and unpack the files that are missing; raise one error with all that failed."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / LOCK_NAME, "w") as lock:
        if not files.try_lock(lock):
            raise UserError(f"{folder}: another `data fetch` is at work here", "wait until it has ended")
        missing = missing_files(published, folder)
        check_space(missing, folder)
        check_present([file for file in published.files if file not in missing], published, folder)
        fetch_files(missing, published, folder, report)


def fetch_files(missing: list[PublishedFile], published: PublishedSet, folder: Path, report: Report) -> None:
    """Fetch files side by side; without a network give up at once, and after any other fault finish the other files."""
    transfer, failures = Transfer(), list[UserError]()
    pool = ThreadPoolExecutor(FILES_AT_A_TIME)
    waiting: set[Future[None]] = {pool.submit(fetch_file, file, published, folder, transfer) for file in missing}
    try:
        while waiting:
            done, waiting = wait(waiting, REPORT_SECONDS, FIRST_COMPLETED)
            report(transfer)
            failures += filter(None, map(failure_of, done))
            if any(isinstance(each, NoNetwork) for each in failures):
                break
    finally:
        transfer.stop.set()
        pool.shutdown(wait=False, cancel_futures=True)
    if failures:
        raise joined(failures)


def failure_of(future: Future[None]) -> UserError | None:
    """Return the user's error that ended a download; raise any other."""
    try:
        future.result()
    except Stopped:
        return None
    except UserError as error:
        return error
    return None


def joined(failures: list[UserError]) -> UserError:
    """Return one error for all; a network that is missing is told once."""
    for each in failures:
        if isinstance(each, NoNetwork):
            return each
    if len(failures) == 1:
        return failures[0]
    return UserError(
        f"{len(failures)} files could not be fetched",
        *(text for each in failures for text in (each.message, *each.hints)),
    )


def fetch_file(file: PublishedFile, published: PublishedSet, folder: Path, transfer: Transfer) -> None:
    """Fetch one file. An archive that a person has put here is unpacked, and stays."""
    placed = folder / file.name
    if not file.becomes:
        download(file, folder, published.page, transfer)
    elif placed.exists():
        check_content(file, placed, published.page, transfer)
        unpack(file, placed, folder, transfer)
    else:
        with downloaded(file, folder, published.page, transfer) as path:
            unpack(file, path, folder, transfer)


def check_present(present: list[PublishedFile], published: PublishedSet, folder: Path) -> None:
    """Check the files that are here already, which a person may have put here."""
    for file in present:
        path = folder / file.final_name
        if not file.becomes and path.is_file():
            try:
                check_content(file, path, published.page, Transfer())
            except UserError as error:
                raise UserError(
                    f"{path} is not the published file: {error.message}",
                    f"remove it and run this again; for data of your own give their path in the study: raw: {folder}",
                ) from None


def check_space(missing: list[PublishedFile], folder: Path) -> None:
    """Raise if the disk cannot hold the files, by their sizes so far as these are known."""
    largest = max((file.gigabytes for file in missing if file.becomes), default=0.0)  # beside its content, for a while
    needed = sum(file.unpacked_gigabytes or file.gigabytes for file in missing) + largest
    free = shutil.disk_usage(folder).free / 1e9
    if needed > free + downloaded_gigabytes(missing, folder):
        raise UserError(
            f"{folder}: {free:,.1f} GB are free, and the files need about {needed:,.1f} GB",
            "choose another disk: --to DIR, or filesystems.data in the file of your site",
        )


def downloaded_gigabytes(missing: list[PublishedFile], folder: Path) -> float:
    """Return how much of the files is on disk from an earlier run."""
    parts = [folder / f".{file.name}.part" for file in missing]
    return sum(path.stat().st_blocks * 512 for path in parts if path.exists()) / 1e9


def curl_commands(published: PublishedSet, folder: Path) -> list[str]:
    """List the commands that download the missing files, for a machine that has a network and no gnnscale."""
    missing = missing_files(published, folder)
    return [f"mkdir -p {shlex.quote(str(folder))}", *(curl_command(file, folder) for file in missing)]


def curl_command(file: PublishedFile, folder: Path) -> str:
    """Return the command for one file, which has its name only when it is whole."""
    name, part = (shlex.quote(str(folder / f"{file.name}{ending}")) for ending in ("", ".part"))
    return f"curl --fail --location --continue-at - --output {part} {shlex.quote(file.url)} && mv {part} {name}"
