"""The simulation of many workers, against closed forms."""

from __future__ import annotations

import math

import pytest
from benchmarks.simulation import Job, Outcome, job_of, limit, limits, simulate
from hypothesis import given, settings
from hypothesis import strategies as st

from cryosam_dask.planning.estimate import Bulk, Cluster, estimate
from cryosam_dask.stages.cost import Cost


def one_stage(units: int, work: Cost, **cluster: float) -> Outcome:
    job = Job()
    job.stage("stage", [work] * units)
    return simulate(job.tasks, Cluster(**cluster))  # type: ignore[arg-type]


def test_one_worker_takes_the_sum() -> None:
    job = Job()
    job.stage("stage", [Cost(1.0), Cost(2.5), Cost(0.25)])
    found = simulate(job.tasks, Cluster(1))
    assert found.makespan == pytest.approx(3.75)
    assert found.workers == pytest.approx(1)
    assert (found.driver, found.storage) == (0, 0)


@pytest.mark.parametrize(("units", "workers"), [(1, 4), (7, 3), (8, 4), (131, 64), (131, 256)])
def test_equal_units_go_round_by_round(units: int, workers: int) -> None:
    found = one_stage(units, Cost(2.0), workers=workers)
    rounds = math.ceil(units / workers)
    assert found.makespan == pytest.approx(2 * rounds)
    assert found.workers == pytest.approx(units / (rounds * workers))


def test_a_slow_driver_is_what_takes_the_time() -> None:
    """Short units on many workers: the driver has each in hand twice, and the last unit's own time comes on top."""
    found = one_stage(500, Cost(0.01), workers=64, driver_seconds=0.1)
    assert found.makespan == pytest.approx(500 * 0.1, rel=0.001)
    assert found.driver == pytest.approx(1, abs=0.001)
    assert found.workers < 0.01


def test_the_driver_hides_behind_long_units() -> None:
    found = one_stage(100, Cost(10.0), workers=4, driver_seconds=0.01)
    assert found.makespan == pytest.approx(25 * 10, rel=0.001)
    assert found.driver == pytest.approx(100 * 0.01 / 250, rel=0.01)


def test_a_window_of_one_leaves_workers_waiting_for_the_driver() -> None:
    """With no unit in reserve a worker waits until its result is taken and the next unit handed out."""
    narrow = one_stage(10, Cost(1.0), workers=1, driver_seconds=0.5, window=1)
    wide = one_stage(10, Cost(1.0), workers=1, driver_seconds=0.5, window=3)
    assert narrow.makespan == pytest.approx(10 * 1.5)
    assert wide.makespan == pytest.approx(10 * 1.0 + 0.5)


def test_shared_storage_is_what_takes_the_time() -> None:
    found = one_stage(40, Cost(0.0, read=60.0, write=40.0), workers=8, bandwidth=100.0)
    assert found.makespan == pytest.approx(40)
    assert found.storage == pytest.approx(1)


def test_units_share_the_bandwidth_while_they_move_and_only_then() -> None:
    """Two workers: each reads 100 bytes at 50 bytes/s beside the other, then computes alone for 3 s."""
    found = one_stage(2, Cost(3.0, read=100.0), workers=2, bandwidth=100.0)
    assert found.makespan == pytest.approx(2 + 3)
    assert found.storage == pytest.approx(2 / 5)


def test_a_flow_that_ends_leaves_its_share_to_the_others() -> None:
    """30 and 90 bytes at 10 bytes/s: both at 5 until the first ends at 6 s, then the other at 10 for 60 bytes."""
    job = Job()
    job.stage("short", [Cost(0.0, read=30.0)])
    job.stage("long", [Cost(0.0, read=90.0)])
    found = simulate(job.tasks, Cluster(2, bandwidth=10.0))
    assert found.ends == {"short": pytest.approx(6), "long": pytest.approx(12)}


def test_one_worker_does_not_get_more_than_its_own_bandwidth() -> None:
    assert one_stage(1, Cost(0.0, read=100.0), workers=4, bandwidth=1e9, worker_bandwidth=10).makespan == 10
    assert one_stage(4, Cost(0.0, read=100.0), workers=4, worker_bandwidth=10).makespan == pytest.approx(10)


def test_stages_wait_for_each_other() -> None:
    job = Job()
    first = job.stage("first", [Cost(4.0), Cost(1.0)])
    job.stage("second", [Cost(1.0)] * 4, after=first, seconds=0.5)
    found = simulate(job.tasks, Cluster(2))
    assert found.ends == {"first": pytest.approx(4), "second": pytest.approx(4 + 2 + 0.5)}
    assert found.driver == pytest.approx(0.5 / 6.5)


