"""Nobody gets in: schedulers with certificates, and the local workers' own."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import dask
import pytest
import trustme
from distributed import Client, Security

from cryosam_dask.errors import ExecutionError, SettingsError
from cryosam_dask.executors import DaskExecutor, JoinedScheduler, local_client, make_executor
from cryosam_dask.executors.local import close_local
from cryosam_dask.executors.security import secured, security_from, temporary_security, write_private

Paths = dict[str, Path]


def issue(folder: Path) -> Paths:
    """An authority, and a certificate of it with its key."""
    folder.mkdir()
    authority = trustme.CA()
    leaf = authority.issue_cert("127.0.0.1")
    paths = {part: folder / f"{part}.pem" for part in ("ca", "cert", "key")}
    authority.cert_pem.write_to_path(paths["ca"])
    leaf.cert_chain_pems[0].write_to_path(paths["cert"])
    leaf.private_key_pem.write_to_path(paths["key"])
    paths["key"].chmod(0o600)
    return paths


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Paths:
    return issue(tmp_path_factory.mktemp("tls") / "ours")


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Paths:
    return issue(tmp_path_factory.mktemp("tls") / "theirs")


@contextlib.contextmanager
def started(log: Path, *arguments: str | Path) -> Iterator[subprocess.Popen[bytes]]:
    """`dask …`, in a process group of its own that is gone afterwards."""
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "dask", *map(str, arguments)], stdout=file, stderr=file, start_new_session=True
        )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(120)


def tls_options(paths: Paths) -> list[str | Path]:
    return ["--tls-ca-file", paths["ca"], "--tls-cert", paths["cert"], "--tls-key", paths["key"]]


def worker_options(folder: Path) -> list[str | Path]:
    return ["--no-nanny", "--nthreads", "1", "--host", "127.0.0.1", "--no-dashboard", "--local-directory", folder]


def eventually(condition: Callable[[], object], seconds: float = 300) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.fixture(scope="module")
def scheduler(ours: Paths, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a scheduler that wants certificates, with one worker."""
    folder = tmp_path_factory.mktemp("scheduler")
    where = folder / "scheduler.json"
    options = ["--protocol", "tls", "--host", "127.0.0.1", "--port", "0", "--dashboard-address", "127.0.0.1:0"]
    options += ["--no-dashboard", "--scheduler-file", str(where)]
    with contextlib.ExitStack() as running:
        first = running.enter_context(started(folder / "scheduler.log", "scheduler", *options, *tls_options(ours)))
        eventually(lambda: first.poll() is not None or (where.exists() and where.read_text().strip().endswith("}")))
        assert first.poll() is None, (folder / "scheduler.log").read_text()
        address = json.loads(where.read_text())["address"]
        log = folder / "worker.log"
        running.enter_context(started(log, "worker", address, *worker_options(folder), *tls_options(ours)))
        yield address


def test_who_has_a_certificate_of_the_authority_runs_units(scheduler, ours, tmp_path):
    assert scheduler.startswith("tls://")
    security = security_from(ours["ca"], ours["cert"], ours["key"])
    for address in (scheduler, scheduler.removeprefix("tls://")):  # encrypted is what certificates are for
        with make_executor(scheduler=address, device="cpu", security=security) as executor:
            assert executor.client.submit(pow, 2, 5).result() == 32


def test_certificates_may_stand_in_the_configuration(scheduler, ours):
    names = {"ca-file": str(ours["ca"]), "client.cert": str(ours["cert"]), "client.key": str(ours["key"])}
    settings = {f"distributed.comm.tls.{name}": path for name, path in names.items()}
    with dask.config.set(settings), make_executor(scheduler=scheduler, device="cpu") as executor:
        assert len(executor.workers()) >= 1


def test_who_has_none_or_another_one_is_turned_away(scheduler, ours, theirs):
    stranger = security_from(theirs["ca"], theirs["cert"], theirs["key"])
    mixed = security_from(ours["ca"], theirs["cert"], theirs["key"])  # trusts us, but bears another authority's
    plain = scheduler.replace("tls://", "tcp://")
    for address, security in ((plain, None), (scheduler, stranger), (scheduler, mixed)):
        with pytest.raises(ExecutionError) as caught:
            JoinedScheduler(address, security=security, timeout=2)
        message = str(caught.value)
        assert address in message
        assert "\n" not in message
        assert "--tls-" in message


def test_workers_without_a_certificate_are_turned_away(scheduler, ours, theirs, tmp_path):
    plain = scheduler.replace("tls://", "tcp://")
    refused = [("without", [plain]), ("stranger", [scheduler, *tls_options(theirs)])]
    with contextlib.ExitStack() as running:
        processes = [
            running.enter_context(
                started(
                    tmp_path / f"{name}.log", "worker", *where, *worker_options(tmp_path / name), "--name", name,
                    "--death-timeout", "3",
                )
            )
            for name, where in refused
        ]  # fmt: skip
        eventually(lambda: all(process.poll() is not None for process in processes))
    security = security_from(ours["ca"], ours["cert"], ours["key"])
    with DaskExecutor(JoinedScheduler(scheduler, security=security, timeout=60), "cpu") as executor:
        assert not {"without", "stranger"} & {str(worker["name"]) for worker in executor.workers().values()}


