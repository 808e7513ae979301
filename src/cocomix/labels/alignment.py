"""Labels of a concept model with a tokenizer of its own, moved to the students' tokens.

A student's position takes the labels of the position of the concept model that has read exactly the same bytes of the
same document, and has none where there is no such position. So no label comes from a position that has read more text
than the student has. The last position of a student's window has none either: its next token is outside the window, as
with every other store.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from cocomix.data.byte_offsets import UNKNOWN, ByteOffsets, corresponding
from cocomix.data.document_windows import DocumentWindows
from cocomix.data.shards import TokenShards
from cocomix.data.sources import Document
from cocomix.data.special_tokens import SpecialTokens
from cocomix.data.text_ends import Located, corresponding_ends, document_ends
from cocomix.labels.attribution import ConceptLabels
from cocomix.labels.store import SHARD_TOKENS, LabelStore
from cocomix.utils.files import make_folder

NOWHERE = -1
TYPE = np.dtype("<i8")
CHUNK_TOKENS = 1 << 18
"""Tokens aligned at a time."""


class Stream(Protocol):
    """The concept model's tokens, document by document."""

    documents: np.ndarray
    """place of each document's first token, int64 `[n_documents]`"""
    n_tokens: int


class PlacedLabels(ABC):
    """Base class of labels at places of the concept model's stream."""

    n_labels: int
    n_latents: int
    scores: bool
    """whether they have scores"""

    @abstractmethod
    def at(self, places: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """Ids at `places`, int64 `[len, n_labels]` with -100 where there are none; and scores, float32, if any."""


class WindowLabels(PlacedLabels):
    """Labels in a store of windows that follow documents."""

    def __init__(self, store: LabelStore, windows: DocumentWindows) -> None:
        self.store, self.windows = store, windows
        self.n_labels, self.n_latents = store.n_labels, store.layout.n_latents
        self.scores = store.layout.scores

    def at(self, places: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        window, place = self.windows.locate(places)
        there = window >= 0
        found, found_scores = self.store.at(window[there], place[there])
        ids = np.full((len(places), self.n_labels), -100, dtype=np.int64)
        ids[there] = found
        if found_scores is None:
            return ids, None
        scores = np.zeros(ids.shape, dtype=np.float32)
        scores[there] = found_scores
        return ids, scores


class StreamLabels(PlacedLabels):
    """Labels at every token of the stream, in one array `[n_tokens, n_labels]`, without scores."""

    scores = False

    def __init__(self, ids: np.ndarray, n_latents: int) -> None:
        self.ids, self.n_labels, self.n_latents = ids, ids.shape[1], n_latents

    def at(self, places: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        return self.ids[places].astype(np.int64), None


def find_places(
    path: Path,
    shards: TokenShards,
    documents: Iterable[Document],
    offsets: ByteOffsets,
    teacher: Stream,
    teacher_ends: np.ndarray,
) -> Located:
    """Write to `path`, for each token of a student's stream, the place in the teacher's stream that corresponds to it.

    Args:
        shards: the student's tokens of `documents`; `offsets` are its tokenizer's.
        teacher_ends: what each of the teacher's tokens has read, see `document_ends`.

    Returns:
        How many of the student's tokens could be located in the text.
    """
    make_folder(path.parent)
    starts = [*teacher.documents.tolist(), teacher.n_tokens]
    located = Located(0, 0)
    with path.open("wb") as stream:
        for number, ends in enumerate(document_ends(shards, documents, offsets)):
            begin, end = starts[number], starts[number + 1]
            places = corresponding_ends(ends, teacher_ends[begin:end])
            stream.write(np.where(places < 0, NOWHERE, places + begin).astype(TYPE).tobytes())
            located = located.and_of(ends, shards)
    return located


def align_split(
    stores: Mapping[str, LabelStore],
    teacher: DocumentWindows,
    places: Path,
    shards: TokenShards,
    folder: Path,
    **options: Any,
) -> dict[str, Any]:
    """`align` of labels in stores of the windows of `teacher`, by sign."""
    return align(
        {name: WindowLabels(store, teacher) for name, store in stores.items()}, places, shards, folder, **options
    )


def align(
    sources: Mapping[str, PlacedLabels],
    places: Path,
    shards: TokenShards,
    folder: Path,
    *,
    seq_len: int,
    lineage: dict[str, Any],
    shard_tokens: int = SHARD_TOKENS,
    progress: Callable[[int, int, dict[str, Any]], None] | None = None,
) -> dict[str, Any]:
    """Write the labels of every window of `shards` to a store `folder/NAME` for each of `sources`.

    Args:
        places: the file that `find_places` wrote.

    Returns:
        `tokens`, `matched_share`, the share of positions that correspond to one of the teacher's, and `valid_share`,
        the share of labelled positions in each set.
    """
    where = np.memmap(places, dtype=TYPE, mode="r")
    n_windows = shards.n_windows(seq_len)
    step = max(1, CHUNK_TOKENS // seq_len)
    chunks = [np.arange(start, min(start + step, n_windows)) for start in range(0, n_windows, step)]
    shares = {}
    for number, (name, labels) in enumerate(sources.items()):
        if LabelStore.finished(folder / name):
            shares[name] = LabelStore.open(folder / name).valid_share()
            continue
        writer = LabelStore.create(
            folder / name,
            n_tokens=shards.labelled_tokens(seq_len),
            seq_len=seq_len,
            n_labels=labels.n_labels,
            n_latents=labels.n_latents,
            lineage=lineage | {"sign": name},
            shard_tokens=shard_tokens,
            scores=labels.scores,
        )
        for windows in chunks:
            source = teacher_places(where, shards, windows, seq_len)
            writer.write(int(windows[0]), *_labels_at(labels, source))
            if progress is not None:
                progress(number * n_windows + int(windows[-1]) + 1, len(sources) * n_windows, {})
        writer.finish()
        shares[name] = LabelStore.open(folder / name).valid_share()
    tokens = n_windows * seq_len
    matched = sum(int((teacher_places(where, shards, windows, seq_len) != NOWHERE).sum()) for windows in chunks)
    return {"tokens": tokens, "matched_share": matched / tokens, "valid_share": shares}


def teacher_places(where: np.ndarray, shards: TokenShards, windows: np.ndarray, seq_len: int) -> np.ndarray:
    """Place in the teacher's stream of each position of a student's `windows`, int64 `[len, seq_len]`, or `NOWHERE`."""
    positions = shards.places(windows, seq_len)
    source = np.where(positions < 0, NOWHERE, where[np.maximum(positions, 0)])
    source[:, -1] = NOWHERE
    return source


class TextAligner:
    """Labels of single texts, moved from the tokens of one tokenizer to those of another.

    Args:
        tokenizer, special: of the student, who gives the text as tokens.
        teacher_tokenizer, teacher_special: of the concept model, which labels it.
    """

    def __init__(
        self, tokenizer: Any, special: SpecialTokens, teacher_tokenizer: Any, teacher_special: SpecialTokens
    ) -> None:
        self.tokenizer, self.special = tokenizer, special
        self.teacher_tokenizer, self.teacher_special = teacher_tokenizer, teacher_special
        self._offsets, self._teacher_offsets = ByteOffsets(tokenizer), ByteOffsets(teacher_tokenizer)

    def __call__(self, ids: list[int], label: Callable[[torch.Tensor], ConceptLabels]) -> ConceptLabels | None:
        """Labels `[1, seq, k]` of the student's tokens `ids` of a text, with BOS if its policy has one.

        Args:
            label: gives the labels of the concept model's tokens int64 `[1, teacher_seq]`.
        """
        before = self.special.first_position if ids[:1] == [self.special.bos_id] else 0
        own = np.array(ids[before:], dtype=np.int64)
        text = str(self.tokenizer.decode(own.tolist(), clean_up_tokenization_spaces=False))
        teacher_ids = self.teacher_special.prompt(self.teacher_tokenizer, text)
        if len(teacher_ids) < 2:
            return None
        first = self.teacher_special.first_position
        ends = self._offsets.ends(text, own)
        teacher_ends = self._teacher_offsets.ends(text, np.array(teacher_ids[first:], dtype=np.int64))
        places = corresponding(
            np.append(np.full(before, UNKNOWN), ends), np.append(np.full(first, UNKNOWN), teacher_ends)
        )
        places[-1] = NOWHERE  # its next token is not known
        labels = label(torch.tensor([teacher_ids]))
        there = torch.from_numpy(places != NOWHERE)
        source = torch.from_numpy(np.maximum(places, 0))
        valid = labels.valid[:, source].cpu() & there
        return ConceptLabels(labels.ids[:, source].cpu(), labels.scores[:, source].cpu(), valid)


def _labels_at(labels: PlacedLabels, source: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ids, scores and validity at places of the teacher's stream, `[windows, seq_len, n_labels]`."""
    shape = (*source.shape, labels.n_labels)
    ids, scores = np.full(shape, -100, dtype=np.int64), np.zeros(shape, dtype=np.float32)
    there = source != NOWHERE
    ids[there], found_scores = labels.at(source[there])
    if found_scores is not None:
        scores[there] = found_scores
    return ids, scores, ids[..., 0] >= 0
