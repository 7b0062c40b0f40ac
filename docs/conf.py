"""The site: `sphinx-build -W docs docs/_build`. It needs the package and no network."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

from cryosam_dask import __version__

project = "cryosam_dask"
release = __version__
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
]
exclude_patterns = ["_build"]
myst_heading_anchors = 3
default_role = "code"

html_theme = "furo"
html_title = "cryosam_dask"
html_show_sourcelink = False
html_show_copyright = False

autodoc_typehints = "none"  # docstrings say what a type can't: shapes, axis order, units
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True


ROOT = Path(__file__).resolve().parent.parent
LINK = re.compile(r"\[([^]]+)]\((?!https?:)([^)#]+)(#[^)]*)?\)")
DEVELOPING = {
    "cryosam_dask/DESIGN.md": "developing/design.md",
    "CONTRIBUTING.md": "developing/contributing.md",
    "CHANGELOG.md": "developing/changes.md",
}
"""Pages that are kept elsewhere, as they are called in the site; those of `deploy/` come on top."""


def write_pages(app: Any) -> None:
    """Pages that are kept elsewhere, beside the files that they speak of, and the commands."""
    source = Path(app.srcdir)
    names = {ROOT / path: name for path, name in DEVELOPING.items()}
    for path in sorted((ROOT / "deploy").rglob("README.md")):
        names[path] = f"clusters/{'index' if path.parent.name == 'deploy' else path.parent.name}.md"
    for path, name in names.items():
        _write(source / name, LINK.sub(partial(_link, path, names), path.read_text(encoding="utf-8")))
    command = [sys.executable, "-m", "typer", "cryosam_dask.cli", "utils", "docs", "--name", "cryosam"]
    environment = {**os.environ, "NO_COLOR": "1", "TERM": "dumb"}
    shown = subprocess.run(command, check=True, capture_output=True, text=True, encoding="utf-8", env=environment)
    _write(source / "reference" / "commands.md", _commands(shown.stdout))


def _commands(shown: str) -> str:
    """typer's page, whose list of commands cuts their sentences: whole ones, and links."""
    sections = re.findall(r"^#+ `cryosam ([^`]+)`\n\n((?:.+\n)+)", shown, flags=re.MULTILINE)
    words = {
        name.split()[-1]: (f"#cryosam-{name.replace(' ', '-')}", " ".join(said.split())) for name, said in sections
    }

    def item(found: re.Match[str]) -> str:
        if found[1] not in words:  # an argument, which older versions of typer write like a command
            return found[0]
        target, said = words[found[1]]
        return f"* [`{found[1]}`]({target}): {said}"

    shown = re.sub(r"^\* `(\w[\w-]*)`: .*", item, shown, flags=re.MULTILINE)
    return shown.replace("# `cryosam`", "# Commands", 1)


def _link(page: Path, names: dict[Path, str], match: re.Match[str]) -> str:
    """A link to a page of the site, from a page in one of its folders; any other file is offered for download."""
    words, target, anchor = match[1], (page.parent / match[2]).resolve(), match[3] or ""
    if target in names:
        return f"[{words}](../{names[target]}{anchor})"
    if target.is_relative_to(ROOT / "docs"):
        return f"[{words}](../{target.relative_to(ROOT / 'docs').as_posix()}{anchor})"
    return f"{{download}}`{words} <../../{target.relative_to(ROOT).as_posix()}>`"


def _write(page: Path, text: str) -> None:
    if not page.is_file() or page.read_text(encoding="utf-8") != text:
        page.parent.mkdir(exist_ok=True)
        page.write_text(text, encoding="utf-8")


ITEM = re.compile(r"(\w+(?:, \w+)*) : (.+)")


def as_restructured_text(app: Any, what: str, name: str, item: Any, options: Any, lines: list[str]) -> None:
    """Our docstrings as Sphinx reads them: `name : what it is` becomes an item of a list, signs are themselves."""
    made: list[str] = []
    listing = False
    for i, line in enumerate(lines):
        if set(line) == {"-"} or (i + 1 < len(lines) and line and set(lines[i + 1]) == {"-"}):
            continue  # the heading over parameters says nothing that the list does not
        found = ITEM.match(line)
        if found:
            made += ([] if listing else [""]) + [f"- **{found[1]}**: {_plain(found[2])}"]
        elif listing and line.startswith(" "):
            made.append(f"  {_plain(line.strip())}")
        else:
            made += ([""] if listing and line else []) + [_plain(line)]
        listing = bool(found) or (listing and line.startswith(" "))
    lines[:] = made


def _plain(text: str) -> str:
    """Outside of backticks, what would be markup is not; a letter may follow one."""
    parts = text.split("`")
    parts[::2] = [re.sub(r"[*|]|_\b", r"\\\g<0>", part) for part in parts[::2]]
    parts[2::2] = [f"\\ {part}" if part[:1].isalnum() else part for part in parts[2::2]]
    return "`".join(parts)


def setup(app: Any) -> None:
    app.connect("builder-inited", write_pages)
    app.connect("autodoc-process-docstring", as_restructured_text)
