"""Tables as files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from cryosam_dask.errors import InputError, StoreError
from cryosam_dask.io.atomic import replacing

if TYPE_CHECKING:
    import xarray as xr

SUFFIXES = (".csv", ".parquet", ".nc")


def check_path(path: str | Path) -> str:
    """The suffix of a table's file; `InputError` if it tells no format, `StoreError` if there is no such folder."""
    suffix = Path(path).suffix.lower()
    if suffix not in SUFFIXES:
        raise InputError(f"{path}: the suffix {suffix!r} tells no format; expected one of {', '.join(SUFFIXES)}")
    if not Path(path).parent.is_dir():
        raise StoreError(f"{path}: can't be written: there is no folder {Path(path).parent}")
    return suffix


def write_table(table: xr.Dataset, path: str | Path) -> None:
    """Write a Dataset of one dimension, as `instance_table` and `compare` give it, by the file's suffix.

    `.csv`: a header and a row each, NaN as an empty field; `.parquet`: the same with types; `.nc`: NetCDF 3 with units,
    meanings and attributes. A file that exists is replaced when the new one is complete; StoreError where it can't be.
    """
    suffix = check_path(path)
    with replacing(Path(path)) as temporary:
        if suffix == ".nc":
            # NetCDF 3 by SciPy: needs no further package, and every program reads it
            table.to_netcdf(temporary, engine="scipy")
        elif suffix == ".csv":
            table.to_dataframe().to_csv(temporary)
        else:
            frame = table.to_dataframe()
            frame.attrs = {"units": {str(k): v.attrs["units"] for k, v in table.items() if "units" in v.attrs}}
            frame.to_parquet(temporary, engine="pyarrow")
