"""The layers of the package: an import may go down or sideways, never up."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import cryosam_dask

ROOT = Path(cryosam_dask.__file__).parent

LAYERS = [
    {"errors", "types", "settings", "geometry", "version"},
    {"kernels", "simulate", "evaluate"},
    {"storage"},
    {"store"},
    {"io"},
    {"models"},
    {"stages"},
    {"executors"},
    {"pipeline", "planning"},
    {"outputs", "analysis", "demo", "picture", "published", "report", "accessors"},
    {"viewer"},
    {"cli"},
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}

# who may import what: the third-party packages that belong to certain layers alone
OWNERS = {
    "torch": {"models"},
    "timm": {"models"},
    "segment_anything": {"models"},
    "zarr": {"storage", "store", "io"},
    "dask": {"executors", "store", "simulate", "analysis", "io"},
    "distributed": {"executors", "pipeline", "cli"},
    "dask_cuda": {"executors"},
    "dask_jobqueue": {"executors"},
    "fsspec": {"storage"},
    "h5py": {"io"},
    "imagecodecs": {"io", "store"},
    "imodmodel": {"io"},
    "jinja2": {"report"},
    "mrcfile": {"io", "demo"},
    "pyarrow": {"io"},
    "starfile": {"io"},
    "tifffile": {"io"},
    "tornado": {"viewer"},
    "trimesh": {"io"},
    "matplotlib": {"picture", "published"},
    "typer": {"cli"},
}


def dotted(path: Path, root: Path = ROOT) -> str:
    """A module's name, `cryosam_dask.store.lease`; a package's is that of its folder."""
    return ".".join((root.name, *path.relative_to(root).with_suffix("").parts)).removesuffix(".__init__")


def graph(root: Path = ROOT) -> dict[str, set[str]]:
    """The modules of a package that each of its modules imports: also inside functions, and under TYPE_CHECKING, as
    a module that names another's types knows of it. What is imported from a package that way is the package's own."""
    paths = {dotted(path, root): path for path in sorted(root.rglob("*.py"))}
    edges: dict[str, set[str]] = {}
    for module, path in paths.items():
        edges[module] = set()
        for name in imports(path):
            while name and name not in paths:
                name = name.rpartition(".")[0]
            edges[module] |= {name} if name else set()
    return edges


def circles(edges: dict[str, set[str]]) -> list[list[str]]:
    """Modules that import themselves by way of each other: the strongly connected components, by reachability."""
    reached: dict[str, set[str]] = {}
    for start in edges:
        reached[start], waiting = set(), list(edges[start])
        while waiting:
            if (module := waiting.pop()) not in reached[start]:
                reached[start].add(module)
                waiting += edges[module]
    together = {frozenset({m for m in reached[start] if start in reached[m]}) for start in edges}
    return sorted(sorted(component) for component in together if component)


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
        if package != "cryosam_dask":
            continue
        target = rest.split(".")[0]
        assert LEVEL[target] <= LEVEL[part], f"{path.relative_to(ROOT)} imports {name} from a layer above"


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(ROOT)))
def test_packages_stay_with_their_owners(path: Path) -> None:
    for name in imports(path):
        owners = OWNERS.get(name.split(".")[0])
        assert owners is None or part_of(path) in owners, f"{path.relative_to(ROOT)} imports {name}"


def test_no_modules_import_each_other_in_a_circle() -> None:
    assert circles(graph()) == []


def test_a_circle_is_seen_wherever_the_imports_stand(tmp_path: Path) -> None:
    package = tmp_path / "p"
    (package / "sub").mkdir(parents=True)
    for name, text in {
        "__init__": "",
        "a": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from p.sub.b import B\n",
        "sub/__init__": "from p.sub.b import B\n",
        "sub/b": "def f():\n    from p import c\n",
        "c": "import p.a\n",
        "d": "import p.a, p.d\n",
    }.items():
        (package / f"{name}.py").write_text(text)
    assert circles(graph(package)) == [["p.a", "p.c", "p.sub.b"], ["p.d"]]


def test_the_checks_can_fail(tmp_path: Path) -> None:
    """The parser sees imports wherever they stand."""
    module = tmp_path / "m.py"
    module.write_text("def f():\n    from cryosam_dask.cli import app\n    import torch.nn\n")
    assert imports(module) == {"cryosam_dask.cli.app", "torch.nn"}
