"""The page in a frame of a notebook."""

from __future__ import annotations

import atexit
import html
import weakref
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from cryosam_dask.viewer.serve import Server, check, models_for, public_base

if TYPE_CHECKING:
    from cryosam_dask.executors.base import Executor
    from cryosam_dask.viewer.session import Session

NOTEBOOKS = (
    "http://localhost:*",
    "http://127.0.0.1:*",
    "https://localhost:*",
    "https://127.0.0.1:*",
    "vscode-webview:",
)
"""Pages of this machine that may show the page in a frame: Jupyter's, and Visual Studio Code's."""

_open: weakref.WeakSet[View] = weakref.WeakSet()


class View:
    """The page of a run, served until `close`, or until Python ends. In a notebook, it is shown in a frame.

    url : its address, with its token: who has it can use the page, so clear the output before you pass the notebook on
    """

    def __init__(self, session: Session, server: Server, height: int) -> None:
        self._session, self._server, self._height = session, server, height
        _open.add(self)

    @property
    def url(self) -> str:
        return self._server.url

    def close(self) -> None:
        """End jobs, workers and the server. What was done is in the run."""
        self._server.stop()
        self._session.close()

    def __enter__(self) -> View:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<cryosam view of {self._session.snapshot()['run']['path']}>"

    def _repr_html_(self) -> str:
        source = html.escape(self.url, quote=True)
        style = f"border: 0; width: 100%; height: {self._height}px"
        return (
            f'<iframe src="{source}" style="{style}" referrerpolicy="no-referrer" allow="fullscreen; clipboard-write">'
            "</iframe>"
        )


def view(
    source: str | Path,
    *,
    out: str | None = None,
    models: str | None = None,
    settings: dict[str, Any] | None = None,
    height: int = 800,
    base_url: str | None = None,
    allow_hosts: Iterable[str] = (),
    voxel_size: float | None = None,
    unsigned: bool | None = None,
    device: str = "auto",
    **where: Any,
) -> View:
    """Show a run, or a tomogram, on a page: find a particle, click it, find its like, correct what was found.

    Parameters
    ----------
    source : a run, or a tomogram that is ingested into `out`; path or URL
    models, settings : as for `run`, e.g. settings={"match.count": 200}; None: as the run's features, else "builtin"
    height : pixels of the frame in a notebook
    base_url : where a proxy shows a port of this machine, with `{port}` for it, e.g.
        "https://hub.example.org/user/ada/proxy/{port}"; None: as `CRYOSAM_VIEW_BASE_URL` or JupyterHub say
    allow_hosts : further names that the page is asked for by
    voxel_size, unsigned : Å, and how to read 8-bit voxels, instead of what the tomogram's file states
    device, where : the workers, as for `run`: `workers`, `scheduler`, `cluster`, `client`

    Raises InputError for a source that can't be read, and under JupyterHub where its address is not known.
    """
    from cryosam_dask.executors.choice import make_executor
    from cryosam_dask.pipeline import settings_for, uses_torch_of
    from cryosam_dask.viewer.session import Session

    base = public_base() if base_url is None else base_url
    allow_hosts = list(allow_hosts)
    check("127.0.0.1", 0, allow_hosts)
    chosen = settings_for(models or models_for(str(source)), settings)

    def executor() -> Executor:
        return make_executor(device=device, uses_torch=uses_torch_of(chosen), **where)

    session = Session(
        str(source),
        out,
        settings=chosen,
        make_executor=executor,
        reading={"voxel_size": voxel_size, "unsigned": unsigned},
        device=device,
    )
    try:
        server = Server(session, allowed=allow_hosts, base_url=base, framed_by=NOTEBOOKS if base is None else ())
    except BaseException:
        session.close()
        raise
    return View(session, server.start(), height)


@atexit.register
def _close_all() -> None:
    for each in list(_open):
        each.close()
