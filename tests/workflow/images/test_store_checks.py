"""Each way in which an image of a store is not what stages need is told, with the command to type.

Stand-ins take the place of the runtimes. That of podman-hpc prints what release 1.2.2 on Podman 4.3.1 was seen to print, and
exits with 0 in every case; those of Shifter and of unsquashfs, for the container engine of CSCS, follow their documentation and
have not been compared with the programs. For the real podman-hpc see integration/test_podman.py.
"""

import json
import os
import sys

import pytest

from tests.support.errors import message_of
from workflow.config import site_files
from workflow.images import checks, image_store
from workflow.images.image_file import ImageContent

NAME, ID = "localhost/gnnscale:cpu", "5" * 64
DIGEST = f"sha256:{'d' * 64}"
CONTENT = {
    "id": ID,
    "accelerator": "cpu",
    "arch": "x86_64",
    "python": "3.12.1",
    "version": "1",
    "commit": None,
    "lock": "",
    "recipe": "",
    "base": "",
    "code": {},
    "system": [],
    "packages": [],
}
HELP = """Run a command in a new container

Podman-hpc Options:
  --cuda-mpi      Enable CUDA-aware Cray MPICH Support
  --gpu           Enable NVIDIA GPU Support

Podman options follow:
      --network network                          Connect a container to a network
  -i, --interactive                              Keep STDIN open even if not attached
"""


def entry(name=NAME, digest=DIGEST, **more):
    """Return an entry of `podman-hpc images --format json`."""
    said = {"Id": "9" * 64, "RepoTags": None, "Names": [name], "Digest": digest}
    return said | {"RepoDigests": [f"localhost/gnnscale@{digest}"]} | more


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """Return a function that makes a program print a text for some of its words, and end with code 1 for others."""

    def make(name, answers, error="Error: {asked}"):
        program = tmp_path / "bin" / name
        program.parent.mkdir(exist_ok=True)
        program.write_text(
            f"#!{sys.executable}\nimport sys\nasked = ' '.join(sys.argv[1:])\nanswers = {answers!r}\n"
            "found = [text for words, text in answers.items() if words in asked]\n"
            f"sys.exit(print(found[0], end='') if found else f{error!r})\n"
        )
        program.chmod(0o755)

    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    return make


def podman_hpc(stand_in, images, content=CONTENT, arch="amd64", version="Version:      4.3.1"):
    """Make a podman-hpc with these images; every one that is run holds this content."""
    answers = {"images": json.dumps(images), "image inspect": arch, "--help": HELP, "cat": json.dumps(content)}
    stand_in("podman-hpc", answers | {"version": f"Client:       Podman Engine\n{version}\n"})


def find(name="slurm", *settings, **more):
    """Return what is told about an image at a site, as one text for each fault."""
    site = site_files.load(name, ["container.use=true", "arch=x86_64", *settings])
    known = {"image": NAME, "digest": ID} | more
    site = site.model_copy(update={"container": site.container.model_copy(update=known)})
    return [f"{fault.message}; {fault.hint}" for fault in checks.find_faults(site)]


PODMAN = "container.runtime=podman-hpc"


def test_an_image_that_is_as_it_should_be(stand_in):
    podman_hpc(stand_in, [entry(), entry(ReadOnly=True)])
    assert find("slurm", PODMAN, "container.rank_flags=[--cuda-mpi]") == []


@pytest.mark.parametrize(
    "images, settings, told",
    [
        ([], [], ["podman-hpc has no image localhost/gnnscale:cpu", "image build", "image pull"]),
        ([entry("localhost/other:cpu")], [], ["has no image"]),
        ([entry()], [], ["not migrated", f"podman-hpc migrate {NAME}", "R/O true"]),
        (
            [entry(ReadOnly=True)],
            ["container.rank_flags=[--cuda-mpj]"],
            ["--cuda-mpj", "--cuda-mpi, --gpu", "rank_flags"],
        ),
        ([entry(ReadOnly=True)], ["arch=aarch64"], ["built for x86_64, but nodes here are aarch64", "image build"]),
    ],
)
def test_an_image_that_nodes_cannot_run(stand_in, images, settings, told):
    podman_hpc(stand_in, images)
    (said,) = find("slurm", PODMAN, *settings)
    assert all(word in said for word in told), said


def test_where_the_driver_runs_stages_an_image_need_not_be_migrated(stand_in):
    podman_hpc(stand_in, [entry()])
    assert find("local", PODMAN) == []


