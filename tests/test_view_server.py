"""The page's server: what a browser asks for, and what it is told."""

from __future__ import annotations

import json
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from view_server_support import StandInSession, add_picks, ask, chunk_of, ingested

import cryosam_dask as cs
from cryosam_dask.errors import InputError
from cryosam_dask.store import layout
from cryosam_dask.store.run_store import RunStore
from cryosam_dask.viewer import client
from cryosam_dask.viewer.handler import pack
from cryosam_dask.viewer.serve import Server, check


@pytest.fixture(scope="module")
def made(ball_tomogram: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    url = tmp_path_factory.mktemp("view") / "r.zarr"
    add_picks(ingested(ball_tomogram, url), "ball", [(20, 20, 20), (18, 44, 24)])
    return url


@pytest.fixture
def session(made: Path, tmp_path: Path) -> StandInSession:
    return StandInSession(RunStore.open(shutil.copytree(made, tmp_path / "r.zarr"), "r+"))


@pytest.fixture
def server(session: StandInSession) -> Iterator[Server]:
    with Server(session) as running:
        yield running


class Stream:
    """A browser that listens to the server's events."""

    def __init__(self, url: str, encoding: str = "identity") -> None:
        parts = urlsplit(url)
        self.socket = socket.create_connection((parts.hostname, parts.port), timeout=10)
        request = f"GET {parts.path}api/events HTTP/1.1\r\nHost: {parts.netloc}\r\nAccept-Encoding: {encoding}\r\n\r\n"
        self.socket.sendall(request.encode())
        self.file = self.socket.makefile("rb")
        assert b"200" in self.file.readline()
        self.headers = {}
        while (line := self.file.readline().strip()) != b"":
            name, _, value = line.partition(b": ")
            self.headers[name.decode().lower()] = value.decode()

    def next(self) -> str:
        """The next message or comment."""
        return self.part().decode()

    def part(self) -> bytes:
        """The next part as it is sent."""
        size = int(self.file.readline(), 16)
        part = self.file.read(size)
        self.file.readline()
        return part

    def close(self) -> None:
        self.file.close()
        self.socket.close()


# The page and the viewer ----------------------------------------------------------------------------------------------


def test_the_page_and_its_files(server: Server) -> None:
    page = ask(server.url)
    assert page.status == 200
    assert page.headers["content-type"].startswith("text/html")
    again = ask(server.url, If_None_Match=page.headers["etag"])
    assert (again.status, again.body) == (304, b"")
    without_slash = ask(server.url, urlsplit(server.url).path.rstrip("/"))
    assert without_slash.status == 302
    assert without_slash.headers["location"] == f"{server.guard.token}/"  # relative: right behind a proxy, too
    assert ask(server.url, method="HEAD").body == b""


def test_the_viewer_comes_from_here_and_asks_nobody(server: Server) -> None:
    index = ask(server.url, "v/x/")
    assert index.status == 200
    text = index.body.decode()
    assert text.index("quiet.js") < text.index("main.")
    for name in (
        "quiet.js",
        *(p.name for p in client.folder().iterdir() if p.suffix in (".js", ".css", ".wasm")),
    ):
        answer = ask(server.url, f"v/x/{name}", Accept_Encoding="gzip")
        assert answer.status == 200, name
        assert answer.headers["content-type"].split(";")[0] in ("text/javascript", "text/css", "application/wasm")
        assert ("immutable" in answer.headers["cache-control"]) == (name != "quiet.js")
    assert ask(server.url, "events/x").status == 204
    assert ask(server.url, "state/x", "POST", {"s": {}, "g": 1}).json == {"g": "0"}


def test_without_the_viewer_the_user_is_told_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    client.folder.cache_clear()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match="pip install neuroglancer"):
        check("127.0.0.1", 0)
    client.folder.cache_clear()


# Data -----------------------------------------------------------------------------------------------------------------


