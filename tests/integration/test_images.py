"""Images on their way between real programs: podman, podman-hpc, Apptainer, a registry; the image is a small one.

Shifter's gateway, enroot and sbatch are stand-ins, as unkind as their users say the real ones are: the gateway reports a
failure in words and ends with 0, enroot writes its file and ends with 127.
"""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gnnscale.contract import places
from gnnscale.contract.errors import UserError
from tests.support import cluster, tiny_image
from tests.support.corpus import ROOT
from tests.support.errors import message_of
from workflow.config import site_files
from workflow.images import build_image, build_script, image_file, image_store, pull_image, push_image, verify_image
from workflow.images.recipe import read_recipe

pytestmark = pytest.mark.podman
NAME = "localhost/tiny:1"
TOOL = ROOT / "tests" / "support" / "podman.sh"


@pytest.fixture(scope="module")
def variables(tmp_path_factory):
    """Return the variables with which podman and podman-hpc keep their files in a directory of their own."""
    if shutil.which("podman") is None or shutil.which("docker-registry") is None:
        cluster.require("podman", "no podman: `tests/support/podman.sh install` brings it")
    place = tmp_path_factory.mktemp("stores")
    words = subprocess.run(
        ["bash", "-c", f"eval \"$('{TOOL}' env '{place}')\"; env -0"], capture_output=True, text=True, check=True
    )
    yield dict(line.split("=", 1) for line in words.stdout.split("\0") if "=" in line)
    mounted = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
    for path in sorted((each for each in mounted if each.startswith(f"{place}/")), reverse=True):
        subprocess.run(["umount", path], capture_output=True)  # otherwise no later session can remove the directory


@pytest.fixture
def here(variables, monkeypatch, tmp_path):
    """Let this process have those variables, and a cache of its own."""
    for name, value in variables.items():
        if name not in ("PYTEST_CURRENT_TEST", "_"):
            monkeypatch.setenv(name, value)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setattr(places, "cache_folder", lambda: tmp_path / "cache")
    return tmp_path


