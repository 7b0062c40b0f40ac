"""What every executor does: inherit, and give an `executor` fixture."""

from __future__ import annotations

import itertools
import time
from pathlib import Path

import numpy as np
import pytest
from toy_stage import ARRAY, calls, new_store, squares, toy_stage

from cryosam_dask.errors import ExecutionError, InputError, MemoryLimitError, StoreError
from cryosam_dask.executors import Executor, base, execute
from cryosam_dask.store import marks


class ExecutorContract:
    @pytest.fixture
    def executor(self) -> Executor:
        raise NotImplementedError

    @pytest.fixture(autouse=True)
    def _no_pause(self, monkeypatch):
        monkeypatch.setattr(base, "RETRY_PAUSE", 0.01)

    def test_every_unit_runs_once_and_is_marked(self, executor, tmp_path):
        store = new_store(tmp_path)
        done = execute(toy_stage(tmp_path), store, executor)
        assert calls(tmp_path) == [1] * 6
        assert np.array_equal(store.array(ARRAY)[:], squares())  # bit for bit
        assert marks.done(store, "toy").all()
        assert done.skipped == 0
        assert {name: result.value["index"] for name, result in done.results.items()} == {
            f"unit {i}": i for i in range(6)
        }

    def test_timings_are_kept_of_each_unit(self, executor, tmp_path):
        began = time.perf_counter()
        done = execute(toy_stage(tmp_path, faults={2: "slow"}), new_store(tmp_path), executor)
        elapsed = time.perf_counter() - began
        timings = {timing.unit: timing for timing in done.timings}
        assert len(timings) == len(done.timings) == 6
        assert 0.5 <= timings["unit 2"].seconds < elapsed
        assert all(10 << 20 < timing.memory <= timing.peak for timing in done.timings)
        assert done.peak == max(timing.peak for timing in done.timings)

    def test_none_counts_as_done(self, executor, tmp_path):
        store = new_store(tmp_path)
        done = execute(toy_stage(tmp_path, faults={1: "none"}), store, executor)
        assert done.results["unit 1"].value == {}
        assert marks.done(store, "toy").all()

    def test_second_run_has_nothing_to_do(self, executor, tmp_path):
        store = new_store(tmp_path)
        execute(toy_stage(tmp_path), store, executor)
        again = execute(toy_stage(tmp_path), store, executor)
        assert (again.skipped, again.results) == (6, {})
        assert calls(tmp_path) == [1] * 6

    def test_some_units_of_a_stage_can_be_asked_for(self, executor, tmp_path):
        store = new_store(tmp_path)
        stage = toy_stage(tmp_path)
        execute(stage, store, executor, units=stage.units[1:3])
        assert calls(tmp_path) == [0, 1, 1, 0, 0, 0]
        assert execute(stage, store, executor).skipped == 2
        assert calls(tmp_path) == [1] * 6

    @pytest.mark.parametrize("fault", ["once", "half"])
    def test_passing_trouble_is_retried(self, executor, tmp_path, fault):
        store = new_store(tmp_path)
        execute(toy_stage(tmp_path, faults={0: fault, 4: fault}), store, executor)
        assert calls(tmp_path) == [2, 1, 1, 1, 2, 1]
        assert np.array_equal(store.array(ARRAY)[:], squares())

    def test_lasting_trouble_is_named_and_the_others_finish(self, executor, tmp_path):
        store = new_store(tmp_path)
        with pytest.raises(ExecutionError) as caught:
            execute(toy_stage(tmp_path, faults={0: "always", 3: "always"}), store, executor, retries=1)
        message = str(caught.value)
        for part in ("toy", "2 of 6", "unit 0", "unit 3", "RuntimeError: a lasting trouble"):
            assert part in message
        assert "\n" not in message
        assert isinstance(caught.value.__cause__, RuntimeError)
        assert calls(tmp_path) == [2, 1, 1, 2, 1, 1]
        assert marks.done(store, "toy").tolist() == [False, True, True, False, True, True]

    def test_resume_runs_only_what_is_left(self, executor, tmp_path):
        store = new_store(tmp_path)
        with pytest.raises(ExecutionError):
            execute(toy_stage(tmp_path, faults={3: "always"}), store, executor, retries=0)
        again = execute(toy_stage(tmp_path), store, executor)
        assert again.skipped == 5
        assert list(again.results) == ["unit 3"]
        assert calls(tmp_path) == [1, 1, 1, 2, 1, 1]
        assert np.array_equal(store.array(ARRAY)[:], squares())

    def test_bad_input_is_raised_as_it_is_and_not_retried(self, executor, tmp_path):
        store = new_store(tmp_path)
        with pytest.raises(InputError, match=r"^tomo.mrc: slice 3 holds NaN$"):
            execute(toy_stage(tmp_path, faults={1: "input"}), store, executor)
        assert calls(tmp_path) == [1] * 6
        assert marks.done(store, "toy").tolist() == [True, False, True, True, True, True]

    def test_full_disk_ends_the_run_in_words(self, executor, tmp_path):
        store = new_store(tmp_path, 40)
        with pytest.raises(StoreError, match=r"run.zarr: No space left on device while toy ran unit \d+; mend that"):
            execute(toy_stage(tmp_path, 40, faults=dict.fromkeys(range(40), "full")), store, executor)
        assert sum(calls(tmp_path, 40)) < 20

    def test_what_fails_for_all_is_not_tried_on_all(self, executor, tmp_path):
        units = 400
        with pytest.raises(ExecutionError, match="lasting trouble"):
            execute(
                toy_stage(tmp_path, units, faults=dict.fromkeys(range(units), "always")),
                new_store(tmp_path, units),
                executor,
                retries=1,
            )
        assert sum(calls(tmp_path, units)) <= 2 * (base.PATIENCE + 8)

    def test_a_unit_that_is_not_done_is_not_marked(self, executor, tmp_path):
        store = new_store(tmp_path)
        first = execute(toy_stage(tmp_path, faults={2: "not done"}), store, executor)
        assert first.results["unit 2"].value == {"waits": True}
        assert marks.done(store, "toy").tolist() == [True, True, False, True, True, True]
        second = execute(toy_stage(tmp_path), store, executor)
        assert list(second.results) == ["unit 2"]
        assert calls(tmp_path) == [1, 1, 2, 1, 1, 1]

    def test_too_large_a_unit_is_refused_before_anything_ran(self, executor, tmp_path):
        store = new_store(tmp_path)
        stage = toy_stage(tmp_path, model_memory=10**15, advice="choose a smaller slab")
        with pytest.raises(MemoryLimitError) as caught:
            execute(stage, store, executor)
        for part in ("toy", "unit 5", "1.0 PB", "choose a smaller slab"):
            assert part in str(caught.value)
        assert calls(tmp_path) == [0] * 6
        assert marks.found_stage(store, "toy") is None  # so that other settings can be tried

    def test_other_settings_are_named(self, executor, tmp_path):
        store = new_store(tmp_path)
        execute(toy_stage(tmp_path), store, executor)
        with pytest.raises(StoreError, match="power: 2 → 3"):
            execute(toy_stage(tmp_path, power=3), store, executor)
        assert calls(tmp_path) == [1] * 6
        assert np.array_equal(store.array(ARRAY)[:], squares())

    def test_a_stage_without_units_is_done(self, executor, tmp_path):
        store = new_store(tmp_path)
        assert execute(toy_stage(tmp_path, 0), store, executor).results == {}
        assert marks.found_stage(store, "toy") is not None

    def test_a_relative_store_is_found_by_workers(self, executor, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        store = new_store(Path())
        execute(toy_stage(tmp_path), store, executor)
        assert np.array_equal(store.array(ARRAY)[:], squares())

    def test_an_interrupt_passes_through_and_drops_what_waits(self, executor, tmp_path):
        store = new_store(tmp_path, 60)
        stage = toy_stage(tmp_path, 60)
        reports = itertools.count()

        def interrupt(unit, outcome):
            if next(reports) == 2:
                raise KeyboardInterrupt

        marks.begin(store, "toy", fingerprint=stage.fingerprint, settings=stage.settings, count=60)
        context = base.Context(store.url)
        with pytest.raises(KeyboardInterrupt):
            executor.run(stage, context, stage.units, interrupt)
        assert sum(calls(tmp_path, 60)) < 30
        execute(stage, store, executor)
        assert marks.done(store, "toy").all()

    def test_device_of_stages_without_a_model_is_the_cpu(self, executor, tmp_path):
        done = execute(toy_stage(tmp_path), new_store(tmp_path), executor)
        assert {result.value["device"] for result in done.results.values()} == {"cpu"}

    def test_it_says_what_it_is(self, executor):
        assert "CPU" in executor.describe()
        assert executor.name in ("serial", "dask")
        assert executor.device == "cpu"
        assert executor.worker_memory is None or executor.worker_memory > 10_000
