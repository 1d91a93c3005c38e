"""Every runtime runs a stage in its image with the right mounts and variables, and no others.

bash runs the wrapped commands, with a program in place of the runtime that reports how it was called. For real images see
integration/test_apptainer.py. GNNSCALE_RENEW=1 writes stored/containers/ again: look at the difference.
"""

import csv
import json
import os
import shlex
import signal
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from gnnscale.contract import files
from gnnscale.contract.settings import ConvertSettings
from gnnscale.contract.stage_spec import StageSpec
from tests.support import cluster, corpus
from tests.support.cluster import wait_until
from tests.support.corpus import ROOT
from tests.support.errors import message_of
from tests.support.sweeps import make_stage, make_training
from workflow.config import site_files, study_files
from workflow.images import environment, runtimes
from workflow.jobs import launch, render
from workflow.jobs import requests as queueing
from workflow.plan import build
from workflow.plan.done import describe_difference

STORED = ROOT / "tests" / "stored" / "containers"
WITH_IMAGES = [name for name in site_files.list_sites() if site_files.load(name).container.runtime != "none"]
ID = "5" * 64
SAYS = f"""#!{sys.executable}
import json, os, sys
print(json.dumps([sys.argv, dict(os.environ), os.getcwd()]))
"""
SECRETS = {
    "GITHUB_TOKEN": "hidden-1",
    "AWS_SECRET_ACCESS_KEY": "hidden-2",
    "SLURM_JWT": "hidden-3",
    "APPTAINERENV_WANDB_API_KEY": "hidden-4",
    "SINGULARITYENV_X": "hidden-5",
}
ODD = ["run", 'it\'s "a" run; $HOME `id` & co\\', "a,b=c}", "ü ß"]


def in_image(name, *settings, **more):
    """Return a site whose image is known."""
    site = site_files.load(name, ["container.use=true", *settings])
    of = {"image": "/images/x.sif", "digest": ID, "checkout": True} | more
    return site.model_copy(update={"container": site.container.model_copy(update=of)})


# ------------------------------------------------------------------------------------------------- the words of a site
@pytest.mark.parametrize("name", WITH_IMAGES)
def test_the_words_are_as_they_were(name):
    site = in_image(name, data=("/data/raw",))
    root, code = Path("/scratch/me/runs/mine"), Path("/scratch/me/gnnscale")
    if site.has_scheduler:
        site = site.model_copy(update={"account": site.account_rule.example or None})
        stages = [make_stage("convert", "bulk", 60), make_training(site, "large", 2, min(16, site.train.nodes[1]))]
        requests = queueing.schedule(stages, site)
        made = render.render_scripts(requests, {s.id: s for s in stages}, site, root, "python", code)
        text = "\n".join(f"#-------- {file}\n{body}" for file, body in made.items())
        text = text.replace("\\n", "\n").replace('\\"', '"')  # the plan is JSON; this is for people
    else:
        text = launch.render_command(make_stage("convert", "bulk", 60), site, root, "python", code)
    stored = STORED / f"{name}.txt"
    if os.environ.get("GNNSCALE_RENEW"):
        stored.parent.mkdir(exist_ok=True)
        stored.write_text(text)
    assert text == stored.read_text(), f"if that is wanted: GNNSCALE_RENEW=1 pytest {__file__}"


def test_no_stored_words_are_of_a_site_that_is_no_more():
    assert {path.stem for path in STORED.glob("*.txt")} == set(WITH_IMAGES)


@pytest.mark.parametrize("name", [name for name in site_files.list_sites() if name != "local"])
def test_without_an_image_nothing_changes(name):
    """Scripts and keys do not depend on a site's container settings until containers are used."""
    site = site_files.load(name)
    bare = site.model_copy(update={"container": site_files.load("slurm").container})
    attempt = launch.StageAttempt("train/x", "train", Path("/r/train/x"), 1)
    asked = queueing.schedule([make_training(site, "x", 1)], site)["train/x"]
    assert launch.render_job_body(asked, [attempt], site) == launch.render_job_body(asked, [attempt], bare)
    assert "apptainer" not in launch.render_job_body(asked, [attempt], site).replace(str(ROOT), "")


