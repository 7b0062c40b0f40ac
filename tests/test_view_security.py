"""Who may use the page: those who have its token, from a place that it knows, and nobody through another page."""

from __future__ import annotations

import contextlib
import logging
import re
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from view_server_support import StandInSession, add_picks, ask, ingested

from cryosam_dask.errors import InputError
from cryosam_dask.viewer.guard import Guard, make_guard, make_token
from cryosam_dask.viewer.serve import Server, browser, notes, public_base

EVERYTHING = [
    "",
    "static/page.js",
    "v/x/",
    "v/x/quiet.js",
    "events/x",
    "state/x",
    "api/state",
    "api/events",
    "api/picks/ball/p1",
    "data/tomogram/info",
    "data/tomogram/0/0-90_0-62_0-8",
    "data/labels-ball-p1/mesh/1.all",
    "gallery/ball/p1/1.png",
    "click/c1.png",
    "report",
    "download/picks.star",
]


@pytest.fixture(scope="module")
def session(ball_tomogram: Path, tmp_path_factory: pytest.TempPathFactory) -> StandInSession:
    store = ingested(ball_tomogram, tmp_path_factory.mktemp("view") / "r.zarr")
    add_picks(store, "ball", [(20, 20, 20)])
    return StandInSession(store)


@pytest.fixture
def server(session: StandInSession) -> Iterator[Server]:
    with Server(session) as running:
        yield running


# The token ------------------------------------------------------------------------------------------------------------


def test_a_token_has_192_bits_and_is_another_each_time() -> None:
    tokens = {make_token() for _ in range(100)}
    assert len(tokens) == 100
    assert all(re.fullmatch(r"[A-Za-z0-9_-]{32}", token) for token in tokens)


@pytest.mark.parametrize("path", EVERYTHING)
def test_without_the_token_everything_is_refused(server: Server, path: str) -> None:
    token = server.guard.token
    for wrong in ("", "x" * 32, token[:-1], token + "x", token.swapcase(), "%00", "é"):
        where = f"/{wrong}/{path}" if wrong.isascii() else f"/%C3%A9/{path}"
        answer = ask(server.url, where)
        assert answer.status == 403, where
        assert token not in answer.body.decode()
        assert token not in str(answer.headers)
    for path_alone in (f"/{path}", f"/x/../{path}", f"/?token={token}", "/favicon.ico"):
        assert ask(server.url, path_alone).status == 403


def test_without_the_token_nothing_is_done(server: Server, session: StandInSession) -> None:
    before = len(session.acted)
    for method in ("POST", "PUT", "DELETE", "PATCH", "OPTIONS"):
        assert ask(server.url, "/x/api/ingest", method, {}).status == 403
    assert len(session.acted) == before


def test_the_token_is_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    from cryosam_dask.viewer import guard

    compared = []
    monkeypatch.setattr(guard.hmac, "compare_digest", lambda a, b: compared.append((a, b)) or a == b)
    assert Guard("secret", frozenset({"localhost"})).refusal("/secret/", "localhost", None, None, None) is None
    assert compared == [(b"secret", b"secret")]


def test_the_token_is_in_no_log_and_no_referrer(
    server: Server, session: StandInSession, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.DEBUG)
    monkeypatch.setattr(session, "snapshot", lambda: 1 / 0)
    session.change()
    assert ask(server.url, "api/state").status == 500
    assert ask(server.url, "nothing/there").status == 404
    assert ask(server.url, "api/ingest", "POST", b"{").status == 400
    with socket.create_connection(("127.0.0.1", server.port)) as raw:
        raw.sendall(f"GET {server.url} HTTP/9\r\nbroken\r\n\r\n".encode())
        raw.recv(1000)
    assert "ZeroDivisionError" in caplog.text  # a defect is in the log
    assert server.guard.token not in caplog.text
    assert ask(server.url, "").headers["referrer-policy"] == "no-referrer"


# Other pages ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "10.0.0.1", "", "a@b", "[", "localhost.evil"]
)
def test_a_name_that_the_server_is_not_known_by_is_refused(server: Server, host: str) -> None:
    assert ask(server.url, "api/state", Host=host).status in (400, 403)
    assert ask(server.url, "api/ingest", "POST", {}, Host=host).status in (400, 403)


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:1234", "127.0.0.1:8000", "[::1]:8000", "localhost."])
def test_loopback_names_are_known_at_any_port(server: Server, host: str) -> None:
    """Through `ssh -L` the port is another one."""
    assert ask(server.url, "api/state", Host=host).status == 200


