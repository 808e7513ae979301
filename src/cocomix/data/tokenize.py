"""From texts to token shards, in several processes and with bounded memory.

- A part is the result of one corpus file: its token ids, the lengths of its documents, and a small record that is
  written last. A part with a record is finished, so processes may work in any order and be killed at any moment.
- An encoder takes about 110 bytes a character, so very long documents are cut into pieces whose tokens, joined, are
  those of the whole document. With GPT-2's splitting rule (a byte-level BPE, no normaliser) no pre-token contains
  whitespace after another character, and what is left of such a place is matched without lookahead beyond it: a cut
  there changes nothing. Other tokenizers get their documents uncut.
- Worker processes come from a fork server that has imported this module once, so they share its memory; without one
  they are spawned. They end when their parent does, however that ends.
- `join_parts` writes the same stream and the same shards as a single process would. A part is deleted once it is
  committed to the shards, so the disk holds the tokens once, plus one part. One block of ids and one part's document
  lengths are in memory.
"""

import hashlib
import json
import multiprocessing
import os
import signal
import threading
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple, Protocol

import numpy as np
from tokenizers import Tokenizer
from tokenizers.models import Unigram

from cocomix.data.corpus import read_file
from cocomix.data.cuts import pieces
from cocomix.data.shards import MANIFEST, SHARD, TokenShards, finish_shards
from cocomix.data.sources import Document
from cocomix.data.special_tokens import SpecialTokens, TextReader
from cocomix.utils.advice import for_folder
from cocomix.utils.errors import CocomixError, tokenizer_errors
from cocomix.utils.files import FileSeries, read_sealed, sha256, write_sealed
from cocomix.utils.interrupt import interruptible


def may_cut(tokenizer: Tokenizer) -> bool:
    """Whether `pieces` leaves this tokenizer's tokens as they are."""
    state: dict[str, Any] = json.loads(tokenizer.to_str())
    rule = state["pre_tokenizer"] or {}
    return (
        state["normalizer"] is None
        and rule.get("type") == "ByteLevel"
        and rule.get("use_regex", False)
        and not rule.get("add_prefix_space", True)
        and state["model"].get("type") == "BPE"
        and not state["model"].get("dropout")
        and not any(_sees_blanks(token) for token in state["added_tokens"])
    )


def _sees_blanks(token: dict[str, Any]) -> bool:
    return token["lstrip"] or token["rstrip"] or token["single_word"] or any(map(str.isspace, token["content"]))


BATCH_CHARS, BATCH_DOCUMENTS = 1 << 18, 256
"""Most characters and documents encoded at a time."""


class Encoder(Protocol):
    """Turns a batch of texts into token ids without adding special tokens."""

    vocab_size: int
    special: SpecialTokens

    def uncut(self) -> bool:
        """Whether long texts must not be cut."""
        ...

    def encode(self, texts: list[str]) -> list[list[int]]:
        """Ids of each text."""
        ...


class RustEncoder:
    """A Tokenizers file alone: the ids Transformers makes with it, without the offsets, masks and lists beside them."""

    def __init__(self, folder: Path, vocab_size: int, eos_id: int, special: SpecialTokens | None = None) -> None:
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self.vocab_size = vocab_size
        self.special = special or SpecialTokens.of_backend(self._tokenizer, eos_id)
        self._tokenizer.encode_special_tokens = self.special.text_is_text
        self._may_cut = may_cut(self._tokenizer)
        added = self._tokenizer.get_added_tokens_decoder()
        self._reader = TextReader(
            self._tokenizer, self.special, [number for number, token in added.items() if token.special]
        )
        self._unknown = _unknown_id(self._tokenizer)

    def uncut(self) -> bool:
        return not self._may_cut

    def encode(self, texts: list[str]) -> list[list[int]]:
        def encode() -> list[Any]:
            return self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)

        # A document that may not be cut can keep the library busy for minutes.
        uncut = sum(map(len, texts)) > 2 * BATCH_CHARS
        with tokenizer_errors("of this run"):
            ids = [encoding.ids for encoding in (interruptible(encode) if uncut else encode())]
        return self._reader.checked(texts, ids, self._unknown) if self.special.text_is_text else ids


def _unknown_id(tokenizer: Tokenizer) -> int | None:
    """Id of the model's unknown token, if it has one."""
    model: Any = tokenizer.model
    if isinstance(model, Unigram):
        return json.loads(tokenizer.to_str())["model"]["unk_id"]
    name = getattr(model, "unk_token", None)
    return None if name is None else tokenizer.token_to_id(name)


