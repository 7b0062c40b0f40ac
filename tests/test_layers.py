"""The layers of the package: an import may go down or sideways, never up."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import cryosam_dask

ROOT = Path(cryosam_dask.__file__).parent

LAYERS = [
    {"errors", "types", "settings", "geometry"},
    {"kernels", "simulate", "evaluate"},
    {"store"},
    {"io"},
    {"models"},
    {"stages"},
    {"executors"},
    {"pipeline", "planning"},
    {"outputs", "analysis", "demo", "picture", "summary", "batch", "benchmark", "report", "accessors"},
    {"cli"},
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}

# who may import what: the third-party packages that belong to certain layers alone
OWNERS = {
    "torch": {"models"},
    "timm": {"models"},
    "segment_anything": {"models"},
    "zarr": {"store", "io"},
    "dask": {"executors", "store", "simulate", "analysis", "io"},
    "distributed": {"executors", "pipeline", "cli"},
    "dask_cuda": {"executors"},
    "dask_jobqueue": {"executors"},
    "fsspec": {"store"},
    "h5py": {"io"},
    "imagecodecs": {"io"},
    "imodmodel": {"io"},
    "jinja2": {"report"},
    "mrcfile": {"io", "demo"},
    "pyarrow": {"io"},
    "starfile": {"io"},
    "tifffile": {"io"},
    "trimesh": {"io"},
    "matplotlib": {"picture", "benchmark"},
    "typer": {"cli"},
}


def modules() -> list[Path]:
    return [p for p in sorted(ROOT.rglob("*.py")) if p != ROOT / "__init__.py"]


def part_of(path: Path) -> str:
    return path.relative_to(ROOT).with_suffix("").parts[0]


def imports(path: Path) -> set[str]:
    """Dotted names of all imports of a module, those inside functions and under TYPE_CHECKING too."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_down(path: Path) -> None:
    part = part_of(path)
    assert part in LEVEL, f"{part} belongs to no layer"
    for name in imports(path):
        package, _, rest = name.partition(".")
        if package != "cryosam_dask" or rest.startswith("__"):
            continue
        target = rest.split(".")[0]
        assert LEVEL[target] <= LEVEL[part], f"{path.relative_to(ROOT)} imports {name} from a layer above"


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(ROOT)))
def test_packages_stay_with_their_owners(path: Path) -> None:
    for name in imports(path):
        owners = OWNERS.get(name.split(".")[0])
        assert owners is None or part_of(path) in owners, f"{path.relative_to(ROOT)} imports {name}"


def test_the_checks_can_fail(tmp_path: Path) -> None:
    """The parser sees imports wherever they stand."""
    module = tmp_path / "m.py"
    module.write_text("def f():\n    from cryosam_dask.cli import app\n    import torch.nn\n")
    assert imports(module) == {"cryosam_dask.cli.app", "torch.nn"}
