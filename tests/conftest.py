"""What several test files share."""

import os
from collections.abc import Iterator
from pathlib import Path

# Before torch is imported, here or in a command that a test starts: the processes that run tests share the cores.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from hypothesis import HealthCheck, settings

from tests.helpers.command import cocomix

# Programs that tests start find the helpers and benchmarks, too, wherever they run.
ROOT = Path(__file__).parents[1]
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))

# A busy machine is no failure, and a suite that gates a merge tries the same examples each time.
settings.register_profile(
    "cocomix", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow], database=None
)
settings.load_profile("cocomix")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that need the tiny run stay in one process, and so do those of a file: what they share is made once."""
    for item in items:
        dear = "tiny" in getattr(item, "fixturenames", ())
        item.add_marker(pytest.mark.xdist_group("tiny" if dear else str(item.path)))


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished tiny run; tests that change it must put things back."""
    home = tmp_path_factory.mktemp("tiny")
    done = cocomix("demo", "--tiny", cwd=home)
    assert "cocomix" in done.stdout and "report.html" in done.stdout
    return home


@pytest.fixture(scope="module")
def no_waiting_for_the_disk() -> Iterator[None]:
    """What is forced to the disk matters to a power cut alone."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(os, "fsync", lambda _: None)
        yield
