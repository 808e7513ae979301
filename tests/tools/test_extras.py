"""What needs an extra says so: every import of a package that the core does not bring is guarded by a sentence."""

from pathlib import Path

import pytest

from cocomix.train.trackers import TRACKERS
from tools import extras
from tools.extras import Import


@pytest.fixture(scope="module")
def core() -> set[str]:
    return extras.closure(extras.declared()[extras.NONE])


def test_every_import_is_of_the_core_or_names_its_extra(core: set[str]) -> None:
    assert {"torch", "transformers", "huggingface_hub", "h11", "anyio"} <= core
    assert not {"datasets", "lm_eval", "pyarrow", "httpx", "pytest", "accelerate"} & core
    needed = [found for found in extras.imports() if found.package not in core]
    assert {found.package for found in needed} >= {"datasets", "pyarrow", "lm_eval"}
    for found in needed:
        extra = extras.guard_of(found)
        assert extra is not None, f"{found.path}:{found.line} imports {found.package}, which the core does not bring"
        assert found.package in extras.closure(extras.declared()[extra])


def test_an_import_without_a_guard_is_found() -> None:
    assert extras.guard_of(Import(extras.SOURCES / "hub.py", 1, "datasets")) is None
    assert extras.guard_of(Import(extras.SOURCES / "data" / "sources" / "tables.py", 1, "datasets")) == "hub"


def test_every_extra_that_the_code_names_is_tried_alone() -> None:
    named = {extra for packages in extras.guards().values() for extra in packages.values()}
    named |= {match[1] for tracker in TRACKERS.values() if (match := extras.EXTRA.search(tracker.install))}
    assert named == set(extras.USES) and named < set(extras.declared())


def test_a_trackers_package_comes_with_what_it_says_to_install(core: set[str]) -> None:
    for tracker in TRACKERS.values():
        match = extras.EXTRA.search(tracker.install)
        brought = extras.closure(extras.declared()[match[1]]) if match else {tracker.install}
        assert tracker.package in brought - core


def test_an_environment_sees_the_core_and_nothing_else(tmp_path: Path) -> None:
    fake = tmp_path / "core" / "lib" / "python3.0" / "site-packages"
    fake.mkdir(parents=True)
    (fake / "of_the_core.py").write_text("")
    python = extras.environment(tmp_path / "alone", tmp_path / "core")
    done = extras.run(python, "-I", "-c", "import of_the_core, sys; print([p for p in sys.path if 'site-p' in p])")
    assert done.stdout.split("'")[1::2] == [str(next((tmp_path / "alone").glob("lib/*/site-packages"))), str(fake)]
    assert extras.run(python, "-I", "-c", "import torch").returncode == 1
