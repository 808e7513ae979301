"""Token shards: one long stream of token ids in memory-mapped files, with document boundaries and checksums.

Every document is followed by the end-of-text token. Ids take two bytes where the vocabulary allows, else four.
The manifest is written last, so a folder without one is unfinished. Windows are cut at fixed places of the
stream; a window may cross a document boundary, as in GPT-2's packing, and no token but the last partial window
is lost.

Where the policy has a beginning-of-text token, every window begins with it and holds one token less of the stream. A
window that begins with a document has it already; it then ends with the first token of the next window.

Windows may also be packed from whole documents, see `cocomix.data.packing`; the stream is the same.
"""

import hashlib
import json
import os
import shutil
from array import array
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cocomix.data.packing import Packing, Policy, write_packing
from cocomix.data.special_tokens import SpecialTokens
from cocomix.utils.advice import delete, for_folder
from cocomix.utils.errors import CocomixError
from cocomix.utils.files import FileSeries, read_sealed, sha256, write_sealed
from cocomix.utils.integrity import check_files

MANIFEST = "manifest.json"
BOUNDARIES = "doc-boundaries.npy"
SHARD = "shard-{:05d}.bin"
MOST_OPEN = 128
"""Shards mapped at a time; each keeps a file open, of which a process may have about a thousand."""


def _redo_hint(folder: Path) -> str:
    return f"{delete(folder)} and run {for_folder('cocomix tokenize', folder)} again"


