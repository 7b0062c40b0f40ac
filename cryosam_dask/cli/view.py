"""The command that opens a page to look at a tomogram, click in it and correct what was found."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cryosam_dask.cli.app import RUNS, app, examples
from cryosam_dask.cli.options import Choice, Reading, Where, say, with_options

if TYPE_CHECKING:
    from cryosam_dask.executors.base import Executor


@dataclass(frozen=True)
class Models(Choice):
    """The models and settings of what the page makes."""

    models: Annotated[
        str | None,
        typer.Option(
            metavar="MODELS",
            help="'builtin' (default; no download, no GPU), 'paper' (3.8 GB of weights, better a GPU) or "
            "ENCODER+SEGMENTER. Of a run with features, those of its features are the default.",
        ),
    ] = None


@app.command(
    rich_help_panel=RUNS,
    epilog=examples(
        "cryosam view tomo.mrc",
        "cryosam view run.zarr --port 8890 --no-browser",
        "cryosam view s3://bucket/run.zarr --scheduler tls://host:8786",
    ),
)
@with_options
def view(
    source: Annotated[str, typer.Argument(metavar="TOMO|RUN.zarr", help="A tomogram, or a run; a path or a URL.")],
    choice: Models,
    where: Where,
    reading: Reading,
    out: Annotated[
        str | None, typer.Option("--out", metavar="RUN.zarr", help="Of a tomogram, the run to make or to continue.")
    ] = None,
    port: Annotated[int, typer.Option("--port", help="Where to listen; 0: any that is free.")] = 0,
    host: Annotated[
        str, typer.Option("--host", help="The address to listen at; only this machine reaches 127.0.0.1.")
    ] = "127.0.0.1",
    browser: Annotated[bool, typer.Option("--browser/--no-browser", help="Open the page in a browser.")] = True,
    base_url: Annotated[
        str | None,
        typer.Option(
            "--base-url",
            metavar="URL",
            envvar="CRYOSAM_VIEW_BASE_URL",
            help="Where a proxy shows the page; {port} stands for the port.",
        ),
    ] = None,
    allow_host: Annotated[
        list[str] | None,
        typer.Option("--allow-host", metavar="NAME", help="A further name by which the page is asked for."),
    ] = None,
) -> None:
    """Open a page in the browser: look at a tomogram, click a particle, find its like, correct what was found.

    The page works on the run, which keeps clicks, decisions and results. Ctrl-C ends it; the same command goes on.
    The address that is printed holds a password: keep it to yourself.
    """
    from cryosam_dask.executors.choice import make_executor
    from cryosam_dask.pipeline import settings_for, uses_torch_of
    from cryosam_dask.viewer import serve
    from cryosam_dask.viewer.session import Session

    serve.check(host, port, allow_host or ())
    settings = choice.settings(like=settings_for(serve.models_for(source)))

    def executor() -> Executor:
        return make_executor(**where.options(), uses_torch=uses_torch_of(settings))

    with _interruptible(), contextlib.ExitStack() as stack:
        session = Session(
            source,
            out,
            settings=settings,
            make_executor=executor,
            reading=reading.options(),
            device=where.device,
        )
        stack.callback(session.close)
        server = stack.enter_context(serve.Server(session, host, port, allowed=allow_host or (), base_url=base_url))
        say(serve.notes(host))
        typer.echo(server.url)
        if browser and not stack.enter_context(serve.browser(server.url)):
            say(["No browser is known here; open the address above."])
        say(["Ctrl-C ends the page."])
        with contextlib.suppress(KeyboardInterrupt):
            threading.Event().wait()


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """A context in which a request to end, as a terminal or a batch system sends it, is as Ctrl-C."""

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    kinds = [kind for kind in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(kind) != signal.SIG_IGN]  # nohup
    before = {kind: signal.signal(kind, interrupt) for kind in kinds}
    try:
        yield
    finally:
        for kind, handler in before.items():
            signal.signal(kind, handler)
