"""Files are read for their checksum once, and again whenever they might have changed."""

import os
import shutil
import time
from pathlib import Path

import pytest

from cocomix import checked
from cocomix.checked import SIDECAR, altered
from cocomix.files import sha256


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that were read."""
    seen: list[str] = []
    monkeypatch.setattr(checked, "sha256", lambda path: seen.append(path.name) or sha256(path))
    return seen


def folder_of(home: Path, *, age: float = 10.0) -> tuple[Path, dict[str, str]]:
    """Files whose mtime is in the past; ctime cannot be set, so what counts as young is."""
    home.mkdir()
    for name in ("a", "b", "c"):
        (home / name).write_bytes(name.encode() * 1000)
        os.utime(home / name, (time.time() - age,) * 2)
    return home, {name: sha256(home / name) for name in ("a", "b", "c")}


def test_read_once(tmp_path: Path, reads: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checked, "YOUNG_NS", 0)
    folder, sums = folder_of(tmp_path / "f")
    assert altered(folder, sums) is None and altered(folder, sums) is None
    assert reads == ["a", "b", "c"]


@pytest.mark.parametrize("keep_mtime", [False, True])
def test_a_changed_file_is_read_again_and_found(
    tmp_path: Path, reads: list[str], monkeypatch: pytest.MonkeyPatch, keep_mtime: bool
) -> None:
    monkeypatch.setattr(checked, "YOUNG_NS", 0)
    folder, sums = folder_of(tmp_path / "f")
    assert altered(folder, sums) is None
    before = (folder / "b").stat()
    time.sleep(0.02)
    content = bytearray((folder / "b").read_bytes())
    content[5] ^= 1
    (folder / "b").write_bytes(content)
    if keep_mtime:
        os.utime(folder / "b", ns=(before.st_atime_ns, before.st_mtime_ns))
        assert (folder / "b").stat().st_mtime_ns == before.st_mtime_ns
    reads.clear()
    assert altered(folder, sums) == "b" and altered(folder, sums) == "b"
    content[5] ^= 1
    (folder / "b").write_bytes(content)
    assert altered(folder, sums) is None
    assert reads == ["b", "b", "b"]


def test_a_young_file_is_not_remembered(tmp_path: Path, reads: list[str]) -> None:
    folder, sums = folder_of(tmp_path / "f", age=0)
    assert altered(folder, sums) is None and altered(folder, sums) is None
    assert reads == ["a", "b", "c"] * 2


def test_other_checksums_and_copies_are_not_taken_on_trust(
    tmp_path: Path, reads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checked, "YOUNG_NS", 0)
    folder, sums = folder_of(tmp_path / "f")
    altered(folder, sums)
    assert altered(folder, sums | {"c": "0" * 64}) == "c"
    shutil.copytree(folder, tmp_path / "g")
    reads.clear()
    assert altered(tmp_path / "g", sums) is None and reads == ["a", "b", "c"]
    for damage in ("", "[]", '{"a": 3, "b": null}'):
        (folder / SIDECAR).write_text(damage)
        reads.clear()
        assert altered(folder, sums) is None and reads == ["a", "b", "c"]
