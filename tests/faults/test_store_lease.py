"""One driver at a time on a run: who gets the lease, who is refused in words, and what is left of a dead one."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
from lease_race import race

from cryosam_dask.errors import StoreError
from cryosam_dask.store import lease, lease_holder
from cryosam_dask.store.lease import Lease
from cryosam_dask.store.lease_holder import Holder

ROUNDS = 10


@pytest.fixture(params=["local", "remote"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "local":
        return str(tmp_path / "run.zarr")
    return f"memory://leases{tmp_path.name}/run.zarr"


def fast(url: str) -> Lease:
    return Lease(url, beat=0.05, expiry=0.3, settle=0.01)


def file_of(url: str) -> Path:
    return Path(url + ".lock")


def test_it_is_there_while_held_and_gone_afterwards(url: str) -> None:
    assert lease.holder(url) is None
    with Lease(url, settle=0.01):
        held = lease.holder(url)
        assert held is not None
        assert held.pid == os.getpid()
        assert held.lives
    assert lease.holder(url) is None
    with Lease(url, settle=0.01), pytest.raises(RuntimeError):
        raise RuntimeError
    if "://" not in url:
        assert list(file_of(url).parent.iterdir()) == []


def test_a_second_one_is_refused_with_who_where_and_since_when(url: str) -> None:
    with Lease(url, settle=0.01) as first:
        held = lease.holder(url)
        assert held is not None
        with pytest.raises(
            StoreError, match=rf"is being written by .*{os.getpid()}.*; wait until it is done"
        ) as caught:
            Lease(url, settle=0.01).__enter__()
        assert "\n" not in str(caught.value)
        first.check()
        assert lease.holder(url) == held


def test_its_own_thread_may_enter_it_again_and_no_other(url: str) -> None:
    errors: list[BaseException] = []
    with Lease(url, settle=0.01) as mine:

        def other() -> None:
            try:
                with mine:
                    pass
            except StoreError as error:
                errors.append(error)

        with mine, mine:
            thread = threading.Thread(target=other)
            thread.start()
            thread.join()
        assert lease.holder(url) is not None
    assert "another thread" in str(errors[0])
    assert lease.holder(url) is None


def test_what_a_killed_process_left_is_taken_over_at_once(tmp_path: Path) -> None:
    url = str(tmp_path / "run.zarr")
    code = f"""
import os
from cryosam_dask.store.lease import Lease
Lease({url!r}).__enter__()
os.kill(os.getpid(), 9)
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -9
    left = Holder.read(file_of(url).read_bytes())
    assert left is not None
    assert left.lives is False
    assert lease.holder(url) is None
    start = time.monotonic()
    with Lease(url):
        assert lease.holder(url) is not None
    assert time.monotonic() - start < 2


def left_behind(url: str, **changes: object) -> None:
    """A lease of another machine."""
    with Lease(url, settle=0.01):
        text = lease._file(url).read()
    assert text is not None
    lease._file(url).write(json.dumps({**json.loads(text), "token": "theirs", **changes}).encode())


def test_a_number_that_another_process_has_now_does_not_hold_it(url: str) -> None:
    left_behind(url, started=1.0)
    with fast(url):
        pass


