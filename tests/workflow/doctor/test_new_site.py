"""Recorded output of schedulers becomes a valid file of a site."""

import json
import re

import pytest

from gnnscale.contract.errors import UserError
from workflow.config import site_files
from workflow.doctor import new_site
from workflow.scheduler import pbs, slurm
from workflow.scheduler.queue_facts import QueueFacts
from workflow.scheduler.registry import SCHEDULERS

# sinfo -h -o '%P|%a|%l|%D|%c|%m|%G', of clusters of different kinds
SINFO = """debug*|up|30:00|2|8|16000|(null)
batch|up|2-00:00:00|120|128|512000|(null)
gpu|up|1-12:00:00|16|64|515000|gpu:a100:4(S:0-3)
gpu|up|1-12:00:00|4|64+|1031000+|gpu:a100:4(S:0-3),nvme:1
long|up|infinite|120|128|512000|(null)
old|down|infinite|3|16|64000|(null)
"""
SCONTROL = """PartitionName=debug AllowGroups=ALL AllowAccounts=ALL Default=YES MaxNodes=1 MaxTime=00:30:00 MinNodes=0 State=UP
PartitionName=gpu AllowGroups=ALL Default=NO MaxNodes=UNLIMITED MaxTime=1-12:00:00 MinNodes=1 State=UP QoS=N/A
"""
PBSNODES = {
    "nodes": {
        f"x{i}": {
            "state": "free" if i < 3 else "offline,down",
            "resources_available": {"arch": "linux", "host": f"x{i}", "mem": "527650700kb", "ncpus": 64, "ngpus": 4},
        }
        for i in range(4)
    }
}
QSTAT = {
    "Queue": {
        "route": {"queue_type": "Route", "enabled": "True", "started": "True"},
        "small": {
            "queue_type": "Execution",
            "enabled": "True",
            "started": "True",
            "resources_max": {"walltime": "06:00:00", "nodect": 24},
            "resources_min": {"nodect": 10},
        },
        "workq": {"queue_type": "Execution", "total_jobs": 0, "enabled": "True", "started": "True"},
        "closed": {"queue_type": "Execution", "enabled": "False"},
    }
}


def valid(text, tmp_path):
    path = tmp_path / "new.yaml"
    path.write_text(text)
    return site_files.load_file(path)


def test_partitions_of_slurm():
    found = {p.name: p for p in slurm.parse_queues(SINFO, SCONTROL)}
    assert set(found) == {"debug", "batch", "gpu", "long"}, "and none that is down"
    assert found["debug"] == QueueFacts("debug", True, 1, 1, 1800, 8, 16.0, 0, "")
    assert found["gpu"] == QueueFacts("gpu", False, 1, 20, 36 * 3600, 64, 515.0, 4, "a100")
    assert found["long"].seconds is None and found["batch"].seconds == 48 * 3600


@pytest.mark.parametrize(
    ("limit", "seconds"),
    [
        ("30:00", 1800),
        ("5", 300),
        ("1:00:00", 3600),
        ("2-0", 172800),
        ("1-2:03:04", 93784),
        ("7-00:00", 604800),
        ("infinite", None),
        ("n/a", None),
    ],
)
def test_limits_of_slurm(limit, seconds):
    assert slurm.parse_duration(limit) == seconds


@pytest.mark.parametrize(
    ("gres", "found"),
    [
        ("(null)", (0, "")),
        ("gpu:4", (4, "")),
        ("gpu:h100:8(S:0-1)", (8, "h100")),
        ("gpu:a100:2,gpu:t4:1", (3, "a100")),
        ("gpu:nvidia_a100-sxm4-40gb:4(S:1,3)", (4, "nvidia_a100-sxm4-40gb")),
    ],
)
def test_gpus_of_slurm(gres, found):
    assert slurm.parse_gres(gres) == found


