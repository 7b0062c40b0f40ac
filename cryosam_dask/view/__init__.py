"""The page beside the data: see a tomogram, click a particle, find its like, correct what was found.

A face like the command line: nothing below knows of it, and it owns no state, the run does. `volumes`, `meshes` and
`gallery` read the run for the viewer; `session` and what is beside it act on the run; `app` answers the browser,
`guard` says who may ask, and `serve` starts it.

`cryosam_dask.view` is this package as soon as it is imported, and is called as the function that shows a page: the
package can be called, too.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cryosam_dask.view.notebook import View


class _Callable(ModuleType):
    def __call__(self, *arguments: Any, **options: Any) -> View:
        """See `notebook.view`."""
        from cryosam_dask.view.notebook import view

        return view(*arguments, **options)


sys.modules[__name__].__class__ = _Callable