@pytest.mark.parametrize("scheme", ["tls", "tcp"])
def test_nobody_else_gets_into_the_local_workers(scheme, two_workers, theirs):
    """Another user of the machine can reach the loopback, too."""
    own = two_workers.scheduler.address
    assert own.startswith("tls://127.0.0.1:")
    workers = [worker["nanny"] for worker in two_workers.scheduler_info()["workers"].values()]
    strangers = [None] if scheme == "tcp" else [temporary_security(), security_from(*theirs.values())]
    for address in (own, *two_workers.scheduler_info()["workers"], *workers):
        for security in strangers:
            with pytest.raises((OSError, TimeoutError)):
                Client(address.replace("tls://", f"{scheme}://"), timeout=1, security=security, set_as_default=False)
    assert two_workers.submit(pow, 2, 5).result() == 32


@pytest.fixture(scope="module")
def two_workers() -> Iterator[Client]:
    client = local_client(2)
    yield client
    close_local(client)


def test_the_local_key_is_seen_by_nobody(two_workers):
    """Not in the arguments or the environment of any process of ours, nor in a file that others may read."""
    key = two_workers.security.tls_client_key.splitlines()[1].encode()
    assert len(key) == 64
    pids = [os.getpid(), *two_workers.run(os.getpid).values(), *two_workers.run(os.getppid).values()]
    for pid in pids:
        for what in ("cmdline", "environ"):
            assert key not in Path(f"/proc/{pid}/{what}").read_bytes()
    for path in two_workers.run(lambda dask_worker: dask_worker.local_directory).values():
        files = [file for file in Path(path).parent.rglob("*") if file.is_file()]
        assert not any(key in file.read_bytes() for file in files)


def test_web_pages_of_local_workers_show_nothing(two_workers):
    import urllib.error
    import urllib.request

    port = two_workers.cluster.scheduler.http_server.port
    for page in ("status", "info/main/workers.html", "json/counts.json", "metrics"):
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(f"http://127.0.0.1:{port}/{page}", timeout=60)


# the options


def test_all_three_or_none(ours):
    assert security_from() is None
    for missing in ours:
        with pytest.raises(SettingsError, match=f"missing: --tls-{missing}$"):
            security_from(**{name: path for name, path in ours.items() if name != missing})


@pytest.mark.parametrize("name", ["ca", "cert", "key"])
@pytest.mark.parametrize("fault", ["no file", "a folder", "no PEM", "swapped"])
def test_a_bad_file_is_one_line_that_does_not_show_it(name, fault, ours, tmp_path):
    path = tmp_path / "file.pem"
    match fault:
        case "a folder":
            path.mkdir()
        case "no PEM":
            path.write_text("SECRET")
        case "swapped":
            path.write_bytes(ours["cert" if name == "key" else "key"].read_bytes())
    with pytest.raises(SettingsError) as caught:
        security_from(**{**ours, name: path})
    message = str(caught.value)
    assert message.startswith(f"--tls-{name} {path}: ")
    assert "\n" not in message
    assert "SECRET" not in message
    assert ours["key"].read_text().splitlines()[1] not in message


def test_a_key_of_another_certificate_is_one_line(ours, theirs):
    with pytest.raises(SettingsError, match="the key that belongs to the certificate") as caught:
        security_from(ours["ca"], ours["cert"], theirs["key"])
    assert "\n" not in str(caught.value)


def test_a_broken_file_is_one_line(ours, tmp_path):
    lines = ours["key"].read_text().splitlines()
    broken = tmp_path / "key.pem"
    broken.write_text("\n".join([lines[0], lines[1][::-1], *lines[2:]]))
    broken.chmod(0o600)
    with pytest.raises(SettingsError, match="can't be loaded") as caught:
        security_from(ours["ca"], ours["cert"], broken)
    assert lines[1][::-1] not in str(caught.value)


def test_a_key_with_a_passphrase_is_refused_before_anybody_is_asked_for_it(ours, tmp_path):
    locked = tmp_path / "key.pem"
    locked.write_text("-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n")
    with pytest.raises(SettingsError, match="passphrase"):
        security_from(ours["ca"], ours["cert"], locked)


def test_a_key_that_others_may_read_is_noted(ours, tmp_path, caplog):
    shown = tmp_path / "key.pem"
    shown.write_bytes(ours["key"].read_bytes())
    for mode, expected in ((0o644, 1), (0o600, 0)):
        shown.chmod(mode)
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            assert isinstance(security_from(ours["ca"], ours["cert"], shown), Security)
        assert sum("chmod 600" in record.message for record in caplog.records) == expected


def test_certificates_and_encryption_go_together(ours):
    security = security_from(**ours)
    assert secured("node:8786", security) == ("tls://node:8786", security)
    assert secured("tls://node:8786", security) == ("tls://node:8786", security)
    assert secured("node:8786", None) == ("node:8786", None)
    with pytest.raises(SettingsError, match="would not be encrypted"):
        secured("tcp://node:8786", security)
    with pytest.raises(SettingsError, match="wants a certificate"):
        secured("tls://node:8786", None)


def test_private_files_are_private_whatever_the_umask(tmp_path):
    before = os.umask(0)
    try:
        path = write_private(tmp_path / "a/b", "key.pem", "SECRET")
    finally:
        os.umask(before)
    assert path.read_text() == "SECRET"
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    with pytest.raises(FileExistsError):  # nobody can have put a file of theirs there before
        write_private(tmp_path / "a/b", "key.pem", "SECRET")
