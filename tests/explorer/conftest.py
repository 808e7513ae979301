"""An explorer that several tests share."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from cocomix.explorer.app import create_app, prepare
from cocomix.explorer.catalog import ModelCatalog
from cocomix.explorer.security import access_policy
from tests.helpers.browser import MonitoredPage, chromium, monitored_page
from tests.helpers.explored_run import client_of, served


@pytest.fixture(scope="session")
def folder(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a snapshot of its student; tests that change it must restore it."""
    copy = tmp_path_factory.mktemp("explored") / "tiny"
    shutil.copytree(tiny / "runs" / "tiny", copy)
    student = copy / "students" / "cocomix" / "seed0"
    shutil.copytree(student / "model", student / "snapshots" / "step-00000030")
    return copy


@pytest.fixture(scope="session")
def catalog(folder: Path) -> ModelCatalog:
    catalog = ModelCatalog([folder])
    prepare(catalog, name_tokens=20_000)
    return catalog


@pytest.fixture(scope="session")
def client(catalog: ModelCatalog) -> TestClient:
    return client_of(catalog)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    # no longer than a module, because playwright's event loop runs in this thread meanwhile
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def home(catalog: ModelCatalog) -> Iterator[str]:
    """Address of a server."""
    with served(create_app(catalog, access_policy("127.0.0.1", 0, None, no_token=True))) as port:
        yield f"http://127.0.0.1:{port}/"


@pytest.fixture
def monitor(browser: Any, home: str) -> Iterator[MonitoredPage]:
    with monitored_page(browser, home) as page:
        yield page