def test_another_image_of_the_same_name(stand_in):
    podman_hpc(stand_in, [entry(ReadOnly=True)], CONTENT | {"id": "6" * 64})
    (said,) = find("slurm", PODMAN)
    assert "has the id 666666666666, 555555555555 is expected" in said and "image verify" in said


def test_an_image_in_which_no_command_runs(stand_in):
    """A store may not tell the architecture; the kernel does."""
    podman_hpc(stand_in, [entry(ReadOnly=True)], arch="")
    assert find("slurm", PODMAN) == []
    answers = {"version": "Version: 5.8.2", "--help": HELP, "images": json.dumps([entry(ReadOnly=True)])}
    stand_in("podman-hpc", answers)
    (said,) = find("slurm", PODMAN)
    assert "podman-hpc ended with code 1: Error: run --rm" in said and "try by hand: podman-hpc run" in said
    stand_in("podman-hpc", answers, "exec /usr/bin/cat: exec format error")
    (said,) = find("slurm", PODMAN)
    assert "built for another architecture, but nodes here are x86_64" in said


@pytest.mark.parametrize(
    "version, told", [("Version: 3.4.4", "release 3.4 is too old, 4.0 or later"), ("Version: 5.8.2", "")]
)
def test_a_runtime_that_is_too_old(stand_in, version, told):
    podman_hpc(stand_in, [entry(ReadOnly=True)], version=version)
    found = find("slurm", PODMAN)
    assert (told in found[0] and "later module" in found[0]) if told else found == []


def test_a_runtime_that_does_not_answer_in_words(stand_in):
    stand_in("podman-hpc", {"version": "Version: 5.8.2", "--help": HELP, "images": "Traceback: KeyError: 'USER'\n"})
    (said,) = find("slurm", PODMAN)
    assert "the list of images cannot be read: Traceback: KeyError: 'USER'" in said


def test_a_name_is_found_as_podman_finds_it(stand_in):
    podman_hpc(stand_in, [entry(), entry("localhost/x:latest", f"sha256:{'e' * 64}", Id="8" * 64)])
    site = site_files.load("slurm", [PODMAN])
    for name, digest in (
        ("gnnscale:cpu", DIGEST),
        ("x", f"sha256:{'e' * 64}"),
        (f"localhost/gnnscale@{DIGEST}", DIGEST),
    ):
        found = image_store.find_stored(site, name)
        assert found == (name, digest, "x86_64", False), name
    assert image_store.find_stored(site, "gnnscale") is None and image_store.find_stored(site, "scale:cpu") is None


# ----------------------------------------------------------------------------------------------- Shifter, by a stand-in
IMAGES = """\
perlmutter docker     READY    d09b2e5bd8   2026-11-21T09:13:33 host/me/gnnscale:cuda
perlmutter docker     PULLING  a1b2c3d4e5   2026-11-30T10:00:00 host/me/gnnscale:new
"""


def test_what_shifter_has(stand_in):
    stand_in("shifterimg", {"images": IMAGES})
    stand_in("shifter", {"cat": json.dumps(CONTENT)})
    shifter = ("slurm", "container.runtime=shifter")
    assert find(*shifter, image="docker:host/me/gnnscale:cuda") == []
    (said,) = find(*shifter, image="host/me/gnnscale:new")
    assert "has not finished its import" in said and "READY" in said
    (said,) = find(*shifter, image="host/me/gnnscale:none")
    assert "shifter has no image host/me/gnnscale:none" in said


# ------------------------------------------------------------------------ the container engine of CSCS, by stand-ins
def test_what_the_container_engine_finds(stand_in, tmp_path):
    file = tmp_path / "gnnscale.sqsh"
    stand_in("srun", {})
    (said,) = find("slurm", "container.runtime=ce", image=str(file))
    assert f"ce has no image {file}" in said
    file.touch()
    stand_in("unsquashfs", {"-cat": json.dumps(CONTENT | {"id": "7" * 64})})
    (said,) = find("slurm", "container.runtime=ce", image=str(file))
    assert "has the id 777777777777" in said
    assert find("slurm", "container.runtime=ce", image=f"host#me/gnnscale@{DIGEST}") == [], "nodes fetch it themselves"


def test_an_image_of_another_program(stand_in):
    stand_in("podman", {"cat": '{"id": "x"}'})
    site = site_files.load("local", ["container.runtime=podman"])
    assert "no description of an image of gnnscale" in message_of(lambda: image_store.read_stored_content(site, NAME))
    stand_in("podman", {"cat": json.dumps(CONTENT)})
    assert image_store.read_stored_content(site, NAME) == ImageContent.model_validate(CONTENT)
