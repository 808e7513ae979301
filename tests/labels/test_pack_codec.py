"""Labels as a pack stores them: what is read is the labeller's own, for every sign, ties included."""

import lzma
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cocomix.labels import pack_codec
from cocomix.labels.attribution import SIGNS, ActiveAttribution, select_active, with_sign
from cocomix.labels.pack_codec import (
    COVERED,
    NO_LABEL,
    THIRD,
    SetLayout,
    compressed,
    read_ends,
    read_set,
    to_labels,
    to_rows,
    write_ends,
    write_set,
)
from cocomix.utils.errors import CocomixError

C, K, ACTIVE = 300, 3, 7


def labelled(scores: torch.Tensor, rule: str = "exact") -> dict[str, np.ndarray]:
    """The labeller's own labels of every sign, of active concepts with these scores `[n, ACTIVE]`."""
    generator = torch.Generator().manual_seed(int(scores.shape[0]))
    ids = torch.stack([torch.randperm(C, generator=generator)[:ACTIVE] for _ in scores])
    valid = torch.rand(len(scores), generator=generator) > 0.1
    signed = ActiveAttribution(ids[None], scores[None], scores[None].abs(), valid[None])
    return {sign: select_active(with_sign(signed, rule, sign), K).targets()[0].numpy() for sign in SIGNS}


def scores(n: int, seed: int, rounded: bool) -> torch.Tensor:
    found = torch.randn(n, ACTIVE, generator=torch.Generator().manual_seed(seed))
    found[:, 0] = 0
    return (found * 1.5).round() if rounded else found  # many ties, and many zeros


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 60), st.integers(0, 1 << 30), st.booleans(), st.sets(st.sampled_from(list(SIGNS)), min_size=1))
def test_every_sign_is_derived(n: int, seed: int, ties: bool, signs: set[str]) -> None:
    labels = {sign: found for sign, found in labelled(scores(n, seed, ties)).items() if sign in signs}
    covered = np.arange(n) % 3 > 0
    rows = to_rows(labels, covered)
    for sign, expected in labels.items():
        assert to_labels(rows, sign).tolist() == expected.tolist()
    assert ((rows.flags & COVERED) != 0).tolist() == covered.tolist()
    if not ties:  # without ties `absolute` always follows from the others
        assert not (rows.flags & THIRD).any()


def _stored(folder: Path, n: int, ties: bool = False) -> tuple[SetLayout, list[Path], list[dict[str, np.ndarray]]]:
    """Two sets of `n` positions; the second shares most of its concepts with the first, as labels by activation do."""
    exact = labelled(scores(n, 1, ties))
    other = {"signed": np.where(exact["absolute"] < 0, NO_LABEL, exact["absolute"])[:, ::-1].copy()}
    other["signed"][::5, 1] = np.where(other["signed"][::5, 1] < 0, NO_LABEL, C - 1)
    layout, before = SetLayout(n, C, K), []
    paths = [folder / "exact.xz", folder / "activation.xz"]
    for path, labels in zip(paths, (exact, other), strict=True):
        rows = to_rows(labels, np.ones(n, dtype=bool))
        blocks = [
            (type(rows)(*(field[block] for field in rows)), [one[block] for one in before]) for block in layout.blocks()
        ]
        write_set(path, layout, blocks)
        before.append(rows.slots)
    return layout, paths, [exact, other]


@pytest.mark.parametrize("ties", [False, True])
def test_files_give_the_labels_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ties: bool) -> None:
    monkeypatch.setattr(pack_codec, "BLOCK", 64)
    layout, paths, sets = _stored(tmp_path, 150, ties)
    slots: list[list[np.ndarray]] = [[], [], []]
    for path, labels in zip(paths, sets, strict=True):
        before = iter(list(map(list, slots)))
        blocks = list(read_set(path, layout, lambda before=before: next(before)))
        assert len(blocks) == 3
        for sign, expected in labels.items():
            assert np.concatenate([to_labels(rows, sign) for rows in blocks]).tolist() == expected.tolist()
        for block, rows in zip(slots, blocks, strict=True):
            block.append(rows.slots)


def test_references_and_ranks_take_fewer_bits(tmp_path: Path) -> None:
    layout, paths, _ = _stored(tmp_path, 4000)
    first, second = (8 * path.stat().st_size / layout.positions for path in paths)
    assert first < 2 * K * 9 * 0.95  # at random there is nothing to gain but what has no labels
    assert second < 0.5 * K * 9


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda data: data[:-40], "it is cut|has not the"),
        (lambda data: data + b"more", "longer than it must be"),
        (lambda data: data[: len(data) // 2] + bytes(40) + data[len(data) // 2 + 40 :], "damaged"),
        (lambda data: b"", "it is cut"),
        (lambda data: compressed(np.zeros(C, dtype="<u4")) + data, "its table of concepts is not one"),
        (lambda data: compressed(np.zeros(1 << 26, dtype=np.uint8)), "has not the"),
    ],
)
def test_a_damaged_file_is_one_sentence(tmp_path: Path, spoil, words: str) -> None:
    layout, (path, _), _ = _stored(tmp_path, 200)
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(CocomixError, match=words):
        list(read_set(path, layout, list))


def _set_of(*parts: np.ndarray) -> bytes:
    return b"".join(map(compressed, [np.arange(C, dtype="<u4"), *parts]))


def test_ids_and_references_out_of_range_are_refused(tmp_path: Path) -> None:
    path, layout = tmp_path / "set.xz", SetLayout(1, C, K)
    flags, none = np.array([1], np.uint8), np.array([], np.uint8)
    new, high, low = (np.full(K, value, np.uint8) for value in (0, 255, 255))
    for parts, words in (
        ((flags, none, new, high, low), f"concept number 65535 of {C}"),
        ((flags, none, np.full(K, 9, np.uint8), none, none), "behind the one"),
        ((flags, none, np.array([0, 1, 3], np.uint8), new[:1], new[:1]), "behind the one"),
    ):
        path.write_bytes(_set_of(*parts))
        with pytest.raises(CocomixError, match=words):
            list(read_set(path, layout, list))
    path.write_bytes(_set_of(flags, none, np.array([0, 1, 1], np.uint8), new[:1], np.full(1, 7, np.uint8)))
    (rows,) = read_set(path, layout, list)
    assert to_labels(rows, "signed").tolist() == [[7, 7, 7]]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(st.one_of(st.none(), st.integers(0, 70000)), max_size=8), min_size=1, max_size=6))
def test_byte_offsets_come_back(tmp_path_factory: pytest.TempPathFactory, documents: list[list[int | None]]) -> None:
    path = tmp_path_factory.mktemp("ends") / "ends.xz"
    ends: list[int] = []
    for steps in documents:
        at = 0
        for step in steps:
            at += step or 0
            ends.append(-1 if step is None else at)
        ends.append(-2)
    write_ends(path, np.array(ends), unknown=-1, end=-2)
    assert read_ends(path, len(ends), unknown=-1, end=-2).tolist() == ends
    with pytest.raises(CocomixError, match="damaged"):
        read_ends(path, len(ends) + 1, unknown=-1, end=-2)


def test_files_are_plain_xz(tmp_path: Path) -> None:
    _, paths, _ = _stored(tmp_path, 50)
    assert lzma.decompress(paths[0].read_bytes())