def test_a_file_for_slurm(tmp_path):
    site = valid(new_site.format_site_file("slurm", slurm.parse_queues(SINFO, SCONTROL), []), tmp_path)
    assert site.scheduler.directives == ("--gpus-per-node=4",) and site.node.gpus.model == "a100"
    assert site.queues["gpu"].max_walltime == "36:00:00" and site.queues["gpu"].nodes == (1, 20)
    assert site.queues["gpu"].node is None and site.queues["batch"].node.cores == 128
    assert not site.queues["debug"].production and site.queues["long"].production
    assert site.serial.queue == "gpu" and site.launch.threads_per_rank == 16


def test_a_file_for_a_slurm_without_gpus(tmp_path):
    site = valid(
        new_site.format_site_file("slurm", slurm.parse_queues("all*|up|5:00|4|8|900|(null)\n", ""), []), tmp_path
    )
    assert site.node.gpus is None and site.serial.walltime == "00:05:00"


def test_a_file_for_pbs(tmp_path):
    found = pbs.parse_queues(json.dumps(PBSNODES), json.dumps(QSTAT))
    assert [(p.name, p.fewest, p.most, p.seconds) for p in found] == [("small", 10, 24, 21600), ("workq", 1, 3, None)]
    devices = new_site.parse_nvidia("NVIDIA A100-SXM4-40GB, 40960 MiB\nNVIDIA A100-SXM4-40GB, 40960 MiB\n")
    text = new_site.format_site_file("pbs", found, devices)
    site = valid(text, tmp_path)
    assert site.scheduler.select == "ngpus=4" and site.node.cores == 64 and site.node.gpus.memory_gb == 43
    assert site.serial.queue == "workq", "the first that gives a single node"
    assert site.queues["small"].nodes == (10, 24) and site.node.gpus.peak_tflops["bf16"] == 312


def test_gpus_of_this_machine():
    assert new_site.parse_nvidia("NVIDIA H200, 143771 MiB\n")[0] == new_site.LocalGPU("NVIDIA H200", 151, "nvidia")
    said = {"card0": {"Card Series": "AMD INSTINCT MI250X", "VRAM Total Memory (B)": "68702699520"}}
    assert new_site.parse_rocm(json.dumps(said)) == [new_site.LocalGPU("AMD INSTINCT MI250X", 69, "amd")]
    assert new_site.parse_nvidia("") == [] and new_site.parse_rocm("no such device") == []


@pytest.mark.parametrize(
    ("here", "there", "same"),
    [
        ("login03", "login12", True),
        ("login03", "logs", False),
        ("dt-login01.x.edu", "dt-login04.x.edu", True),
        ("dt-login01.x.edu", "dt-login01-x.edu", False),
    ],
)
def test_login_nodes_differ_in_their_numbers(here, there, same):
    assert bool(re.search(new_site.host_pattern(here), there)) == same


SILENT = "echo 'slurm_load_partitions: Unable to contact slurm controller' >&2; exit 1"


def programs(folder, monkeypatch, **scripts):
    for name, text in scripts.items():
        (folder / name).write_text(f"#!/bin/sh\n{text}\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")


def test_the_scheduler_that_answers_is_described(tmp_path, monkeypatch):
    """The commands of another one may be installed too, and say that it is away."""
    (tmp_path / "nodes").write_text(json.dumps(PBSNODES))
    (tmp_path / "queues").write_text(json.dumps(QSTAT))
    files = {"pbsnodes": f"cat {tmp_path}/nodes", "qstat": f"cat {tmp_path}/queues"}
    programs(tmp_path, monkeypatch, sinfo=SILENT, scontrol=SILENT, flux="exit 1", **files)
    assert "kind: pbs" in new_site.draft_site_file()


def test_where_none_answers_all_are_told(tmp_path, monkeypatch):
    programs(tmp_path, monkeypatch, sinfo=SILENT, scontrol=SILENT, pbsnodes="echo '{}'", qstat="echo '{}'")
    with pytest.raises(UserError) as told:
        new_site.draft_site_file()
    said = told.value.message
    assert "slurm: sinfo: slurm_load_partitions: Unable to contact slurm controller" in said
    assert "pbs: it answers, and lists no queue with nodes" in said
    assert all(f"{kind}: " in said for kind in SCHEDULERS) and "sites/slurm.yaml" in str(told.value)