def serve(folder, more=""):
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    settings = folder / "registry.yml"
    settings.write_text(
        f"version: 0.1\nstorage: {{filesystem: {{rootdirectory: {folder}/registry}}}}\nhttp: {{addr: '127.0.0.1:{port}'}}\n{more}"
    )
    process = subprocess.Popen(
        ["docker-registry", "serve", settings], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    cluster.wait_until(lambda: socket.socket().connect_ex(("127.0.0.1", port)) == 0, "the registry")
    return process, f"127.0.0.1:{port}"


def trust(folder, host, monkeypatch):
    """Say that a registry has no TLS, and that it stands for the one from which bases come."""
    lines = [f'[[registry]]\nprefix = "{name}"\nlocation = "{host}"\ninsecure = true\n' for name in (host, "docker.io")]
    (folder / "registries.conf").write_text("".join(lines))
    monkeypatch.setenv("CONTAINERS_REGISTRIES_CONF", str(folder / "registries.conf"))
    monkeypatch.setenv("APPTAINER_NOHTTPS", "1")


@pytest.fixture
def registry(here, monkeypatch):
    process, host = serve(here)
    trust(here, host, monkeypatch)
    yield host
    process.kill()
    process.wait()


@pytest.fixture
def small(here):
    """Return an image in the store of podman, recorded."""
    tiny_image.import_image("podman", tiny_image.make_tree(here / "tree"), NAME)
    verify_image.verify(of("podman", f"container.image={NAME}"), lambda line: None)
    return NAME


def of(runtime, *settings):
    return site_files.load("local", ["container.use=true", f"container.runtime={runtime}", *settings])


def say():
    said = []
    return said, said.append


def source_in(said):
    return re.search(r"--from (\S+)", "\n".join(said))[1]


# ------------------------------------------------------------------------------------------------------- on its way
def test_one_image_has_one_id_whatever_carries_it(small, registry, here):
    """From podman through a registry and an archive to podman-hpc and Apptainer, and from there to another Apptainer."""
    said, notify = say()
    push_image.push(of("podman"), f"docker://{registry}/me/tiny:1", notify)
    source = source_in(said)
    assert re.fullmatch(rf"docker://{registry}/me/tiny@sha256:[0-9a-f]{{64}}", source)
    pull_image.pull(of("podman-hpc"), source, notify)
    site = image_file.with_image(of("podman-hpc"), [])
    assert site.container.digest == tiny_image.ID and site.container.checkout is False
    assert image_store.find_stored(site, site.container.image).is_migrated
    verify_image.verify(of("podman-hpc"), notify)
    sif = f"container.image={here}/a.sif"
    pull_image.pull(of("apptainer", sif), source, notify)
    assert image_file.with_image(of("apptainer", sif), []).container.digest == tiny_image.ID
    verify_image.verify(of("apptainer", sif), notify)
    push_image.push(of("podman"), f"oci-archive:{here}/tiny.tar", notify)
    other = f"container.image={here}/b.sif"
    pull_image.pull(of("apptainer", other), f"oci-archive:{here}/tiny.tar", notify)
    push_image.push(of("apptainer", sif), f"oras://{registry}/me/sif:1", notify)
    third = f"container.image={here}/c.sif"
    pull_image.pull(of("apptainer", third), source_in(said[-1:]), notify)
    described = [verify_image.inspect(of("apptainer", each))[1]["content"] for each in (sif, other, third)]
    assert described == [tiny_image.describe()] * 3
    assert verify_image.inspect(of("podman"))[1]["content"] == described[0]


def test_an_image_that_fails_its_test_gets_no_name_and_no_record(here, registry):
    tiny_image.import_image("podman", tiny_image.make_tree(here / "tree", test="echo broken >&2; exit 3"), NAME)
    verify_image.record_stored(of("podman"), NAME)
    push_image.push(of("podman"), f"docker://{registry}/me/broken:1", lambda line: None)
    image_file.store_record_file(of("podman")).unlink()
    for runtime in ("podman", "apptainer"):
        site = of(runtime, *([f"container.image={here}/x.sif"] if runtime == "apptainer" else []))
        message = message_of(
            lambda site=site: pull_image.pull(site, f"docker://{registry}/me/broken:1", lambda line: None)
        )
        assert "test of the image" in message and "broken" in message
    assert image_file.read_store_record(of("podman")) is None and not list(here.glob("x*.sif"))


def test_an_image_for_other_processors_is_refused(here, registry):
    tree = tiny_image.make_tree(here / "tree", arch="riscv64")
    tiny_image.import_image("podman", tree, NAME)
    message = message_of(lambda: verify_image.verify(of("podman", f"container.image={NAME}"), lambda line: None))
    assert "made for cpu on riscv64, but nodes here have cpu on" in message and "image build" in message
    assert image_file.read_store_record(of("podman")) is None


def test_a_store_that_has_another_image_than_the_record(small, here):
    tiny_image.import_image("podman", tiny_image.make_tree(here / "new", python="3.13.0"), NAME)
    message = message_of(lambda: verify_image.verify(of("podman"), lambda line: None))
    assert "built or pulled again since" in message and f"--set container.image={NAME}" in message
    assert "not what its record says" in message_of(lambda: verify_image.inspect(of("podman")))
    subprocess.run(["podman", "rmi", NAME], check=True, capture_output=True)
    message = message_of(lambda: verify_image.verify(of("podman"), lambda line: None))
    assert "podman has no image of this name" in message and "image build" in message


def test_a_migration_that_fails_is_told_although_it_ends_with_0(registry, here):
    """The packing fails inside the image, which lacks the shell that it needs here."""
    tree = tiny_image.make_tree(here / "tree")
    (tree / "usr/bin/bash").unlink()
    tiny_image.import_image("podman", tree, NAME)
    verify_image.record_stored(of("podman"), NAME)
    push_image.push(of("podman"), f"docker://{registry}/me/tiny:2", lambda line: None)
    source = f"docker://{registry}/me/tiny:2"
    message = message_of(lambda: pull_image.pull(of("podman-hpc"), source, lambda line: None))
    assert "compute nodes cannot have this image yet" in message and "podman-hpc migrate localhost/gnnscale" in message
    assert image_file.read_store_record(of("podman-hpc")) is None


# ------------------------------------------------------------------------------------------------------- refusals
REFUSALS = [
    ("me/absent:1", "the registry has no image of this name"),
    ("nowhere.invalid/me/x:1", "no host of this name"),
    ("127.0.0.1:9/me/x:1", "cannot be reached"),
]


@pytest.mark.parametrize(("name", "hint"), REFUSALS)
@pytest.mark.parametrize("runtime", ["podman", "apptainer"])
def test_a_registry_that_refuses_is_told_with_its_cause(registry, here, runtime, name, hint):
    source = f"docker://{registry}/{name}" if name.startswith("me/") else f"docker://{name}"
    site = of(runtime, *([f"container.image={here}/x.sif"] if runtime == "apptainer" else []))
    assert hint in message_of(lambda: pull_image.pull(site, source, lambda line: None))


def test_a_registry_that_wants_a_password(small, here, monkeypatch):
    (here / "htpasswd").write_text("somebody:$2y$05$c4WoMPo3SXsafkva.HHa6uXQZWr7oboPiC2bT/r7q1BB8I2s0BRqC\n")
    process, host = serve(here, f"auth: {{htpasswd: {{realm: here, path: {here}/htpasswd}}}}\n")
    try:
        trust(here, host, monkeypatch)
        message = message_of(lambda: push_image.push(of("podman"), f"docker://{host}/me/x:1", lambda line: None))
    finally:
        process.kill()
        process.wait()
    assert "log in with: podman login HOST" in message


# ------------------------------------------------------------------------------------------------------------ builds
@pytest.fixture
def small_build(here, monkeypatch, registry):
    """Let a build copy a small context, whose script waits for a file, into a small base from a registry."""
    tiny_image.import_image("podman", tiny_image.make_tree(here / "base"), f"{registry}/library/debian:bookworm-slim")
    pushed = subprocess.run(
        ["podman", "push", f"{registry}/library/debian:bookworm-slim"], capture_output=True, text=True
    )
    assert pushed.returncode == 0, pushed.stderr
    monkeypatch.setenv("TINY_WAIT", "0")
    return here


BUILD = """
import os, sys
from pathlib import Path
sys.path.insert(0, {root!r})
from gnnscale.contract import places
from workflow.config import site_files
from workflow.images import build_checks, build_context, build_image, build_oci, build_script
places.cache_folder = lambda: Path({cache!r})
def write(recipe, folder):
    (folder / "containers").mkdir(parents=True)
    (folder / "datasets").mkdir()
    (folder / "containers/post.sh").write_text("echo gnnscale: step 1/1 waiting; [ -e /mnt/go ] || sleep 60; mkdir /opt/built")
    (folder / "image.json").write_text({content!r})
build_oci.write_context = build_script.write_context = write
wheels = Path({cache!r}) / "wheels"
wheels.mkdir(parents=True, exist_ok=True)
build_oci.fetch_wheels = lambda *words: wheels
build_checks.find_interpreter = lambda version: ""
"""


def test_a_killed_build_goes_on_and_leaves_no_container(small_build):
    """The second build records one image, and the store keeps no rest of the first."""
    cache = small_build / "cache"
    content = tiny_image.describe(recipe=read_recipe("cpu", "registry").digest)
    program = BUILD.format(root=str(ROOT), cache=str(cache), content=json.dumps(content))
    program += "site = site_files.load('local', ['container.use=true', 'container.runtime=podman'])\n"
    program += "build_image.build(site, 'registry', print)\n"
    first = subprocess.Popen([sys.executable, "-uc", program], stdout=subprocess.PIPE, text=True)
    for line in first.stdout:
        if "waiting" in line:
            break
    working = children(first.pid)
    first.kill()
    for pid in working:
        os.kill(pid, signal.SIGKILL)
    first.wait()
    assert "working-container" in listed(), "the killed build has left one"
    (cache / "wheels" / "go").touch()
    done = subprocess.run([sys.executable, "-uc", program], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "base: present" in done.stdout and "working-container" not in listed()
    site = image_file.with_image(of("podman"), [])
    assert site.container.digest == tiny_image.ID
    show = ["podman", "image", "inspect", "--format", "{{.Labels}}", site.container.image]
    labels = subprocess.run(show, capture_output=True, text=True)
    assert f"gnnscale.id:{tiny_image.ID}" in labels.stdout
    again = subprocess.run([sys.executable, "-uc", program], capture_output=True, text=True, timeout=120)
    assert again.stdout == f"{site.container.image}: present\n"


def children(pid):
    """Return all descendants of a process, the nearest first."""
    time.sleep(0.3)
    found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True).stdout.split()
    return [int(each) for each in found] + [far for each in found for far in children(int(each))]


def listed():
    return subprocess.run(["podman", "ps", "--all", "--external"], capture_output=True, text=True).stdout


def stand_in(folder, name, text):
    path = folder / "programs" / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/bash\n{text}\n")
    path.chmod(0o755)


def test_a_folder_builds_elsewhere_and_a_job_does_for_the_container_engine(small_build, monkeypatch):
    """The script of `image context` with the real podman; the same script in a job, with stand-ins of sbatch and enroot."""
    monkeypatch.setenv("PATH", f"{small_build}/programs:{os.environ['PATH']}")
    content = json.dumps(tiny_image.describe())
    program = BUILD.format(root=str(ROOT), cache=str(small_build / "cache"), content=content)
    program += (
        "build_script.write_folder(site_files.load('local', ['container.runtime=podman']), Path(sys.argv[1]), print)\n"
    )
    out = small_build / "a folder"
    subprocess.run([sys.executable, "-c", program, out], check=True, capture_output=True)
    (out / "wheels").mkdir()
    for name in ("complete", "go"):
        (out / "wheels" / name).touch()
    alone = subprocess.run(["sh", out / "build.sh"], capture_output=True, text=True)
    assert alone.returncode == 64 and "podman|podman-hpc [FILE]" in alone.stdout
    done = subprocess.run(
        ["sh", out / "build.sh", "podman", small_build / "x.tar"], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
    pull_image.pull(of("podman"), f"oci-archive:{small_build}/x.tar", lambda line: None)
    assert image_file.with_image(of("podman"), []).container.digest == tiny_image.ID
    stand_in(small_build, "sbatch", '[ "$1" = --wait ] && exec sh "$2"')
    stand_in(small_build, "enroot", ENROOT)
    site = site_files.load("clariden", ["container.use=true", "account=a0001"])
    slim = site.model_copy(update={"node": site.node.model_copy(update={"gpus": None}), "arch": None})
    pull_image.pull(slim, f"oci-archive:{small_build}/x.tar", lambda line: None)
    found = image_file.with_image(slim, []).container
    assert found.digest == tiny_image.ID and found.image.endswith(".sqsh")
    stand_in(small_build, "enroot", "exit 0")
    os.remove(found.image)
    with pytest.raises(UserError):
        pull_image.pull(slim, f"oci-archive:{small_build}/x.tar", lambda line: None)
    assert not os.path.exists(found.image), "an import that writes nothing leaves no file"


ENROOT = """while [ $# -gt 1 ]; do [ "$1" = -o ] && file=$2; shift; done
tree=$(mktemp -d)
container=$(podman create --network=host "${1#podman://}" true)
podman export "$container" | tar -x -C "$tree" && podman rm "$container" >/dev/null
mksquashfs "$tree" "$file" -quiet -no-progress >/dev/null; rm -rf "$tree"
exit 127"""


def test_shifter_takes_an_image_and_its_failures_are_seen(here, monkeypatch):
    monkeypatch.setenv("PATH", f"{here}/programs:{os.environ['PATH']}")
    (here / "image.json").write_text(json.dumps(tiny_image.describe()))
    stand_in(here, "shifterimg", '[ "$1" = pull ] && echo "Pulling Image: docker:$2, status: FAILURE"; exit 0')
    stand_in(here, "shifter", f"cat {here}/image.json")
    site = of("shifter")
    message = message_of(lambda: pull_image.pull(site, "docker://host/me/tiny@sha256:1", lambda line: None))
    assert "status: FAILURE" in message and "shifterimg login" in message
    listing = "perlmutter docker READY abc 2026-11-21T00:00:00 host/me/tiny@sha256:1"
    stand_in(here, "shifterimg", f'[ "$1" = images ] && echo "{listing}"; exit 0')
    pull_image.pull(site, "docker://host/me/tiny@sha256:1", lambda line: None)
    assert image_file.with_image(site, []).container.digest == tiny_image.ID


# -------------------------------------------------------------------------------------------- the image of this checkout
def test_the_real_image_has_the_same_id_in_podman_hpc_and_in_apptainer():
    """image.json, byte for byte, except for the commit where the two were built from different ones."""
    records = [image_file.read_store_record(of("podman-hpc")), None]
    file = image_file.locate_image(of("apptainer"))
    if records[0] is None or not file.exists():
        cluster.require("podman", "`image build` has not made both images")
    records[1] = image_file.read_record(file)
    stored, packed = (record.content.model_dump() | {"commit": None} for record in records)
    if stored["recipe"] != packed["recipe"]:
        cluster.require("podman", "the images were built from different checkouts")
    assert stored == packed


def test_no_builder_of_an_image_is_forgotten():
    assert set(build_image.BUILDERS) == set(pull_image.PULLERS) == {*image_store.FINDERS, "apptainer", "singularity"}
    assert callable(build_script.write_folder)
