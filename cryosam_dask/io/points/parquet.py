"""Points as Parquet: the columns of the CSV, zero-based voxels, through pandas and pyarrow.

Read with pyarrow alone, which tells a file's rows and sizes before it loads them, and can keep repeated texts once.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cryosam_dask.errors import InputError
from cryosam_dask.io.frame import shown
from cryosam_dask.io.points.base import Columns, Frame, Part
from cryosam_dask.io.points.csv import joined
from cryosam_dask.io.text import MOST_COLUMNS, read_bytes
from cryosam_dask.types import AXES

_WHAT = "points as Parquet"
_TEXTS = ("tomogram", "kind")
# Memory for what a file unpacks to: so much, and so much for each of its bytes.
_LEAST, _PER_BYTE = 1 << 24, 60
_LONGEST_NAME = 255
_METADATA = 1 << 22  # bytes, and entries, of the file's own description


def encode(parts: Sequence[Part], joint: bool) -> bytes:
    """Write a Parquet file; numbers read back bit for bit."""
    out = io.BytesIO()
    joined(parts, joint).to_parquet(out, engine="pyarrow", index=False)
    return out.getvalue()


def read(path: Path, frame: Frame) -> Columns:
    """Columns by lower-case name: numbers, and the texts tomogram and kind; others are left out."""
    import pyarrow as pa
    from pyarrow import parquet as pq

    content = read_bytes(path, _WHAT)
    limits = {"thrift_string_size_limit": _METADATA, "thrift_container_size_limit": _METADATA}
    try:
        with pq.ParquetFile(pa.BufferReader(content), **limits) as file:
            names = _chosen(path, file.schema_arrow)
            _check_size(path, file.metadata, len(names), len(content))
        texts = [column for name, column in names.items() if name in _TEXTS]
        with pq.ParquetFile(pa.BufferReader(content), read_dictionary=texts, **limits) as file:
            table = file.read(columns=list(names.values()), use_threads=False)
            return {name: _values(path, name, table.column(column)) for name, column in names.items()}
    except InputError:
        raise
    except (pa.ArrowException, OSError, ValueError, KeyError, MemoryError, OverflowError, RuntimeError) as err:
        raise InputError(f"{path}: not a readable Parquet file: {shown(str(err))}") from err


def _chosen(path: Path, schema: Any) -> dict[str, str]:
    """Lower-case name → column, of those that are read."""
    import pyarrow as pa

    if len(schema.names) > MOST_COLUMNS:
        raise InputError(f"{path}: {len(schema.names)} columns, expected z, y, x (at most {MOST_COLUMNS} columns)")
    names: dict[str, str] = {}
    for field in schema:
        name = field.name.strip().lower()
        number = pa.types.is_floating(field.type) or pa.types.is_integer(field.type)
        value = field.type.value_type if pa.types.is_dictionary(field.type) else field.type
        text = pa.types.is_string(value) or pa.types.is_large_string(value)
        if not (text if name in _TEXTS else number):
            continue
        if name in names:
            raise InputError(f"{path}: the column {shown(name)} comes twice")
        names[name] = field.name
    missing = [axis for axis in AXES if axis not in names]
    if missing:
        listed = shown(", ".join(schema.names)) or "none"
        raise InputError(f"{path}: no column {', '.join(missing)} of numbers: expected z, y, x, found {listed}")
    return names


def _check_size(path: Path, metadata: Any, columns: int, size: int) -> None:
    """InputError where what is read would be out of proportion to the file.

    Columns' own metadata are not looked at: damaged ones end the process there, but are an error when they are read.
    """
    most = _LEAST + _PER_BYTE * size
    rows = int(metadata.num_rows)
    unpacked = sum(max(metadata.row_group(i).total_byte_size, 0) for i in range(metadata.num_row_groups))
    if rows < 0 or rows * 8 * columns > most or unpacked > most:
        raise InputError(f"{path}: {rows} rows in {size} bytes: more than a file of points unpacks to")


def _values(path: Path, name: str, column: Any) -> Any:
    """A column as an array of numbers, or texts."""
    if column.null_count:
        raise InputError(f"{path}: {name} has {column.null_count} empty values")
    if name not in _TEXTS:
        return column.to_numpy()
    values: list[str] = []
    for chunk in column.chunks:  # a name is in memory once, however many rows have it
        names = chunk.dictionary
        if len(names) and max(len(each.as_buffer()) for each in names) > _LONGEST_NAME:
            raise InputError(f"{path}: {name}: a name of more than {_LONGEST_NAME} bytes")
        texts = names.to_pylist()
        values.extend(texts[index] for index in chunk.indices.to_pylist())
    return values
