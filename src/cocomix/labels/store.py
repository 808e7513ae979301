"""Concept labels on disk: memory-mapped, aligned with the token stream, tied by checksum to what made them.

Shards of whole windows, like the tokens' (`store_layout`), written by `store_writer`. What is opened has been
compared with the manifest's checksums once (`cocomix.utils.integrity`), and with what the reader relies on each time.
"""

from pathlib import Path
from typing import Any

import numpy as np

from cocomix.labels.label_reader import LabelReader
from cocomix.labels.store_layout import MANIFEST, StoreLayout, read_description
from cocomix.labels.store_writer import LabelWriter
from cocomix.utils.errors import CocomixError
from cocomix.utils.integrity import check_files

SHARD_TOKENS = 100_000_000
"""Tokens a shard where nothing else is said, as the tokens' own."""


class LabelStore(LabelReader):
    """Labels of one token stream, finished.

    Attributes:
        layout: shapes, and the lineage they were made from.
    """

    def __init__(self, folder: Path, layout: StoreLayout, labelled: int) -> None:
        self.folder, self.layout, self._labelled = folder, layout, labelled
        self.n_labels, self.where = layout.n_labels, str(folder)
        self._maps = {
            kind: [
                np.memmap(
                    folder / layout.file(kind, shard),
                    dtype=dtype,
                    mode="r",
                    shape=(layout.windows_in(shard), layout.seq_len, layout.n_labels),
                )
                for shard in range(layout.n_shards)
            ]
            for kind, dtype in layout.dtypes.items()
        }

    @staticmethod
    def create(
        folder: Path | str,
        *,
        n_tokens: int,
        seq_len: int,
        n_labels: int,
        n_latents: int,
        lineage: dict[str, Any],
        shard_tokens: int = SHARD_TOKENS,
        scores: bool = False,
    ) -> LabelWriter:
        """Start a store, or go on with one begun alike; see `LabelWriter.begin`."""
        shard_windows = max(1, shard_tokens // seq_len)
        layout = StoreLayout(n_tokens, seq_len, n_labels, n_latents, shard_windows, scores, lineage)
        return LabelWriter.begin(folder, layout)

    @staticmethod
    def finished(folder: Path | str) -> bool:
        """Whether `folder` holds a finished store, checked or not."""
        return (Path(folder) / MANIFEST).exists()

    @classmethod
    def open(cls, folder: Path | str, *, expect: dict[str, Any] | None = None, verify: bool = True) -> "LabelStore":
        """Open a finished store.

        Args:
            expect: lineage the reader relies on; any difference is refused.
            verify: compare checksums with the manifest, unless that was done before; see `cocomix.utils.integrity`.

        Raises:
            CocomixError: unfinished, truncated, altered, or made from something else.
        """
        folder = Path(folder)
        again = f"delete {folder} and run `cocomix label` again"
        manifest = read_description(folder / MANIFEST, f"the labels in {folder} are not finished; run `cocomix label`")
        layout = StoreLayout.of(manifest, folder / MANIFEST)
        for name, value in (expect or {}).items():
            if layout.lineage.get(name) != value:
                raise CocomixError(
                    f"the labels in {folder} were made with another {name}"
                    f" ({_short(layout.lineage.get(name))} instead of {_short(value)}); {again}"
                )
        if not _lists(manifest, layout):
            raise CocomixError(f"{folder / MANIFEST} is damaged; {again}")
        check_files(folder, manifest["files"], what="label file", mend=again, verify=verify)
        return cls(folder, layout, manifest["labelled"])

    def read(self, windows: np.ndarray, seq_len: int) -> np.ndarray:
        self._check_length(seq_len)
        stored = self._gather("ids", windows)
        ids = stored.astype(np.int64)
        ids[stored == self.layout.nothing] = -100
        return ids

    def read_scores(self, windows: np.ndarray, seq_len: int) -> np.ndarray:
        """Scores of `windows`, float32 `[len, seq_len, n_labels]`, 0 where there are no labels.

        Raises:
            CocomixError: they were not kept, or as `read`.
        """
        self._check_length(seq_len)
        if not self.layout.scores:
            raise CocomixError(f"the labels in {self.folder} were stored without scores; label again with scores: true")
        return self._gather("scores", windows)

    def labelled(self, windows: np.ndarray) -> np.ndarray:
        return (self._gather("ids", windows)[..., 0] != self.layout.nothing).sum(-1)

    def valid_share(self) -> float:
        """Share of positions that carry labels."""
        return self._labelled / (self.layout.n_windows * self.layout.seq_len)

    def _check_length(self, seq_len: int) -> None:
        if seq_len != self.layout.seq_len:
            raise CocomixError(
                f"the labels in {self.folder} were made for windows of {self.layout.seq_len} tokens, not {seq_len};"
                " label again or train with that seq_len"
            )

    def _gather(self, kind: str, windows: np.ndarray) -> np.ndarray:
        shards, places = np.divmod(np.asarray(windows, dtype=np.int64), self.layout.shard_windows)
        shape = (len(shards), self.layout.seq_len, self.layout.n_labels)
        out = np.empty(shape, dtype=self.layout.dtypes[kind])
        for shard in np.unique(shards):
            chosen = shards == shard
            out[chosen] = self._maps[kind][shard][places[chosen]]
        return out


def _lists(manifest: dict[str, Any], layout: StoreLayout) -> bool:
    """Whether a manifest lists the layout's files, all of them and no other, in their sizes; else they go unchecked."""
    files, labelled = manifest.get("files"), manifest.get("labelled")
    if not isinstance(files, list) or type(labelled) is not int or len(files) != layout.n_shards * len(layout.dtypes):
        return False
    listed = [(one.get("file"), one.get("bytes"), type(one.get("sha256"))) for one in files if isinstance(one, dict)]
    wanted = [(*one, str) for shard in range(layout.n_shards) for one in layout.files(shard).items()]
    return sorted(listed, key=str) == sorted(wanted, key=str)


def _short(value: Any) -> str:
    return str(value)[:12]
