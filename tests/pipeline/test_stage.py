"""Stages: done once, redone when something they depend on changes, never half overwritten."""

import errno
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cocomix.pipeline.stage import Stage
from cocomix.utils.errors import CocomixError


class Counting(Stage):
    """Writes its setting to a file and counts how often it worked."""

    def __init__(self, run_dir: Path, name: str, setting: Any, inputs: tuple[Stage, ...] = ()) -> None:
        super().__init__(run_dir, name, f"cocomix {name}", inputs)
        self.setting, self.worked = setting, 0
        self.error: BaseException | None = None
        self.found: str | None = None

    def settings(self) -> dict[str, Any]:
        return {"setting": self.setting}

    def work(self, folder: Path, progress: Any) -> dict[str, Any]:
        self.worked += 1
        (folder / "half").write_text("begun")
        if self.error is not None:
            raise self.error
        (folder / "value").write_text(str(self.setting))
        return {"value": self.setting} | ({"found": self.found} if self.found else {})


def chain(run_dir: Path, first: int = 1, second: int = 2) -> tuple[Counting, Counting]:
    a = Counting(run_dir, "a", first)
    return a, Counting(run_dir, "b", second, (a,))


def test_a_finished_stage_is_not_redone(tmp_path: Path) -> None:
    for stage in chain(tmp_path):
        stage.run(None)
    again = chain(tmp_path)
    for stage in again:
        assert stage.run(None) == {"value": stage.setting}
    assert [stage.worked for stage in again] == [0, 0]


def test_a_changed_setting_redoes_just_what_depends_on_it(tmp_path: Path) -> None:
    for stage in chain(tmp_path):
        stage.run(None)
    a, b = chain(tmp_path, second=3)
    a.run(None), b.run(None)
    assert (a.worked, b.worked) == (0, 1)
    a, b = chain(tmp_path, first=5, second=3)
    a.run(None), b.run(None)
    assert (a.worked, b.worked) == (1, 1)
    assert (tmp_path / "a" / "value").read_text() == "5"


def test_there_and_back_again_outdates_what_was_made_from_the_first_outcome(tmp_path: Path) -> None:
    a, b = chain(tmp_path)
    a.run(None), b.run(None)
    chain(tmp_path, first=5)[0].run(None)
    a, b = chain(tmp_path)
    a.run(None)
    assert b.record() is not None  # back in its place, with the same outcome
    chain(tmp_path, first=5)[0].run(None)
    shutil.rmtree(tmp_path / ".kept")  # else the first would be back, not made again
    a, b = chain(tmp_path)
    a.found = "something else"  # as training does
    a.run(None)
    assert b.record() is None
    b.run(None)
    assert b.worked == 1 and b.record() is not None


def test_inputs_must_be_finished_and_the_error_names_the_command(tmp_path: Path) -> None:
    _, b = chain(tmp_path)
    with pytest.raises(CocomixError, match="cocomix a --run"):
        b.run(None)


def test_a_failure_keeps_the_old_result_and_the_partial_folder(tmp_path: Path) -> None:
    a, _ = chain(tmp_path)
    a.run(None)
    changed, _ = chain(tmp_path, first=9)
    changed.error = ValueError("boom")
    with pytest.raises(ValueError, match="boom"):
        changed.run(None)
    assert (tmp_path / "a" / "value").read_text() == "1"
    assert list((tmp_path / ".partial").glob("a-*/half"))
    changed.error = None
    changed.run(None)
    assert (tmp_path / "a" / "value").read_text() == "9"
    assert not list((tmp_path / ".partial").iterdir())


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        RuntimeError("I/O error: No space left on device (os error 28)"),
    ],
)
def test_a_full_disk_is_one_sentence(tmp_path: Path, error: Exception) -> None:
    a, _ = chain(tmp_path)
    a.error = error
    with pytest.raises(CocomixError, match=r"disk .* is full; free some space"):
        a.run(None)


def test_a_label_set_whose_name_begins_like_another_loses_nothing(tmp_path: Path) -> None:
    longer = Counting(tmp_path, "labels/exact-helpful", 1)
    longer.error = ValueError("stopped")
    with pytest.raises(ValueError, match="stopped"):
        longer.run(None)
    Counting(tmp_path, "labels/exact", 1).run(None)
    assert list((tmp_path / ".partial").glob("labels--exact-helpful-*/half"))


def test_two_commands_never_work_on_the_same_stage(tmp_path: Path) -> None:
    outer, inner = Counting(tmp_path, "a", 1), Counting(tmp_path, "a", 1)

    def work(folder: Path, progress: Any) -> dict[str, Any]:
        with pytest.raises(CocomixError, match="another command is working on a right now"):
            inner.run(None)
        return {}

    outer.work = work
    outer.run(None)
    assert inner.worked == 0 and not list((tmp_path / ".partial").iterdir())