HOLDING = "import sys; from cryosam_dask.store.lease import Lease; Lease(sys.argv[1]).__enter__(); print(); input()"
TAKING = """
import sys
from cryosam_dask.errors import StoreError
from cryosam_dask.store.lease import Lease
try:
    with Lease(sys.argv[1]):
        print("taken")
except StoreError as error:
    print(error)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="a stopped process, and /proc")
def test_a_process_that_is_stopped_holds_it(tmp_path: Path) -> None:
    """It goes on where it was once it is continued, and would write beside the other until its next beat."""
    url = str(tmp_path / "run.zarr")
    process = subprocess.Popen([sys.executable, "-c", HOLDING, url], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None
    try:
        process.stdout.readline()
        process.send_signal(signal.SIGSTOP)
        text = json.loads(file_of(url).read_text())
        file_of(url).write_text(json.dumps({**text, "beat": time.time() - 3600}))
        with pytest.raises(StoreError, match=rf"is being written by .*process {process.pid},"):
            fast(url).__enter__()
    finally:
        process.kill()
        process.communicate()
    with fast(url):
        pass


@pytest.mark.parametrize(
    "space", [["--pid", "--mount-proc"], ["--pid"], ["--uts"], ["--net"], ["--time", "--boottime=9999"]]
)
def test_who_is_in_another_space_of_this_machine_can_not_take_it(tmp_path: Path, space: list[str]) -> None:
    """As containers are: a process number, or its start since boot, means something else there."""
    within = ["unshare", "--map-root-user", "--fork", *space]
    if (
        shutil.which("unshare") is None
        or subprocess.run([*within, "true"], capture_output=True, check=False).returncode
    ):
        pytest.skip("no such spaces can be made here")
    url = str(tmp_path / "run.zarr")
    with Lease(url) as mine:
        done = subprocess.run([*within, sys.executable, "-c", TAKING, url], capture_output=True, text=True, check=True)
        assert f"is being written by {mine._mine.words}" in done.stdout  # type: ignore[union-attr]
        held = lease.holder(url)
        assert held is not None
        assert held.lives


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only there a process's start is known so")
def test_a_clock_that_is_set_meanwhile_does_not_end_it(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    living = os.getppid()
    left_behind(url, pid=living, started=lease_holder._started(living))
    monkeypatch.setattr(psutil.Process, "create_time", lambda self: time.time())
    with pytest.raises(StoreError, match=rf"is being written by .*process {living}"):
        fast(url).__enter__()


def test_another_machine_holds_it_as_long_as_it_beats(url: str) -> None:
    left_behind(url, machine="elsewhere", host="node7", user="ada", beat=time.time())
    with pytest.raises(StoreError, match=r"by ada on node7, process \d+, since 20.*UTC; wait .*try again in 90 s"):
        Lease(url).__enter__()


def test_another_machine_whose_clock_is_late_holds_it_while_it_writes(url: str) -> None:
    left_behind(url, machine="elsewhere", beat=0.0)
    stop = threading.Event()

    def beating() -> None:
        count = 0
        while not stop.wait(0.01):
            count += 1
            text = json.loads(lease._file(url).read() or b"{}")
            lease._file(url).write(json.dumps({**text, "beat": float(count)}).encode())

    thread = threading.Thread(target=beating)
    thread.start()
    try:
        with pytest.raises(StoreError, match="is being written by"):
            Lease(url, beat=2, expiry=0.3, settle=0.01).__enter__()  # ends with the first beat that it sees
    finally:
        stop.set()
        thread.join()


@pytest.mark.parametrize("ahead", [-1, 3600], ids=["silent for a second", "its clock was an hour ahead"])
def test_another_machine_that_is_silent_loses_it(url: str, ahead: float) -> None:
    left_behind(url, machine="elsewhere", beat=time.time() + ahead)
    with fast(url):
        held = lease.holder(url)
        assert held is not None
        assert held.token != "theirs"


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b'{"token": 1}', b"\xff\xfe"])
def test_a_lease_without_sense_is_taken_after_a_while(
    tmp_path: Path, text: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "_UNREADABLE", 0.1)
    url = str(tmp_path / "run.zarr")
    file_of(url).write_bytes(text)
    assert lease.holder(url) is None
    with fast(url):
        assert lease.holder(url) is not None


@pytest.mark.parametrize("what", ["taken", "gone"])
def test_who_loses_it_is_told_and_leaves_the_others_alone(url: str, what: str) -> None:
    with fast(url) as mine:
        mine.check()
        text = lease._file(url).read() or b""
        assert mine._thread is not None
        while mine._thread.is_alive():  # again where its beat came in between
            if what == "taken":
                theirs = {**json.loads(text), "token": "theirs", "host": "node8"}
                lease._file(url).write(json.dumps(theirs).encode())
            else:
                lease._file(url).remove(text, "x")
            mine._thread.join(0.2)
        with pytest.raises(StoreError, match=r"taken over by .* on node8.*this run stops|is gone; this run stops"):
            mine.check()
    left = Holder.read(lease._file(url).read() or b"")
    assert (left is not None and left.token == "theirs") == (what == "taken")


def test_it_beats(url: str) -> None:
    with fast(url):
        before = lease.holder(url)
        assert before is not None
        deadline = time.monotonic() + 120
        while (now := lease.holder(url)) is None or now.beat == before.beat:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert (now.token, now.since) == (before.token, before.since)


@pytest.mark.parametrize("left", [False, True])
def test_of_four_that_start_at_once_one_gets_it(tmp_path: Path, left: bool) -> None:
    """Several times over; also where a dead one's lease has to be cleared away first."""
    url = str(tmp_path / "run.zarr")
    context = multiprocessing.get_context("spawn")
    barrier, won, inside = context.Barrier(4, timeout=300), context.Queue(), context.Value("i", 0)
    if left:
        left_behind(url, started=1.0)
    processes = [context.Process(target=race, args=(url, ROUNDS, barrier, won, inside)) for _ in range(4)]
    for process in processes:
        process.start()
    winners = [won.get(timeout=300) for _ in range(ROUNDS)]
    for process in processes:
        process.join(300)
    assert [process.exitcode for process in processes] == [0] * 4
    assert won.empty()
    assert set(winners) <= {process.pid for process in processes}
    assert list(tmp_path.iterdir()) == []


def test_one_that_is_late_to_clear_away_leaves_the_next_lease_alone(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It saw what a dead one left; by now another has cleared that away, and holds it. Not even for a moment may its
    lease be gone, or a third one could get in."""
    left_behind(url, started=1.0)
    seen = lease._file(url).read()
    with Lease(url, settle=0.01) as holds:
        if "://" not in url:
            monkeypatch.setattr(Path, "rename", lambda *_: pytest.fail("it was moved"))
        for text in (seen, b"", b"no sense"):
            assert text is not None
            lease._file(url).remove(text, "late")
            held = lease.holder(url)
            assert held is not None
            assert held.lives
        holds.check()
        monkeypatch.undo()
    assert lease.holder(url) is None


def test_where_there_are_no_links_it_is_exclusive_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(os, "link", no_links)
    url = str(tmp_path / "run.zarr")
    with Lease(url), pytest.raises(StoreError, match="is being written"):
        Lease(url).__enter__()
    assert list(tmp_path.iterdir()) == []


def test_where_no_folder_can_be_locked_it_is_exclusive_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on some network disks."""
    fcntl = pytest.importorskip("fcntl")

    def no_locks(*_: object) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    url = str(tmp_path / "run.zarr")
    left_behind(url, started=1.0)
    with Lease(url), pytest.raises(StoreError, match="is being written"):
        Lease(url).__enter__()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_can_not_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(StoreError, match=r"can't be written: .*run\.zarr\.lock can't be made \(.+\)"):
        Lease(tmp_path / "file" / "run.zarr").__enter__()
