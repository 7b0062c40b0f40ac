"""Faults in what a command writes: at the Nth file operation in its store it is killed, or the disk is full from then.

A process imports the program once and forks a child for each command, so that a case takes no more than its run takes.
It is given a step a line, a command line of `cryosam` with an optional fault, and answers each with a line that tells
how it ended. File operations are seen by an audit hook: files opened to be written,
renames, links, removals and new folders under the store's path, its lease included.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import fnmatch
import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve()
ERRORS = {"full": errno.ENOSPC, "readonly": errno.EROFS, "quota": errno.EDQUOT}


@dataclass
class Step:
    """A command line with a fault.

    Attributes
    ----------
    arguments : of `cryosam`; store : whose file operations are counted
    do : "kill", "full", "readonly", "quota", or "none"
    at : which operation it happens at, from 1, of those on a path in the store like `path`, a pattern as a shell's; on
        the lease it is ".lock…", of what is deleted with a whole folder "removed:NAME"
    plain : give up what root may do besides, so that permissions hold for it as well
    """

    arguments: list[str]
    store: str
    do: str = "none"
    at: int = 1
    path: str = "*"
    plain: bool = False


@dataclass
class Outcome:
    """How a step ended.

    Attributes
    ----------
    code : exit code, negative for a signal; error : what it printed to stderr
    operations : file operations that it did; ran : units that it ran, by stage, with their marks
    again : of these, the ones that were marked before it began
    unfinished : units by stage that have no mark afterwards; digest : of all files of the store afterwards; both are
        only looked for after a step without a fault
    """

    code: int
    error: str
    operations: int
    ran: dict[str, list[list[int]]] = field(default_factory=dict)
    again: list[str] = field(default_factory=list)
    unfinished: dict[str, int] = field(default_factory=dict)
    digest: dict[str, str] = field(default_factory=dict)


_servers: list[subprocess.Popen[str]] = []


def run(steps: Sequence[Step]) -> list[Outcome]:
    """Run steps one after another, each in a child of one process that is started once and kept."""
    if not _servers:
        line = [sys.executable, str(HERE)]
        server = subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        _servers.append(server)
        atexit.register(_stop, server)
    (server,) = _servers
    assert server.stdin is not None
    assert server.stdout is not None
    outcomes = []
    for step in steps:
        server.stdin.write(json.dumps(asdict(step)) + "\n")
        server.stdin.flush()
        outcomes.append(Outcome(**json.loads(server.stdout.readline())))
    return outcomes


def _stop(server: subprocess.Popen[str]) -> None:
    assert server.stdin is not None
    assert server.stdout is not None
    server.stdin.close()
    server.wait()
    server.stdout.close()


def main() -> None:
    import cryosam_dask.cli  # children have it already
    import cryosam_dask.pipeline

    with contextlib.suppress(ImportError):
        import cryosam_dask.pipeline.batch
        import cryosam_dask.pipeline.summary  # noqa: F401
    import pandas  # noqa: F401
    import xarray  # noqa: F401

    for line in sys.stdin:
        sys.stdout.write(json.dumps(asdict(perform(Step(**json.loads(line))))) + "\n")
        sys.stdout.flush()


def perform(step: Step) -> Outcome:
    """Run one step in a child, and look at the store in another."""
    folder = Path(step.store).parent
    log = folder / f".steps-{os.getpid()}"
    log.unlink(missing_ok=True)
    log.touch()
    marked = _in_child(lambda: _marks(step.store))
    read, write = os.pipe()
    pid = os.fork()
    if not pid:
        os.close(read)
        os.dup2(write, 2)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        _child(step, log)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        error = pipe.read().decode(errors="replace")
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    log.unlink()
    ran: dict[str, list[list[int]]] = {}
    again = []
    for stage, unit, marks in (line for line in lines if isinstance(line, list)):
        ran.setdefault(stage, []).append(marks)
        if marks and all(mark in marked.get(stage, ()) for mark in marks):
            again.append(f"{stage} {unit}")
    operations = max((line for line in lines if isinstance(line, int)), default=0)
    after = _in_child(lambda: _look(step.store)) if step.do == "none" else {}
    return Outcome(code, error, operations, ran, again, after.get("unfinished", {}), after.get("digest", {}))


def _child(step: Step, log: Path) -> None:
    code = 70
    try:
        lines = log.open("a", buffering=1)
        if step.plain and os.getuid() == 0:
            _give_up_capabilities()
        _watch_units(lines)
        _watch_files(step, lines)
        sys.argv = ["cryosam", *step.arguments]
        from cryosam_dask.cli import main as cryosam

        cryosam()
        code = 0
    except SystemExit as leave:
        code = leave.code if isinstance(leave.code, int) else int(leave.code is not None)
    except BaseException:  # noqa: BLE001 - what the command line lets through is what is looked for
        import traceback

        traceback.print_exc()
        code = 71
    finally:
        sys.stderr.flush()
        os._exit(code)


def _give_up_capabilities() -> None:
    import ctypes

    class Header(ctypes.Structure):
        _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))

    sets = (ctypes.c_uint32 * 6)()
    if ctypes.CDLL(None, use_errno=True).capset(ctypes.byref(Header(0x20080522, 0)), sets):
        raise OSError(ctypes.get_errno(), "capset")


def _watch_units(lines: Any) -> None:
    from cryosam_dask.executors import base, serial

    original = base.run_unit

    def run_unit(stage: str, work: Any, settings: Any, context: Any, unit: Any) -> Any:
        lines.write(json.dumps([stage, unit.name, list(unit.marks)]) + "\n")
        return original(stage, work, settings, context, unit)

    base.run_unit = run_unit  # type: ignore[assignment]
    if hasattr(serial, "run_unit"):
        serial.run_unit = run_unit  # type: ignore[attr-defined]


def _watch_files(step: Step, lines: Any) -> None:
    lock, count, due = threading.RLock(), 0, False
    watched = str(step.store)

    def hook(event: str, args: tuple[Any, ...]) -> None:
        nonlocal count, due
        if event == "open":
            if not args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
                return
        elif event not in ("os.rename", "os.link", "os.remove", "os.rmdir", "os.mkdir"):
            return
        if event == "os.mkdir" and os.path.isdir(args[0]):  # noqa: PTH112 - in a hook, the cheapest
            return
        removal = event in ("os.remove", "os.rmdir")
        within_tree = removal and args[1] not in (-1, None)
        if not within_tree and not str(args[0]).startswith(watched):
            return
        inside = f"removed:{args[0]}" if within_tree else str(args[0]).removeprefix(watched).lstrip("/")
        with lock:
            if step.path == "*" or fnmatch.fnmatchcase(inside, step.path):
                count += 1
                due = due or count == step.at
            if step.do == "kill" and due:
                lines.write(f"{count}\n")
                os.kill(os.getpid(), signal.SIGKILL)
            if step.do == "none":
                lines.write(f"{count}\n")
        if step.do in ERRORS and due and not removal:
            lines.write(f"{count}\n")
            number = ERRORS[step.do]
            raise OSError(number, os.strerror(number), str(args[0]))

    sys.addaudithook(hook)


def _in_child(function: Any) -> Any:
    """A function's result, from a child: this process must not start threads before it forks."""
    read, write = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            with os.fdopen(write, "w") as pipe:
                json.dump(function(), pipe)
        except BaseException:  # noqa: BLE001
            import traceback

            traceback.print_exc()
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        text = pipe.read()
    os.waitpid(pid, 0)
    return json.loads(text) if text else {}