# ---------------------------------------------------------------------------------------------------- run, by a stand-in
def called(site, kind, folder, tmp_path, code=ROOT, more=None):
    """Return the arguments, environment and directory with which the runtime was called."""
    program = tmp_path / "bin" / {"ce": "srun"}.get(site.container.runtime, site.container.runtime)
    program.parent.mkdir(exist_ok=True)
    program.write_text(SAYS)
    program.chmod(0o755)
    folder.mkdir(parents=True, exist_ok=True)
    prefix = runtimes.wrap_stage(site, kind, folder, code).prefix
    env = (
        {
            "PATH": f"{program.parent}:{os.environ['PATH']}",
            "HOME": "/nobody",
            "SLURM_PROCID": "3",
            "PMI_RANK": "3",
            "MASTER_ADDR": "a b;c",
            "CUDA_VISIBLE_DEVICES": "0,1",
            "TMPDIR": str(tmp_path),
        }
        | SECRETS
        | (more or {})
    )
    done = subprocess.run(
        [*prefix, environment.IMAGE_PYTHON, "-m", "gnnscale.x", 'it\'s; "$HOME"'],
        env=env,
        cwd=folder,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def bound(words):
    """Return (source, target, mode) of every mount, parsed as the runtimes parse them."""
    found = []
    for word, after in zip(words, [*words[1:], ""]):
        text = after if word == "--mount" else word.removeprefix("--mount=") if word.startswith("--mount=") else None
        if text is not None:
            (fields,) = csv.reader([text])
            said = dict(field.split("=", 1) if "=" in field else (field, "") for field in fields)
            found.append((said["src"], said["dst"], "ro" if "ro" in said else "rw"))
        if word.startswith("--volume="):
            source, target, *mode = word.removeprefix("--volume=").split(":")
            found.append((source, target, mode[0] if mode else "rw"))
    return found


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("runtime", ["apptainer", "singularity", "podman-hpc", "shifter"])
def test_what_is_bound_and_passed(runtime, odd, tmp_path):
    """It sees no more and no less than it should, whatever characters the names contain."""
    root, image, data = tmp_path / odd, f"/images/{odd}/x.sif", str(tmp_path / f"raw {odd}")
    site = in_image("slurm", f"container.runtime={runtime}", image=image, data=(data,), env={"MINE": odd})
    site = site.model_copy(update={"env": {"SITES": odd}})
    folder = root / "train" / "x-1"
    words, env, there = called(site, "train", folder, tmp_path, code=Path("/my/check out"), more={"SITES": odd})
    mounts = bound(words)
    # Shifter shows the file systems of a site by itself, and makes no directory in an image.
    itself = runtime == "shifter"
    assert sorted(mounts) == sorted(
        [
            *([] if itself else [(str(root), str(root), "rw")]),
            (str(tmp_path), "/tmp", "rw"),
            ("/my/check out/gnnscale", "/opt/gnnscale/gnnscale", "ro"),
            ("/my/check out/datasets", "/opt/gnnscale/datasets", "ro"),
        ]
    )
    assert there == str(folder) and str(folder) in (word.removeprefix("--workdir=") for word in words)
    assert words[-4:] == [environment.IMAGE_PYTHON, "-m", "gnnscale.x", 'it\'s; "$HOME"']
    assert image in (word.removeprefix("--image=") for word in words)
    inside = inside_of(runtime, words, env)
    assert inside["SLURM_PROCID"] == inside["PMI_RANK"] == "3" and inside["MASTER_ADDR"] == "a b;c"
    assert (
        inside["MINE"] == inside["SITES"] == odd
        and inside["TMPDIR"] == "/tmp"
        and inside["CUDA_VISIBLE_DEVICES"] == "0,1"
    )
    assert not [name for name, value in inside.items() if value.startswith("hidden")], "secrets"
    assert "hidden" not in " ".join(words), "nor in a list of processes"
    reading = bound(called(site, "convert", folder, tmp_path)[0])
    assert ((data, data, "ro") in reading) != itself and (data, data, "ro") not in mounts
    if itself:
        bad = site.model_copy(update={"container": site.container.model_copy(update={"binds": ("/a,b:/c",)})})
        assert "no path with a colon or a comma" in message_of(lambda: runtimes.wrap_stage(bad, "train", folder))


def inside_of(runtime, words, env):
    """Return the variables of this environment that a process in the image would get."""
    if runtime in ("apptainer", "singularity"):
        prefix = f"{runtime.upper()}ENV_"
        assert "--cleanenv" in words
        found = {name.removeprefix(prefix): value for name, value in env.items() if name.startswith(prefix)}
        assert not [n for n in env if n.startswith(("APPTAINERENV_", "SINGULARITYENV_")) and not n.startswith(prefix)]
        return found
    assert runtime != "shifter" or "--clearenv" in words
    given = [word.removeprefix("--env=") for word in words if word.startswith("--env=")]
    return {name: value if equals else env[name] for name, equals, value in (word.partition("=") for word in given)}


def test_gpus_come_by_vendor(tmp_path):
    folder = tmp_path / "run" / "train" / "x"
    for name, flag in (("vista", "--nv"), ("stampede3", "--nv"), ("frontier", "--rocm"), ("aurora", None)):
        words = called(in_image(name, scratch="${TMPDIR:-/tmp}"), "train", folder, tmp_path)[0]
        assert {flag} - {None} == {"--nv", "--rocm"} & set(words), name


def test_ranks_of_a_node_share_memory_and_others_need_not(tmp_path):
    two = in_image("slurm", "container.runtime=apptainer", "launch.ranks_per_node=2")
    for site, kind, expected in (
        (two, "train", "1"),
        (two, "rank_report", "1"),
        (two, "convert", None),
        (in_image("slurm", "container.runtime=apptainer"), "train", None),
        (in_image("local"), "train", None),
    ):
        env = called(site, kind, tmp_path / "run" / kind / "x", tmp_path)[1]
        assert env.get("APPTAINER_SHARENS") == expected
        assert env.get("APPTAINER_USERNS") == ("1" if os.geteuid() == 0 else None)


def test_an_image_copied_to_the_node_is_the_one_that_is_run(tmp_path):
    site = in_image("slurm", "container.runtime=apptainer", "container.broadcast=2", scratch=str(tmp_path / "own $X"))
    assert runtimes.job_lines(site, 1, []) == []
    program = tmp_path / "sbcast"
    program.write_text('#!/bin/sh\n[ "$2" = /images/x.sif ] && touch "$3" && exit $CODE\n')
    program.chmod(0o755)
    (tmp_path / "own 7").mkdir()
    lines = "\n".join([*runtimes.job_lines(site, 2, []), f'echo "${{{runtimes.SIF_VARIABLE}:-none}}"'])
    for code, expected in ((0, str(tmp_path / "own 7" / "gnnscale-5.sif")), (1, "none")):
        env = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "X": "7", "SLURM_JOB_ID": "5", "CODE": str(code)}
        done = subprocess.run(["bash", "-c", lines], env=env, capture_output=True, text=True)
        assert done.stdout.strip() == expected, done.stderr
    local = str(tmp_path / "own 7" / "gnnscale-5.sif")
    words = called(
        in_image("local"), "train", tmp_path / "run" / "train" / "x", tmp_path, more={runtimes.SIF_VARIABLE: local}
    )[0]
    assert local in words and "/images/x.sif" not in words


