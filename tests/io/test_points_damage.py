"""Damaged files of points of the newer formats: read, or refused in one line, soon, with memory in proportion."""

from __future__ import annotations

import functools
import io
import json
import random
import shutil
import struct
import tempfile
import time
import tracemalloc
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from damage import JSONS, LONGEST_MESSAGE, SLOWEST, damaged, make_detector, make_warp_stacks, traced

from cryosam_dask.errors import InputError
from cryosam_dask.io import read_points
from cryosam_dask.io.points.files import Frame, encode_picks
from cryosam_dask.types import Pick

FRAME = {"voxel_size": 10.0, "shape": (50, 60, 70)}
PICKS = [Pick(1.5, 2, 3, 0.5, 1), Pick(4, 5, 6.25, 0.25, 2), Pick(7, 8, 9, 0.125, 3)]
KINDS = {"imod": ".mod", "copick": ".json", "ndjson": ".ndjson", "parquet": ".parquet", "warp": ".star"}
KINDS |= {"warp 2D stacks": ".star", "detector's pixels": ".star"}
TEXTS = {"warp 2D stacks": make_warp_stacks, "detector's pixels": make_detector}
KINDS |= {"dynamo": ".tbl", "em": ".em", "stopgap": ".star", "pytom": ".xml", "eman2": ".json", "cryolo": ".cbox"}
KINDS |= {"xyz": ".txt"}
LEAST, PER_BYTE = 32 << 20, 100


@pytest.fixture(scope="module", autouse=True)
def _traced() -> Iterator[None]:
    read_points_of(sound("parquet"), "parquet")  # what is imported when it is needed is no part of what is measured
    read_points_of(sound("imod"), "imod")
    with traced():
        yield


@functools.cache
def sound(kind: str) -> bytes:
    if kind in TEXTS:
        every = ("\n".join(TEXTS[kind](random.Random(seed))).encode() for seed in range(100))
        return next(raw for raw in every if raw.count(b"\n") > 8 and not read_points_of(raw, kind)[1])
    return encode_picks([(PICKS, Frame((10.0,) * 3, (50, 60, 70), "TS_1", kind="apo"))], kind)


def read_points_of(raw: bytes, kind: str) -> tuple[pd.DataFrame | None, str, Path]:
    folder = Path(tempfile.mkdtemp())
    try:
        path = folder / f"p{KINDS[kind]}"
        path.write_bytes(raw)
        try:
            return read_points(path, notes=[], **FRAME), "", path
        except InputError as error:
            return None, str(error), path
    finally:
        shutil.rmtree(folder)


def examine(raw: bytes, kind: str) -> tuple[pd.DataFrame | None, str]:
    tracemalloc.reset_peak()
    before, arrow = tracemalloc.get_traced_memory()[0], pa.default_memory_pool().max_memory()
    start = time.process_time()
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        table, refused, _ = read_points_of(raw, kind)
    assert time.process_time() - start < SLOWEST
    assert not heard, f"warned: {heard[0].message}"
    allowed = LEAST + PER_BYTE * len(raw)
    assert tracemalloc.get_traced_memory()[1] - before <= allowed
    assert pa.default_memory_pool().max_memory() - arrow <= allowed
    if table is None:
        assert refused
        assert refused.isprintable()
        assert len(refused) < LONGEST_MESSAGE
    else:
        assert np.isfinite(table[["z", "y", "x"]].to_numpy()).all()
    return table, refused


@pytest.mark.parametrize("kind", KINDS)
def test_damage_ends_in_a_read_or_in_one_line(kind: str) -> None:
    r = random.Random(kind)
    refused = [bool(examine(damaged(r, sound(kind)), kind)[1]) for _ in range(60)]
    assert sum(refused) > 5
    assert examine(sound(kind), kind)[0] is not None


