"""What several test files share."""

import os
import re
import signal
from collections.abc import Iterator
from functools import cache
from multiprocessing.forkserver import ensure_running
from pathlib import Path
from typing import Any

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
    "test_imports.py",
]
"""Groups of tests that take more than ten seconds, the longest first."""

# A busy machine is no failure, and a suite that gates a merge tries the same examples each time.
settings.register_profile(
    "cocomix", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow], database=None
)
settings.load_profile("cocomix")


def pytest_configure() -> None:
    # A shell that starts the tests in the background lets them ignore Ctrl-C, and whatever they start inherits that.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_sessionstart() -> None:
    """Let the fork server import while tests are collected, and before another preload list can start one."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        ensure_running()


@cache
def group(file: str) -> str:
    """What a test file belongs to, by its path from the root: all that use the tiny run are one group."""
    near = [ROOT / file, (ROOT / file).parent / "conftest.py"]
    texts = [path.read_text(encoding="utf-8") for path in near if path.exists() and path != TESTS / "conftest.py"]
    return "tiny" if any(re.search(r"\btiny: Path\b", text) for text in texts) else file.removeprefix("tests/")


def place(group: str) -> int:
    return LONGEST.index(group) if group in LONGEST else len(LONGEST)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest groups first, so that the processes end at the same time."""
    groups = {item: group(item.nodeid.split("::")[0]) for item in items}
    for item, name in groups.items():
        assert name == "tiny" or "tiny" not in getattr(item, "fixturenames", ()), f"{item.nodeid}: write `tiny: Path`"
    items.sort(key=lambda item: place(groups[item]))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With `--dist loadgroup` a group stays in one process: what its tests share is made once.

    Not by xdist's own marks: pytest 9.2 does not read the private attribute by which xdist 3.8 tells groups.
    """
    from xdist.scheduler import LoadScopeScheduling

    class Groups(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return group(nodeid.split("::")[0])

    return Groups(config, log) if config.getoption("dist") == "loadgroup" else None


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
