"""Attempts at a stage: other settings delete nothing, earlier settings find theirs again, a kill loses nothing."""

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cocomix.pipeline import attempts as attempts_module
from cocomix.pipeline import stage as stage_module
from cocomix.pipeline.attempts import attempts, delete, exchanging
from cocomix.pipeline.stage import CHECKPOINTS, Stage
from cocomix.utils import files
from cocomix.utils.errors import CocomixError, Interrupted
from tests.pipeline.test_stage import Counting, chain


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage_module, "git_commit", lambda: None)
    monkeypatch.setattr(os, "fsync", lambda _: None)


def kept(run_dir: Path) -> list[str]:
    return sorted(path.name for path in (run_dir / ".kept").glob("*"))


def test_earlier_settings_find_their_finished_stage_again(tmp_path: Path) -> None:
    for stage in (*chain(tmp_path), *chain(tmp_path, first=5)):
        stage.run(None)
    assert (tmp_path / "a/value").read_text() == "5" and len(kept(tmp_path)) == 2
    again = chain(tmp_path)
    assert [stage.kept() is not None for stage in again] == [True, False]  # b's inputs are not in place yet
    for stage in again:
        assert stage.run(None) == {"value": stage.setting}
    assert [stage.worked for stage in again] == [0, 0]
    assert (tmp_path / "a/value").read_text() == "1" and len(kept(tmp_path)) == 2
    there = chain(tmp_path, first=5)
    assert [stage.run(None) for stage in there] and [stage.worked for stage in there] == [0, 0]


def test_a_stage_made_again_from_other_inputs_keeps_the_first(tmp_path: Path) -> None:
    a, b = chain(tmp_path)
    a.run(None), b.run(None)
    files.shutil.rmtree(tmp_path / "a")
    a.found = "other"
    a.run(None), b.run(None)
    (folder,) = (tmp_path / ".kept").iterdir()
    assert json.loads((folder / "stage.json").read_text())["figures"] == {"value": 2} and b.worked == 2


def test_one_that_lost_a_file_is_replaced_by_its_remake(tmp_path: Path) -> None:
    a, _ = chain(tmp_path)
    a.outputs = lambda: ["value"]
    a.run(None)
    (tmp_path / "a/value").unlink()
    a.run(None)
    assert a.worked == 2 and not kept(tmp_path) and not list((tmp_path / ".partial").iterdir())


def test_unfinished_attempts_of_other_settings_stay(tmp_path: Path) -> None:
    first, other = Counting(tmp_path, "a", 1), Counting(tmp_path, "a", 2)
    first.error = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        first.run(None)
    (attempt,) = other.unfinished()
    assert attempt.settings == {"setting": 1} and not first.unfinished()
    other.run(None)
    assert (attempt.folder / "half").exists()
    first.error = None
    first.run(None)
    assert (tmp_path / "a/value").read_text() == "1" and len(kept(tmp_path)) == 1


def test_what_would_be_replaced_is_known_before(tmp_path: Path) -> None:
    assert Counting(tmp_path, "a", 1).replaces() is None
    Counting(tmp_path, "a", 1).run(None)
    assert Counting(tmp_path, "a", 1).replaces() is None
    record = Counting(tmp_path, "a", 2).replaces()
    assert record is not None and record["settings"] == {"setting": 1}
    Counting(tmp_path, "a", 2).run(None)
    assert Counting(tmp_path, "a", 1).replaces() is None  # it is only exchanged


class Killed(BaseException):
    """Ends the process as SIGKILL would: nothing is caught, nothing is cleaned up that the kernel does not."""


class Training(Counting):
    """Has a checkpoint, and resumes from it."""

    def work(self, folder: Path, progress: Any) -> dict[str, Any]:
        if not (folder / CHECKPOINTS / "step-1").exists():
            self.worked += 1
            (folder / CHECKPOINTS / "step-1").mkdir(parents=True)
        (folder / "value").write_text(str(self.setting))
        return {"value": self.setting}


def operations(monkeypatch: pytest.MonkeyPatch, at: int) -> list[str]:
    """Count renames, unlinks and removals of trees, and be killed before the one numbered `at`."""
    seen: list[str] = []

    def watched(name: str, do: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            if len(seen) == at:
                raise Killed
            seen.append(name)
            return do(*arguments, **options)

        return call

    monkeypatch.setattr(os, "replace", watched("replace", os.replace))
    monkeypatch.setattr(Path, "unlink", watched("unlink", Path.unlink))
    monkeypatch.setattr(attempts_module.shutil, "rmtree", watched("rmtree", attempts_module.shutil.rmtree))
    return seen


def tree(folder: Path) -> dict[str, bytes]:
    skipped = {"verified.json", "stage.json"}
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name not in skipped and ".locks" not in path.parts
    }