@pytest.mark.parametrize("kind", ["copick", "ndjson", "eman2"])
def test_json_of_other_values(kind: str) -> None:
    """Every value of a sound file in turn is another one."""
    r = random.Random(3)
    lines = sound(kind).decode().splitlines() if kind == "ndjson" else [sound(kind).decode()]
    for _ in range(60):
        values = [json.loads(line) for line in lines]
        holder, key = r.choice(list(_places(r.choice(values))))
        holder[key] = r.choice(JSONS)
        text = "\n".join(json.dumps(value).replace("\\ud800", "?") for value in values)
        examine(text.encode(), kind)


def _places(node: object) -> Iterator[tuple[object, object]]:
    keys = list(node) if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else []
    for key in keys:
        yield node, key
        yield from _places(node[key])  # type: ignore[index]


@pytest.mark.parametrize("kind", KINDS)
def test_random_bytes(kind: str) -> None:
    r = random.Random(5)
    start = sound(kind)[: 8 if kind == "imod" else 4]
    for size in (0, 1, 7, 100, 3000):
        assert examine(r.randbytes(size), kind)[1]
        examine(start + r.randbytes(size), kind)


def test_xml_that_unpacks_to_much_is_refused() -> None:
    """Entities of entities: gigabytes in a kilobyte, in a document that names them and in one that does not."""
    entities = "".join(f'<!ENTITY e{i} "{f"&e{i - 1};" * 10 if i else "aaaaaaaaaa"}">' for i in range(10))
    text = f"<!DOCTYPE a [{entities}]><ParticleList><Particle Filename='&e9;'/></ParticleList>"
    assert "XML with a document type" in examine(text.encode(), "pytom")[1]
    assert "not readable XML" in examine(b"<ParticleList><Particle Filename='&e9;'/></ParticleList>", "pytom")[1]


def test_xml_of_many_elements_takes_no_tree() -> None:
    text = b"<ParticleList>" + b"<a>" * 100_000 + b"</a>" * 100_000 + b"<b/>" * 300_000 + b"</ParticleList>"
    assert "holds no points" in examine(text, "pytom")[1]


# Sizes that a file does not have --------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [2**31 - 1, -1, -(2**31), 10**6])
@pytest.mark.parametrize("piece", [b"CONT", b"MESH", b"IMAT", b"SIZE"])
def test_an_imod_model_that_promises_more_than_it_has(count: int, piece: bytes) -> None:
    raw = sound("imod")
    place = raw.index(b"OBST")
    body = struct.pack(">4i", count, count, 0, 0)
    _, refused = examine(raw[:place] + piece + body + raw[place:], "imod")
    assert "not a readable IMOD model" in refused


def test_an_imod_model_cut_anywhere_is_refused() -> None:
    raw = sound("imod")
    for length in range(0, len(raw), 7):
        assert "IMOD model" in examine(raw[:length], "imod")[1]


def test_an_imod_model_of_another_version() -> None:
    assert "not an IMOD model (version 1.2)" in examine(b"IMODV0.1" + sound("imod")[8:], "imod")[1]


def test_parquet_that_unpacks_to_much_is_refused() -> None:
    """Six million coordinates in some kilobytes."""
    zeros = pa.array(np.zeros(2_000_000))
    out = io.BytesIO()
    pq.write_table(pa.table({"z": zeros, "y": zeros, "x": zeros}), out, compression="zstd")
    assert len(out.getvalue()) < 10**5
    assert "2000000 rows in" in examine(out.getvalue(), "parquet")[1]


@pytest.mark.parametrize(("length", "words"), [(2**20, "kind: a name of more than 255 bytes"), (255, "")])
def test_parquet_of_one_text_many_times(length: int, words: str) -> None:
    """A text that many rows share is in memory once, and no name is a megabyte long."""
    rows = 300_000
    values = np.random.default_rng(0).random(rows)  # so that the rows are in proportion to the file
    text = pa.DictionaryArray.from_arrays(pa.array(np.zeros(rows, np.int8)), pa.array(["a" * length]))
    out = io.BytesIO()
    pq.write_table(pa.table({"z": values, "y": values, "x": values, "kind": text}), out, compression="zstd")
    table, refused = examine(out.getvalue(), "parquet")
    assert words in refused
    assert bool(words) == (table is None)