def test_the_container_engine_gets_a_file(tmp_path):
    site, folder = in_image("clariden", image="me/gnnscale:cuda", data=("/raw",)), tmp_path / 'a "run"' / "train" / "x"
    folder.mkdir(parents=True)
    lines = runtimes.job_lines(site, 1, [("train", folder)])
    subprocess.run(["bash", "-c", "\n".join(lines)], check=True)
    said = tomllib.loads(runtimes.edf_path(folder).read_text())
    assert said["image"] == "me/gnnscale:cuda" and f"{folder.parent.parent}:{folder.parent.parent}" in said["mounts"]
    assert (
        "/raw:/raw:ro" not in said["mounts"]
        and said["annotations"]["com"]["hooks"]["aws_ofi_nccl"]["enabled"] == "true"
    )
    inside = runtimes.wrap_stage(site, "train", folder)
    assert inside.launcher_options == [f"--environment={folder}/image.toml"]
    shown = subprocess.run(
        [*inside.prefix, "env", "-0"],
        env=SECRETS | {"PATH": os.environ["PATH"], "RANK": "1"},
        capture_output=True,
        text=True,
    ).stdout
    variables = dict(line.split("=", 1) for line in shown.rstrip("\0").split("\0"))
    assert variables["RANK"] == "1" and variables["PYTHONPATH"] == "/opt/gnnscale" and variables["PWD"] == str(folder)
    assert not set(SECRETS) & set(variables)


