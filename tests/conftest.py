"""What several test files share."""

import os
from collections.abc import Iterator
from multiprocessing.forkserver import ensure_running
from pathlib import Path

# Before torch is imported, here or in a command that a test starts: the processes that run tests share the cores.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from hypothesis import HealthCheck, settings

from tests.helpers.command import cocomix

TESTS = Path(__file__).parent
# Programs that tests start find the helpers and benchmarks, too, wherever they run.
ROOT = TESTS.parent
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))

LONGEST = [
    "tiny",
    "benchmarks/test_determinism.py",
    "experiments/test_grid.py",
    "objectives/test_compile.py",
    "benchmarks/speed/test_bench_command.py",
    "evaluation/test_harness.py",
    "docs/test_docs_scale.py",
    "train/test_preemption.py",
    "cli/test_fresh_process.py",
    "benchmarks/test_fuzz.py",
    "train/test_checkpoint.py",
    "pipeline/test_label_sets.py",
    "pipeline/test_data_stages.py",
    "test_registered.py",
]
"""Groups of tests that take more than ten seconds, the longest first."""

# A busy machine is no failure, and a suite that gates a merge tries the same examples each time.
settings.register_profile(
    "cocomix", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow], database=None
)
settings.load_profile("cocomix")


def pytest_sessionstart() -> None:
    """Let the fork server import while tests are collected, and before another preload list can start one."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        ensure_running()


@pytest.hookimpl(tryfirst=True)  # xdist reads the groups in the same hook
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that need the tiny run stay in one process, and so do those of a file: what they share is made once.

    The longest groups come first, so that the processes end at the same time.
    """
    groups = {}
    for item in items:
        group = "tiny" if "tiny" in getattr(item, "fixturenames", ()) else str(item.path.relative_to(TESTS))
        item.add_marker(pytest.mark.xdist_group(group))
        groups[item] = group
    items.sort(key=lambda item: LONGEST.index(groups[item]) if groups[item] in LONGEST else len(LONGEST))


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
