"""Checksums are compared once a file, and again when the file is another one."""

import hashlib
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from cocomix.utils import integrity as verified
from cocomix.utils.errors import CocomixError
from cocomix.utils.integrity import FileEntry, check_files


def folder_with(home: Path) -> tuple[Path, list[FileEntry]]:
    folder = home / "f"
    folder.mkdir()
    (folder / "manifest.json").write_text("{}")
    files: list[FileEntry] = []
    for name in ("a.bin", "b.bin"):
        content = name.encode() * 100
        (folder / name).write_bytes(content)
        files.append({"file": name, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()})
    return folder, files


@pytest.fixture(autouse=True)
def old(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files need not rest before they are remembered."""
    monkeypatch.setattr(verified, "YOUNG_NS", 0)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that were read whole."""
    names: list[str] = []
    real = verified.sha256

    def counting(path: Path) -> str:
        names.append(path.name)
        return real(path)

    monkeypatch.setattr(verified, "sha256", counting)
    return names


def check(folder: Path, files: list[FileEntry], **options: bool) -> None:
    check_files(folder, files, what="file", hint="fix it", **options)


def test_files_are_read_once(tmp_path: Path, reads: list[str]) -> None:
    folder, files = folder_with(tmp_path)
    check(folder, files, verify=False)
    assert reads == []
    for _ in range(3):
        check(folder, files)
    assert reads == ["a.bin", "b.bin"]
    folder.rename(tmp_path / "moved")
    check(tmp_path / "moved", files)
    assert reads == ["a.bin", "b.bin"]


def test_another_file_is_read_again(tmp_path: Path, reads: list[str]) -> None:
    folder, files = folder_with(tmp_path)
    check(folder, files)
    reads.clear()
    os.utime(folder / "a.bin", ns=(5, 5))
    check(folder, files)
    assert reads == ["a.bin"]
    shutil.copytree(folder, tmp_path / "copy")  # a note that speaks of other inodes
    check(tmp_path / "copy", files)
    assert reads == ["a.bin", "a.bin", "b.bin"]
    stat = (folder / "b.bin").stat()
    (folder / "new").write_bytes(b"x" * stat.st_size)
    os.utime(folder / "new", ns=(stat.st_atime_ns, stat.st_mtime_ns))
    os.replace(folder / "new", folder / "b.bin")
    with pytest.raises(CocomixError, match=r"b\.bin was altered .*; fix it"):
        check(folder, files)
    with pytest.raises(CocomixError, match=r"a\.bin was altered"):  # another manifest, the same file
        check(folder, [{**files[0], "sha256": "0" * 64}])


def test_a_time_that_was_put_back_hides_nothing(tmp_path: Path, reads: list[str]) -> None:
    folder, files = folder_with(tmp_path)
    check(folder, files)
    before = (folder / "b.bin").stat()
    time.sleep(0.02)
    (folder / "b.bin").write_bytes(b"x" * before.st_size)
    os.utime(folder / "b.bin", ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(CocomixError, match=r"b\.bin was altered"):
        check(folder, files)


def test_a_young_file_is_not_remembered(tmp_path: Path, reads: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verified, "YOUNG_NS", 10**12)
    folder, files = folder_with(tmp_path)
    check(folder, files)
    check(folder, files)
    assert reads == ["a.bin", "b.bin"] * 2


@pytest.mark.parametrize("note", ["", "[]", "null", '{"a.bin": 1}'])
def test_a_damaged_note_is_no_note(tmp_path: Path, reads: list[str], note: str) -> None:
    folder, files = folder_with(tmp_path)
    (folder / "verified.json").write_text(note)
    check(folder, files)
    assert reads == ["a.bin", "b.bin"]


def test_a_note_that_cannot_be_written_is_done_without(tmp_path: Path, reads: list[str]) -> None:
    folder, files = folder_with(tmp_path)
    (folder / "verified.json").mkdir()
    for _ in range(2):
        check(folder, files)
    assert len(reads) == 4 and not list(folder.glob("*.tmp"))


def test_missing_and_foreign_names(tmp_path: Path) -> None:
    folder, files = folder_with(tmp_path)
    with pytest.raises(CocomixError, match="outside the folder"):
        check(folder, [{**files[0], "file": "../f/a.bin"}])
    (folder / "a.bin").unlink()
    with pytest.raises(CocomixError, match=r"a\.bin is missing or truncated"):
        check(folder, files)


HOLDER = """
import sys, time
from pathlib import Path
from cocomix.utils.integrity import _turn
with _turn(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_processes_take_turns_and_a_killed_one_leaves_its_turn(tmp_path: Path, reads: list[str]) -> None:
    folder, files = folder_with(tmp_path)
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(folder)], stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == b"held\n"
        waiting = threading.Thread(target=check, args=(folder, files))
        waiting.start()
        waiting.join(0.3)
        assert waiting.is_alive() and reads == []
        holder.kill()
        waiting.join(30)
    assert reads == ["a.bin", "b.bin"]
    assert {path.name for path in folder.iterdir()} == {"a.bin", "b.bin", "manifest.json", "verified.json"}


ODD = ({"file": "a", "bytes": "1", "sha256": "x"}, {"file": 3, "bytes": 1, "sha256": "x"}, {"file": "a", "bytes": 1})


@pytest.mark.parametrize("files", [None, 3, {}, "x", [None], [{}], ["x"], *([one] for one in ODD)])
def test_a_list_of_odd_entries_is_refused(tmp_path: Path, files: Any) -> None:
    with pytest.raises(CocomixError, match=r"the list of files of .* is damaged; fix it"):
        check_files(tmp_path, files, what="file", hint="fix it")
