"""A series of files ends in the same bytes whatever was written after the last commit, and says what it lost."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cocomix.utils.errors import CocomixError
from cocomix.utils.files import FileSeries

DATA = bytes(np.random.default_rng(0).integers(0, 256, 2000, dtype=np.uint8))


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("limit", [1, 7, 100, 2000, 5000])
@pytest.mark.parametrize("step", [1, 64, 999])
def test_files_are_the_stream_cut_at_the_limit(tmp_path: Path, limit: int, step: int) -> None:
    series = FileSeries(tmp_path, "x-{:04d}.bin", durable=False)
    for start in range(0, len(DATA), step):
        series.fill(DATA[start : start + step], limit)
    series.cut(about=1)
    series.close()
    pieces = [DATA[start : start + limit] for start in range(0, len(DATA), limit)]
    assert content(tmp_path) == {f"x-{number:04d}.bin": piece for number, piece in enumerate(pieces)}
    assert [entry["sha256"] for entry in series.files] == [hashlib.sha256(piece).hexdigest() for piece in pieces]


@pytest.mark.parametrize("left", ["nothing", "more", "renamed", "another", "renamed and another"])
def test_what_was_not_committed_never_happened(tmp_path: Path, left: str) -> None:
    for committed in (0, 50, 64, 100, 130, 192):
        folder = tmp_path / str(committed)
        series = FileSeries(folder, "{}.bin")
        series.fill(DATA[:committed], 64)
        commit: dict[str, Any] = series.commit()
        if "more" in left or "renamed" in left:
            series.write(DATA[900:910])
        if "renamed" in left:
            series.cut()
        if "another" in left:
            series.fill(DATA[1000:1200], 64)
        del series  # as a kill does
        series = FileSeries(folder, "{}.bin", commit)
        series.fill(DATA[committed:], 64)
        series.cut()
        series.close()
        assert b"".join(piece for _, piece in sorted(content(folder).items(), key=lambda one: int(one[0][:-4]))) == DATA
        assert [entry["bytes"] for entry in series.files] == [64] * 31 + [16]
        for entry in series.files:
            assert entry["sha256"] == hashlib.sha256((folder / entry["file"]).read_bytes()).hexdigest()


def test_lost_bytes_are_said(tmp_path: Path) -> None:
    series = FileSeries(tmp_path, "{}.bin")
    series.write(DATA)
    commit = series.commit()
    series.close()
    part = tmp_path / "0.bin.part"
    part.write_bytes(DATA[:100])
    with pytest.raises(CocomixError, match=r"0\.bin\.part has lost"):
        FileSeries(tmp_path, "{}.bin", commit)
    part.unlink()
    with pytest.raises(CocomixError, match=r"0\.bin\.part has lost"):
        FileSeries(tmp_path, "{}.bin", commit)
