"""Options that several commands have. A command takes a group of options as one argument: a dataclass of this module.

    @app.command()
    @with_options
    def features(run: RunArgument, choice: Choice, where: Where) -> None: ...

`with_options` gives the command line one option for each field of such a dataclass.
"""

from __future__ import annotations

import functools
import inspect
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from cryosam_dask.errors import InputError, SettingsError

if TYPE_CHECKING:
    from distributed import Security

    from cryosam_dask.pipeline import Driver
    from cryosam_dask.settings import Settings

RunArgument = Annotated[str, typer.Argument(metavar="RUN.zarr", help="A run's store, a folder or a URL.")]
TomogramArgument = Annotated[
    str, typer.Argument(metavar="TOMO", help="MRC (also .gz), TIFF, HDF5 or NumPy file; OME-Zarr folder or URL.")
]
OutOption = Annotated[str, typer.Option("--out", metavar="RUN.zarr", help="The store to make or to continue.")]
NamesOption = Annotated[
    list[str] | None,
    typer.Option("--name", help="Name of the query, else 'particle'. Several, --name A --name B: kinds, told apart."),
]
WhichOption = Annotated[str | None, typer.Option("--name", help="Which query; not needed where there is one.")]
OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="Replace what was made with other settings.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
WorkersOption = Annotated[
    int | None,
    typer.Option(
        "--workers", metavar="N", help="Local worker processes, else one for each GPU or core; 0: all in this process."
    ),
]


@dataclass(frozen=True)
class Choice:
    """Options that choose the models and change settings."""

    models: Annotated[
        str | None,
        typer.Option(
            metavar="MODELS",
            help="'paper' (default; 3.8 GB of weights, better a GPU), 'builtin' (no download, no GPU) or "
            "ENCODER+SEGMENTER, each also NAME=PATH.",
        ),
    ] = None
    count: Annotated[
        str | None,
        typer.Option(
            "--count", "-k", metavar="K|auto", help="Prompts to keep (K). paper: 512; builtin: auto, from the scores."
        ),
    ] = None
    ratios: Annotated[
        str | None,
        typer.Option(
            metavar="R,R,…", help="Matching ratios, coarse to fine; 1 is naive matching. paper: 16,8,4; builtin: 4."
        ),
    ] = None
    structure: Annotated[
        str | None,
        typer.Option(
            metavar="particle|extended|auto",
            help="What was clicked: a particle, which has a size, or an extended structure (membrane, filament), which "
            "has none. auto (default): by the click's mask.",
        ),
    ] = None
    set: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SECTION.NAME=VALUE",
            help="Change a setting, e.g. match.tau_sim=0.4. May be given again; a wrong name lists them all.",
        ),
    ] = None

    def settings(self, like: Settings | None = None) -> Settings:
        """The settings with all changes applied: those of the models, or `like` where no models are given."""
        from cryosam_dask.pipeline import settings_for

        values: dict[str, Any] = {}
        for change in self.set or []:
            key, equals, value = change.partition("=")
            if not equals:
                raise SettingsError(f"--set {change}: expected SECTION.NAME=VALUE, e.g. match.tau_sim=0.4")
            values[key.strip()] = _value(value.strip())
        if self.count is not None:
            values["match.count"] = _value(self.count)
        if self.ratios is not None:
            values["match.ratios"] = whole_numbers(self.ratios, "--ratios")
        if self.structure is not None:
            values["match.structure"] = self.structure
        if like is not None and self.models is None:
            return like.replace(values)
        return settings_for(self.models or "paper", values)


@dataclass(frozen=True)
class Reading:
    """Options that correct or complete what the tomogram's file states."""

    voxel_size: Annotated[
        str | None, typer.Option(metavar="Å", help="Å, instead of the file's: one number, or Z,Y,X.")
    ] = None
    unsigned: Annotated[
        bool | None,
        typer.Option("--unsigned/--signed", help="How to read 8-bit MRC voxels, instead of by the header."),
    ] = None

    def options(self) -> dict[str, Any]:
        """The options as keywords of `open_tomogram`."""
        size: float | list[float] | None = None
        if self.voxel_size is not None:
            values = numbers(self.voxel_size, "--voxel-size")
            size = values[0] if len(values) == 1 else values
        return {"voxel_size": size, "unsigned": self.unsigned}


@dataclass(frozen=True)
class Certificates:
    """PEM files for a scheduler that requires TLS. Without any, Dask's configuration applies."""

    tls_ca: Annotated[
        Path | None, typer.Option(metavar="PEM", help="Authority that the scheduler's certificate is signed by.")
    ] = None
    tls_cert: Annotated[Path | None, typer.Option(metavar="PEM", help="Our certificate for the scheduler.")] = None
    tls_key: Annotated[Path | None, typer.Option(metavar="PEM", help="Its key.")] = None

    def security(self) -> Security | None:
        """The security settings of a connection with these files; None if no file is given."""
        if self == Certificates():
            return None
        from cryosam_dask.executors.security import security_from

        return security_from(self.tls_ca, self.tls_cert, self.tls_key)