def test_chunks_are_what_the_library_reads(server: Server, session: StandInSession) -> None:
    info = ask(server.url, "data/labels-ball-p1/info").json
    assert info["mesh"] == "mesh"
    answer = ask(server.url, "data/labels-ball-p1/0/0-90_0-62_16-24", Accept_Encoding="gzip")
    assert answer.headers["content-encoding"] == "gzip"
    labels = chunk_of(answer, (8, 62, 90), "<u4")
    assert labels[4, 20, 20] == 1
    assert (labels == session.store.read(layout.labels("ball", 0))[16:24]).all()
    assert ask(server.url, "data/labels-ball-p1/mesh/info").json == {"@type": "neuroglancer_legacy_mesh"}
    assert ask(server.url, "data/labels-ball-p1/mesh/2:0").json == {"fragments": ["2.all"]}
    assert len(ask(server.url, "data/labels-ball-p1/mesh/2.all").body) > 1000
    assert ask(server.url, "data/labels-ball-p1/mesh/3.all").status == 404
    assert ask(server.url, "gallery/ball/p1/1.png?size=64").body.startswith(b"\x89PNG")
    assert ask(server.url, "gallery/ball/p1/1.png?size=-1").status == 400
    assert ask(server.url, "gallery/ball/p0/1.png").status == 404
    passing = ask(server.url, "gallery/ball/p0.3/1.png")  # there were fewer picks a moment ago
    assert passing.status == 200
    assert passing.body.startswith(b"\x89PNG")
    assert passing.headers["cache-control"] == "no-store"


def test_what_has_its_version_in_its_address_is_kept_by_the_browser(server: Server, session: StandInSession) -> None:
    chunk = "0/0-90_0-62_0-8"
    for volume in ("tomogram-v1", "slab-2-v1", "labels-ball-p1"):
        assert "immutable" in ask(server.url, f"data/{volume}/{chunk}").headers["cache-control"]
    plain = ask(server.url, f"data/tomogram/{chunk}")
    assert plain.headers["cache-control"] == "private, no-cache"
    assert ask(server.url, f"data/tomogram/{chunk}", If_None_Match=plain.headers["etag"]).status == 304
    session.change(tomogram={**session.state["tomogram"], "version": "2"})
    assert ask(server.url, f"data/tomogram/{chunk}", If_None_Match=plain.headers["etag"]).status == 200
    assert ask(server.url, f"data/tomogram-v1/{chunk}").status == 404


def test_faults_are_one_line_with_a_status(server: Server, session: StandInSession) -> None:
    assert ask(server.url, "data/tomogram/0/1-2_3-4_5-6").status == 400
    assert ask(server.url, "data/tomogram/7/0-90_0-62_0-8").status == 404
    chunk = Path(session.store.url) / layout.tomogram(0) / "c" / "0" / "0" / "0"
    chunk.unlink()
    missing = ask(server.url, "data/tomogram/0/0-90_0-62_0-8")
    assert missing.status == 500
    assert "chunk 0/0/0 of scale0/tomogram is missing" in missing.error
    session.change(run={"ingested": False})
    waiting = ask(server.url, "data/tomogram/0/0-90_0-62_0-8")
    assert (waiting.status, waiting.headers["retry-after"]) == (503, "1")
    RunStore.remove(session.store.url)
    gone = ask(server.url, "data/tomogram/0/0-90_0-62_0-8")
    assert gone.status == 410
    assert "deleted or moved" in gone.error
    session.change(tomogram=None)
    assert ask(server.url, "data/tomogram/info").status == 503


def test_noise_is_not_packed_and_what_is_even_is() -> None:
    import numpy as np

    noise = np.random.default_rng(0).normal(128, 21, 1 << 17).astype(np.uint8).tobytes()
    assert pack(noise) is None
    assert len(pack(bytes(1 << 20)) or b"") < 5000
    assert pack(b"short") is None


# State and actions ----------------------------------------------------------------------------------------------------


