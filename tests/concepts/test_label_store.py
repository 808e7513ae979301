"""The label store: what was written comes back; anything unfinished, damaged or foreign is refused."""

from pathlib import Path

import numpy as np
import pytest
import torch

from cocomix.concepts import LabelStore
from cocomix.errors import CocomixError

LINEAGE = {"tokens": "a" * 64, "teacher": "b" * 64, "rule": "exact"}
SHAPE = (7, 5, 2)


def labels(n_latents: int = 60) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.integers(0, n_latents, SHAPE), rng.random(SHAPE, dtype=np.float32), rng.random(SHAPE[:2]) > 0.3


def filled(folder: Path, n_latents: int = 60, finish: bool = True) -> LabelStore:
    ids, scores, valid = labels(n_latents)
    store = LabelStore.create(folder, n_tokens=38, seq_len=5, n_labels=2, n_latents=n_latents, lineage=LINEAGE)
    for start in (4, 0, 2, 6):
        end = min(start + 2, 7)
        LabelStore.open_for_write(folder).write(start, ids[start:end], scores[start:end], valid[start:end])
    if finish:
        LabelStore.open_for_write(folder).finish()
    return store


@pytest.mark.parametrize("n_latents", [60, 65535, 65536, 100_000])
def test_round_trip(tmp_path: Path, n_latents: int) -> None:
    filled(tmp_path / "l", n_latents)
    ids, scores, valid = labels(n_latents)
    store = LabelStore.open(tmp_path / "l", expect=LINEAGE)
    order = np.array([3, 0, 6])
    got_ids, got_scores = store.read(order, 5)
    assert np.array_equal(got_ids, np.where(valid[order][..., None], ids[order], -100))
    assert np.array_equal(got_scores, np.where(valid[order][..., None], scores[order], 0))
    assert store.valid_share() == valid.mean()
    assert torch.from_numpy(got_ids).dtype == torch.int64
    per_token = (tmp_path / "l" / "ids.bin").stat().st_size / 35
    assert per_token == 2 * (2 if n_latents < 65536 else 4)


def test_unfinished_stores_are_refused_and_can_be_continued(tmp_path: Path) -> None:
    store = LabelStore.create(tmp_path / "l", n_tokens=38, seq_len=5, n_labels=2, n_latents=60, lineage=LINEAGE)
    ids, scores, valid = labels()
    store.write(0, ids[:3], scores[:3], valid[:3])
    store.flush()
    with pytest.raises(CocomixError, match="not finished"):
        LabelStore.open(tmp_path / "l")
    again = LabelStore.open_for_write(tmp_path / "l")
    assert again.is_done(np.arange(3)) and not again.is_done(np.arange(4))
    with pytest.raises(CocomixError, match="4 of 7 windows"):
        again.finish()
    with pytest.raises(CocomixError, match="already holds"):
        LabelStore.create(tmp_path / "l", n_tokens=38, seq_len=5, n_labels=2, n_latents=60, lineage=LINEAGE)


@pytest.mark.parametrize("file", ["ids.bin", "scores.bin"])
def test_damage_is_refused(tmp_path: Path, file: str) -> None:
    filled(tmp_path / "l")
    victim = tmp_path / "l" / file
    good = victim.read_bytes()
    victim.write_bytes(good[:-1])
    with pytest.raises(CocomixError, match=f"{file} is missing or truncated"):
        LabelStore.open(tmp_path / "l")
    victim.write_bytes(bytes([good[0] ^ 1]) + good[1:])
    with pytest.raises(CocomixError, match=f"{file} was altered"):
        LabelStore.open(tmp_path / "l")


def test_other_lineage_and_other_windows_are_refused(tmp_path: Path) -> None:
    filled(tmp_path / "l")
    with pytest.raises(CocomixError, match=r"another tokens .*cocomix label"):
        LabelStore.open(tmp_path / "l", expect={**LINEAGE, "tokens": "c" * 64})
    store = LabelStore.open(tmp_path / "l")
    with pytest.raises(CocomixError, match="windows of 5 tokens, not 6"):
        store.read(np.array([0]), 6)
    for damage in ("nonsense", "[]"):
        (tmp_path / "l" / "manifest.json").write_text(damage)
        with pytest.raises(CocomixError, match="damaged"):
            LabelStore.open(tmp_path / "l")
