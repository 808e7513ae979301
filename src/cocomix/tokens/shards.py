"""Token shards: one long stream of token ids in memory-mapped files, with document boundaries and checksums.

Every document is followed by the end-of-text token. Ids take two bytes where the vocabulary allows, else four.
The manifest is written last, so a folder without one is unfinished. Windows are cut at fixed places of the
stream; a window may cross a document boundary, as in GPT-2's packing, and no token but the last partial window
is lost.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cocomix.errors import CocomixError
from cocomix.files import sha256, write_json

MANIFEST = "manifest.json"
BOUNDARIES = "doc-boundaries.npy"


class TokenShards:
    """Read access to a folder of token shards.

    Attributes:
        n_tokens: length of the stream.
        vocab_size: ids are below it.
        fingerprint: sha256 over all shards' checksums, 64 hex digits.
        documents: start offset of each document in the stream, int64 `[n_documents]`.
    """

    def __init__(self, folder: Path, manifest: dict[str, Any]) -> None:
        self.folder = folder
        self.n_tokens: int = manifest["n_tokens"]
        self.vocab_size: int = manifest["vocab_size"]
        self.fingerprint: str = manifest["fingerprint"]
        dtype = np.dtype(manifest["dtype"])
        self._maps = [np.memmap(folder / shard["file"], dtype=dtype, mode="r") for shard in manifest["shards"]]
        self._starts = np.cumsum([0, *(len(shard) for shard in self._maps)])
        self.documents: np.ndarray = np.load(folder / BOUNDARIES, mmap_mode="r", allow_pickle=False)

    @classmethod
    def open(cls, folder: Path | str, *, verify: bool = True) -> "TokenShards":
        """Open a finished folder; `verify` compares sizes and checksums with the manifest.

        Raises:
            CocomixError: no manifest, or a shard is missing, truncated or altered; the sentence names the file.
        """
        folder = Path(folder)
        try:
            manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
            files = [*manifest["shards"], manifest["boundaries"]]
            for entry in files:
                _check(folder, entry, verify)
            return cls(folder, manifest)
        except FileNotFoundError:
            raise CocomixError(f"{folder} holds no finished token shards; run `cocomix tokenize`") from None
        except (KeyError, TypeError, ValueError) as error:
            raise CocomixError(
                f"the manifest of {folder} is damaged ({error}); delete the folder and run `cocomix tokenize` again"
            ) from error

    def n_windows(self, seq_len: int) -> int:
        """Number of whole windows of `seq_len` tokens."""
        return self.n_tokens // seq_len

    def windows(self, indices: np.ndarray | Sequence[int], seq_len: int) -> np.ndarray:
        """Windows `indices` (window i is tokens i * seq_len to (i + 1) * seq_len), int64 `[len, seq_len]`.

        Raises:
            IndexError: an index outside the whole windows.
        """
        indices = np.asarray(indices, dtype=np.int64)
        if indices.size and (indices.min() < 0 or indices.max() >= self.n_windows(seq_len)):
            raise IndexError(f"window indices must be in 0..{self.n_windows(seq_len) - 1} (seq_len {seq_len})")
        positions = (indices[:, None] * seq_len + np.arange(seq_len)).ravel()
        return self._read(positions).reshape(len(indices), seq_len)

    def span(self, begin: int, end: int) -> np.ndarray:
        """Tokens `begin` to `end` - 1 of the stream, int64 `[end - begin]`.

        Raises:
            IndexError: outside the stream.
        """
        if not 0 <= begin <= end <= self.n_tokens:
            raise IndexError(f"tokens {begin} to {end} are outside the stream of {self.n_tokens}")
        return self._read(np.arange(begin, end))

    def _read(self, positions: np.ndarray) -> np.ndarray:
        owners = np.searchsorted(self._starts, positions, side="right") - 1
        out = np.empty(positions.shape, dtype=np.int64)
        for owner in np.unique(owners):
            chosen = owners == owner
            out[chosen] = self._maps[owner][positions[chosen] - self._starts[owner]]
        return out


def write_shards(
    folder: Path | str,
    documents: Iterable[np.ndarray | Sequence[int]],
    *,
    vocab_size: int,
    eos_id: int,
    shard_tokens: int = 100_000_000,
) -> TokenShards:
    """Write documents' token ids as shards of `shard_tokens` tokens, each document followed by `eos_id`.

    Memory stays bounded by one shard and one document.

    Raises:
        CocomixError: an id outside the vocabulary, no document at all, or a folder that is already finished.
    """
    folder = Path(folder)
    if (folder / MANIFEST).exists():
        raise CocomixError(f"{folder} already holds finished token shards; delete it first or choose another folder")
    folder.mkdir(parents=True, exist_ok=True)
    dtype = np.dtype("<u2") if vocab_size <= 1 << 16 else np.dtype("<u4")
    writer = _Writer(folder, dtype, shard_tokens)
    starts: list[int] = []
    for document in documents:
        ids = np.append(np.asarray(document, dtype=np.int64), eos_id)
        if ids.min() < 0 or ids.max() >= vocab_size:
            raise CocomixError(
                f"document {len(starts)} has token id {ids.max() if ids.min() >= 0 else ids.min()} outside the"
                f" vocabulary of {vocab_size}; use the tokenizer the vocabulary belongs to"
            )
        starts.append(writer.total)
        writer.add(ids.astype(dtype))
    if not starts:
        raise CocomixError(f"there are no documents to write to {folder}; check the corpus")
    shards = writer.close()
    np.save(folder / BOUNDARIES, np.asarray(starts, dtype=np.int64), allow_pickle=False)
    manifest = {
        "format": 1,
        "dtype": dtype.str,
        "n_tokens": writer.total,
        "vocab_size": vocab_size,
        "eos_id": eos_id,
        "n_documents": len(starts),
        "shards": shards,
        "boundaries": _entry(folder / BOUNDARIES),
        "fingerprint": hashlib.sha256("".join(shard["sha256"] for shard in shards).encode()).hexdigest(),
    }
    write_json(folder / MANIFEST, manifest)
    return TokenShards.open(folder, verify=False)


class _Writer:
    """Cuts a stream of id arrays into shard files."""

    def __init__(self, folder: Path, dtype: np.dtype, shard_tokens: int) -> None:
        self.folder, self.dtype, self.shard_tokens = folder, dtype, shard_tokens
        self.total = 0
        self._shards: list[dict[str, Any]] = []
        self._pending: list[np.ndarray] = []
        self._held = 0

    def add(self, ids: np.ndarray) -> None:
        self.total += len(ids)
        while len(ids):
            head, ids = np.split(ids, [self.shard_tokens - self._held])
            self._pending.append(head)
            self._held += len(head)
            if self._held == self.shard_tokens:
                self._flush()

    def close(self) -> list[dict[str, Any]]:
        if self._held:
            self._flush()
        return self._shards

    def _flush(self) -> None:
        path = self.folder / f"shard-{len(self._shards):05d}.bin"
        with path.open("wb") as stream:  # numpy's tofile may leave a short file on a full disk without an error
            stream.write(np.concatenate(self._pending).tobytes())
        self._shards.append(_entry(path))
        self._pending, self._held = [], 0


def _entry(path: Path) -> dict[str, Any]:
    return {"file": path.name, "bytes": path.stat().st_size, "sha256": sha256(path)}


def _check(folder: Path, entry: dict[str, Any], verify: bool) -> None:
    name = entry["file"]
    path = folder / name
    if Path(name).name != name:
        raise CocomixError(f"the manifest of {folder} names {name!r}, which is outside the folder; refuse it")
    mend = "restore it, or delete the folder and run `cocomix tokenize` again"
    if not path.exists():
        raise CocomixError(f"the token file {path} is missing; {mend}")
    if path.stat().st_size != entry["bytes"]:
        raise CocomixError(f"the token file {path} has {path.stat().st_size} bytes instead of {entry['bytes']}; {mend}")
    if verify and sha256(path) != entry["sha256"]:
        raise CocomixError(f"the token file {path} was altered (its checksum differs from the manifest's); {mend}")
