"""A damaged image is refused before anything is submitted; a good one is copied whole or not at all."""

import os
import re

import pytest

from gnnscale.contract import files, places
from tests.support import tiny_image
from tests.support.errors import message_of
from tests.workflow.cli.test_commands import call
from tests.workflow.images.test_runtimes import ID
from workflow.config import site_files
from workflow.images import checks, image_file, pull_image, push_image, verify_image


def content(**changes):
    said = tiny_image.describe(id=ID, lock="l", recipe="r", system=[], packages=[])
    return image_file.ImageContent(**said | changes)


@pytest.fixture
def sif(tmp_path):
    """Return a file with the header of an image and its record; nothing can run in it."""
    arch = {value: key for key, value in checks.ARCH_OF_CODE.items()}[os.uname().machine]
    file = tmp_path / "x.sif"
    file.write_bytes(
        b"#!/usr/bin/env run-singularity\n".ljust(32, b"\0") + b"SIF_MAGIC\x0001\0" + arch + b"\0" + bytes(5000)
    )
    file.chmod(0o644)  # whatever the umask
    tmp_path.chmod(0o755)
    state = file.stat()
    files.write_model(
        file.with_suffix(".json"),
        image_file.ImageRecord(
            sha256=files.sha256(file), size=state.st_size, mtime_ns=state.st_mtime_ns, content=content()
        ),
    )
    return file


def of(file, *settings):
    return site_files.load("local", ["container.use=true", f"container.image={file}", *settings])


def faults(site, deep=True):
    return [f"{fault.message}; {fault.hint}" for fault in checks.find_faults(site, deep)]


@pytest.fixture
def runtime_there(monkeypatch, tmp_path):
    """Return a runtime that prints the id of the image, whatever it is asked to run."""
    program = tmp_path / "there" / "apptainer"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\necho {ID}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")
    return program


def test_a_good_image_has_no_faults(sif, runtime_there):
    site = image_file.with_image(of(sif), [])
    assert site.container.digest == ID and site.container.checkout is False
    assert faults(site) == []


def test_other_code_is_bound_over_the_images_and_never_silently_not(sif):
    record = files.read_model(image_file.record_file(sif), image_file.ImageRecord)
    older = {"gnnscale/job/stage_process.py": "0" * 16}
    files.write_model(
        image_file.record_file(sif), record.model_copy(update={"content": content(code=content().code | older)})
    )
    assert image_file.with_image(of(sif), []).container.checkout is True
    assert "holds other code than this checkout" in message_of(
        lambda: image_file.with_image(of(sif, "container.checkout=false"), [])
    )


def damaged(sif, how):
    state = sif.stat()
    if how == "missing":
        sif.unlink()
    elif how == "truncated":
        os.truncate(sif, 3000)
    elif how == "altered":
        sif.write_bytes(sif.read_bytes()[:-1] + b"x")
        os.utime(sif, ns=(state.st_atime_ns, state.st_mtime_ns))
    elif how == "touched":
        sif.write_bytes(sif.read_bytes()[:-1] + b"x")
    elif how == "other architecture":
        head = bytearray(sif.read_bytes())
        head[45:47] = b"04" if os.uname().machine == "x86_64" else b"02"
        sif.write_bytes(head)
    elif how == "no image":
        sif.write_bytes(b"<html>not found</html>".ljust(state.st_size))
    elif how == "no record":
        image_file.record_file(sif).unlink()
    elif how == "world-writable":
        sif.chmod(0o666)
    elif how == "world-writable above":
        sif.parent.chmod(0o777)


@pytest.mark.parametrize(
    ("how", "message", "remedy"),
    [
        ("missing", "no such image|no such file", "image build"),
        ("truncated", "3,000 bytes, [0-9,]+ expected: cut off", "copy it again"),
        ("altered", "same size, other content", "copy it again"),
        ("touched", "same size, other content", "copy it again"),
        ("other architecture", "built for (aarch64|x86_64), but nodes here are", "image build"),
        ("no image", "not an image of Apptainer", "image build"),
        ("no record", "the content of the image is unknown", "image verify"),
        ("world-writable", "x.sif: every user may write there", "chmod o-w"),
        ("world-writable above", "every user may write there", "chmod o-w"),
    ],
)
def test_a_bad_image_is_refused(sif, runtime_there, how, message, remedy):
    site = image_file.with_image(of(sif), [])
    damaged(sif, how)
    (said,) = faults(site)
    assert re.search(message, said) and remedy in said


