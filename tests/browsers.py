"""A Chromium for tests, steered by playwright: that of `$CRYOSAM_BROWSER`, the system's, or one from an npm package."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = "@sparticuz/chromium@153.0.0"
"""A headless Chromium for Linux that is in an npm package as it is, with the few libraries that it needs."""


@contextmanager
def chromium(arguments: Sequence[str]) -> Iterator[Any]:
    """A Chromium that was started with some arguments. Without one, tests are skipped, and fail in CI."""
    playwright = pytest.importorskip("playwright.sync_api")
    found = os.environ.get("CRYOSAM_BROWSER") or _system_browser() or _npm_browser()
    if found is None:
        message = "no browser: install chromium, or npm, or name one in CRYOSAM_BROWSER"
        pytest.fail(message) if os.environ.get("CI") else pytest.skip(message)
    path = Path(found)
    environment = dict(os.environ)
    if (fonts := path.parent / "fonts.conf").exists():  # one from npm: libraries and a font lie beside it
        libraries = [os.environ.get("LD_LIBRARY_PATH", ""), str(path.parent / "lib")]
        environment |= {"LD_LIBRARY_PATH": ":".join(filter(None, libraries)), "FONTCONFIG_FILE": str(fonts)}
    with playwright.sync_playwright() as control:
        started = control.chromium.launch(
            executable_path=str(path), args=["--no-sandbox", *arguments], env=environment, timeout=300_000
        )
        yield started
        started.close()


def _system_browser() -> str | None:
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chromium-headless-shell")
    return next((found for name in names if (found := shutil.which(name))), None)


def _npm_browser() -> str | None:
    """Fetched once into the user's cache."""
    npm = shutil.which("npm")
    if npm is None or platform.system() != "Linux" or platform.machine() != "x86_64":
        return None
    import platformdirs

    folder = Path(platformdirs.user_cache_dir("cryosam-dask")) / CHROMIUM.rpartition("@")[2].join(("chromium-", ""))
    if not (folder / "chromium").exists():
        _unpack_npm_browser(npm, folder)
    return str(folder / "chromium")


def _unpack_npm_browser(npm: str, folder: Path) -> None:
    import io
    import tarfile
    import tempfile

    import brotli

    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as made:
        command = [npm, "install", "--ignore-scripts", "--no-audit", "--no-fund", "--no-save", "--silent", CHROMIUM]
        subprocess.run(command, cwd=made, check=True, timeout=300)
        packed, out = Path(made) / "node_modules/@sparticuz/chromium/bin", Path(made) / "unpacked"
        out.mkdir()
        for name in ("al2023", "swiftshader", "fonts"):
            with tarfile.open(fileobj=io.BytesIO(brotli.decompress((packed / f"{name}.tar.br").read_bytes()))) as tar:
                tar.extractall(out, filter="data")
        (out / "chromium").write_bytes(brotli.decompress((packed / "chromium.br").read_bytes()))
        (out / "chromium").chmod(0o755)
        # a machine without any font shows no letters
        (out / "fonts.conf").write_text(
            '<?xml version="1.0"?><!DOCTYPE fontconfig SYSTEM "fonts.dtd"><fontconfig>'
            f'<include ignore_missing="yes">/etc/fonts/fonts.conf</include><dir>{folder / "fonts"}</dir></fontconfig>'
        )
        out.rename(folder)
