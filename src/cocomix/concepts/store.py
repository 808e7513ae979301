"""Concept labels on disk: memory-mapped, aligned with the token stream, tied by checksum to what made them.

Ids take two bytes where the number of concepts allows, so K_attr = 4 labels of C = 32768 concepts are 8 bytes a
token; scores (float32) lie in a file of their own. Positions without labels hold the largest id. Processes may
write disjoint windows at the same time; a bitmap remembers which are done, and the manifest comes last.
"""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from cocomix.errors import CocomixError
from cocomix.files import sha256, write_json

MANIFEST, PENDING = "manifest.json", "pending.json"
IDS, SCORES, DONE = "ids.bin", "scores.bin", "done.bin"


class LabelStore:
    """Labels of one token stream.

    Attributes:
        n_tokens: length of the stream the labels are aligned with.
        seq_len: tokens a window; labels were made window by window.
        n_labels: labels a position, K_attr.
        lineage: checksums and settings they were made from.
    """

    def __init__(self, folder: Path, about: dict[str, Any], mode: Any) -> None:
        self.folder, self.about = folder, about
        self.n_tokens: int = about["n_tokens"]
        self.seq_len: int = about["seq_len"]
        self.n_labels: int = about["n_labels"]
        self.lineage: dict[str, Any] = about["lineage"]
        self.n_windows = self.n_tokens // self.seq_len
        shape = (self.n_windows, self.seq_len, self.n_labels)
        dtype = _dtype(about["n_latents"])
        self._nothing = np.iinfo(dtype).max
        self._ids = np.memmap(folder / IDS, dtype=dtype, mode=mode, shape=shape)
        self._scores = np.memmap(folder / SCORES, dtype="<f4", mode=mode, shape=shape)
        self._done = (
            np.memmap(folder / DONE, dtype=np.uint8, mode=mode, shape=(self.n_windows,)) if mode == "r+" else None
        )

    @classmethod
    def create(
        cls, folder: Path | str, *, n_tokens: int, seq_len: int, n_labels: int, n_latents: int, lineage: dict[str, Any]
    ) -> "LabelStore":
        """Start an empty store; an unfinished or finished one in `folder` is refused."""
        folder = Path(folder)
        if cls.begun(folder):
            raise CocomixError(f"{folder} already holds labels; delete it first or choose another folder")
        if n_tokens < seq_len:
            raise CocomixError(f"{n_tokens} tokens are less than one window of {seq_len}; add text or lower seq_len")
        folder.mkdir(parents=True, exist_ok=True)
        shape = (n_tokens // seq_len, seq_len, n_labels)
        for name, dtype, size in ((IDS, _dtype(n_latents), shape), (SCORES, "<f4", shape), (DONE, np.uint8, shape[:1])):
            _allocate(folder / name, int(np.prod(size)) * np.dtype(dtype).itemsize)
        about = {
            "format": 1,
            "n_tokens": n_tokens,
            "seq_len": seq_len,
            "n_labels": n_labels,
            "n_latents": n_latents,
            "lineage": lineage,
        }
        write_json(folder / PENDING, about)
        return cls(folder, about, "r+")

    @staticmethod
    def begun(folder: Path | str) -> bool:
        """Whether `folder` holds a store, finished or not; one killed while it was being created does not count."""
        return any((Path(folder) / name).exists() for name in (MANIFEST, PENDING))

    @classmethod
    def open_for_write(cls, folder: Path | str) -> "LabelStore":
        """Open a store to go on writing; a finished one counts as all done.

        Raises:
            CocomixError: there is none.
        """
        folder = Path(folder)
        return cls(folder, _read_json(folder / PENDING, f"{folder} holds no labels yet; run `cocomix label`"), "r+")

    @classmethod
    def open(cls, folder: Path | str, *, expect: dict[str, Any] | None = None, verify: bool = True) -> "LabelStore":
        """Open a finished store.

        Args:
            expect: lineage the reader relies on; any difference is refused.
            verify: compare checksums with the manifest.

        Raises:
            CocomixError: unfinished, truncated, altered, or made from something else.
        """
        folder = Path(folder)
        again = f"delete {folder} and run `cocomix label` again"
        about = _read_json(folder / MANIFEST, f"the labels in {folder} are not finished; run `cocomix label`")
        for name, value in (expect or {}).items():
            if about["lineage"].get(name) != value:
                raise CocomixError(
                    f"the labels in {folder} were made with another {name}"
                    f" ({_short(about['lineage'].get(name))} instead of"
                    f" {_short(value)}); {again}"
                )
        for name, entry in about["files"].items():
            path = folder / name
            if not path.exists() or path.stat().st_size != entry["bytes"]:
                raise CocomixError(f"the label file {path} is missing or truncated; {again}")
            if verify and sha256(path) != entry["sha256"]:
                raise CocomixError(
                    f"the label file {path} was altered (its checksum differs from the manifest's); {again}"
                )
        return cls(folder, about, "r")

    def write(self, window: int, ids: np.ndarray, scores: np.ndarray, valid: np.ndarray) -> None:
        """Labels of consecutive windows from `window` on.

        Args:
            ids: `[windows, seq_len, n_labels]` integers; scores: the same shape, floats.
            valid: bool `[windows, seq_len]`; False positions carry no labels.
        """
        assert self._done is not None, "opened for reading"
        end = window + len(ids)
        self._ids[window:end] = np.where(valid[..., None], ids, self._nothing)
        self._scores[window:end] = np.where(valid[..., None], scores, 0)
        self._done[window:end] = 1

    def is_done(self, windows: np.ndarray) -> bool:
        """Whether all of `windows` are written."""
        assert self._done is not None, "opened for reading"
        return bool(self._done[windows].all())

    def flush(self) -> None:
        """Put everything written on the disk."""
        self._ids.flush()
        self._scores.flush()
        if self._done is not None:
            self._done.flush()

    def finish(self) -> None:
        """Write the manifest, once every window is done.

        Raises:
            CocomixError: windows are missing.
        """
        assert self._done is not None, "opened for reading"
        missing = int((self._done == 0).sum())
        if missing:
            raise CocomixError(
                f"{missing} of {self.n_windows} windows in {self.folder} have no labels yet; run `cocomix label`"
            )
        self.flush()
        files = {
            name: {"bytes": (self.folder / name).stat().st_size, "sha256": sha256(self.folder / name)}
            for name in (IDS, SCORES)
        }
        write_json(self.folder / MANIFEST, {**self.about, "files": files})

    def read(self, windows: np.ndarray, seq_len: int) -> tuple[np.ndarray, np.ndarray]:
        """Labels of `windows`: ids int64 `[len, seq_len, n_labels]` with -100 where there are none, and scores.

        Raises:
            CocomixError: `seq_len` is not the length the labels were made for.
        """
        if seq_len != self.seq_len:
            raise CocomixError(
                f"the labels in {self.folder} were made for windows of {self.seq_len} tokens, not {seq_len};"
                " label again or train with that seq_len"
            )
        ids = self._ids[windows].astype(np.int64)
        ids[ids == self._nothing] = -100
        return ids, np.asarray(self._scores[windows])

    def labelled(self, windows: np.ndarray) -> np.ndarray:
        """Number of labelled positions in each of `windows`, int64 `[len]`."""
        return (self._ids[windows, :, 0] != self._nothing).sum(-1)

    def valid_share(self) -> float:
        """Share of positions that carry labels."""
        return float((self._ids[..., 0] != self._nothing).mean())


def _allocate(path: Path, n_bytes: int) -> None:
    """Make a file of zeros whose blocks exist: on a full disk this fails here, not as a crash in a later write."""
    with path.open("wb") as stream:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(stream.fileno(), 0, n_bytes)
        else:
            for start in range(0, n_bytes, 1 << 20):
                stream.write(bytes(min(1 << 20, n_bytes - start)))


def _dtype(n_latents: int) -> np.dtype:
    """Smallest id type that leaves its largest value free to mean "no label"."""
    return np.dtype("<u2") if n_latents < 1 << 16 else np.dtype("<u4")


def _short(value: Any) -> str:
    return str(value)[:12]


def _read_json(path: Path, missing: str) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError
        return content
    except FileNotFoundError:
        raise CocomixError(missing) from None
    except ValueError:
        raise CocomixError(f"{path} is damaged; delete its folder and run `cocomix label` again") from None
