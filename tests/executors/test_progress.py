from __future__ import annotations

import contextlib
import io
import logging
import sys

from rich.console import Console
from toy_stage import new_store, toy_stage

from cryosam_dask.executors import NullProgress, Progress, SerialExecutor, execute
from cryosam_dask.executors.progress_lines import Lines


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


def test_runs_that_go_on_at_once_have_a_line_each_with_their_stage():
    console = terminal()
    with contextlib.closing(Lines(Progress(console).bars())) as lines:
        lines.start()
        with lines.line("TS_026") as one, lines.line("TS_027") as other:
            bar = one.stage("features", 5, 2, "cuda")
            bar.advance(2)
            with other.interleaved() as turns:
                for done in (1, 4):
                    with contextlib.closing(turns.stage("segment", 9, done, "cpu")) as turn:
                        turn.advance(1)
            lines._bars.refresh()
            bar.close()
        after = len(lines._bars.tasks)
    shown = [line for line in console.file.getvalue().splitlines() if "TS_02" in line]
    assert any("TS_026  features" in line and "4/5" in line and "cuda" in line for line in shown)
    assert any("TS_027  segment" in line and "3/7" in line for line in shown)
    assert after == 0


def test_lines_of_runs_are_not_drawn_without_a_terminal(caplog):
    caplog.set_level(logging.INFO, logger="cryosam_dask")
    with contextlib.closing(Lines(NullProgress().bars())) as lines:
        lines.start()
        with lines.line("TS_026") as line, contextlib.closing(line.stage("features", 3, 1, "cpu")) as bar:
            bar.advance(2)
    assert caplog.messages[0] == "features: 3 units, 1 of them done before, on cpu"
