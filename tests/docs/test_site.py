"""The site builds with warnings as errors: links, anchors, docstrings; and has what no page holds."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.doc_blocks import GROUP

ROOT = Path(__file__).parents[2]
pytest.importorskip("mkdocstrings", reason="needs cocomix[docs]")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(build, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return folder


def test_the_reference_holds_every_command_and_every_public_name(site: Path) -> None:
    commands = (site / "reference/cli.html").read_text()
    assert len(GROUP.commands) > 10
    for name in GROUP.commands:
        assert f'id="cocomix-{name}"' in commands, name
    pages = {path.stem for path in (site / "reference/python").glob("*.html")} - {"index"}
    packages = {
        path.parent.name
        for path in (ROOT / "src/cocomix").glob("*/__init__.py")
        if re.search("^__all__ = ", path.read_text(), re.M)
    }
    assert pages == packages and {"sae", "labels", "model", "steering"} <= pages
    for package, name in (("labels", "attribute"), ("sae", "TopKSAE"), ("labels", "LabelStore")):
        page = (site / f"reference/python/{package}.html").read_text()
        assert f'id="cocomix.{package}.{name}"' in page


def test_nothing_is_loaded_from_elsewhere(site: Path) -> None:
    for page in site.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        assert not re.findall(r'<(?:script|img|iframe)[^>]+src="(?:https?:)?//', text), page
        assert not re.findall(r'<link[^>]+rel="(?:stylesheet|preconnect)"[^>]+href="(?:https?:)?//', text), page
