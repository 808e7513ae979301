"""What several test files share."""

import time
from pathlib import Path

import pytest

from command import cocomix


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished tiny run; tests that change it must put things back."""
    home = tmp_path_factory.mktemp("tiny")
    started = time.monotonic()
    done = cocomix("demo", "--tiny", cwd=home)
    assert time.monotonic() - started < 240
    assert "cocomix" in done.stdout and "report.html" in done.stdout
    return home
