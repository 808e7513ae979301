"""Labels moved to another tokenizer's tokens, against a twin that compares the bytes read of every pair of tokens."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from cocomix.data.byte_offsets import UNKNOWN, ByteOffsets
from cocomix.data.document_windows import DocumentWindows
from cocomix.data.shards import TokenShards, write_shards
from cocomix.data.sources import Document
from cocomix.data.special_tokens import SpecialTokens
from cocomix.data.text_ends import END, read_ends, write_ends
from cocomix.labels import LabelStore
from cocomix.labels.alignment import TextAligner, align_split, find_places
from cocomix.labels.attribution import ConceptLabels
from tests.data.test_byte_offsets import OFFSETS, TOKENIZERS, texts

SEQ_LEN, TEACHER_SEQ_LEN, LABELS = 9, 8, 60_000


def _policy(name: str, with_bos: bool) -> SpecialTokens:
    eos = int(TOKENIZERS[name].eos_token_id)
    return SpecialTokens(1 if with_bos else None, eos)


def _tokens(folder: Path, name: str, special: SpecialTokens, documents: list[str]) -> TokenShards:
    ids = special.texts(TOKENIZERS[name], documents)
    size = len(TOKENIZERS[name])
    return write_shards(folder, ids, vocab_size=size, eos_id=special.eos_id, shard_tokens=40, special=special)


def _labelled(folder: Path, windows: DocumentWindows) -> LabelStore:
    """A store in which each used position has its place in the stream as its label."""
    count = windows.n_windows(TEACHER_SEQ_LEN)
    writer = LabelStore.create(
        folder,
        n_tokens=windows.labelled_tokens(TEACHER_SEQ_LEN),
        seq_len=TEACHER_SEQ_LEN,
        n_labels=1,
        n_latents=LABELS,
        lineage={},
        scores=True,
    )
    ids = np.full((count, TEACHER_SEQ_LEN, 1), -1, dtype=np.int64)
    positions = np.arange(windows.shards.n_tokens)
    window, place = windows.locate(positions)
    ids[window[window >= 0], place[window >= 0], 0] = positions[window >= 0]
    writer.write(0, ids, ids / 7, ids[..., 0] >= 0)
    writer.finish()
    return LabelStore.open(folder)


def _read_by(ends: np.ndarray) -> list[tuple[str, int] | None]:
    """What each token of a document has read, as something that can be compared."""
    return [("end", 0) if end == END else None if end == UNKNOWN else ("bytes", int(end)) for end in ends]


names = st.sampled_from(sorted(TOKENIZERS))
# An example writes and reads whole folders of files, so a failing one is shown as it was found.
BOUNDED = settings(max_examples=20, deadline=None, phases=(Phase.explicit, Phase.reuse, Phase.generate))


@BOUNDED
@given(names, names, st.booleans(), st.booleans(), st.lists(texts, min_size=1, max_size=3))
def test_labels_come_from_the_position_that_has_read_the_same(
    tmp_path_factory: pytest.TempPathFactory, name: str, teacher: str, bos: bool, teacher_bos: bool, written: list[str]
) -> None:
    folder = tmp_path_factory.mktemp("aligned")
    written = [*written, "the road, the ship 中文字 QZ JX"]  # a whole window at least
    documents = [Document(str(number), text, {}) for number, text in enumerate(written)]
    special, teacher_special = _policy(name, bos), _policy(teacher, teacher_bos)
    shards = _tokens(folder / "own", name, special, written)
    theirs = _tokens(folder / "theirs", teacher, teacher_special, written)
    windows = DocumentWindows(theirs, TEACHER_SEQ_LEN, overlapping=True)
    write_ends(folder / "ends", theirs, documents, OFFSETS[teacher])
    teacher_ends = read_ends(folder / "ends")
    find_places(folder / "places", shards, documents, OFFSETS[name], windows, teacher_ends)
    store = _labelled(folder / "labels", windows)
    figures = align_split(
        {"one": store}, windows, folder / "places", shards, folder / "out", seq_len=SEQ_LEN, lineage={}
    )
    aligned = LabelStore.open(folder / "out" / "one")
    count = shards.n_windows(SEQ_LEN)
    found = aligned.read(np.arange(count), SEQ_LEN)[..., 0]
    scores = aligned.read_scores(np.arange(count), SEQ_LEN)[..., 0]

    # The twin: for each position of the student's stream, search all of the teacher's tokens of the document.
    write_ends(folder / "own-ends", shards, documents, OFFSETS[name])
    own_ends = np.array(read_ends(folder / "own-ends"))
    expected = np.full(shards.n_tokens, -100)
    own_edges, edges = ([*s.documents.tolist(), s.n_tokens] for s in (shards, theirs))
    for document, (begin, end) in enumerate(itertools.pairwise(own_edges)):
        first, last = edges[document], edges[document + 1]
        read, others = _read_by(own_ends[begin:end]), _read_by(np.array(teacher_ends[first:last]))
        for offset, mine in enumerate(read):
            same = [place for place, other in enumerate(others) if mine is not None and other == mine]
            labelled = same and bool(windows.locate(np.array(first + same[-1]))[0] >= 0)
            if labelled:
                expected[begin + offset] = first + same[-1]
                # Never more text than the student has read, in bytes of the very document.
                assert teacher_ends[first + same[-1]] == own_ends[begin + offset] <= len(written[document].encode())
    positions = shards.places(np.arange(count), SEQ_LEN)
    wanted = np.where(positions < 0, -100, expected[np.maximum(positions, 0)])
    wanted[:, -1] = -100
    assert found.tolist() == wanted.tolist()
    np.testing.assert_allclose(scores, np.where(wanted < 0, 0, wanted / 7).astype(np.float32))
    assert figures["valid_share"]["one"] == (wanted >= 0).mean()
    assert figures["matched_share"] >= figures["valid_share"]["one"]
    if name == teacher and name not in {"nfc", "lowercase"} and bos == teacher_bos:
        used = windows.locate(np.maximum(positions, 0))[0] >= 0
        assert ((wanted >= 0) == (used & (positions >= 0) & (np.arange(SEQ_LEN) < SEQ_LEN - 1))).mean() == 1


@settings(BOUNDED, max_examples=30)
@given(names, names, st.booleans(), st.booleans(), texts)
def test_a_single_text_gets_the_labels_of_the_same_bytes(
    name: str, teacher: str, bos: bool, teacher_bos: bool, text: str
) -> None:
    special, teacher_special = _policy(name, bos), _policy(teacher, teacher_bos)
    ids = special.prompt(TOKENIZERS[name], text)
    align = TextAligner(TOKENIZERS[name], special, TOKENIZERS[teacher], teacher_special)
    asked: list[list[int]] = []

    def label(tokens: torch.Tensor) -> ConceptLabels:
        asked.append(tokens[0].tolist())
        places = torch.arange(tokens.shape[1])[None, :, None]
        valid = places[..., 0] < tokens.shape[1] - 1
        return ConceptLabels(places, places.float(), valid)

    labels = align(ids, label) if len(ids) > 1 else None
    if labels is None:
        return
    own = ids[special.first_position :]
    decoded = TOKENIZERS[name].decode(own, clean_up_tokenization_spaces=False)
    ends = ByteOffsets(TOKENIZERS[name]).ends(decoded, np.array(own))
    shift = teacher_special.first_position
    teacher_ends = ByteOffsets(TOKENIZERS[teacher]).ends(decoded, np.array(asked[0][shift:]))
    for place in range(len(ids)):
        offset = place - special.first_position
        same = [] if offset < 0 or ends[offset] == UNKNOWN else np.flatnonzero(teacher_ends == ends[offset])
        source = int(same[-1]) + shift if len(same) else -1
        valid = 0 <= source < len(asked[0]) - 1 and place < len(ids) - 1
        assert bool(labels.valid[0, place]) == valid
        if valid:
            assert int(labels.ids[0, place, 0]) == source
