"""The site builds without a network and without a warning, and the commands that pages show exist."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from cryosam_dask import cli

ROOT = Path(__file__).parent.parent


def pages_of(path: Path) -> list[Path]:
    return [path] if path.is_file() else [p for p in path.rglob("*.md") if "_build" not in p.parts]


PARTS = ("README.md", "CONTRIBUTING.md", "docs", "deploy", "examples")
PAGES = sorted(p for part in PARTS for p in pages_of(ROOT / part))


class Links(HTMLParser):
    """What a page loads, and where it links to."""

    def __init__(self) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.linked: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if tag == "a" and (target := values.get("href")):
            self.linked.append(target)
        if target := values.get("src") or (values.get("href") if tag == "link" else None):
            self.loaded.append(target)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    ignored = shutil.ignore_patterns("_build", "clusters", "developing", "commands.md")
    shutil.copytree(ROOT / "docs", folder / "docs", ignore=ignored)
    shutil.copytree(ROOT / "deploy", folder / "deploy")
    for page in ("CONTRIBUTING.md", "CHANGELOG.md", "cryosam_dask/DESIGN.md"):
        (folder / page).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / page, folder / page)
    nowhere = {f"{kind}_proxy": "http://127.0.0.1:9" for kind in ("http", "https", "HTTP", "HTTPS")}
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", str(folder / "docs"), str(folder / "built")]
    made = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **nowhere}, check=False)
    assert made.returncode == 0, made.stderr
    return folder / "built"


def test_every_page_is_there_and_loads_nothing_from_elsewhere(site: Path) -> None:
    pages = sorted(site.rglob("*.html"))
    names = {p.relative_to(site).as_posix() for p in pages}
    assert {"index.html", "method.html", "faq.html", "clusters/slurm.html", "reference/commands.html"} <= names
    assert {"developing/design.html", "developing/contributing.html", "developing/changes.html"} <= names
    assert {f"decisions/{page.stem}.html" for page in (ROOT / "docs" / "decisions").glob("*.md")} <= names
    for page in pages:
        links = Links()
        links.feed(page.read_text(encoding="utf-8"))
        assert not [url for url in links.loaded if "//" in url], page
        for target in links.linked:
            if "://" not in target and not target.startswith(("#", "mailto:")):
                assert (page.parent / target.partition("#")[0]).exists(), f"{page}: {target}"


def test_the_reference_has_docstrings_and_options(site: Path) -> None:
    python = (site / "reference" / "python.html").read_text(encoding="utf-8")
    assert "an existing run with the same settings is continued" in python
    commands = (site / "reference" / "commands.html").read_text(encoding="utf-8")
    assert "--query-from" in commands
    whole = "Copy a tomogram into a store, chunked, with its resolution levels and statistics."
    assert commands.count(whole) == 2  # in the list and in its section
    assert 'href="#cryosam-benchmark-czii"' in commands


def shown_commands(text: str) -> list[list[str]]:
    """The `cryosam …` commands in blocks of shell, as words."""
    found = []
    for block in re.findall(r"```bash\n(.*?)```", text, flags=re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            for start, word in enumerate(words):
                if word == "cryosam" or word.endswith("/cryosam"):
                    found.append(words[start + 1 :])
                    break
    return found


def unknown(words: list[str]) -> str | None:
    """What of a command does not exist, if anything."""
    rest = words[1:] if words[:1] in (["--verbose"], ["-v"], ["-vv"]) else words
    commands = get_command(cli.app).commands
    if not rest or (rest[0].startswith("-") and rest[0] in ("--help", "--version")):
        return None
    if rest[0] not in commands:
        return rest[0]
    command = commands[rest[0]]
    while hasattr(command, "commands") and len(rest) > 1 and not rest[1].startswith("-"):
        rest = rest[1:]
        if rest[0] not in command.commands:
            return rest[0]
        command = command.commands[rest[0]]
    known = {name for p in command.params for name in (*p.opts, *p.secondary_opts)} | {"--help", "-h"}
    return next((w for w in rest if w.startswith("-") and w.partition("=")[0] not in known), None)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_commands_of_a_page_exist(page: Path) -> None:
    for words in shown_commands(page.read_text(encoding="utf-8")):
        assert unknown(words) is None, f"{page}: cryosam {shlex.join(words)}: no {unknown(words)}"


def test_examples_of_the_help_exist() -> None:
    examples = [words for command in get_command(cli.app).commands.values() for words in of_help(command)]
    assert len(examples) > 5
    for words in examples:
        assert unknown(words) is None, shlex.join(words)


def of_help(command: Any) -> list[list[str]]:
    """The examples at the end of a command's help."""
    return [shlex.split(line)[1:] for line in (command.epilog or "").splitlines() if line.startswith("    cryosam ")]


def test_the_check_of_commands_can_fail() -> None:
    page = (
        "```bash\ncryosam run a.mrc --out b \\\n  --nowhere\ncryosam fly # up\n.venv/bin/cryosam info RUN.zarr\n```\n"
    )
    assert [unknown(words) for words in shown_commands(page)] == ["--nowhere", "fly", None]