def test_another_origin_is_refused(server: Server, session: StandInSession) -> None:
    here = f"127.0.0.1:{server.port}"
    before = len(session.acted)
    for origin in (
        "http://evil.example",
        "null",
        "",
        "http://127.0.0.1:9",
        "http://localhost",
        "file://",
        f"ftp://{here}",
    ):
        for path, method in (("api/state", "GET"), ("api/ingest", "POST"), ("data/tomogram/info", "GET")):
            answer = ask(server.url, path, method, {} if method == "POST" else None, Origin=origin)
            assert answer.status == 403, origin
            assert not [name for name in answer.headers if name.startswith("access-control")]
    assert len(session.acted) == before
    assert ask(server.url, "api/click/add", "POST", {}, Origin=f"http://{here}").status == 200


def test_no_other_page_may_read_or_embed(server: Server) -> None:
    assert ask(server.url, "data/tomogram/info", Sec_Fetch_Site="cross-site", Sec_Fetch_Mode="no-cors").status == 403
    # a link in a mail, or the file that opens the browser
    assert ask(server.url, "", Sec_Fetch_Site="cross-site", Sec_Fetch_Mode="navigate").status == 200
    for path in EVERYTHING:
        if path == "api/events":
            continue
        headers = ask(server.url, path).headers
        assert headers["cross-origin-resource-policy"] == "same-origin"
        assert headers["x-content-type-options"] == "nosniff"
        assert "access-control-allow-origin" not in headers


def test_the_policy_allows_no_foreign_script(server: Server) -> None:
    policy = dict(part.split(" ", 1) for part in ask(server.url, "").headers["content-security-policy"].split("; "))
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == "'self' 'wasm-unsafe-eval'"
    assert policy["frame-ancestors"] == "'self'"
    assert policy["base-uri"] == policy["object-src"] == "'none'"
    assert not [word for words in policy.values() for word in words.split() if "http" in word or "*" in word]


def test_a_report_and_a_download_can_ask_for_nothing(server: Server, session: StandInSession, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    page.write_text("<script>1</script>")
    session.files["report.html"] = session.files["picks.star"] = page
    for path in ("report", "download/picks.star"):
        answer = ask(server.url, path)
        assert answer.status == 200
        assert answer.headers["content-security-policy"].startswith(
            "sandbox allow-scripts allow-popups; default-src 'none'"
        )
    assert answer.headers["content-disposition"].startswith("attachment")
    # what it sends has the origin "null"
    assert ask(server.url, "api/ingest", "POST", {}, Origin="null").status == 403


# Paths and sizes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "../app.py",
        "..%2fapp.py",
        "%2e%2e/app.py",
        "..\\app.py",
        "a/../../app.py",
        "%00",
        "index.html%00.js",
        ".",
        "..",
        "/etc/passwd",
        "//etc/passwd",
        "x" * 5000,
    ],
)
def test_no_path_leads_out(server: Server, name: str) -> None:
    for folder in (
        "static/",
        "v/x/",
        "download/",
        "data/",
        "data/tomogram/0/",
        "data/tomogram/mesh/",
        "gallery/ball/p1/",
        "api/picks/",
    ):
        answer = ask(server.url, folder + name)
        assert answer.status in (400, 403, 404, 405), folder + name
        assert b"root:" not in answer.body
        assert b"Traceback" not in answer.body


def test_a_link_among_the_files_of_the_page_is_not_followed(tmp_path: Path) -> None:
    from cryosam_dask.viewer.client import read_file
    from cryosam_dask.viewer.status import NotThereError

    (tmp_path / "secret.txt").write_text("secret")
    place = tmp_path / "static"
    place.mkdir()
    (place / "a.js").symlink_to(tmp_path / "secret.txt")
    (place / "b.js").write_text("1")
    assert read_file(place, "b.js")[0] == b"1"
    for name in ("a.js", "../secret.txt", "c.js", "", "b.js/", ".b.js"):
        with pytest.raises(NotThereError):
            read_file(place, name)


def test_what_is_asked_for_is_escaped_where_it_is_shown(server: Server) -> None:
    answer = ask(server.url, "static/<script>alert(1)<%2Fscript>", Sec_Fetch_Dest="document")
    assert answer.status == 404
    assert b"<script>" not in answer.body


