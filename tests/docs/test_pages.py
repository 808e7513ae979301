"""Every command and every Python block of the documentation, run in order on a tiny run."""

import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
from transformers.utils import logging

from cocomix.data import SOURCES
from cocomix.labels import RULES
from cocomix.model import MIXERS, PREDICTORS
from cocomix.objectives import OBJECTIVES
from cocomix.sae import FORMATS
from cocomix.utils.registry import Registry
from tests.helpers.doc_blocks import Block, Reader, blocks, check

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
ELSEWHERE = {
    "scale.md": "tests/docs/test_docs_scale.py runs its scripts",
    "performance.md": "its benchmark takes a quarter of an hour",
    "results.md": "tables of reports",
    "decisions.md": "a log",
    "architecture.md": "pictures",
    "reference/teachers.md": "tests/labels/test_teacher_families.py tries a sample",
}
"""Pages whose blocks are parsed here and not run."""
KINDS = {"sh", "python", "bash", "yaml", "text", ""}
PAGES = sorted(str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md"))


def test_the_pages_are_found() -> None:
    assert {"tutorial.md", "howto/mixer.md", "explanation/exact.md", *ELSEWHERE} <= set(PAGES)
    assert sum(block.reason is None for name in PAGES for block in blocks(DOCS / name)) > 30


@pytest.mark.parametrize("name", PAGES)
def test_every_block_parses(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)  # options that name files of the repository
    for block in blocks(DOCS / name):
        assert block.kind in KINDS, (name, block.line, block.kind)
        assert block.reason is None or len(block.reason) > 10, (name, block.line)
        check(block, DOCS / name)


@pytest.fixture
def home(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with a finished tiny run and the recipes; what commands and blocks change in this process is undone."""
    shutil.copytree(tiny / "runs", tmp_path / "runs")
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
    registries: list[Registry] = [MIXERS, PREDICTORS, OBJECTIVES, RULES, FORMATS, SOURCES]
    names = [set(registry) for registry in registries]
    verbosity = logging.get_verbosity()
    yield tmp_path
    logging.set_verbosity(verbosity)
    logging.enable_progress_bar()
    for registry, before in zip(registries, names, strict=True):
        for name in set(registry) - before:
            registry.unregister(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in PAGES if name not in ELSEWHERE])
def test_a_reader_can_follow(name: str, home: Path) -> None:
    reader = Reader(DOCS / name)
    for block in blocks(DOCS / name):
        if block.reason is None:
            reader.follow(block)


def test_a_block_that_would_fail_a_reader_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    page = tmp_path / "page.md"
    reader = Reader(page)
    for text in ("cocomix generate --no-such-option", "ls no-such-file", "cocomix doctor --folder page.md/runs"):
        page.write_text(f"```sh\n{text}\n```\n")
        with pytest.raises(Exception, match=r"no-such|ended with 1|return code|non-zero"):
            reader.follow(blocks(page)[0])
    page.write_text("words\n\n```python\nx = 1\nassert x == 2\n```\n")
    with pytest.raises(AssertionError) as caught:
        reader.follow(blocks(page)[0])
    assert caught.traceback[-1].lineno == 4  # the line of the page, from 0
    with pytest.raises(AssertionError):
        check(Block("sh", "torchrun -m cocomix no-such-command", 1, "reason"), page)
