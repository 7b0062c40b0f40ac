from __future__ import annotations

import io
import logging
import sys

from rich.console import Console
from toy_stage import new_store, toy_stage

from cryosam_dask.executors import NullProgress, Progress, SerialExecutor, execute


def terminal() -> Console:
    return Console(file=io.StringIO(), force_terminal=True, width=120, color_system=None)


def test_a_terminal_shows_stage_count_and_device():
    console = terminal()
    bar = Progress(console).stage("features", 5, 2, "cuda")
    bar.advance(1)
    bar.advance(2)
    bar.close()
    shown = console.file.getvalue()
    for part in ("features", "5/5", "cuda"):
        assert part in shown


def test_stages_follow_each_other_on_lines_of_their_own():
    console = terminal()
    progress = Progress(console)
    for name in ("ingest", "match/ribosome/r16"):
        bar = progress.stage(name, 1, 0, "cpu")
        bar.advance()
        bar.close()
    lines = [line for line in console.file.getvalue().splitlines() if "1/1" in line]
    assert "ingest" in lines[0]
    assert "match/ribosome/r16" in lines[-1]
    assert not any("ingest" in line and "match" in line for line in lines)


def test_nothing_is_drawn_without_a_terminal(monkeypatch, caplog):
    caplog.set_level(logging.INFO, logger="cryosam_dask")
    # not the descriptor: processes of earlier tests may still write there
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    for progress in (Progress(), NullProgress(), NullProgress(terminal())):
        bar = progress.stage("features", 3, 1, "cpu")
        bar.advance(2)
        bar.close()
    assert sys.stderr.getvalue() == ""
    assert caplog.messages[0] == "features: 3 units, 1 of them done before, on cpu"
    assert caplog.messages[1].startswith("features: 3 of 3 units done after ")


def test_units_done_before_count_and_waiting_units_do_not(tmp_path):
    console, store = terminal(), new_store(tmp_path)
    stage = toy_stage(tmp_path, faults={3: "not done"})
    execute(stage, store, SerialExecutor(), units=stage.units[:2])
    execute(stage, store, SerialExecutor(), Progress(console))
    shown = console.file.getvalue()
    assert "5/6" in shown
    assert "6/6" not in shown
