"""The page beside the data: see a tomogram, click a particle, find its like, correct what was found.

A face like the command line: nothing below knows of it, and it owns no state, the run does. `volumes`, `meshes` and
`gallery` read the run for Neuroglancer; `session` and what is beside it act on the run; `app` answers the browser,
`guard` says who may ask, and `serve` starts it. `cryosam view` and `notebook.view` (`cryosam_dask.view`) open it.
"""