def test_the_state_and_its_changes_arrive(server: Server, session: StandInSession) -> None:
    assert ask(server.url, "api/state").json == session.state
    stream = Stream(server.url)
    assert stream.headers["content-type"] == "text/event-stream"
    assert stream.headers["cache-control"] == "no-store"
    first = stream.next()
    assert first.startswith("data: ")
    assert first.endswith("\n\n")
    assert json.loads(first.removeprefix("data: "))["revision"] == 1
    session.change(messages=[{"id": 1, "kind": "note", "text": "two\nlines"}])
    told = json.loads(stream.next().removeprefix("data: "))
    assert told["messages"][0]["text"] == "two\nlines"
    assert ask(server.url, "api/state").json["revision"] == 2
    stream.close()


def test_many_changes_in_a_row_become_few_messages(server: Server, session: StandInSession) -> None:
    stream = Stream(server.url)
    stream.next()
    for _ in range(200):
        session.change()
    seen = []
    while not seen or seen[-1] < 201:
        seen.append(json.loads(stream.next().removeprefix("data: "))["revision"])
    assert len(seen) < 20
    stream.close()


def test_a_stream_that_is_packed_sends_what_has_changed(server: Server, session: StandInSession) -> None:
    kinds = [{"name": f"kind{i}", "color": f"#{i * 99991:06x}"} for i in range(200)]
    session.change(kinds=kinds)
    stream = Stream(server.url, "gzip")
    assert stream.headers["content-encoding"] == "gzip"
    unpacker = zlib.decompressobj(31)
    first = stream.part()
    assert json.loads(unpacker.decompress(first).removeprefix(b"data: "))["kinds"] == kinds
    session.change()
    second = stream.part()
    assert json.loads(unpacker.decompress(second).removeprefix(b"data: "))["revision"] == 3
    assert len(second) < len(first) / 10
    stream.close()
    assert ask(server.url, "api/events", "HEAD").status == 200