class PythonEncoder:
    """Any tokenizer of Transformers that has no Tokenizers file."""

    def __init__(self, tokenizer: Any, special: SpecialTokens | None = None) -> None:
        self._tokenizer = tokenizer
        self.vocab_size, self.special = len(tokenizer), special or SpecialTokens.of_tokenizer(tokenizer)

    def uncut(self) -> bool:
        return True

    def encode(self, texts: list[str]) -> list[list[int]]:
        return self.special.texts(self._tokenizer, texts)


def load_encoder(folder: Path, vocab_size: int, eos_id: int, special: SpecialTokens | None = None) -> Encoder:
    """The encoder of a tokenizer folder; without `special` it puts first what the tokenizer does by default."""
    if (folder / "tokenizer.json").is_file():
        return RustEncoder(folder, vocab_size, eos_id, special)
    from cocomix.data.tokenizer import load_tokenizer  # loads Transformers, which few tokenizers need

    return PythonEncoder(load_tokenizer(str(folder)), special)


def encode_documents(encoder: Encoder, documents: Iterable[Document]) -> Iterator[np.ndarray]:
    """Token ids of each document between the policy's special tokens, int64, in order.

    Raises:
        CocomixError: an id outside the vocabulary.
    """
    before = np.array(encoder.special.before_document, dtype=np.int64)
    for ids in _joined(encoder, _batches(_cut(encoder, documents))):
        document = np.concatenate([before, ids, [encoder.special.eos_id]])
        if document.min() < 0 or document.max() >= encoder.vocab_size:
            raise CocomixError(
                f"a document has token id {document.max()} outside the vocabulary of {encoder.vocab_size};"
                " the tokenizer's ids have gaps: give one whose ids are below its length"
            )
        yield document


class _Piece(NamedTuple):
    text: str
    ends: bool
    """whether it is its document's last"""


def _cut(encoder: Encoder, documents: Iterable[Document]) -> Iterator[_Piece]:
    for document in documents:
        if encoder.uncut() or len(document.text) <= BATCH_CHARS:
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
"""Endings of the files with a part's tokens and the lengths of its documents."""


class Job(NamedTuple):
    """One corpus file to make a part of."""

    source: Path
    checksum: str
    part: Path
    """its record; ids and lengths lie beside it under the same name"""
    dtype: str


def encode_part(encoder: Encoder, job: Job) -> dict[str, Any]:
    """Write one part, completely or not at all; returns its record: `documents`, `tokens`, `text_bytes`, `sha256`."""
    record: dict[str, Any] = {"documents": 0, "tokens": 0, "text_bytes": 0}
    lengths, checksum = array("q"), hashlib.sha256()

    def counted() -> Iterator[Document]:
        for document in read_file(job.source, job.checksum):
            record["text_bytes"] += len(document.text.encode())
            yield document

    with _atomic(job.part.with_suffix(".ids")) as stream:
        for ids in encode_documents(encoder, counted()):
            block = ids.astype(job.dtype).data
            stream.write(block)
            checksum.update(block)
            lengths.append(len(ids))
            record["tokens"] += len(ids)
    with _atomic(job.part.with_suffix(".lengths")) as stream:
        counts = np.frombuffer(lengths, dtype=np.int64).astype("<i8").data
        stream.write(counts)
    record["documents"] = len(lengths)
    record["sha256"] = [checksum.hexdigest(), hashlib.sha256(counts).hexdigest()]
    write_sealed(job.part, record, durable=True)
    return record


@contextmanager
def _atomic(path: Path) -> Iterator[IO[bytes]]:
    """A file that appears at `path` once it is complete and on the disk."""
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


def part_is_intact(part: Path) -> bool:
    """Whether a finished part's files are as they were written; parts of an earlier version have no checksums."""
    record = finished_part(part)
    files = [part.with_suffix(ending) for ending in ENDINGS]
    if record is None or not all(file.exists() for file in files):
        return False
    return "sha256" not in record or record["sha256"] == [sha256(file) for file in files]


MOST = 32
"""Most processes, unless more are requested."""
WORTH = 16_000_000
"""Bytes of text per process, unless a number of processes is requested."""


class TokenizerSpec(NamedTuple):
    """A tokenizer folder with its size and policy, from which a process loads its encoder."""

    folder: Path
    """the tokenizer's folder"""
    vocab_size: int
    eos_id: int
    special: SpecialTokens | None = None
    """None: as the tokenizer does by default"""

    def load(self) -> Encoder:
        """Read the tokenizer."""
        return load_encoder(self.folder, self.vocab_size, self.eos_id, self.special)


