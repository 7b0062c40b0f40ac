"""What a newcomer and a package index read: the licence, the citation, the first page, and how to contribute."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

import cryosam_dask

ROOT = Path(__file__).parent.parent
AUTHORS = ["Zhao", "Bian", "Mu", "Uddin", "Li", "Li", "Wang", "Xu"]
DOI = "10.1007/978-3-031-72111-3_12"
FIRST_PAGES = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "cryosam_dask/DESIGN.md")


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    return dict(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"])


def test_the_licence_is_the_one_that_the_package_states(project: dict[str, Any]) -> None:
    assert project["license"] == "MIT"
    assert project["license-files"] == ["LICENSE"]
    text = (ROOT / "LICENSE").read_text()
    assert text.startswith("MIT License\n\nCopyright (c) 2026 the cryosam_dask developers\n")


def test_the_citation_is_of_this_version_and_of_the_paper(project: dict[str, Any]) -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["cff-version"] == "1.2.0"
    assert {"message", "title", "authors"} <= set(citation), "what the format requires"
    assert (citation["version"], citation["license"]) == (project["version"], project["license"])
    paper = citation["preferred-citation"]
    assert paper["doi"] == DOI
    assert [author["family-names"] for author in paper["authors"]] == AUTHORS
    assert DOI in project["urls"]["Paper"]
    assert DOI in (ROOT / "docs" / "method.md").read_text()


def test_the_package_states_the_version_of_the_project(project: dict[str, Any]) -> None:
    assert cryosam_dask.__version__ == project["version"]


def test_the_changes_know_this_version(project: dict[str, Any]) -> None:
    headings = re.findall(r"^## (.+)$", (ROOT / "CHANGELOG.md").read_text(), flags=re.MULTILINE)
    assert headings[0] in ("Unreleased", project["version"])
    assert project["version"] in headings


def test_the_first_page_begins_with_a_picture() -> None:
    text = (ROOT / "README.md").read_text()
    match = re.match(r"# cryosam_dask\n\n!\[.+]\((docs/.+\.png)\)\n", text)
    assert match is not None
    picture = ROOT / match[1]
    assert picture.stat().st_size < 150_000
    with Image.open(picture) as image:
        image.load()
        assert min(image.size) > 500
    assert text.index("cryosam demo") < text.index("bash tests/run.sh") < text.index("## Use it")


@pytest.mark.parametrize("page", FIRST_PAGES)
def test_links_lead_somewhere(page: str) -> None:
    text = (ROOT / page).read_text()
    for target, anchor in re.findall(r"]\((?!https?:)([^)#]*)(?:#([^)]*))?\)", text):
        path = (ROOT / page).parent / target if target else ROOT / page
        assert path.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.+)$", path.read_text(), flags=re.MULTILINE)
            assert anchor in {heading.lower().replace(" ", "-") for heading in headings}, f"{target}#{anchor}"


def test_the_files_that_contributors_are_sent_to_exist() -> None:
    text = re.sub(r"```.*?```", "", (ROOT / "CONTRIBUTING.md").read_text(), flags=re.DOTALL)
    named = {name for name in re.findall(r"`([^`\s]+)`", text) if "/" in name}
    assert len(named) > 15
    for name in named:
        assert (ROOT / name).exists(), name


@pytest.mark.parametrize("path", ["README.md", "tests/audit.sh"])
def test_no_package_index_is_named_by_its_host(path: str) -> None:
    assert not re.search(r"pypi\.org|osv\.dev", (ROOT / path).read_text())