def test_steps_of_the_container_engine_run_side_by_side_on_the_gpu_given_to_each(tmp_path):
    """A step waits for the whole node unless it overlaps, and Slurm sets its visible GPUs again."""
    program = tmp_path / "srun"
    program.write_text(
        '#!/bin/sh\nfor word; do case $word in --*) shift; echo "$word";; *) break;; esac; done\n'
        'CUDA_VISIBLE_DEVICES=0,1,2,3 exec "$@"\n'
    )
    program.chmod(0o755)
    folder = tmp_path / 'a "run"' / "evaluate" / "x"
    alone = runtimes.wrap_stage(in_image("clariden"), "evaluate", folder).without_launcher
    for given, seen in (("2", "2"), (None, "0,1,2,3")):
        env = {"PATH": f"{tmp_path}:{os.environ['PATH']}"} | ({"CUDA_VISIBLE_DEVICES": given} if given else {})
        show = ["sh", "-c", 'echo "$CUDA_VISIBLE_DEVICES $1"', "x", "it's"]
        said = subprocess.run([*alone, *show], env=env, capture_output=True, text=True, check=True).stdout.splitlines()
        assert f"--environment={folder}/image.toml" in said and "--overlap" in said and said[-1] == f"{seen} it's"


def test_modules_of_a_runtime_are_found(tmp_path):
    site = in_image("polaris", scratch="${TMPDIR:-/tmp}")
    made = launch.render_job_body(
        queueing.schedule([make_training(site, "x")], site)["train/x"],
        [launch.StageAttempt("train/x", "train", Path("/r/train/x"), 1)],
        site,
    )
    assert "\nmodule use /soft/modulefiles\nmodule load spack-pe-base apptainer\n" in made
    prefix = runtimes.wrap_stage(site, "convert", Path("/r/convert/x")).prefix
    assert "|| { module use /soft/modulefiles; module load spack-pe-base apptainer; }\n" in prefix[2]


@pytest.mark.parametrize("scratch", ["/tmp; rm -rf /", "$(id)", "`id`", 'a"b', "/a b"])
def test_scratch_is_a_path_and_no_program(scratch):
    assert "expected a path" in message_of(lambda: site_files.load("local", [f"container.scratch={scratch}"]))


# ------------------------------------------------------------------------------------------------------------ keys
def stages_of(site):
    name, asked = study_files.load("smoke")
    return build.build_stages(name, asked, site, Path("/nonexistent"))


def test_the_image_is_in_every_key_and_in_every_spec():
    plain, one = stages_of(site_files.load("local")), stages_of(in_image("local"))
    same, other = stages_of(in_image("local", image="/elsewhere/y.sif")), stages_of(in_image("local", digest="6" * 64))
    assert {s.image for s in plain.values()} == {None} and {s.spec(one).image for s in one.values()} == {ID}
    for id in plain:
        assert plain[id].key != one[id].key != other[id].key and one[id].key == same[id].key, id
    assert {id: s.key for id, s in stages_of(site_files.load("local", ["container.runtime=singularity"])).items()} == {
        id: s.key for id, s in plain.items()
    }


def test_a_part_of_a_conversion_is_of_the_image_too():
    name, asked = study_files.load("smoke")
    asked = asked.model_copy(update={"data": [asked.data[0].model_copy(update={"parts": 2}), *asked.data[1:]]})
    found = build.build_stages(name, asked, in_image("local"), Path("/nonexistent"))
    assert {s.image for s in found.values()} == {ID} and sum(s.kind == "convert_part" for s in found.values()) == 2


def test_the_plan_says_that_the_image_changed(tmp_path):
    found = stages_of(in_image("local"))
    old = found["convert/bulk"].spec(found)
    assert (
        describe_difference(old, stages_of(site_files.load("local"))["convert/bulk"]) == "image: 555555555555 -> none"
    )


