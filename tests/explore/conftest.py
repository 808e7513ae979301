"""An explorer that several tests may ask."""

import shutil
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from cocomix.explore.catalog import Catalog
from cocomix.explore.prepare import prepare
from explore.explored import client_of


@pytest.fixture(scope="session")
def folder(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a snapshot of its student; tests that change it must put things back."""
    copy = tmp_path_factory.mktemp("explored") / "tiny"
    shutil.copytree(tiny / "runs" / "tiny", copy)
    student = copy / "students" / "cocomix" / "seed0"
    shutil.copytree(student / "model", student / "snapshots" / "step-00000030")
    return copy


@pytest.fixture(scope="session")
def catalog(folder: Path) -> Catalog:
    opened = Catalog([folder])
    prepare(opened, name_tokens=20_000)
    return opened


@pytest.fixture(scope="session")
def client(catalog: Catalog) -> TestClient:
    return client_of(catalog)