def test_bodies_that_are_too_large_or_odd_are_refused(server: Server, session: StandInSession) -> None:
    before = len(session.acted)
    assert ask(server.url, "api/ingest", "POST", b"[1]").status == 400
    assert ask(server.url, "api/ingest", "POST", b"\xff\xfe").status == 400
    assert ask(server.url, "api/ingest", "POST", b"[" * 100_000).status == 400
    with contextlib.suppress(OSError):  # closed before all of it was sent
        assert ask(server.url, "api/ingest", "POST", b" " * (5 << 20)).status in (400, 413)
    assert len(session.acted) == before


# Where it listens, and who is told ------------------------------------------------------------------------------------


def test_it_listens_on_loopback_alone(server: Server) -> None:
    assert {each.getsockname()[0] for each in server._sockets} == {"127.0.0.1"}
    assert notes("127.0.0.1") == notes("localhost") == []
    (note,) = notes("0.0.0.0")
    assert "ssh -L" in note


def test_names_that_are_allowed() -> None:
    guard = make_guard("127.0.0.1", ["Hub.example.org"])
    assert guard.refusal(f"/{guard.token}/", "hub.example.org", "https://hub.example.org", None, None) is None
    # a proxy that asks in its own name
    assert guard.refusal(f"/{guard.token}/", "127.0.0.1:8", "https://hub.example.org", None, None) is None
    assert guard.refusal(f"/{guard.token}/", "other.example.org", None, None, None) is not None
    assert guard.refusal(f"/{guard.token}/", "hub.example.org", "https://other.example.org", None, None) is not None
    for name in ("*", "a b", "http://hub.example.org", "a/b", ""):
        with pytest.raises(InputError, match="--allow-host"):
            make_guard("127.0.0.1", [name])


def test_a_server_for_the_network_takes_addresses_and_its_own_names() -> None:
    guard = make_guard("0.0.0.0")
    path = f"/{guard.token}/"
    for host in ("10.1.2.3:80", "[fe80::1]:80", socket.gethostname()):
        assert guard.refusal(path, host, None, None, None) is None
    assert guard.refusal(path, "evil.example", None, None, None) is not None
    assert make_guard("10.1.2.3").refusal(path, "10.9.9.9", None, None, None) is not None


def test_a_port_or_an_address_that_is_not_to_be_had(server: Server, session: StandInSession) -> None:
    with pytest.raises(InputError, match=f"--port {server.port}: can't listen at 127.0.0.1"):
        Server(session, port=server.port)
    with pytest.raises(InputError, match="--port 99999"):
        Server(session, port=99999)
    with pytest.raises(InputError, match="--host nowhere"):
        Server(session, "nowhere.invalid")


def test_the_browser_learns_the_address_from_a_file_that_others_cannot_read(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []

    class Browser:
        def open(self, url: str) -> bool:
            opened.append(url)
            return True

    monkeypatch.setattr("webbrowser.get", Browser)
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER"):
        monkeypatch.delenv(name, raising=False)
    if sys.platform.startswith("linux"):
        with browser("http://127.0.0.1:1/token/") as there:
            assert not there
    monkeypatch.setenv("DISPLAY", ":0")
    url = "http://127.0.0.1:1/token/"
    with browser(url) as there:
        assert there
        while not opened:
            pass
        path = Path(opened[0].removeprefix("file://"))
        assert path.stat().st_mode & 0o077 == 0
        assert path.parent.stat().st_mode & 0o077 == 0
        assert url in path.read_text()
    assert "token" not in opened[0]
    assert not path.exists()


def test_the_address_behind_a_proxy() -> None:
    hub = {"JUPYTERHUB_SERVICE_PREFIX": "/user/ada/"}
    assert public_base({}) is None
    assert public_base({"CRYOSAM_VIEW_BASE_URL": "https://h/p/{port}/"}) == "https://h/p/{port}/"
    assert public_base({**hub, "JUPYTERHUB_PUBLIC_URL": "https://h/user/ada/"}) == "https://h/user/ada/proxy/{port}"
    with pytest.raises(InputError, match=r"set CRYOSAM_VIEW_BASE_URL to .* https://HUB/user/ada/proxy/{port}"):
        public_base(hub)
