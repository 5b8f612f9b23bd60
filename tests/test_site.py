"""The documentation as a site: it builds without a warning, fetches nothing, and says what the code says."""

from __future__ import annotations

import html
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FETCHED = re.compile(r"""<(?:script|img|iframe|link)\b[^>]*\b(?:src|href)=["'](?:https?:)?//[^"']+""")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--site-dir", str(folder)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr  # `strict`: a warning is an error
    return folder


def said(page: Path) -> str:
    return html.unescape(re.sub(r"<[^>]+>", "", page.read_text()))


def test_nothing_is_fetched_from_elsewhere(site: Path) -> None:
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 15
    for page in pages:
        assert not (found := FETCHED.search(page.read_text())), (page.name, found and found[0])
    for sheet in site.rglob("*.css"):
        assert not re.search(r"url\(\s*[\"']?(?:https?:)?//", sheet.read_text()), sheet


def test_every_example_has_a_page_with_its_source(site: Path) -> None:
    for path in sorted((ROOT / "examples").glob("*.py")):
        if path.stem != "quickstart":
            body = path.read_text().split('"""\n', 1)[1].strip()
            assert body in said(site / "howto" / f"{path.stem}.html"), path.name


def test_every_document_is_in_the_navigation(site: Path) -> None:
    navigation = (site / "index.html").read_text()
    for document in (ROOT / "docs").glob("*.md"):
        assert f'href="{document.stem}.html"' in navigation, document.name


def test_references_are_written_from_the_code(site: Path) -> None:
    http = said(site / "http.html")
    assert "POST /api/v1/forward_backward" in http
    assert "Apply the accumulated gradients." in http
    python = said(site / "python.html")
    assert "forward_backward_reverse_kl" in python
    assert "Add gradients that draw the run towards a reference" in python