@pytest.mark.parametrize("how", ["missing", "truncated", "altered", "other architecture"])
@pytest.mark.parametrize("site", ["local", "slurm"])
def test_it_is_refused_before_anything_is_submitted(sif, tmp_path, how, site):
    damaged(sif, how)
    done = call(
        "run",
        "--site",
        site,
        "--container",
        "--set",
        "container.runtime=apptainer",
        "--set",
        f"container.image={sif}",
        "--study",
        "smoke",
        "--root",
        str(tmp_path / "run"),
    )
    assert done.returncode == 2 and "Traceback" not in done.stderr and str(sif) in done.stderr
    assert not (tmp_path / "run" / "events.jsonl").exists() and not (tmp_path / "run" / "data").exists()


def test_no_image_built_yet_is_reported_with_what_to_type(tmp_path):
    missing = tmp_path / "none.sif"
    done = call("plan", "--container", "--set", f"container.image={missing}", "--root", str(tmp_path / "run"))
    assert (
        done.returncode == 2
        and done.stderr
        == f"gnnscale: {missing}: no such image\n"
        f"  build one: python workflow/run.py image build --set container.image={missing}\n"
    )
    done = call("plan", "--container", "--site", "andes", "--root", str(tmp_path / "run"))
    assert done.returncode == 2 and "set container.runtime" in done.stderr
    done = call("plan", "--container", "--site", "perlmutter", "--root", str(tmp_path / "run"))
    assert done.returncode == 2 and "no image for cuda and x86_64 is recorded here for podman-hpc" in done.stderr
    assert "run.py image build --site perlmutter\n" in done.stderr, "the whole command"
    assert "run.py image pull --site perlmutter --from docker://" in done.stderr


def test_no_runtime(sif, monkeypatch):
    site = image_file.with_image(of(sif), [])
    monkeypatch.setenv("PATH", "/nonexistent")
    (said,) = faults(site)
    assert (
        said.startswith("no apptainer on PATH, and container.runtime is apptainer") and "leave out --container" in said
    )
    assert (
        faults(site.model_copy(update={"container": site.container.model_copy(update={"modules": ("apptainer",)})}))
        == []
    )


def test_an_image_in_which_nothing_runs(sif, runtime_there):
    site = image_file.with_image(of(sif), [])
    runtime_there.write_text("#!/bin/sh\necho 'FATAL: could not open it' >&2\nexit 255\n")
    (said,) = faults(site)
    assert "nothing runs in x.sif here: FATAL: could not open it" in said
    runtime_there.write_text(f"#!/bin/sh\necho {'6' * 64}\n")
    (said,) = faults(site)
    assert "the image has the id 666666666666, its record says 555555555555" in said


def test_a_kernel_without_namespaces(tmp_path):
    assert checks.missing_namespaces(tmp_path) == ""
    (tmp_path / "user").mkdir()
    (tmp_path / "user" / "max_user_namespaces").write_text("0\n")
    assert "an administrator must set user.max_user_namespaces above 0" in checks.missing_namespaces(tmp_path)
    (tmp_path / "user" / "max_user_namespaces").write_text("100\n")
    (tmp_path / "kernel").mkdir()
    (tmp_path / "kernel" / "unprivileged_userns_clone").write_text("0\n")
    assert "kernel.unprivileged_userns_clone" in checks.missing_namespaces(tmp_path)


def test_a_push_is_whole_or_absent(sif, tmp_path):
    said = []
    (tmp_path / "there").mkdir()
    push_image.push(of(sif), str(tmp_path / "there"), said.append)
    arrived = tmp_path / "there" / "x.sif"
    assert arrived.read_bytes() == sif.read_bytes() and image_file.read_record(arrived, deep=True).content == content()
    assert f"container.image={arrived}" in said[-1] and image_file.with_image(of(arrived), []).container.digest == ID
    assert "no such directory" in message_of(lambda: push_image.push(of(sif), str(tmp_path / "nowhere"), said.append))
    os.truncate(sif, 3000)
    assert "cut off" in message_of(lambda: push_image.push(of(sif), str(tmp_path / "there"), said.append))
    assert image_file.read_record(arrived, deep=True), "the one that was there is untouched"


