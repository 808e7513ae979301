"""What several test files share."""

from pathlib import Path

import pytest

from command import cocomix


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished tiny run; tests that change it must put things back."""
    home = tmp_path_factory.mktemp("tiny")
    done = cocomix("demo", "--tiny", cwd=home)
    assert "cocomix" in done.stdout and "report.html" in done.stdout
    return home