def test_browsers_that_go_away_leave_nothing_behind(
    server: Server, session: StandInSession, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = threading.Event()
    called = []
    monkeypatch.setattr(session, "picks", lambda name: called.append(name) or {"done": release.wait(20)})
    parts = urlsplit(server.url)
    for _ in range(40):
        with socket.create_connection((parts.hostname, parts.port)) as raw:
            raw.sendall(f"GET {parts.path}api/picks/ball/p1 HTTP/1.1\r\nHost: {parts.netloc}\r\n\r\n".encode())
            time.sleep(0.005)
    time.sleep(0.1)
    release.set()
    assert ask(server.url, "data/tomogram/info").status == 200
    assert len(called) < 20  # the others were not begun any more
    assert not [record for record in caplog.records if record.levelname in ("WARNING", "ERROR")]


def test_streams_ping_and_are_forgotten_when_the_browser_goes(
    session: StandInSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cryosam_dask.viewer.pages.PING_SECONDS", 0.05)
    with Server(session) as server:
        before = session.listeners
        streams = [Stream(server.url) for _ in range(3)]
        for stream in streams:
            stream.next()
            assert stream.next() == ": ping\n\n"
        assert session.listeners == before + 3
        for stream in streams:
            stream.close()
        deadline = time.monotonic() + 10
        while session.listeners > before and time.monotonic() < deadline:
            time.sleep(0.02)
        assert session.listeners == before


def test_actions_reach_the_session(server: Server, session: StandInSession) -> None:
    body = {"kind": "ball", "position": [1, 2, 3], "positive": True, "page": "a"}
    assert ask(server.url, "api/click/add", "POST", body).json == {"ok": True, "id": "c1"}
    assert session.acted == [("click/add", body)]
    refused = ask(server.url, "api/cancel", "POST", {})
    assert (refused.status, refused.error) == (400, "nothing runs")
    assert ask(server.url, "api/click/add").status == 405
    assert ask(server.url, "api/picks/ball/p1").json["instances"] == [1]
    assert ask(server.url, "api/candidates/ball/c1").json["states"] == ["kept"]


def test_a_status_of_an_error_is_the_answers(
    server: Server, session: StandInSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    class BusyError(InputError):
        status = 409

    def refuse(name: str, body: dict) -> dict:
        raise BusyError("features are being made")

    monkeypatch.setattr(session, "act", refuse)
    answer = ask(server.url, "api/like", "POST", {})
    assert (answer.status, answer.error) == (409, "features are being made")


def test_slow_reads_do_not_keep_actions_waiting(
    server: Server, session: StandInSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = threading.Event()
    monkeypatch.setattr(session, "picks", lambda name: {"done": release.wait(20)})
    readers = [threading.Thread(target=ask, args=(server.url, "api/picks/ball/p1")) for _ in range(12)]
    for reader in readers:
        reader.start()
    time.sleep(0.1)
    begun = time.monotonic()
    assert ask(server.url, "api/click/add", "POST", {}).status == 200
    assert time.monotonic() - begun < 5
    release.set()
    for reader in readers:
        reader.join()


def test_too_many_reads_are_told_to_come_again(session: StandInSession, monkeypatch: pytest.MonkeyPatch) -> None:
    release = threading.Event()
    monkeypatch.setattr("cryosam_dask.viewer.app.WAITING", 2)
    monkeypatch.setattr("cryosam_dask.viewer.app.READERS", 1)
    monkeypatch.setattr(session, "picks", lambda name: {"done": release.wait(20)})
    with Server(session) as server:
        statuses: list[int] = []
        readers = [
            threading.Thread(target=lambda: statuses.append(ask(server.url, "api/picks/ball/p1").status))
            for _ in range(6)
        ]
        for reader in readers:
            reader.start()
        while len(statuses) < 3:
            time.sleep(0.01)
        release.set()
        for reader in readers:
            reader.join()
    assert sorted(statuses) == [200, 200, 200, 503, 503, 503]


def test_a_file_that_was_exported_is_sent_in_parts(
    server: Server, session: StandInSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cryosam_dask.viewer.pages.PART", 1000)
    path = tmp_path / "ball.star"
    path.write_bytes(bytes(range(250)) * 17)
    session.files["ball.star"] = path
    answer = ask(server.url, "download/ball.star")
    assert answer.body == path.read_bytes()
    assert answer.headers["content-disposition"] == 'attachment; filename="ball.star"'
    assert ask(server.url, "download/other.star").status == 404


# Start and end --------------------------------------------------------------------------------------------------------


def test_the_server_ends_with_open_streams_and_frees_its_port(session: StandInSession) -> None:
    server = Server(session).start()
    stream = Stream(server.url)
    stream.next()
    begun = time.monotonic()
    server.stop()
    server.stop()
    assert time.monotonic() - begun < 5
    assert not server._thread.is_alive()
    assert session.listeners == 0
    with pytest.raises(OSError):
        socket.create_connection(("127.0.0.1", server.port), timeout=1)
    stream.close()
    with Server(session, port=server.port) as again:
        assert ask(again.url, "api/state").status == 200


def test_a_proxy_that_puts_a_prefix_before_is_served(session: StandInSession) -> None:
    with Server(session, base_url="https://hub.example.org/user/ada/proxy/{port}") as server:
        assert server.url == f"https://hub.example.org/user/ada/proxy/{server.port}/{server.guard.token}/"
        # the proxy takes its prefix off and keeps the name that the browser asked for
        here = f"http://127.0.0.1:{server.port}/{server.guard.token}/"
        asked = {"Host": "hub.example.org", "Origin": "https://hub.example.org"}
        assert ask(here, "api/state", **asked).status == 200
        assert ask(here, "api/click/add", "POST", {}, **asked).status == 200


# The command, and notebooks -------------------------------------------------------------------------------------------


def wait_for(url: str, wanted: Callable[[Any], bool]) -> Any:
    """The state of a page once it is as wanted."""
    deadline = time.monotonic() + 60
    while not wanted(state := ask(url, "api/state").json):
        assert time.monotonic() < deadline, state
        time.sleep(0.05)
    return state


def test_the_command_shows_a_tomogram_and_ends_at_ctrl_c(ball_tomogram: Path, tmp_path: Path) -> None:
    program = "from cryosam_dask.cli import main; main()"
    out = tmp_path / "r.zarr"
    arguments = ["view", str(ball_tomogram), "--out", str(out), "--no-browser", "--workers", "0"]
    with subprocess.Popen(
        [sys.executable, "-c", program, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as command:
        assert command.stdout is not None
        assert command.stderr is not None
        url = command.stdout.readline().strip()
        assert ask(url).status == 200
        state = wait_for(url, lambda s: s["run"]["ingested"])
        version = state["tomogram"]["version"]
        assert ask(url, f"data/tomogram-v{version}/0/0-90_0-62_0-8").status == 200
        assert ask(url, "api/kind/add", "POST", {"name": "ball"}).status == 200
        command.send_signal(signal.SIGINT)
        assert command.wait(30) == 0
        assert "Traceback" not in command.stderr.read()
    assert RunStore.open(out).info["statistics"]
    with pytest.raises(OSError):
        ask(url)


def test_the_command_ends_as_a_batch_system_asks(session: StandInSession) -> None:
    program = "from cryosam_dask.cli import main; main()"
    arguments = ["view", session.store.url, "--no-browser", "--workers", "0"]
    with subprocess.Popen(
        [sys.executable, "-c", program, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as command:
        assert command.stdout is not None
        assert ask(command.stdout.readline().strip(), "api/state").json["run"]["ingested"]
        command.send_signal(signal.SIGTERM)
        assert command.wait(30) == 0


def test_what_can_not_be_shown_is_one_line(
    cryosam: Callable[..., tuple[int, str, str]], session: StandInSession, ball_tomogram: Path, tmp_path: Path
) -> None:
    for arguments, words in [
        ([tmp_path / "none.mrc"], "none.mrc"),
        ([session.store.url, "--port", 70000], "--port 70000"),
        ([session.store.url, "--host", "nowhere.invalid"], "--host nowhere.invalid"),
        ([session.store.url, "--allow-host", "*"], "--allow-host *"),
        ([session.store.url, "--models", "nothing"], "nothing"),
    ]:
        code, out, error = cryosam("view", *arguments, "--no-browser")
        assert (code, out) == (2, "")
        assert words in error
        assert error.count("\n") == 1, error
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        run = tmp_path / "new.zarr"
        port = taken.getsockname()[1]
        code, _, error = cryosam("view", ball_tomogram, "--out", run, "--port", port, "--no-browser")
        assert (code, f"--port {port}" in error) == (2, True)
        assert not run.exists()  # nothing was begun


def test_a_notebook_shows_the_page_in_a_frame(session: StandInSession, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("JUPYTERHUB_SERVICE_PREFIX", "CRYOSAM_VIEW_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    with cs.view(session.store.url, workers=0, height=640) as page:
        shown = page._repr_html_()
        assert f'src="{page.url}"' in shown
        assert "height: 640px" in shown
        assert session.store.url in repr(page)
        answer = ask(page.url)
        assert answer.status == 200
        policy = answer.headers["content-security-policy"]
        assert "frame-ancestors 'self' http://localhost:* http://127.0.0.1:*" in policy
        assert ask(page.url, "api/state").json["run"]["ingested"]
    with pytest.raises(OSError):
        ask(page.url)


def test_a_notebook_of_a_hub_shows_the_page_through_its_proxy(
    session: StandInSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("JUPYTERHUB_PUBLIC_URL", raising=False)
    monkeypatch.setenv("JUPYTERHUB_SERVICE_PREFIX", "/user/ada/")
    with pytest.raises(InputError, match="CRYOSAM_VIEW_BASE_URL"):
        cs.view(session.store.url, workers=0)
    monkeypatch.setenv("CRYOSAM_VIEW_BASE_URL", "https://hub.example.org/user/ada/proxy/{port}")
    with cs.view(session.store.url, workers=0) as page:
        assert page.url.startswith("https://hub.example.org/user/ada/proxy/")
        port, token = page.url.rstrip("/").split("/")[-2:]
        answer = ask(f"http://127.0.0.1:{port}/{token}/", Host="hub.example.org")
        assert answer.status == 200
        assert answer.headers["content-security-policy"].endswith("frame-ancestors 'self'")
