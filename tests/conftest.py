"""What several test files share."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from command import cocomix

# A busy machine is no failure, and a suite that gates a merge tries the same examples each time.
settings.register_profile(
    "cocomix", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow], database=None
)
settings.load_profile("cocomix")


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished tiny run; tests that change it must put things back."""
    home = tmp_path_factory.mktemp("tiny")
    done = cocomix("demo", "--tiny", cwd=home)
    assert "cocomix" in done.stdout and "report.html" in done.stdout
    return home
