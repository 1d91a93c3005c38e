"""Requests keep to the policies of every site for any sweep, and are as expected for small ones."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gnnscale.contract import places
from gnnscale.contract.errors import UserError
from gnnscale.contract.settings import TrainSettings
from tests.support.sweeps import make_stage, make_sweep, make_training
from workflow.config import capacity, site_files
from workflow.config.walltime import to_seconds
from workflow.jobs import requests
from workflow.plan import build, cost

BATCH = [name for name in site_files.list_sites() if site_files.load_file(places.SITES / f"{name}.yaml").has_scheduler]
SITES = {name: site_files.load_file(places.SITES / f"{name}.yaml") for name in BATCH}


def with_queue(site, name, **changes):
    return site.model_copy(update={"queues": site.queues | {name: site.queues[name].model_copy(update=changes)}})


def jobs(stages, site):
    return list(dict.fromkeys(requests.schedule(stages, site).values()))


# --------------------------------------------------------------------------------------------- whatever the sweep is
@given(
    st.sampled_from(BATCH),
    st.lists(st.tuples(st.sampled_from([1, 2, 4]), st.floats(0.001, 400)), min_size=1, max_size=60),
)
def test_policies_are_kept(name, sizes):
    site = SITES[name]
    most = max(queue.nodes[1] for queue in capacity.training_queues(site).values())
    stages = [make_training(site, f"t{i}", hours, min(nodes, most)) for i, (nodes, hours) in enumerate(sizes)]
    made = requests.schedule(stages, site)
    assert set(made) == {s.id for s in stages}
    for request in set(made.values()):
        queue, mine = site.queues[request.queue], [s for s in stages if made[s.id] is request]
        assert request.stages == tuple(s.id for s in sorted(mine, key=lambda s: request.stages.index(s.id)))
        assert queue.production and queue.nodes[0] <= request.nodes <= queue.nodes[1]
        assert 60 <= request.seconds <= to_seconds(queue.max_walltime) and request.seconds % 60 == 0
        assert request.nodes >= request.nodes_each * len(mine)
        assert all(requests.nodes_for(s, site) == request.nodes_each for s in mine)
        useful = request.jobs * (request.seconds - site.scheduler.signal_seconds * (request.jobs > 1))
        assert useful >= max(s.core_seconds for s in mine), "the work fits into the time that is asked for"
        assert request.expected_seconds == max(s.core_seconds for s in mine)
        assert len(mine) == 1 or site.launch.command in ("srun", "mpiexec")
    total = sum(request.node_hours for request in set(made.values()))
    assert requests.total_node_hours(made) == pytest.approx(total)


@given(st.sampled_from(BATCH), st.integers(1, 300))
def test_no_more_is_paid_than_twice_the_least(name, count):
    site, stages = SITES[name], make_sweep(SITES[name], count, hours=2.0)
    paid = requests.total_node_hours(requests.schedule(stages, site))
    least = min(
        sum(r.node_hours for r in requests.requests_in_queue(queue, site.queues[queue], 1, stages, site))
        for queue in capacity.training_queues(site)
    )
    assert paid <= 2 * least * (1 + 1e-9)


# -------------------------------------------------------------------------------------------------- single decisions
def test_a_training_is_a_job():
    made = jobs(make_sweep(SITES["perlmutter"], 100, hours=3), SITES["perlmutter"])
    assert len(made) == 100 and {r.nodes for r in made} == {1}
    assert {r.walltime for r in made} == {"04:30:00"} and {r.why for r in made} == {""}


def test_many_short_trainings_do_not_flood_the_queue():
    made = jobs(make_sweep(SITES["perlmutter"], 200, hours=0.1), SITES["perlmutter"])
    assert len(made) == 50 and {len(r.stages) for r in made} == {4} and "200 short trainings" in made[0].why
    assert len(jobs(make_sweep(SITES["perlmutter"], 50, hours=0.1), SITES["perlmutter"])) == 50


def test_a_queue_that_wants_ten_nodes_gets_ten_trainings():
    site = SITES["polaris"]
    made = jobs(make_sweep(site, 100, hours=1), site)
    assert {(r.queue, r.nodes, len(r.stages), r.nodes_each) for r in made} == {("prod-small", 10, 10, 1)}
    assert len(made) == 10 and "takes 10 to 24 nodes" in made[0].why


def test_few_small_trainings_do_not_pay_for_a_large_job():
    for count in (1, 20):
        made = jobs(make_sweep(SITES["aurora"], count, hours=1), SITES["aurora"])
        assert {r.queue for r in made} == {"capacity"} and sum(r.nodes for r in made) == count
    made = jobs(make_sweep(SITES["aurora"], 240, hours=1), SITES["aurora"])
    assert [(r.queue, r.nodes, len(r.stages)) for r in made] == [("prod-small", 256, 240)]


def test_what_would_wait_for_each_other_is_packed():
    site = with_queue(SITES["slurm"], "default", max_running=4)
    made = jobs(make_sweep(site, 20), site)
    assert [len(r.stages) for r in made] == [5, 5, 5, 5] and {r.nodes for r in made} == {5}
    assert "runs 4 job(s) of a user at a time" in made[0].why


def test_trainings_of_about_the_same_length_share_a_job():
    site = with_queue(SITES["slurm"], "default", max_running=2)
    stages = [make_training(site, f"t{i}", hours) for i, hours in enumerate([1, 9, 1.1, 10])]
    assert {r.stages for r in jobs(stages, site)} == {("train/t3", "train/t1"), ("train/t2", "train/t0")}


def test_a_training_that_waits_for_another_is_not_in_its_job():
    site = with_queue(SITES["slurm"], "default", max_running=1)
    first = [make_training(site, "a1"), make_training(site, "a2")]
    later = [
        make_training(site, "b1", shorter=("train/a1",)),
        make_training(site, "b2", shorter=("train/a1", "train/a2")),
    ]
    last = make_training(site, "c", shorter=("train/b2",))
    made = requests.schedule([last, *later, *first], site)
    assert made["train/a1"] is made["train/a2"] and made["train/b1"] is made["train/b2"]
    assert len({id(r) for r in made.values()}) == 3


def test_a_host_that_may_not_be_named_is_never_shared():
    for name in ("vista", "stampede3"):
        assert all(len(r.stages) == 1 for r in jobs(make_sweep(SITES[name], 60), SITES[name]))


def test_what_takes_longer_than_the_queue_is_continued():
    site = SITES["clariden"]
    (made,) = jobs([make_training(site, hours=30)], site)
    assert made.seconds == 12 * 3600 and made.jobs == 4 and "4 jobs one after another" in made.why
    assert made.node_hours == 30 and made.node_hours_at_most == 48


def test_no_more_is_asked_for_than_the_limit():
    """Schedulers count whole minutes, to which a limit must not be rounded up."""
    site = with_queue(SITES["slurm"], "default", max_walltime="02:20:30")
    site = site.model_copy(update={"serial": site.serial.model_copy(update={"walltime": "02:20:30"})})
    for each in (make_training(site, hours=30), make_stage("convert", "c", 3e5), make_stage("convert", "c", 60)):
        (made,) = jobs([each], site)
        assert made.walltime == "02:20:00" and made.seconds == 8400


@pytest.mark.parametrize("signal", [300, 1800, 3600])
def test_a_job_is_told_to_stop_after_what_it_is_expected_to_take(signal):
    site = SITES["polaris"]
    site = site.model_copy(update={"scheduler": site.scheduler.model_copy(update={"signal_seconds": signal})})
    (made,) = jobs([make_training(site, hours=0.4)], site)
    assert made.jobs == 1 and made.seconds - signal >= made.expected_seconds


def test_a_queue_may_be_asked_for():
    site = SITES["polaris"].model_copy(update={"train": SITES["polaris"].train.model_copy(update={"queue": "debug"})})
    (made,) = jobs([make_training(site, hours=0.2)], site)
    assert (made.queue, made.seconds) == ("debug", 1800)


def test_a_training_that_no_queue_takes_is_refused_in_words():
    with pytest.raises(UserError, match="train/x needs 4000 nodes, no queue of this site takes more than 496"):
        requests.schedule([make_training(SITES["polaris"], nodes=4000)], SITES["polaris"])


# ------------------------------------------------------------------------------------------------ stages without ranks
def test_stages_without_ranks_share_a_job_where_they_are_ready_together():
    site = SITES["stampede3"]
    stages = [make_stage("convert", f"c{i}", 60 * i, needs=("convert_part/s",) * (i == 1)) for i in range(1, 5)]
    stages += [
        make_stage("convert_part", "s", 100),
        make_stage("audit", "all", 50, needs=tuple(f"convert/c{i}" for i in range(1, 5))),
    ]
    stages += [make_stage("scaling", "all", 5), make_stage("report", "all", 5)]
    made = requests.schedule(stages, site)
    assert {r.stages: (r.slots, r.expected_seconds) for r in made.values()} == {
        ("convert/c4", "convert/c3", "convert/c2", "convert_part/s"): (4, 240.0),
        ("convert/c1",): (1, 60.0),
        ("audit/all",): (1, 50.0),
    }
    assert {r.queue for r in made.values()} == {"skx"} and made["convert_part/s"].walltime == "02:00:00"
    assert set(requests.schedule(stages, site.model_copy(update={"serial": None}))) == set()
    assert requests.schedule(stages, site_files.load_file(places.SITES / "local.yaml")) == {}


def test_what_takes_longer_than_its_queue_goes_on_if_it_can():
    site = SITES["stampede3"]
    made = requests.schedule([make_stage("convert", "c", 3e5)], site)["convert/c"]
    assert made.jobs == 3 and made.walltime == "48:00:00" and "more `parts`" in made.why
    made = requests.schedule([make_stage("evaluate", "e", 3e5)], site)["evaluate/e"]
    assert made.jobs == 1 and "longer than skx allows: set serial.queue" in made.why


def test_in_an_image_the_laws_and_the_report_are_of_a_job_too():
    """A login node may lack the runtime, and the disks and sockets that are bound on nodes."""
    stages = [make_stage("evaluate", "e", 60), make_stage("scaling", "all", 5, needs=("evaluate/e",))]
    stages += [make_stage("report", "all", 5, needs=("scaling/all",))]
    for name in ("frontier", "polaris", "clariden"):
        made = requests.schedule(stages, SITES[name])
        assert set(made) == {"evaluate/e"}
        container = SITES[name].container.model_copy(update={"use": True})
        inside = SITES[name].model_copy(update={"container": container})
        made = requests.schedule(stages, inside)
        assert [made[s.id].stages for s in stages] == [(s.id,) for s in stages], "each waits for the one before"
        assert {made[s.id].queue for s in stages} == {SITES[name].serial.queue}
        alone = requests.schedule(stages, inside.model_copy(update={"serial": None}))
        assert set(alone) == {"evaluate/e"}, "the site wants no jobs of such stages"


@pytest.mark.parametrize(
    ("name", "slots"), [("perlmutter", 4), ("aurora", 12), ("vista", 1), ("stampede3", 48), ("andes", 32)]
)
def test_left_over_evaluations_have_a_gpu_each(name, slots):
    """Nodes of the queue must have GPUs: stampede3 has a queue of CPUs for these stages."""
    made = jobs([make_stage("evaluate", f"e{i}", 600) for i in range(78)], SITES[name])
    assert {r.slots for r in made} == {slots} and f"{slots} at a time" in made[0].why
    made = jobs([make_stage("convert", f"c{i}", 600) for i in range(78)], SITES[name])
    assert min(r.slots for r in made) >= 29, "conversions need none"


@given(st.lists(st.floats(1, 2e4), min_size=1, max_size=150), st.sampled_from(BATCH), st.sampled_from([None, 1, 2, 48]))
def test_whatever_is_left_to_evaluate(lengths, name, cores):
    """Few jobs, every stage once, and at least the work divided by the cores that share it."""
    site = SITES[name].model_copy(update={"node": SITES[name].node.model_copy(update={"cores": cores or 16})})
    stages = [make_stage("evaluate", f"e{i}", seconds) for i, seconds in enumerate(lengths)]
    made = jobs(stages, site)
    assert sorted(id for r in made for id in r.stages) == sorted(s.id for s in stages)
    room, longest = site.queues[made[0].queue], max(lengths)
    most = (room.node and room.node.cores) or site.node.cores
    for r in made:
        mine = [s.core_seconds for s in stages if s.id in r.stages]
        assert 1 <= r.slots <= min(most, len(mine)) and r.seconds <= to_seconds(room.max_walltime)
        assert max(sum(mine) / r.slots, max(mine)) * (1 - 1e-9) <= r.expected_seconds <= sum(mine) / r.slots + longest
        assert r.expected_seconds <= r.seconds or r.jobs > 1 or r.why
    fill = max(to_seconds(site.serial.walltime) / requests.WALLTIME_MARGIN, longest)
    assert len(made) <= 1 + sum(lengths) / (fill * max(r.slots for r in made))


def test_an_evaluation_rides_in_the_job_of_its_training():
    site = with_queue(SITES["slurm"], "default", max_running=1)
    trainings = [make_training(site, "a", 1), make_training(site, "b", 2)]
    stages = [*trainings, *(make_stage("evaluate", n, 360, needs=(f"train/{n}", "convert/c")) for n in "abx")]
    made = requests.schedule(stages, site)
    shared = made["train/a"]
    assert shared.stages == ("train/b", "train/a") and shared.all_stages == (
        "train/b",
        "train/a",
        "evaluate/b",
        "evaluate/a",
    )
    assert (
        made["evaluate/a"] is made["evaluate/b"] is made["train/b"] is shared and shared.expected_seconds == 7200 + 360
    )
    assert made["evaluate/x"].stages == ("evaluate/x",), "whose training is done already"
    assert requests.total_node_hours(made) == pytest.approx((2 * 7560 + 360) / 3600)


# ------------------------------------------------------------------------------------------------------ how many nodes
def fitted(site, width, structures, hours=24.0, batch=256):
    site = site.model_copy(update={"train": site.train.model_copy(update={"hours": hours})})
    settings = TrainSettings(model={"form": "edge", "width": width}, optim={"batch": batch, "epochs": 10})
    return build.fit_into_memory(settings, [cost.SourceSize(structures, 30, 40)], site)


def test_more_nodes_where_a_training_would_take_too_long():
    one = fitted(SITES["perlmutter"], 1000, 1e6, 1e9)[0] / 3600
    found = [fitted(SITES["perlmutter"], 1000, 1e6, one * share) for share in (1.01, 0.6, 0.3, 0.001)]
    assert [levers.runtime.ranks for _, levers in found] == [4, 8, 16, 64], (
        "64 = 16 nodes, the most of a training there"
    )
    assert all(took <= one * share * 3600 for (took, _), share in zip(found[:3], (1.01, 0.6, 0.3)))


def test_more_nodes_where_one_has_not_the_memory():
    _, small = fitted(SITES["polaris"], 1000, 1000)
    _, large = fitted(SITES["polaris"], 20000, 1000)
    assert small.runtime.ranks == 4 and not small.refusal
    assert large.runtime.ranks > 4 and large.runtime.zero_stage > 0 and not large.refusal


def test_no_more_ranks_than_structures_in_a_batch():
    assert fitted(SITES["frontier"], 1000, 1e7, hours=0.001, batch=8)[1].runtime.ranks == 8


def test_a_budget_is_refused_before_it_is_passed():
    site = SITES["perlmutter"]
    made = requests.schedule(make_sweep(site, 10, hours=2), site)
    requests.check_budget(made, site, 20.0)
    requests.check_budget(made, site, None)
    with pytest.raises(UserError, match=r"expected to take 20\.0 node-hours, --max-node-hours allows 19\.9"):
        requests.check_budget(made, site, 19.9)