@dataclass(frozen=True)
class Workers:
    """Options that choose the workers, for commands that need no GPU."""

    workers: WorkersOption = None
    scheduler: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="A Dask scheduler, e.g. tls://host:8786.")
    ] = None
    cluster: Annotated[
        str | None, typer.Option(metavar="FILE", help="Start a cluster: a YAML file as in deploy/, or 'cuda'.")
    ] = None
    unit_timeout: Annotated[
        float,
        typer.Option(metavar="SECONDS", help="A unit that takes longer is taken to hang and runs elsewhere; 0: never."),
    ] = 3600.0
    tls: Certificates = field(default_factory=Certificates)

    def options(self) -> dict[str, Any]:
        """The options as keywords of `make_executor` and of `pipeline.run`."""
        return {
            "workers": self.workers,
            "scheduler": self.scheduler,
            "cluster": self.cluster,
            "security": self.tls.security(),
            "unit_timeout": self.unit_timeout or None,
        }


@dataclass(frozen=True)
class Where(Workers):
    """Options that choose the workers, and the device that models run on."""

    device: Annotated[str, typer.Option(help="auto, cpu or cuda; auto: a GPU if there is one.")] = "auto"

    def options(self) -> dict[str, Any]:
        return {**super().options(), "device": self.device}


def with_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give the command one option for each field of the dataclasses among its parameters."""
    signature = inspect.signature(command, eval_str=True)
    groups = {name: p.annotation for name, p in signature.parameters.items() if is_dataclass(p.annotation)}
    parameters: list[inspect.Parameter] = []
    for name, parameter in signature.parameters.items():
        if name in groups:
            parameters += _options_of(groups[name])
        else:
            parameters.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY))

    @functools.wraps(command)
    def expanded(**values: Any) -> None:
        packed = {name: _pack(kind, values) for name, kind in groups.items()}
        command(**values, **packed)

    expanded.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    return expanded


def _options_of(kind: Any) -> Iterator[inspect.Parameter]:
    hints = get_type_hints(kind, include_extras=True)
    for option in fields(kind):
        if is_dataclass(hints[option.name]):
            yield from _options_of(hints[option.name])
        else:
            yield inspect.Parameter(
                option.name, inspect.Parameter.KEYWORD_ONLY, default=option.default, annotation=hints[option.name]
            )


def _pack(kind: Any, values: dict[str, Any]) -> Any:
    """The dataclass, of values that are taken out of `values`."""
    hints = get_type_hints(kind, include_extras=True)
    return kind(
        **{
            option.name: _pack(hints[option.name], values)
            if is_dataclass(hints[option.name])
            else values.pop(option.name)
            for option in fields(kind)
        }
    )


@contextmanager
def driver(
    out: str, where: Workers, overwrite: bool, settings: Settings | None = None, *, uses_torch: bool = True
) -> Iterator[Driver]:
    """Make a driver of the run at `out`, with an executor that is closed at the end."""
    from cryosam_dask.executors.choice import make_executor
    from cryosam_dask.executors.progress import Progress
    from cryosam_dask.pipeline import Driver, uses_torch_of

    torch = uses_torch if settings is None else uses_torch_of(settings)
    with make_executor(**{"device": "cpu", **where.options()}, uses_torch=torch) as executor:
        yield Driver(out, executor, Progress(), overwrite=overwrite)


def numbers(text: str, option: str) -> list[float]:
    """Parse numbers separated by commas; `InputError` names the option."""
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise InputError(f"{option} {text}: expected numbers separated by commas") from None


def position(text: str, option: str) -> list[float]:
    """Parse a position Z,Y,X; `InputError` names the option."""
    values = numbers(text, option)
    if len(values) != 3:
        raise InputError(f"{option} {text}: expected three numbers Z,Y,X, got {len(values)}")
    return values


def whole_numbers(text: str, option: str) -> list[int]:
    """Parse whole numbers separated by commas; `InputError` names the option."""
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise InputError(f"{option} {text}: expected whole numbers separated by commas") from None


def pairs(texts: list[str], option: str, expected: str) -> dict[str, str]:
    """What stands left and right of `=` in each of an option's texts; names must differ."""
    values: dict[str, str] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name or not value:
            raise InputError(f"{option} {text}: expected {expected}")
        if name in values:
            raise InputError(f"{option} {text}: {name} is given twice; expected another name for each")
        values[name] = value
    return values


def say(notes: list[str]) -> None:
    """Print notes for the user to stderr, which keeps stdout for the results."""
    for note in notes:
        print(note, file=sys.stderr)  # noqa: T201


def _value(text: str) -> Any:
    """JSON where it is JSON; `16,8,4` a list; else the text itself."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        pass
    if "," in text:
        return [_value(part) for part in text.split(",") if part.strip()]
    return {"none": None, "true": True, "false": False}.get(text.lower(), text)
