"""The label store: bytes, blocks and marks; anything unfinished, damaged or foreign is refused."""

import errno
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cocomix.labels import LabelStore
from cocomix.labels.store import BLOCK, MARKS, LabelWriter, StoreLayout, remove_marks
from cocomix.utils.errors import CocomixError
from cocomix.utils.files import write_sealed

LINEAGE = {"tokens": "a" * 64, "teacher": "b" * 64, "rule": "exact"}
SHAPE = (7, 5, 2)


def labels(n_latents: int = 60) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.integers(0, n_latents, SHAPE), rng.random(SHAPE, dtype=np.float32), rng.random(SHAPE[:2]) > 0.3


def begun(folder: Path, n_latents: int = 60, shard_tokens: int = 16, scores: bool = True) -> LabelWriter:
    """Seven windows, three a shard unless said otherwise."""
    return LabelStore.create(
        folder,
        n_tokens=38,
        seq_len=5,
        n_labels=2,
        n_latents=n_latents,
        lineage=LINEAGE,
        shard_tokens=shard_tokens,
        scores=scores,
    )


def filled(folder: Path, **shape: int) -> LabelStore:
    ids, scores, valid = labels(shape.get("n_latents", 60))
    begun(folder, **shape)
    for start in (4, 0, 2, 6):  # pairs, one of them across two shards, each by another writer
        end = min(start + 2, 7)
        writer = LabelWriter(folder)
        writer.write(start, ids[start:end], scores[start:end], valid[start:end])
        writer.close()
    LabelWriter(folder).finish()
    return LabelStore.open(folder, expect=LINEAGE)


def test_four_labels_of_32768_concepts_are_8_bytes_a_token(tmp_path: Path) -> None:
    shape = (3, 16, 4)
    writer = LabelStore.create(
        tmp_path / "l", n_tokens=48, seq_len=16, n_labels=4, n_latents=32768, lineage={}, shard_tokens=16
    )
    writer.write(0, np.zeros(shape, dtype=np.int64), np.ones(shape), np.ones(shape[:2], dtype=bool))
    writer.finish()
    assert sum(path.stat().st_size for path in (tmp_path / "l").glob("*.bin")) == 48 * 8
    with pytest.raises(CocomixError, match="without scores"):
        LabelStore.open(tmp_path / "l").read_scores(np.array([0]), 16)


def test_unfinished_stores_are_refused_and_can_be_continued(tmp_path: Path) -> None:
    writer, (ids, scores, valid) = begun(tmp_path / "l"), labels()
    writer.write(1, ids[1:5], scores[1:5], valid[1:5])  # not closed: killed
    with pytest.raises(CocomixError, match="not finished"):
        LabelStore.open(tmp_path / "l")
    again = begun(tmp_path / "l")
    assert np.flatnonzero(again.done()).tolist() == [1, 2, 3, 4]
    shared = sum(again.done(part, 3).astype(int) for part in range(3))
    assert np.array_equal(shared, again.done())
    with pytest.raises(CocomixError, match="3 of 7 windows"):
        again.finish()
    for other in ({"n_latents": 61}, {"shard_tokens": 20}, {"scores": False}):
        with pytest.raises(CocomixError, match="other settings"):
            begun(tmp_path / "l", **other)
    for start, end in ((0, 1), (5, 7)):
        again.write(start, ids[start:end], scores[start:end], valid[start:end])
    again.finish()
    assert np.array_equal(LabelStore.open(tmp_path / "l").labelled(np.arange(7)), valid.sum(-1))
    with pytest.raises(CocomixError, match="already holds"):
        begun(tmp_path / "l")


def test_a_mark_whose_labels_are_gone_does_not_count(tmp_path: Path) -> None:
    """As after a power cut: marks reached the disk, some of the labels did not, and one mark only in part."""
    writer, (ids, scores, valid) = begun(tmp_path / "l"), labels()
    for start in range(7):
        writer.write(start, ids[start : start + 1], scores[start : start + 1], valid[start : start + 1])
    writer.close()
    with (tmp_path / "l" / "ids-00000.bin").open("r+b") as stream:
        stream.seek(20)  # window 1 of 20 bytes a window
        stream.write(bytes(20))
    (tmp_path / "l" / "scores-00001.bin").write_bytes(b"short")  # windows 3 to 5
    (marks,) = (tmp_path / "l" / MARKS).iterdir()
    marks.write_bytes(marks.read_bytes()[:-3])  # window 6
    again = begun(tmp_path / "l")
    assert np.flatnonzero(again.done()).tolist() == [0, 2]
    content = bytearray(marks.read_bytes())
    content[0] ^= 4  # another window's number
    marks.write_bytes(bytes(content))
    assert np.flatnonzero(again.done()).tolist() == [2]


