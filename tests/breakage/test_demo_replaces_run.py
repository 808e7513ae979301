"""`cocomix demo` with other settings replaced every finished stage without a word; `clean` shows what is kept."""

import shutil
from pathlib import Path

import pytest

from tests.helpers.command import cocomix, refused
from tests.pipeline.test_old_run import FIXTURE

pytestmark = pytest.mark.usefixtures("no_waiting_for_the_disk")


@pytest.fixture
def home(tmp_path: Path) -> Path:
    shutil.copytree(FIXTURE / "run", tmp_path / "run")
    return tmp_path


def files(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != "verified.json"}


@pytest.mark.parametrize("arguments", [("--tiny",), ("students_train.steps=3",)])
def test_a_demo_asks_before_it_replaces_finished_stages(home: Path, arguments: tuple[str, ...]) -> None:
    before = files(home / "run")
    done = cocomix("demo", "-r", "run", *arguments, cwd=home, check=False)
    refused(done, "run has finished stages with other settings", "--replace", "another --run", "they took")
    assert files(home / "run") == before


def test_clean_lists_and_deletes_on_request(home: Path) -> None:
    run = home / "run"
    listed = cocomix("clean", "-r", "run", cwd=home)
    assert "finished" in listed.stdout and ".kept" not in listed.stdout
    other = run / ".kept/evaluation--ntp--seed0--0123456789ab-01234567"
    other.parent.mkdir()
    shutil.move(run / "evaluation/ntp/seed0", other)
    unfinished = run / ".partial/students--ntp--seed0-0123456789ab"
    unfinished.mkdir(parents=True)
    (unfinished / "weights").write_bytes(bytes(3000))
    listed = " ".join(cocomix("clean", "-r", "run", cwd=home).stdout.split())
    assert "unfinished 3.0 kB" in listed and "Delete some with their names" in listed
    refused(cocomix("clean", "-r", "run", "--all", cwd=home, check=False), "2 attempts", "add --yes")
    refused(cocomix("clean", "-r", "run", "ntp", cwd=home, check=False), "nothing called 'ntp'", "students/ntp/seed0")
    refused(cocomix("clean", "-r", "run", "--older-than", "soon", cwd=home, check=False), "no age", "7d")
    cocomix("clean", "-r", "run", "--older-than", "1h", "students/ntp/seed0", "--yes", cwd=home)
    assert unfinished.exists()
    cocomix("clean", "-r", "run", "students/ntp/seed0", "--yes", cwd=home)
    assert not unfinished.exists() and other.exists() and (run / "students/ntp/seed0/stage.json").exists()
    cocomix("evaluate", "-r", "run", cwd=home)  # back in its place: what was measured is not measured again
    assert not other.exists() and (run / "evaluation/ntp/seed0/stage.json").exists()