HOLDER = """
import sys, time
from pathlib import Path
from cocomix.pipeline.stage import _only_one
partial = Path(sys.argv[1])
with _only_one(partial, "a"):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_killed_command_leaves_no_lock_that_blocks(tmp_path: Path) -> None:
    a = Counting(tmp_path, "a", 1)
    partial = tmp_path / ".partial" / f"a-{a.fingerprint[:12]}"
    partial.mkdir(parents=True)
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(partial)], stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == b"held\n"
        with pytest.raises(CocomixError, match="another command is working on a right now"):
            a.run(None)
        holder.kill()
    a.run(None)
    assert a.worked == 1


def test_an_altered_file_of_an_input_is_refused_before_it_is_read(tmp_path: Path) -> None:
    a, b = chain(tmp_path)
    a.run(None)
    (tmp_path / "a" / "value").write_text("7")
    with pytest.raises(CocomixError, match=r"a/value was altered .*; restore it, or delete .*/a and run `cocomix a"):
        b.run(None)
    with pytest.raises(CocomixError, match=r"a/value was altered"):
        a.run(None)
    assert b.worked == 0
    (tmp_path / "a" / "value").write_text("1")
    b.run(None)
    assert b.worked == 1


def test_files_that_a_manifest_lists_are_left_to_their_reader(tmp_path: Path) -> None:
    a, _ = chain(tmp_path)

    def work(folder: Path, progress: Any) -> dict[str, Any]:
        (folder / "shards" / "deep").mkdir(parents=True)
        for name in ("manifest.json", "big.bin", "deep/bigger.bin"):
            (folder / "shards" / name).write_text(name)
        (folder / "small").write_text("small")
        return {}

    a.work = work
    a.run(None)
    record = a.record()
    assert record is not None and [entry["file"] for entry in record["files"]] == ["shards/manifest.json", "small"]


def test_a_digit_of_a_record_is_not_silently_another(tmp_path: Path) -> None:
    a, _ = chain(tmp_path)
    a.run(None)
    path = tmp_path / "a" / "stage.json"
    sound = path.read_text()
    for one, other in (('"value": 1', '"value": 3'), ('"seal"', '"sEal"'), ('"files"', '"fIles"')):
        path.write_text(sound.replace(one, other))
        assert path.read_text() != sound
        with pytest.raises(CocomixError, match=r"stage\.json cannot be read .*altered"):
            a.record()
    earlier = {key: value for key, value in json.loads(sound).items() if key not in {"files", "seal"}}
    path.write_text(json.dumps(earlier))
    assert a.check() == {"value": 1}


def test_nobody_is_told_to_delete_what_may_only_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = chain(tmp_path)
    a.run(None)
    real = Path.read_text

    def closed(path: Path, *args: Any, **options: Any) -> str:
        if path == tmp_path / "a" / "stage.json":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return real(path, *args, **options)

    monkeypatch.setattr(Path, "read_text", closed)
    for do in (a.record, a.outcome, lambda: b.run(None)):
        with pytest.raises(PermissionError):
            do()
    assert (tmp_path / "a" / "value").exists()


def test_a_damaged_record_is_named(tmp_path: Path) -> None:
    a, _ = chain(tmp_path)
    a.run(None)
    for damage in ("{", "[]", "null", "{}", f'{{"fingerprint": "{a.fingerprint}"}}'):
        (tmp_path / "a" / "stage.json").write_text(damage)
        with pytest.raises(CocomixError, match=r"stage\.json cannot be read .*; delete .* and run `cocomix a"):
            a.record()


def test_a_stage_whose_output_is_gone_is_done_again(tmp_path: Path) -> None:
    a, _ = chain(tmp_path)
    a.outputs = lambda: ["value"]
    a.run(None)
    assert a.record() is not None
    (tmp_path / "a" / "value").unlink()
    assert a.record() is None
    a.run(None)
    assert a.worked == 2 and (tmp_path / "a" / "value").exists()


def test_seconds_of_interrupted_attempts_add_up(tmp_path: Path) -> None:
    a, _ = chain(tmp_path)
    a.error = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        a.run(None)
    kept = next((tmp_path / ".partial").glob("a-*/seconds.json"))
    kept.write_text('{"seconds": 100.0}')
    a.error = None
    a.run(None)
    record = a.record()
    assert record is not None and record["seconds"] > 100
    assert not (a.folder / "seconds.json").exists()