def test_marks_that_cannot_be_deleted_are_told_and_go_the_next_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer, (ids, scores, valid) = begun(tmp_path / "l"), labels()
    writer.write(0, ids, scores, valid)

    def broken(*_: Any, **__: Any) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patched, pytest.raises(OSError, match="Input/output"):
        patched.setattr(os, "unlink", broken)
        writer.finish()
    assert LabelStore.finished(tmp_path / "l") and (tmp_path / "l" / MARKS).exists()
    remove_marks(tmp_path / "l")
    assert not (tmp_path / "l" / MARKS).exists()
    remove_marks(tmp_path / "l")


def test_blocks_share_no_page(tmp_path: Path) -> None:
    """Slow twin: the byte range of every window, in both files, against multiples of BLOCK."""
    layout = StoreLayout(7 * 3000 + 2, 7, 3, 70_000, 1100, True, {})
    blocks = layout.blocks(np.arange(3000))
    assert (np.diff(blocks) >= 0).all() and len(np.unique(blocks)) > 1
    for size in map(layout.window_bytes, layout.dtypes):
        owner: dict[tuple[int, int], int] = {}
        for window in range(3000):
            shard, place = divmod(window, 1100)
            for page in {place * size // BLOCK, ((place + 1) * size - 1) // BLOCK}:
                assert owner.setdefault((shard, page), blocks[window]) == blocks[window]
    useful = StoreLayout(1 << 22, 1024, 4, 32768, 1 << 12, False, {})
    assert len(np.unique(useful.blocks(np.arange(1 << 12)))) == 512  # eight windows each: small enough to balance


@pytest.mark.parametrize("file", ["ids-00000.bin", "scores-00002.bin"])
def test_damage_is_refused(tmp_path: Path, file: str) -> None:
    filled(tmp_path / "l")
    victim = tmp_path / "l" / file
    good = victim.read_bytes()
    victim.write_bytes(good[:-1])
    with pytest.raises(CocomixError, match=f"{file} is missing or truncated"):
        LabelStore.open(tmp_path / "l")
    victim.write_bytes(bytes([good[0] ^ 1]) + good[1:])
    os.utime(victim, ns=(1, 1))
    with pytest.raises(CocomixError, match=f"{file} was altered"):
        LabelStore.open(tmp_path / "l")
    victim.write_bytes(good)
    LabelStore.open(tmp_path / "l")


def test_other_lineage_other_windows_and_other_versions_are_refused(tmp_path: Path) -> None:
    store = filled(tmp_path / "l")
    with pytest.raises(CocomixError, match=r"another tokens .*cocomix label"):
        LabelStore.open(tmp_path / "l", expect={**LINEAGE, "tokens": "c" * 64})
    for read in (store.read, store.read_scores):
        with pytest.raises(CocomixError, match="windows of 5 tokens, not 6"):
            read(np.array([0]), 6)
    manifest = tmp_path / "l" / "manifest.json"
    good = json.loads(manifest.read_text())
    write_sealed(manifest, good | {"format": 1})
    with pytest.raises(CocomixError, match=r"another version .*cocomix label"):
        LabelStore.open(tmp_path / "l")
    for damage in ("nonsense", "[]", json.dumps({key: good[key] for key in good if key != "files"}), '{"format": 2}'):
        manifest.write_text(damage)
        with pytest.raises(CocomixError, match="damaged"):
            LabelStore.open(tmp_path / "l")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(
            ("n_tokens", True),
            ("n_tokens", 1 << 62),
            ("n_tokens", -1),
            ("seq_len", 0),
            ("seq_len", 39),
            ("seq_len", 5.0),
        ),
        *(("n_labels", "2"), ("n_labels", 1 << 40), ("n_latents", 1 << 32), ("shard_windows", 0), ("scores", 1)),
        *(("lineage", []), ("files", None), ("files", []), ("labelled", "many"), ("shard_windows", 1), ("n_labels", 1)),
    ],
)
def test_a_manifest_of_odd_values_is_refused(tmp_path: Path, name: str, value: Any) -> None:
    filled(tmp_path)
    path = tmp_path / "manifest.json"
    write_sealed(path, json.loads(path.read_text()) | {name: value})
    with pytest.raises(CocomixError, match=r"manifest\.json is damaged"):
        LabelStore.open(tmp_path)


def test_files_that_a_manifest_leaves_out_are_not_taken_unchecked(tmp_path: Path) -> None:
    filled(tmp_path)
    path = tmp_path / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["files"][0] = manifest["files"][1]
    write_sealed(path, manifest)
    with pytest.raises(CocomixError, match=r"manifest\.json is damaged"):
        LabelStore.open(tmp_path)


def test_a_file_of_another_size_is_refused_though_the_manifest_agrees_with_it(tmp_path: Path) -> None:
    filled(tmp_path)
    path = tmp_path / "manifest.json"
    manifest = json.loads(path.read_text())
    entry = manifest["files"][0]
    short = (tmp_path / entry["file"]).read_bytes()[:-2]
    (tmp_path / entry["file"]).write_bytes(short)
    entry |= {"bytes": len(short), "sha256": hashlib.sha256(short).hexdigest()}
    write_sealed(path, manifest)
    with pytest.raises(CocomixError, match=r"manifest\.json is damaged"):
        LabelStore.open(tmp_path)