@pytest.mark.parametrize("replacing", [False, True], ids=["new", "replacing"])
def test_a_kill_anywhere_in_publishing_trains_nothing_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, replacing: bool
) -> None:
    def begun(folder: Path) -> None:
        if replacing:
            Training(folder, "a", 1).run(None)

    begun(tmp_path / "calm")
    with monkeypatch.context() as patched:
        seen = operations(patched, -1)
        Training(tmp_path / "calm", "a", 2).run(None)
    assert seen.count("replace") >= 3 + replacing and seen.count("rmtree") >= 1
    for number in range(len(seen)):
        home = tmp_path / str(number)
        begun(home)
        first, then = Training(home, "a", 2), Training(home, "a", 2)
        with monkeypatch.context() as patched, pytest.raises(Killed):
            operations(patched, number)
            first.run(None)
        then.run(None)
        assert first.worked + then.worked == 1, (number, seen[number])
        assert tree(home) == tree(tmp_path / "calm"), (number, seen[number])


def test_the_exchange_of_a_stage_waits_for_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attempts_module, "EXCHANGE_SECONDS", 0.1)
    with exchanging(tmp_path, "a"), pytest.raises(CocomixError, match="another command has been putting a in place"):
        Counting(tmp_path, "a", 1).run(None)
    again = Counting(tmp_path, "a", 1)
    again.run(None)
    assert again.worked == 0  # it was finished, only not in its place


def test_the_lock_spans_publishing_and_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    a, second = Counting(tmp_path, "a", 1), Counting(tmp_path, "a", 1)
    real, refused = Stage._publish, []

    def publish(self: Stage, *arguments: Any) -> None:
        with pytest.raises(CocomixError, match="another command is working on a right now"):
            second.run(None)
        refused.append(True)
        real(self, *arguments)

    monkeypatch.setattr(Stage, "_publish", publish)
    a.run(None)
    assert refused and second.worked == 0
    assert len(list((tmp_path / ".locks").glob("*.lock"))) == 2


def test_only_what_nobody_works_on_is_deleted(tmp_path: Path) -> None:
    a, other = Counting(tmp_path, "a", 1), Counting(tmp_path, "a", 2)
    a.run(None)
    other.run(None)
    busy = Counting(tmp_path, "a", 3)

    def work(folder: Path, progress: Any) -> dict[str, Any]:
        found = attempts(tmp_path)
        assert [attempt.finished for attempt in found] == [True, False]
        assert [attempt.finished for attempt in delete(found)] == [True]
        return {}

    busy.work = work
    busy.run(None)
    assert (tmp_path / "a/stage.json").exists() and len(kept(tmp_path)) == 1


def test_temporaries_of_the_dead_are_removed_and_those_of_the_living_stay(tmp_path: Path) -> None:
    dead, living = 2**22 + 1, os.getpid()
    for name in (f"x.{files.NODE}-{dead}.tmp", f"x.{files.NODE}-{living}.tmp", f"x.elsewhere-{dead}.tmp", ".tmpAbC123"):
        (tmp_path / name).touch()
    old = tmp_path / f"y.elsewhere-{dead}.tmp"
    old.touch()
    os.utime(old, (0, 0))
    files.remove_temporaries(tmp_path)
    left = {f"x.{files.NODE}-{living}.tmp", f"x.elsewhere-{dead}.tmp", ".tmpAbC123"}
    assert {path.name for path in tmp_path.iterdir()} == left
    files.remove_temporaries(tmp_path, exclusive=True)
    assert not list(tmp_path.iterdir())


def test_a_stage_removes_what_the_dead_left_in_every_stage_that_it_reads(tmp_path: Path) -> None:
    """A student reads tokens, and an evaluation of it reads them through the student."""
    a, b = chain(tmp_path)
    a.run(None), b.run(None)
    left = tmp_path / f"a/verified.json.{files.NODE}-{2**22 + 1}.tmp"
    left.touch()
    Counting(tmp_path, "c", 3, (b,)).run(None)
    assert not left.exists()


def test_a_stop_request_while_a_stage_is_put_in_its_place_waits_until_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage_module, "git_commit", lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(Interrupted, match="stopped; a is finished, rerun the same command") as stopped:
        Training(tmp_path, "a", 1).run(None)
    assert not stopped.value.by_user
    again = Training(tmp_path, "a", 1)
    again.run(None)
    assert again.worked == 0 and not (tmp_path / "a" / CHECKPOINTS).exists()


def test_a_stop_request_after_the_last_step_ends_with_what_is_saved(tmp_path: Path) -> None:
    class Saving(Training):
        saves_when_stopped = True

        def work(self, folder: Path, progress: Any) -> dict[str, Any]:
            figures = super().work(folder, progress)
            if self.worked:
                os.kill(os.getpid(), signal.SIGTERM)  # while the quality is measured, say
                time.sleep(5)
            return figures

    with pytest.raises(Interrupted, match="stopped and saved"):
        Saving(tmp_path, "a", 1).run(None)
    again = Saving(tmp_path, "a", 1)
    again.run(None)
    assert again.worked == 0