PLACES = [
    ("apptainer", "docker://h/x:1", "container.runtime=podman"),
    ("apptainer", "oras:/h", "expected a directory, or oras://HOST/NAME:TAG"),
    ("podman", "oras://h/x:1", "expected docker://HOST/NAME:TAG, or oci-archive:FILE"),
    ("podman-hpc", "/tmp", "container.runtime=apptainer"),
    ("podman", "docker:", "expected docker://HOST/NAME:TAG"),
    ("ce", "docker://h/x:1", "serves this site alone"),
]


@pytest.mark.parametrize(("runtime", "place", "hint"), PLACES)
def test_a_place_to_which_no_image_goes_is_refused_before_anything_is_read(runtime, place, hint):
    site = site_files.load("local", [f"container.runtime={runtime}", "container.image=/nonexistent/x"])
    assert hint in message_of(lambda: push_image.push(site, place, print))


SOURCES = [
    ("podman", "oras://h/x:1", "which no other runtime reads"),
    ("podman-hpc", "x.sif", "which no other runtime reads"),
    ("shifter", "oci-archive:x.tar", "expected docker://HOST/NAME@sha256:DIGEST"),
    ("apptainer", "h/x:1", "expected docker://"),
    ("apptainer", "none.sif", "no such file"),
    ("podman", "oci-archive:none.tar", "no such file"),
]


@pytest.mark.parametrize(("runtime", "source", "hint"), SOURCES)
def test_a_place_from_which_no_image_comes_is_refused_before_anything_is_fetched(runtime, source, hint):
    site = site_files.load("local", [f"container.runtime={runtime}"])
    assert hint in message_of(lambda: pull_image.pull(site, source, print))


def test_an_altered_file_is_not_shown_as_good(sif, runtime_there):
    damaged(sif, "altered")
    assert "same size, other content" in message_of(lambda: verify_image.inspect(of(sif)))


def test_no_verb_leaves_a_site_without_a_next_step():
    done = call("image", "build", "--site", "andes")
    assert (
        done.returncode == 2 and "--set container.runtime=apptainer" in done.stderr and "Traceback" not in done.stderr
    )
    for action in ("verify", "inspect", "push", "pull"):
        done = call("image", action, "--site", "perlmutter", "--to", "docker://h/x:1", "--from", "docker://h/x:1")
        assert done.returncode == 2 and "itself" not in done.stderr and "Traceback" not in done.stderr, action
    assert "image pull: --from is missing" in call("image", "pull").stderr


def recorded(runtime, monkeypatch, tmp_path, **changes):
    monkeypatch.setattr(places, "cache_folder", lambda: tmp_path)
    site = site_files.load("local", [f"container.runtime={runtime}"])
    record = image_file.StoreRecord(reference="localhost/gnnscale:x", digest="sha256:1", content=content(**changes))
    image_file.write_store_record(site, record)
    return site


@pytest.mark.parametrize("runtime", ["podman", "podman-hpc", "shifter", "ce"])
def test_name_and_id_come_from_the_record_on_every_runtime_unless_the_user_says_both(runtime, monkeypatch, tmp_path):
    found = image_file.with_image(recorded(runtime, monkeypatch, tmp_path), []).container
    assert (found.image, found.digest, found.checkout) == ("localhost/gnnscale:x", ID, False)
    own = site_files.load(
        "local", [f"container.runtime={runtime}", "container.image=mine", f"container.digest={'a' * 64}"]
    )
    found = image_file.with_image(own, []).container
    assert (found.image, found.digest, found.checkout) == ("mine", "a" * 64, True)
    half = site_files.load("local", [f"container.runtime={runtime}", "container.image=mine"])
    assert "no record says which id" in message_of(lambda: image_file.with_image(half, []))
    half = site_files.load("local", [f"container.runtime={runtime}", f"container.digest={'a' * 64}"])
    assert "is recorded here for" in message_of(lambda: image_file.with_image(half, []))


def test_a_digest_that_is_none_is_refused_where_it_stands():
    done = call("plan", "--container", "--set", "container.digest=z")
    assert done.returncode == 2 and "container.digest" in done.stderr and "64 hexadecimal digits" in done.stderr