def test_a_chain_is_no_faster_on_many_workers() -> None:
    """Waves of two units each: what limits is their order, whatever the number of workers."""
    job, barrier = Job(), None
    for _ in range(10):
        barrier = job.stage("waves", [Cost(1.0)] * 2, after=barrier)
    few, many = Cluster(2), Cluster(64)
    assert simulate(job.tasks, few).makespan == simulate(job.tasks, many).makespan == pytest.approx(10)
    assert limit(job.tasks, many) == "order"
    assert limit(job.tasks, Cluster(1)) == "workers"


def test_units_that_need_only_some_others_do_not_wait_for_all() -> None:
    """The same waves, each pair waiting for one unit only, on the workers that are free."""
    job = Job()
    chains = [job.add("own", Cost(1.0 + 8 * (i == 0))) for i in range(3)]
    ends = [job.add("next", Cost(1.0), (index,)) for index in chains]
    job.add("last", Cost(0.0), ends, on_driver=True)
    assert simulate(job.tasks, Cluster(3)).makespan == pytest.approx(10)
    assert simulate(job.tasks, Cluster(2)).makespan == pytest.approx(10)


def test_an_empty_job_and_an_empty_stage_take_no_time() -> None:
    assert simulate([], Cluster(4)).makespan == 0
    assert one_stage(0, Cost(1.0), workers=4).makespan == 0
    assert limits([], Cluster(4)) == {"workers": 0, "driver": 0, "storage": 0, "order": 0}


@pytest.mark.parametrize(
    "wrong", [{"workers": 0}, {"workers": 1, "window": 0}, {"workers": 1, "bandwidth": 0.0},
              {"workers": 1, "driver_seconds": -1.0}],
)  # fmt: skip
def test_clusters_that_can_not_be_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="got Cluster"):
        Cluster(**wrong)  # type: ignore[arg-type]


def test_a_task_can_not_come_after_one_that_is_not_there() -> None:
    with pytest.raises(ValueError, match="added before it"):
        Job().add("stage", Cost(1.0), (0,))


works = st.builds(Cost, st.floats(0, 10), st.floats(0, 1e3), st.floats(0, 1e3))
stages = st.lists(st.lists(works, max_size=8), max_size=4)
clusters = st.builds(
    Cluster, st.integers(1, 9), st.floats(0, 2), st.sampled_from([math.inf, 50.0]), st.sampled_from([math.inf, 20.0])
)


@settings(max_examples=60, deadline=None)
@given(stages, clusters)
def test_no_job_is_faster_than_its_limits(work: list[list[Cost]], cluster: Cluster) -> None:
    job, barrier = Job(), None
    for units in work:
        barrier = job.stage("stage", units, after=barrier)
    found = simulate(job.tasks, cluster)
    bounds = limits(job.tasks, cluster)
    assert found.makespan >= max(bounds.values()) * (1 - 1e-9)
    assert found.makespan <= (sum(bounds.values()) + bounds["workers"] * cluster.workers) * (1 + 1e-9)
    for share in (found.workers, found.driver, found.storage):
        assert 0 <= share <= 1 + 1e-9
    assert found.driver * found.makespan == pytest.approx(bounds["driver"])
    assert found.storage * found.makespan == pytest.approx(bounds["storage"])


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.builds(Bulk, st.just("a"), st.integers(0, 300), works, st.just(0.0), st.floats(0, 3)), max_size=4),
    clusters,
)
def test_the_formula_is_near_the_simulation(bulks: list[Bulk], cluster: Cluster) -> None:
    """Of what limits it counts the greatest alone: never more than the simulation, seldom less than half of it."""
    simulated = simulate(job_of(bulks).tasks, cluster).makespan
    assert simulated / 3 - 1e-9 <= sum(estimate(bulk, cluster)[0] for bulk in bulks) <= simulated * 1.0001 + 1e-9


@pytest.mark.parametrize(
    ("bulk", "cluster", "expected"),
    [
        (Bulk("a", 131, Cost(40.0)), Cluster(8), (17 * 40, "workers")),
        (Bulk("a", 131, Cost(40.0)), Cluster(256), (40, "order")),
        (Bulk("a", 10, Cost(1.0), longest=9.0), Cluster(5), (9, "order")),
        (Bulk("a", 10_000, Cost(0.1)), Cluster(256, driver_seconds=0.01), (100, "driver")),
        (Bulk("a", 0, Cost(0.0), driver=2.0), Cluster(256), (2, "driver")),
        (Bulk("a", 100, Cost(0.1, 1e9)), Cluster(64, bandwidth=1e9), (100, "storage")),
    ],
)
def test_the_formula_says_what_limits(bulk: Bulk, cluster: Cluster, expected: tuple[float, str]) -> None:
    seconds, what = estimate(bulk, cluster)
    assert seconds == pytest.approx(expected[0])
    assert what == expected[1]