def cores() -> int:
    """Processor cores this process may use; the processes torchrun started on this machine share them."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, usable // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def encode_parts(
    jobs: Sequence[Job], tokenizer_spec: TokenizerSpec, workers: int | None, finished: Callable[[dict[str, Any]], None]
) -> None:
    """Do all jobs with at most `workers` processes; what they write does not depend on how many.

    Args:
        workers: None starts one per core, if there is enough to do. One is this process itself, with the
            encoder's own threads unless exactly one was requested.
        finished: called with each part's record.

    Raises:
        CocomixError: a process died, or a document cannot be encoded.
    """
    if workers is None:
        size = sum(job.source.stat().st_size for job in jobs)
        processes = min(cores(), MOST, 1 + size // WORTH, len(jobs))
    else:
        processes = min(workers, len(jobs))
    if processes <= 1:
        encoder = tokenizer_spec.load() if jobs else None
        with _threads(workers != 1):
            for job in jobs:
                assert encoder is not None
                finished(encode_part(encoder, job))
        return
    context = _context()
    before = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(processes, context, initializer=_begin, initargs=(tokenizer_spec,))
    try:
        for future in as_completed([pool.submit(_work, job) for job in jobs]):
            finished(future.result())
    except BrokenProcessPool:
        raise CocomixError(
            "a tokenizing process died, probably because memory ran out; lower tokens.workers and rerun the same"
            " command, finished parts are kept"
        ) from None
    except BaseException:
        for child in set(multiprocessing.active_children()) - before:
            child.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _context() -> Any:
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


_encoder: Encoder | None = None


def _begin(tokenizer_spec: TokenizerSpec) -> None:
    global _encoder
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent ends its processes
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    _encoder = tokenizer_spec.load()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _work(job: Job) -> dict[str, Any]:
    assert _encoder is not None
    return encode_part(_encoder, job)


@contextmanager
def _threads(many: bool) -> Iterator[None]:
    """Within: whether the encoder may use several threads."""
    before = os.environ.get("TOKENIZERS_PARALLELISM")
    os.environ["TOKENIZERS_PARALLELISM"] = "true" if many else "false"
    try:
        yield
    finally:
        if before is None:
            del os.environ["TOKENIZERS_PARALLELISM"]
        else:
            os.environ["TOKENIZERS_PARALLELISM"] = before


BLOCK = 1 << 23


def join_parts(
    parts: Sequence[Path],
    folder: Path,
    *,
    vocab_size: int,
    eos_id: int,
    shard_tokens: int,
    dtype: str,
    special: SpecialTokens | None = None,
) -> TokenShards:
    """Write `folder` from the records in `parts`; after a kill, it resumes behind the last part it joined.

    Its state is kept beside the parts. `special`, with which the parts were made, is saved with the tokens.

    Raises:
        CocomixError: no document at all, or a part is not as it was written; its record is deleted, so that it is
            redone.
    """
    if (folder / MANIFEST).exists():
        return TokenShards.open(folder, verify=False)
    notes = parts[0].parent / f"join-{folder.name}"
    state = _state(notes / "state.json")
    shards = FileSeries(folder, SHARD, state.get("shards"))
    starts = FileSeries(notes, "starts-{}.int64", state.get("starts"))
    done, n_tokens, n_documents = (state.get(name, 0) for name in ("parts", "tokens", "documents"))
    _refuse_damaged(parts[done:])
    limit = shard_tokens * np.dtype(dtype).itemsize
    for number in range(done, len(parts)):
        lengths = np.fromfile(parts[number].with_suffix(".lengths"), dtype="<i8")
        with parts[number].with_suffix(".ids").open("rb") as stream:
            while block := stream.read(BLOCK):
                shards.fill(block, limit)
        ends = np.cumsum(lengths) + n_tokens
        starts.write((ends - lengths).astype("<i8").tobytes())
        n_tokens, n_documents = n_tokens + int(lengths.sum()), n_documents + len(lengths)
        state = {"parts": number + 1, "tokens": n_tokens, "documents": n_documents}
        commits = {"shards": shards.commit(), "starts": starts.commit()}
        write_sealed(notes / "state.json", state | commits, durable=True)  # the part is deleted next
        for ending in ENDINGS:
            parts[number].with_suffix(ending).unlink()
    shards.cut()
    shards.close()
    starts.cut()
    starts.close()
    return finish_shards(
        folder,
        shards.files,
        [notes / entry["file"] for entry in starts.files],
        n_tokens=n_tokens,
        n_documents=n_documents,
        vocab_size=vocab_size,
        eos_id=eos_id,
        dtype=dtype,
        special=special,
    )


def _refuse_damaged(parts: Sequence[Path]) -> None:
    damaged = [part for part in parts if not part_is_intact(part)]
    for part in damaged:
        part.unlink(missing_ok=True)
    if damaged:
        raise CocomixError(
            f"{damaged[0].parent} lost tokens of {len(damaged)} files before they were joined;"
            f" run {for_folder('cocomix tokenize', damaged[0])} again to redo them"
        )


def _state(path: Path) -> dict[str, Any]:
    try:
        return read_sealed(path)
    except (OSError, ValueError):
        return {}