def test_a_stage_of_an_image_runs_nowhere_else(tmp_path):
    made = corpus.make_stage_directory(tmp_path, "convert/x", ConvertSettings(dataset="generated", name="x"))
    spec = files.read_model(made / "spec.json", StageSpec)
    files.write_model(made / "spec.json", spec.model_copy(update={"image": ID}))
    done = corpus.run_stage(made)
    assert done.returncode == 64, done.stderr
    assert f"this stage needs image {ID[:12]}, and runs outside of any image" in done.stderr


# ------------------------------------------------------------------------------------------------------- flags by kind
def line_of(site, kind):
    """Return the words of the line that starts the runtime."""
    lines = runtimes.wrap_stage(site, kind, Path("/r/x/y")).prefix[2].split("\n")
    return shlex.split(lines[-1])


def test_ranks_get_the_modules_for_mpi_and_other_stages_the_host_itself():
    """A module for MPI brings --network, which Podman takes but once, and puts stages of one parent into one container."""
    site = in_image("perlmutter")
    ranks, alone = line_of(site, "train"), line_of(site, "convert")
    assert {"--gpu", "--nccl", "--cuda-mpi"} <= set(ranks) and not {"--network=host", "--ipc=host"} & set(ranks)
    assert "--gpu" in alone and {"--network=host", "--ipc=host", "--pid=host"} <= set(alone)
    assert not {"--nccl", "--cuda-mpi"} & set(alone)
    assert "--pull=never" in ranks and "--pull=never" in alone, "an absent image is not asked of any registry"
    both = in_image("slurm", "container.runtime=podman-hpc", "container.flags=[--net=slirp4netns]")
    assert "--network=host" not in line_of(both, "convert") and "--pid=host" in line_of(both, "convert")


def test_without_a_launcher_no_stage_shares_a_container():
    """`run` by hand starts many stages from one parent."""
    for settings in (("scheduler.kind=none",), ()):
        site = in_image("local", "container.runtime=podman-hpc", "container.rank_flags=[--cuda-mpi]", *settings)
        assert "--cuda-mpi" not in line_of(site, "train")


def test_each_runtime_of_a_site_has_its_own_flags():
    ranks = line_of(in_image("perlmutter", "container.runtime=shifter"), "train")
    assert ranks.count("--module=gpu,nccl-plugin") == 1 and "--module=gpu" not in ranks and "--gpu" not in ranks
    assert "--module=gpu" in line_of(in_image("perlmutter", "container.runtime=shifter"), "convert")
    words = line_of(in_image("frontier", "container.runtime=podman"), "train")
    assert "--device=/dev/kfd" in words and "--rm" in words


@pytest.mark.parametrize(
    "settings, told",
    [
        (["container.runtime=podman-hpc", "container.flags=[--gpu, --cuda-mpi]"], "move it to rank_flags"),
        (["container.runtime=podman", "container.flags=[--pid=private]"], "remove it"),
        (["container.digest=z"], "64 hexadecimal digits"),
        (["container.runtime=podman-hcp"], "did you mean 'podman-hpc'?"),
    ],
)
def test_a_setting_that_cannot_work_is_told_with_the_option_that_set_it(settings, told):
    said = message_of(lambda: site_files.load("slurm", settings))
    assert told in said and f"--set {settings[-1]}" in said


# A stand-in, as unkind as Shifter's documentation: it makes no directory in an image, and knows no options of Podman.
SHIFTER = """#!/bin/bash
modules=0 given=()
for word; do
    case $word in
    --image=docker:*|--clearenv) ;;
    --workdir=*) cd "${word#*=}" ;;
    --env=*) given+=("${word#*=}") ;;
    --module=*) modules=$((modules + 1)) ;;
    --volume=*:/tmp|--volume=*:/opt/gnnscale/gnnscale:ro|--volume=*:/opt/gnnscale/datasets:ro) ;;
    --volume=*) echo "FAILED to mount $word: no such directory in the image"; exit 1 ;;
    -*) echo "shifter: unrecognized option $word"; exit 1 ;;
    *) break ;;
    esac
    shift
done
[ $modules = 1 ] || { echo "FAILED: $modules times --module"; exit 1; }
exec env -i PATH="$PATH" "${given[@]}" "$@"
"""


