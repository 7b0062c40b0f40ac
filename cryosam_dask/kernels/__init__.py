"""Pure array functions: arrays in, arrays out; no Dask, no zarr, no files."""
