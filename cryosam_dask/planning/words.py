"""A plan for people: aligned tables."""

from __future__ import annotations

import io

from rich.console import Console
from rich.filesize import decimal
from rich.table import Table

from cryosam_dask.planning.plan import Plan

LIMITS = {"workers": "workers", "driver": "driver", "storage": "storage", "order": "order: too few units at once"}

WIDTH = 160
"""Width of the tables in characters; every table fits."""


def in_words(plan: Plan) -> str:
    """A plan as aligned tables, with what it assumes."""
    shape = " × ".join(str(n) for n in plan.shape)
    size = " × ".join(f"{v:g}" for v in sorted({round(v, 4) for v in plan.voxel_size}))
    reach = plan.planes
    parts = [
        f"{shape} voxels (z, y, x), {plan.dtype}, {size} Å; models: {plan.models}",
        *(_text(table) for table in (_stages(plan), _stored(plan), _times(plan))),
        *([_text(_many(plan)), _all_stored(plan)] if plan.many else []),
        *(
            [
                f"planes to embed: about {reach.expected} of {reach.all} in {plan.waves} waves ({reach.least} if all "
                f"{plan.prompts} prompts lie on the same planes, {reach.most} if each goes as far as it may)"
            ]
            if plan.waves
            else []
        ),
        "\n".join(f"- {note}" for note in plan.notes),
    ]
    return "\n\n".join(parts)


def _text(table: Table) -> str:
    console = Console(file=io.StringIO(), width=WIDTH, color_system=None)
    with console.capture() as capture:
        console.print(table)
    return "\n".join(line.rstrip() for line in capture.get().rstrip().splitlines())


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
    for i, column in enumerate(columns):
        table.add_column(column, justify="right" if i else "left", no_wrap=True)
    return table


def _stages(plan: Plan) -> Table:
    table = _table("stage", "units", "memory a unit", "model", "seconds a unit", "on one worker")
    for stage in plan.stages:
        model = decimal(stage.model) if stage.model else ""
        each = f"{stage.seconds / stage.units:.3g}"
        table.add_row(stage.name, f"{stage.units:,}", decimal(stage.memory), model, each, duration(stage.seconds))
    return table


def _stored(plan: Plan) -> Table:
    table = _table("stored", "bytes", "compressed, about", "chunks")
    for array in plan.stored:
        table.add_row(array.kind, decimal(array.bytes), decimal(array.compressed), f"{array.chunks:,}")
    total, compressed = (sum(getattr(array, name) for array in plan.stored) for name in ("bytes", "compressed"))
    table.add_row("all", decimal(total), decimal(compressed), f"{sum(array.chunks for array in plan.stored):,}")
    return table


def _times(plan: Plan) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
    for name in ("workers", "time"):
        table.add_column(name, justify="right", no_wrap=True)
    for name in ("most of it", "limited by"):
        table.add_column(name, no_wrap=True)
    for time in plan.times:
        share = f"{time.stage}, {100 * time.stage_seconds / time.seconds:.0f} %"
        table.add_row(str(time.workers), duration(time.seconds), share, LIMITS[time.limit])
    return table


def _many(plan: Plan) -> Table:
    table = _table("workers", "at once", f"{plan.options.tomograms} tomograms", "one by one", "workers busy")
    table.add_column("limited by", no_wrap=True)
    for time in plan.many:
        table.add_row(
            *(str(time.workers), str(time.at_once), duration(time.seconds), duration(time.in_turn)),
            *(f"{100 * time.busy:.0f} %", LIMITS[time.limit]),
        )
    return table


def _all_stored(plan: Plan) -> str:
    count, each = plan.options.tomograms, sum(array.compressed for array in plan.stored)
    return f"{count} tomograms, as if all were like this one: about {decimal(count * each)} on disk, compressed"


def duration(seconds: float) -> str:
    """Seconds as people say them: 7.5 s, 3 min 20 s, 5 h 10 min, 2 d 3 h."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    minutes = round(seconds / 60)
    if minutes < 24 * 60:
        return f"{minutes // 60} h {minutes % 60} min"
    hours = round(seconds / 3600)
    return f"{hours // 24} d {hours % 24} h"
