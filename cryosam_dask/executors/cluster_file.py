"""The file that describes a batch system's workers, as its user edits it. deploy/slurm/ holds examples."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from cryosam_dask.errors import SettingsError
from cryosam_dask.executors.cluster import UNITS_PER_GPU

SMALLEST_MEMORY = 256 << 20
_WALLTIME = re.compile(r"(?:(?P<days>\d+)-)?(?P<clock>\d+(?::\d+){0,2})")
_RESERVED = {"time", "t", "mem", "n", "ntasks", "cpus-per-task", "c", "partition", "p", "account", "A", "J", "job-name"}


def parse_walltime(text: str) -> int:
    """Seconds of a duration as SLURM writes it: M, M:S, H:M:S, D-H, D-H:M or D-H:M:S."""
    match = _WALLTIME.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is no duration; expected H:M:S, M:S, M or D-H:M:S, such as 04:00:00")
    numbers = [int(part) for part in match["clock"].split(":")]
    if match["days"] is not None:
        hours, minutes, seconds = [*numbers, 0, 0][:3]
    else:
        hours, minutes, seconds = {1: [0, *numbers, 0], 2: [0, *numbers], 3: numbers}[len(numbers)]
    total = ((int(match["days"] or 0) * 24 + hours) * 60 + minutes) * 60 + seconds
    if total < 60:
        raise ValueError(f"{text!r} is under a minute; expected H:M:S, such as 04:00:00")
    return total


def _bytes(text: object) -> int:
    from dask.utils import parse_bytes

    try:
        size = int(parse_bytes(str(text)))
    except ValueError:
        raise ValueError(f"{text!r} is no amount of memory; expected a number and a unit, such as 48GiB") from None
    if size < SMALLEST_MEMORY:
        raise ValueError(f"{text} is too little; expected a number and a unit, such as 48GiB")
    return size


def _seconds(text: object) -> float:
    from dask.utils import parse_timedelta

    try:
        return float(parse_timedelta(str(text)))
    except (ValueError, KeyError):
        raise ValueError(f"{text!r} is no duration; expected such as 90s or 5m") from None


def _line(text: object) -> object:
    if isinstance(text, str) and (not text.strip() or "\n" in text):
        raise ValueError("expected one line of text; leave the key out for the default")
    return text


Line = Annotated[str, BeforeValidator(_line)]
Memory = Annotated[int, BeforeValidator(_bytes)]
Seconds = Annotated[float, BeforeValidator(_seconds), Field(ge=0)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class JobKind(_Strict):
    """Jobs that are alike. Each holds `processes` workers, which share its cores and memory."""

    cores: int = Field(ge=1)
    memory: Memory
    walltime: Line
    processes: int | None = Field(default=None, ge=1)
    minimum: int = Field(default=0, ge=0)
    maximum: int = Field(default=1, ge=1)
    queue: Line | None = None
    account: Line | None = None
    interface: Line | None = None
    local_directory: Line = "${TMPDIR:-/tmp}"
    directives: tuple[Line, ...] = ()
    prologue: tuple[Line, ...] = ()

    @model_validator(mode="after")
    def _agrees(self) -> JobKind:
        parse_walltime(self.walltime)
        if self.minimum > self.maximum:
            raise ValueError(f"minimum {self.minimum} is more than maximum {self.maximum}")
        if self.processes is not None and self.processes > self.cores:
            raise ValueError(f"{self.processes} processes on {self.cores} cores; expected one core for each at least")
        for directive in self.directives:
            name = re.split(r"[= ]", directive.lstrip("-"), maxsplit=1)[0]
            if not directive.startswith("-") or name in _RESERVED:
                raise ValueError(
                    f"directive {directive!r}: expected an option such as --gres=gpu:1, and cores, memory, walltime, "
                    "queue and account by their own keys"
                )
        return self

    @property
    def seconds(self) -> int:
        """The walltime."""
        return parse_walltime(self.walltime)

    @property
    def margin(self) -> float:
        """Seconds before the walltime at which workers leave on their own, on average."""
        return min(max(0.05 * self.seconds, 120.0), 600.0, self.seconds / 4)


class SlurmFile(_Strict):
    """A cluster of SLURM jobs: what `--cluster FILE` reads.

    Attributes
    ----------
    gpu, cpu : the kinds of jobs; one of them may be missing
    interface, host : where the scheduler listens, on this machine: a network interface or an address of it
    shared_directory : a folder that all nodes see; logs and the cluster's certificates are kept there
    idle : seconds after which jobs that are not needed are given back
    python : of the environment on the nodes
    """

    system: Literal["slurm"]
    gpu: JobKind | None = None
    cpu: JobKind | None = None
    interface: Line | None = None
    host: Line | None = None
    port: int = Field(default=0, ge=0, le=65535)
    dashboard: Line | None = None
    shared_directory: Line = "~/.cryosam"
    idle: Seconds = 300.0
    python: Line = sys.executable

    @model_validator(mode="after")
    def _agrees(self) -> SlurmFile:
        if not self.kinds:
            raise ValueError("no workers; expected a section gpu:, cpu: or both")
        if self.interface and self.host:
            raise ValueError("interface and host say the same thing; give one of them")
        return self

    @property
    def kinds(self) -> dict[str, JobKind]:
        """The sections that are there, by name."""
        return {name: kind for name, kind in (("gpu", self.gpu), ("cpu", self.cpu)) if kind is not None}

    @property
    def shared(self) -> Path:
        return Path(self.shared_directory).expanduser().absolute()

    def processes(self, name: str) -> int:
        """Workers of one job: by default one for each core, but one for a GPU."""
        kind = self.kinds[name]
        return kind.processes or (1 if name == "gpu" else kind.cores)

    def threads(self, name: str) -> int:
        """Units that one worker runs at once."""
        each = self.kinds[name].cores // self.processes(name)
        return min(each, UNITS_PER_GPU) if name == "gpu" else each

    def units(self, name: str) -> int:
        """Units that one job runs at once."""
        return self.processes(name) * self.threads(name)

    def kind_of(self, needs_gpu: bool) -> str:
        """The kind of job that a unit waits for."""
        return "gpu" if needs_gpu or self.cpu is None else "cpu"

    def quoted_python(self) -> str:
        return shlex.quote(str(Path(self.python).expanduser()))


def read_cluster_file(path: str | Path) -> SlurmFile:
    """Read and check a cluster's file.

    Raises
    ------
    SettingsError : the file can't be read or is not YAML, or a key is unknown, missing or out of range; one line names
        the key
    """
    import yaml

    try:
        # BaseLoader makes text of everything, and nothing else: 12:00:00 stays a time and does not become 43200
        content = yaml.load(Path(path).read_text(encoding="utf-8"), Loader=yaml.BaseLoader)
    except OSError as error:
        raise SettingsError(
            f"--cluster {path}: can't be read ({error.strerror}); expected cuda or a YAML file"
        ) from None
    except UnicodeDecodeError:
        raise SettingsError(f"--cluster {path}: expected a YAML file in UTF-8") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}: " if mark is not None else ""
        raise SettingsError(
            f"--cluster {path}: {where}not YAML ({getattr(error, 'problem', None) or 'unreadable'})"
        ) from None
    if not isinstance(content, dict):
        raise SettingsError(f"--cluster {path}: expected keys and values, beginning with system: slurm")
    try:
        return SlurmFile.model_validate(content)
    except ValidationError as error:
        raise SettingsError(f"--cluster {path}: {_first(error)}") from None


def _first(error: ValidationError) -> str:
    """The first of the faults, as one line, and how many more there are."""
    faults = error.errors(include_url=False)
    fault: Any = faults[0]
    where = ".".join(str(part) for part in fault["loc"])
    words = str(fault["msg"]).removeprefix("Value error, ")
    if fault["type"] == "extra_forbidden":
        model = JobKind if len(fault["loc"]) > 1 else SlurmFile
        words = f"unknown key; expected one of {', '.join(model.model_fields)}"
    elif fault["type"] == "missing":
        words = "missing"
    more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
    return " ".join(f"{where}: {words}{more}".removeprefix(": ").split())