@pytest.mark.parametrize("kind", ["convert", "train"])
def test_shifter_takes_the_words_of_perlmutter(tmp_path, kind):
    program, folder = tmp_path / "bin" / "shifter", tmp_path / "run" / kind / "x"
    program.parent.mkdir()
    program.write_text(SHIFTER)
    program.chmod(0o755)
    folder.mkdir(parents=True)
    settings = {"image": "docker:host/me/gnnscale:cuda", "scratch": "$HOME/made", "data": ("/raw",)}
    site = in_image("perlmutter", "container.runtime=shifter", **settings)
    env = SECRETS | {"PATH": f"{program.parent}:{os.environ['PATH']}", "HOME": str(tmp_path), "RANK": "1"}
    words = [*runtimes.wrap_stage(site, kind, folder).prefix, "sh", "-c", "pwd; env"]
    done = subprocess.run(words, env=env, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert {str(folder), "RANK=1", "TMPDIR=/tmp", "PYTHONPATH=/opt/gnnscale"} <= set(done.stdout.splitlines())
    assert "hidden" not in done.stdout and (tmp_path / "made").is_dir()


# ------------------------------------------------------------------------------------------- ends, by stand-ins of Podman
# As conmon does, it leaves the session and the family of the process that started the container.
PODMAN = """#!/bin/bash
while [ "$1" != IMAGE ]; do shift; done
shift
setsid -f "$@"
exec sleep 600
"""
STAGE = """
import pathlib, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: pathlib.Path("told").touch())
pathlib.Path("lives").touch()
while True: time.sleep(0.1)
"""


@pytest.mark.parametrize("reaped", [True, False])
def test_a_stage_ends_with_the_command_that_started_its_container(tmp_path, reaped):
    """It is told first, and is killed if it does not end; a command that has ended and is not waited for counts as gone."""
    program = tmp_path / "bin" / "podman"
    program.parent.mkdir()
    program.write_text(PODMAN)
    program.chmod(0o755)
    site = in_image("local", "container.runtime=podman", image="IMAGE", scratch=str(tmp_path))
    words = [*runtimes.wrap_stage(site, "train", tmp_path / "run" / "train" / "x").prefix, sys.executable, "-c", STAGE]
    env = {"PATH": f"{program.parent}:{os.environ['PATH']}"}
    started = subprocess.Popen(words, env=env, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_until((tmp_path / "lives").exists, "the stage")
    assert cluster.find_processes(STAGE)
    started.kill()
    if reaped:
        started.wait()
    wait_until(lambda: not cluster.find_processes(STAGE), "the end of the stage")
    assert (tmp_path / "told").exists()
    started.wait()


def test_a_container_that_ranks_share_ends_with_their_launcher(tmp_path):
    """podman-hpc lets it sleep for ever, and whoever kills its ranks leaves it behind."""
    program = tmp_path / "bin" / "podman-hpc"
    program.parent.mkdir()
    program.write_text("#!/bin/bash\nIFS=,; setsid -f $PODMANHPC_SHARED_RUN_COMMAND; touch shared; sleep 600\n")
    program.chmod(0o755)
    site = in_image("perlmutter", scratch=str(tmp_path))
    words = runtimes.wrap_stage(site, "train", tmp_path / "run" / "train" / "x").prefix
    env = {"PATH": f"{program.parent}:{os.environ['PATH']}"}
    launcher = subprocess.Popen(
        ["sh", "-c", 'echo $$ > pid; "$@"; true', "sh", *words, "true"], env=env, cwd=tmp_path, start_new_session=True
    )
    shared = f"while lives {launcher.pid}"

    def is_there():
        return any(shared in path.read_text() for path in Path("/proc").glob("[0-9]*/cmdline") if path.exists())

    try:
        wait_until((tmp_path / "shared").exists, "the container")
        wait_until(is_there, "its first process")
    finally:
        os.killpg(launcher.pid, signal.SIGKILL)
        launcher.wait()
    wait_until(lambda: not is_there(), "its end")
