"""From texts to token ids, with bounded memory: what a tokenizing process does.

A part is what one corpus file becomes: its token ids, the lengths of its documents, and a small record that is
written last. A part with a record is finished; so processes may work in any order and be killed at any moment.
"""

import hashlib
import os
from array import array
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple, Protocol

import numpy as np
from tokenizers import Tokenizer

from cocomix.data.cuts import may_cut, pieces
from cocomix.data.document import Document
from cocomix.data.reader import read_file
from cocomix.utils.errors import CocomixError
from cocomix.utils.files import read_sealed, sha256, write_sealed

BATCH_CHARS, BATCH_DOCUMENTS = 1 << 18, 256
"""what is encoded at a time; the encoder takes about 110 bytes a character meanwhile"""


class Encoder(Protocol):
    """Turns a batch of texts into token ids without special tokens of its own."""

    vocab_size: int
    eos_id: int

    def whole(self) -> bool:
        """Whether long texts must not be cut."""
        ...

    def encode(self, texts: list[str]) -> list[list[int]]:
        """Ids of each text."""
        ...


class RustEncoder:
    """A Tokenizers file alone: the ids Transformers makes with it, without the offsets, masks and lists beside them."""

    def __init__(self, folder: Path, vocab_size: int, eos_id: int) -> None:
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self.vocab_size, self.eos_id = vocab_size, eos_id
        self._may_cut = may_cut(self._tokenizer)

    def whole(self) -> bool:
        return not self._may_cut

    def encode(self, texts: list[str]) -> list[list[int]]:
        return [one.ids for one in self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)]


class PythonEncoder:
    """Any tokenizer of Transformers that has no Tokenizers file."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self.vocab_size, self.eos_id = len(tokenizer), int(tokenizer.eos_token_id)

    def whole(self) -> bool:
        return True

    def encode(self, texts: list[str]) -> list[list[int]]:
        return self._tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]


def load_encoder(folder: Path, vocab_size: int, eos_id: int) -> Encoder:
    """The encoder of a tokenizer folder."""
    if (folder / "tokenizer.json").is_file():
        return RustEncoder(folder, vocab_size, eos_id)
    from cocomix.data.tokenizer import load_tokenizer

    return PythonEncoder(load_tokenizer(str(folder)))


def encode_documents(encoder: Encoder, documents: Iterable[Document]) -> Iterator[np.ndarray]:
    """Token ids of each document with the end-of-text token behind, int64, in order.

    Raises:
        CocomixError: an id outside the vocabulary.
    """
    for ids in _joined(encoder, _batches(_cut(encoder, documents))):
        one = np.append(ids, encoder.eos_id)
        if one.min() < 0 or one.max() >= encoder.vocab_size:
            raise CocomixError(
                f"a document has token id {one.max()} outside the vocabulary of {encoder.vocab_size}; the tokenizer's"
                " ids have gaps: give one whose ids are below its length"
            )
        yield one


class _Piece(NamedTuple):
    text: str
    ends: bool
    """whether it is its document's last"""


def _cut(encoder: Encoder, documents: Iterable[Document]) -> Iterator[_Piece]:
    for document in documents:
        if encoder.whole() or len(document.text) <= BATCH_CHARS:
            yield _Piece(document.text, True)
            continue
        behind: str | None = None
        for piece in pieces(document.text, BATCH_CHARS):
            if behind is not None:
                yield _Piece(behind, False)
            behind = piece
        yield _Piece(behind or "", True)


def _batches(all_pieces: Iterable[_Piece]) -> Iterator[list[_Piece]]:
    batch, chars = [], 0
    for piece in all_pieces:
        if batch and (chars + len(piece.text) > BATCH_CHARS or len(batch) == BATCH_DOCUMENTS):
            yield batch
            batch, chars = [], 0
        batch.append(piece)
        chars += len(piece.text)
    if batch:
        yield batch


def _joined(encoder: Encoder, batches: Iterable[list[_Piece]]) -> Iterator[np.ndarray]:
    begun: list[np.ndarray] = []
    for batch in batches:
        for piece, ids in zip(batch, encoder.encode([piece.text for piece in batch]), strict=True):
            begun.append(np.asarray(ids, dtype=np.int64))
            if piece.ends:
                yield np.concatenate(begun)
                begun = []


ENDINGS = (".ids", ".lengths")
"""Of the files that hold a part's tokens and the lengths of its documents."""


class Job(NamedTuple):
    """One corpus file to make a part of."""

    source: Path
    checksum: str
    part: Path
    """its record; ids and lengths lie beside it under the same name"""
    dtype: str


def encode_part(encoder: Encoder, job: Job) -> dict[str, Any]:
    """Write one part, whole or not at all; returns its record: `documents`, `tokens`, `text_bytes`, `sha256`."""
    record: dict[str, Any] = {"documents": 0, "tokens": 0, "text_bytes": 0}
    lengths, checksum = array("q"), hashlib.sha256()

    def counted() -> Iterator[Document]:
        for document in read_file(job.source, job.checksum):
            record["text_bytes"] += len(document.text.encode())
            yield document

    with _whole(job.part.with_suffix(".ids")) as stream:
        for ids in encode_documents(encoder, counted()):
            block = ids.astype(job.dtype).data
            stream.write(block)
            checksum.update(block)
            lengths.append(len(ids))
            record["tokens"] += len(ids)
    with _whole(job.part.with_suffix(".lengths")) as stream:
        counts = np.frombuffer(lengths, dtype=np.int64).astype("<i8").data
        stream.write(counts)
    record["documents"] = len(lengths)
    record["sha256"] = [checksum.hexdigest(), hashlib.sha256(counts).hexdigest()]
    write_sealed(job.part, record)
    return record


@contextmanager
def _whole(path: Path) -> Iterator[IO[bytes]]:
    """A file that is at `path` only when it is whole and on the disk."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    with temporary.open("wb") as stream:
        yield stream
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(temporary, path)


def finished_part(part: Path) -> dict[str, Any] | None:
    """The record of a finished part, None if it is not."""
    try:
        return read_sealed(part)
    except (OSError, ValueError):
        return None


def part_is_whole(part: Path) -> bool:
    """Whether a finished part's files are as they were written; a part of an earlier version is taken for whole."""
    record = finished_part(part)
    files = [part.with_suffix(ending) for ending in ENDINGS]
    if record is None or not all(file.exists() for file in files):
        return False
    return "sha256" not in record or record["sha256"] == [sha256(file) for file in files]
