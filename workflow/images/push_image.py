"""The command `image push`: brings an image to a directory, a registry or an archive, and says how to take it from there."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from pathlib import Path

from gnnscale.contract import files
from gnnscale.contract.command_name import command_name
from gnnscale.contract.errors import UserError
from gnnscale.contract.places import images_folder
from workflow.config.site import SiteConfig
from workflow.images.apptainer import file_program
from workflow.images.build_oci import oci_program, with_builder
from workflow.images.command_log import CommandLog, Notify
from workflow.images.image_file import find_reference, has_image_file, read_record, require_image
from workflow.images.verify_image import require_stored


def push(site: SiteConfig, to: str, notify: Notify) -> None:
    """Copy the image of a site to where another site can take it."""
    scheme = scheme_of(to)
    raise_if_no_way(site, scheme, to)
    if not has_image_file(site):
        push_stored(with_builder(site), scheme, to, notify)
    elif scheme:
        push_file(site, to, notify)
    else:
        copy_file(site, Path(to).expanduser(), notify)


def scheme_of(place: str) -> str:
    """Return docker, oras or oci-archive; an empty word for a path."""
    found = re.match(r"([a-z][a-z-]*):", place)
    return found[1] if found else ""


def raise_if_no_way(site: SiteConfig, scheme: str, to: str) -> None:
    """Raise if an image of this kind cannot go to such a place, before anything is read."""
    is_file, runtime = has_image_file(site), site.container.runtime
    known = {"", "oras"} if is_file else set() if runtime == "ce" else {"docker", "oci-archive"}
    if scheme in known and (scheme in ("", "oci-archive") or re.fullmatch(r"[a-z]+://[^/\s]+/\S+", to)):
        return
    if is_file:
        places = "a directory, or oras://HOST/NAME:TAG"
        hint = "an OCI image, for docker:// and oci-archive:, is built with --set container.runtime=podman"
    elif runtime == "ce":
        places, hint = (
            "nothing: the file that `image build` made serves this site alone",
            "build with --set container.runtime=podman",
        )
    else:
        places = "docker://HOST/NAME:TAG, or oci-archive:FILE"
        hint = "an image file, for a directory and oras://, is built with --set container.runtime=apptainer"
    raise UserError(f"--to {to}: an image of {runtime} cannot go there; expected {places}", hint)


def tell_pull(notify: Notify, source: str) -> None:
    notify(f"on the other side: {command_name()} image pull --site SITE --from {source}")


def push_file(site: SiteConfig, to: str, notify: Notify) -> None:
    """Push an image file to a registry."""
    file, program = require_image(site).resolve(), file_program(site)
    record = read_record(file, deep=True)
    log = CommandLog(file.parent / "build.log", notify)
    log.run([program, "push", str(file), to], f"{file.name} to {to}")
    notify(f"its file has the SHA-256 {record.sha256}")  # neither program tells the registry's own digest
    tell_pull(notify, to)


def by_digest(to: str, digest: str) -> str:
    """Return the place of an image by its digest in place of its tag, which may be given to another image later."""
    return re.sub(r":[^:/]+$", "", to) + f"@{digest}"


def push_stored(site: SiteConfig, scheme: str, to: str, notify: Notify) -> None:
    """Push an image from the store of podman to a registry, or save it as an archive."""
    program, name = oci_program(site), find_reference(site)[0]
    require_stored(site, name)
    images_folder().mkdir(parents=True, exist_ok=True)
    log = CommandLog(images_folder() / "build.log", notify)
    if scheme == "oci-archive":
        save_archive(program, name, Path(to.removeprefix("oci-archive:")).expanduser(), log)
        return
    with tempfile.TemporaryDirectory() as work:
        told = Path(work) / "digest"
        log.run([program, "push", "--digestfile", str(told), name, to], f"{name} to {to}")
        tell_pull(notify, by_digest(to, told.read_text().strip()))


def save_archive(program: str, name: str, file: Path, log: CommandLog) -> None:
    """Save an image as an OCI archive, whole or not at all."""
    if not file.parent.is_dir():
        raise UserError(f"{file.parent}: no such directory", "make it, or name another file")
    part = file.with_name(file.name + ".part")
    part.unlink(missing_ok=True)  # Podman adds to an archive that is there
    log.run([program, "save", "--format", "oci-archive", "--output", str(part), name], f"{name} to {file}")
    os.replace(part, file)
    log.notify(f"{file}: {file.stat().st_size / 1e6:.0f} MB, SHA-256 {files.sha256(file)}")
    tell_pull(log.notify, f"oci-archive:{file.name}")


def copy_file(site: SiteConfig, folder: Path, notify: Notify) -> None:
    """Copy an image file and its record to a directory that another site sees."""
    file = require_image(site).resolve()
    record, target = read_record(file, deep=True), folder / file.name
    if not folder.is_dir():
        raise UserError(f"{folder}: no such directory", "make it, or name a registry: oras://HOST/NAME:TAG")
    part = target.with_name(target.name + ".part")
    shutil.copyfile(file, part)
    if files.sha256(part) != record.sha256:
        raise UserError(f"{part}: differs from {file} after copying", "try again; the disk may be failing")
    mtime_ns = part.stat().st_mtime_ns
    files.write_model(target.with_suffix(".json"), record.model_copy(update={"mtime_ns": mtime_ns}))
    os.replace(part, target)
    tell_pull(notify, file.name)
    notify(f"{target}: {record.size / 1e6:.0f} MB; use it there: --container --set container.image={target}")