def _marks(store: str) -> dict[str, list[int]]:
    """Marks by stage, by the files alone."""
    found: dict[str, list[int]] = {}
    root = Path(store) / "marks"
    for path in root.rglob("zarr.json"):
        if '"array"' in path.read_text():
            chunks = path.parent / "c"
            names = [entry.name for entry in chunks.iterdir()] if chunks.is_dir() else []
            found[str(path.parent.relative_to(root))] = [int(name) for name in names if name.isdecimal()]
    return found


def _look(store: str) -> dict[str, Any]:
    return {"unfinished": unfinished(store), "digest": digests(store)}


def unfinished(store: str) -> dict[str, int]:
    """Units of each stage that has begun that are not marked; planes are not counted, of which most never are."""
    found = {}
    for stage, done in _marks(store).items():
        about = json.loads((Path(store) / "marks" / stage / "zarr.json").read_text())
        if stage != "embeddings":
            found[stage] = about["shape"][0] - len(done)
    return found


def digests(store: str) -> dict[str, str]:
    """A digest of each chunk and of each array's and group's metadata, but of the journal and what versions say."""
    found = {}
    root = Path(store)
    for path in sorted(root.rglob("*")):
        name = str(path.relative_to(root))
        if not path.is_file() or name.endswith(".partial") or name.startswith("journal") or name == "zarr.json":
            continue
        found[name] = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    return found


if __name__ == "__main__":
    main()