class TokenShards:
    """Read access to a folder of token shards.

    Attributes:
        n_tokens: length of the stream.
        vocab_size: ids are below it.
        special: where special tokens stand in the stream and in windows.
        fingerprint: sha256 over all shards' checksums, and the policy if windows begin with a token of it, 64 hex
            digits.
        documents: start offset of each document in the stream, int64 `[n_documents]`.
        packing: what windows hold; None: slices of the stream.
    """

    def __init__(self, folder: Path, manifest: dict[str, Any], packing: Packing | None = None) -> None:
        self.folder = folder
        self.n_tokens: int = manifest["n_tokens"]
        self.vocab_size: int = manifest["vocab_size"]
        self.special = _policy(manifest)
        self.fingerprint: str = manifest["fingerprint"]
        self._dtype = token_dtype(self.vocab_size)
        self._files = [folder / shard["file"] for shard in manifest["shards"]]
        self._maps: OrderedDict[int, np.memmap] = OrderedDict()
        self._starts = np.cumsum([0, *(shard["bytes"] // self._dtype.itemsize for shard in manifest["shards"])])
        self.documents: np.ndarray = _starts(folder / BOUNDARIES)
        self.packing = packing
        if packing is not None:
            self.fingerprint = hashlib.sha256((self.fingerprint + packing.checksum).encode()).hexdigest()

    @classmethod
    def open(cls, folder: Path | str, *, verify: bool = True) -> "TokenShards":
        """Open a finished folder; `verify` compares sizes and checksums with the manifest.

        A file is read for its checksum once and then remembered (see `cocomix.utils.integrity`).

        Raises:
            CocomixError: no manifest, or a shard is missing, truncated or altered; the sentence names the file.
        """
        folder = Path(folder)
        try:
            manifest = read_sealed(folder / MANIFEST)
            files = [*manifest["shards"], manifest["boundaries"]]
            _check_numbers(manifest)
            check_files(folder, files, what="token file", hint=f"restore it, or {_redo_hint(folder)}", verify=verify)
            return cls(folder, manifest, Packing.open(folder, verify=verify))
        except FileNotFoundError:
            raise CocomixError(
                f"{folder} holds no finished token shards; run {for_folder('cocomix tokenize', folder)}"
            ) from None
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise CocomixError(f"the manifest of {folder} is damaged ({error}); {_redo_hint(folder)}") from error

    def n_windows(self, seq_len: int) -> int:
        """Number of whole windows of `seq_len` tokens.

        Raises:
            CocomixError: windows were packed for another `seq_len`.
        """
        if self.packing is not None:
            if seq_len != self.packing.seq_len:
                raise CocomixError(
                    f"{self.folder} was packed into windows of {self.packing.seq_len} tokens, not {seq_len}; give that"
                    " length, or tokens without tokens.packing=best_fit"
                )
            return self.packing.n_windows
        if self.special.bos_id is None:
            return self.n_tokens // seq_len
        return max(0, self.n_tokens - 1) // (seq_len - 1) if seq_len > 1 else 0

    def labelled_tokens(self, seq_len: int) -> int:
        """Length of a stream whose slices are the windows of `seq_len` tokens; labels are aligned with it."""
        plain = self.special.bos_id is None and self.packing is None
        return self.n_tokens if plain else self.n_windows(seq_len) * seq_len

    def windows(self, indices: np.ndarray | Sequence[int], seq_len: int) -> np.ndarray:
        """Windows `indices`, int64 `[len, seq_len]`.

        Window i is tokens i * seq_len to (i + 1) * seq_len of the stream; with BOS it is BOS and the tokens
        i * (seq_len - 1) to (i + 1) * (seq_len - 1). With `packing` it is what that says.

        Raises:
            IndexError: an index outside the whole windows.
        """
        places = self.places(indices, seq_len)
        inserted = places < 0
        if not inserted.any():
            return self._read(places.ravel()).reshape(places.shape)
        windows = self._read(np.maximum(places, 0).ravel()).reshape(places.shape)
        windows[inserted] = self.special.bos_id
        return windows

    def places(self, indices: np.ndarray | Sequence[int], seq_len: int) -> np.ndarray:
        """Where in the stream each token of windows `indices` is, int64 `[len, seq_len]`; -1 for a BOS put before.

        Raises:
            IndexError: an index outside the whole windows.
        """
        indices = np.asarray(indices, dtype=np.int64)
        if indices.size and (indices.min() < 0 or indices.max() >= self.n_windows(seq_len)):
            raise IndexError(f"window indices must be in 0..{self.n_windows(seq_len) - 1} (seq_len {seq_len})")
        if self.packing is not None:
            return self.packing.places(indices)
        bos = self.special.bos_id
        step = seq_len if bos is None else seq_len - 1
        places = indices[:, None] * step + np.arange(seq_len)
        if bos is None:
            return places
        begins = self._read(places[:, 0])[:, None] == bos
        first = np.full((len(indices), 1), -1, dtype=np.int64)
        return np.where(begins, places, np.concatenate([first, places[:, :-1]], axis=1))

    def packed(self, seq_len: int) -> "TokenShards":
        """These tokens with windows of `seq_len` tokens packed by best fit, which is kept beside them."""
        policy = Policy.of(self.special.bos_id, self.special.eos_id)
        write_packing(self.folder, self.documents, self.n_tokens, seq_len, policy)
        return TokenShards.open(self.folder, verify=False)

    def at(self, positions: np.ndarray) -> np.ndarray:
        """Tokens at `positions` of the stream, int64 of the same shape."""
        return self._read(positions.ravel()).reshape(positions.shape)

    def span(self, begin: int, end: int) -> np.ndarray:
        """Tokens `begin` to `end` - 1 of the stream, int64 `[end - begin]`.

        Raises:
            IndexError: outside the stream.
        """
        if not 0 <= begin <= end <= self.n_tokens:
            raise IndexError(f"tokens {begin} to {end} are outside the stream of {self.n_tokens}")
        return self._read(np.arange(begin, end))

    def text_bounds(self) -> np.ndarray:
        """Where the tokens of each document's text begin and end in the stream, int64 `[n_documents, 2]`.

        Without what the policy puts before a document, and without its end-of-text token.
        """
        starts = np.asarray(self.documents, dtype=np.int64)
        ends = np.append(starts[1:], self.n_tokens) - 1
        return np.stack((starts + len(self.special.before_document), ends), axis=1)

    def largest_id(self) -> int:
        """The largest token id in the shards; reads all of them."""
        return max(int(self._map(number).max()) for number in range(len(self._files)))

    def _read(self, positions: np.ndarray) -> np.ndarray:
        owners = np.searchsorted(self._starts, positions, side="right") - 1
        out = np.empty(positions.shape, dtype=np.int64)
        for owner in np.unique(owners):
            chosen = owners == owner
            out[chosen] = self._map(int(owner))[positions[chosen] - self._starts[owner]]
        return out

    def _map(self, number: int) -> np.memmap:
        if number not in self._maps:
            if len(self._maps) == MOST_OPEN:
                self._maps.popitem(last=False)
            self._maps[number] = np.memmap(self._files[number], dtype=self._dtype, mode="r")
        self._maps.move_to_end(number)
        return self._maps[number]


def _check_numbers(manifest: dict[str, Any]) -> None:
    """Check that the files listed hold exactly the tokens that the manifest promises.

    Raises:
        ValueError: they do not; KeyError, TypeError, AttributeError: it is not a manifest.
    """
    size, promised = manifest["vocab_size"], manifest["n_tokens"]
    if type(size) is not int or type(promised) is not int or not 1 <= size <= 1 << 32:
        raise ValueError("its vocabulary size or number of tokens is not valid")
    dtype = token_dtype(size)
    if manifest["dtype"] != dtype.str:
        raise ValueError(f"its ids are {manifest['dtype']!r}, not {dtype.str!r}")
    lengths = [divmod(shard["bytes"], dtype.itemsize) for shard in manifest["shards"]]
    if any(rest for _, rest in lengths) or sum(length for length, _ in lengths) != promised:
        raise ValueError(f"its files do not hold {promised} tokens")
    if manifest["boundaries"]["file"] != BOUNDARIES:
        raise ValueError(f"it does not list {BOUNDARIES}")
    special = _policy(manifest)
    if max(special.eos_id, special.bos_id or 0) >= size:
        raise ValueError("its special tokens are outside its vocabulary")


def _policy(manifest: dict[str, Any]) -> SpecialTokens:
    """The policy the tokens were made with; tokens made before there were policies have none saved.

    Raises:
        ValueError: it is damaged.
    """
    saved = manifest.get("special_tokens")
    if saved is None:
        return SpecialTokens.before_policies(manifest["eos_id"])
    return SpecialTokens.from_json(saved)


def _starts(path: Path) -> np.ndarray:
    """The document boundaries, mapped, int64 `[n_documents]`.

    Raises:
        ValueError: the file is damaged.
    """
    try:
        starts = np.load(path, mmap_mode="r", allow_pickle=False)
    except OSError:
        raise
    except Exception as error:  # NumPy parses a header as Python, and raises unrelated errors for damage
        raise ValueError(f"{path.name}: {error}") from error
    if not isinstance(starts, np.ndarray) or starts.dtype != np.int64 or starts.ndim != 1:
        raise ValueError(f"{path.name} does not contain a list of integers")
    return starts


def write_shards(
    folder: Path | str,
    documents: Iterable[np.ndarray | Sequence[int]],
    *,
    vocab_size: int,
    eos_id: int,
    shard_tokens: int = 100_000_000,
    special: SpecialTokens | None = None,
) -> TokenShards:
    """Write documents' token ids as shards of `shard_tokens` tokens, each document followed by `eos_id`.

    One document is in memory, and eight bytes for each before it.

    Args:
        special: saved with the tokens; a document begins as it says.

    Raises:
        CocomixError: an id outside the vocabulary, no document at all, or a folder that is already finished.
    """
    folder = Path(folder)
    if (folder / MANIFEST).exists():
        raise CocomixError(f"{folder} already holds finished token shards; delete it first or choose another folder")
    dtype = token_dtype(vocab_size)
    series = FileSeries(folder, SHARD, durable=False)
    starts, total = array("q"), 0
    before = np.array([] if special is None else special.before_document, dtype=np.int64)
    try:
        for document in documents:
            ids = np.concatenate([before, np.asarray(document, dtype=np.int64), [eos_id]])
            if ids.min() < 0 or ids.max() >= vocab_size:
                raise CocomixError(
                    f"document {len(starts)} has token id {ids.max() if ids.min() >= 0 else ids.min()} outside the"
                    f" vocabulary of {vocab_size}; use the tokenizer the vocabulary belongs to"
                )
            starts.append(total)
            total += len(ids)
            series.fill(ids.astype(dtype).tobytes(), shard_tokens * dtype.itemsize)
        series.cut()
    finally:
        series.close()
    raw = folder / "starts.int64"
    raw.write_bytes(np.frombuffer(starts, dtype=np.int64).astype("<i8").tobytes())
    return finish_shards(
        folder,
        series.files,
        [raw],
        n_tokens=total,
        n_documents=len(starts),
        vocab_size=vocab_size,
        eos_id=eos_id,
        dtype=dtype.str,
        special=special,
    )


def token_dtype(vocab_size: int) -> np.dtype:
    """Type of the stored ids: two bytes where all ids fit, else four."""
    return np.dtype("<u2") if vocab_size <= 1 << 16 else np.dtype("<u4")


def finish_shards(
    folder: Path,
    shards: list[dict[str, Any]],
    starts: Sequence[Path],
    *,
    n_tokens: int,
    n_documents: int,
    vocab_size: int,
    eos_id: int,
    dtype: str,
    special: SpecialTokens | None = None,
) -> TokenShards:
    """Write the document boundaries and the manifest for complete shard files.

    Args:
        shards: `file`, `bytes`, `sha256` of each.
        starts: files of raw little-endian int64, the start of each document in the stream; they are removed.

    Raises:
        CocomixError: no document at all.
    """
    if not n_documents:
        raise CocomixError(f"there are no documents to write to {folder}; check the corpus")
    path = folder / BOUNDARIES
    header = {"descr": "<i8", "fortran_order": False, "shape": (n_documents,)}
    with path.open("wb") as stream:  # numpy's own writers may leave a short file on a full disk without an error
        np.lib.format.write_array_header_1_0(stream, header)
        for part in starts:
            with part.open("rb") as source:
                shutil.copyfileobj(source, stream)
        stream.flush()
        os.fsync(stream.fileno())
    checksums = "".join(shard["sha256"] for shard in shards)
    if special is not None and special.bos_id is not None:  # windows of the same stream differ without it
        checksums += json.dumps(special.to_json(), sort_keys=True)
    manifest = {
        "format": 1,
        "dtype": dtype,
        "n_tokens": n_tokens,
        "vocab_size": vocab_size,
        "eos_id": eos_id,
        "n_documents": n_documents,
        "shards": shards,
        "boundaries": {"file": path.name, "bytes": path.stat().st_size, "sha256": sha256(path)},
        "fingerprint": hashlib.sha256(checksums.encode()).hexdigest(),
    } | ({} if special is None else {"special_tokens": special.to_json()})
    write_sealed(folder / MANIFEST, manifest, durable=True)
    for part in starts:
        part.unlink()
    return TokenShards.open(folder, verify=False)
