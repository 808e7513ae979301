"""How labels lie on disk: shards of whole windows, each a file of ids and, where asked for, one of scores.

Ids take two bytes where the number of concepts allows, so K_attr = 4 labels of C = 32768 concepts are 8 bytes a
token. Positions without labels hold the largest id.
"""

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from cocomix.utils.errors import CocomixError
from cocomix.utils.files import read_sealed

FORMAT = 2
LARGEST = 1 << 48
"""Tokens or windows; sizes in bytes then fit into a machine's numbers."""
MANIFEST, PENDING = "manifest.json", "pending.json"
BLOCK = 1 << 16
"""Bytes of the ranges of a file that belong to one process each; a multiple of any machine's memory page, since two
machines that write into the same page of a shared file can undo each other's work."""


@dataclass(frozen=True)
class StoreLayout:
    """Shapes and file names of one store.

    Attributes:
        n_tokens: length of the token stream the labels are aligned with.
        seq_len: tokens a window; labels were made window by window.
        n_labels: labels a position, K_attr.
        n_latents: ids are below it.
        shard_windows: windows a shard; the last one may hold fewer.
        scores: whether scores (float32) are kept beside the ids.
        lineage: checksums and settings the labels were made from.
    """

    n_tokens: int
    seq_len: int
    n_labels: int
    n_latents: int
    shard_windows: int
    scores: bool
    lineage: dict[str, Any]

    @cached_property
    def n_windows(self) -> int:
        return self.n_tokens // self.seq_len

    @cached_property
    def n_shards(self) -> int:
        return math.ceil(self.n_windows / self.shard_windows)

    @cached_property
    def dtypes(self) -> dict[str, np.dtype]:
        """Element type of each kind of file; the id type leaves its largest value free to mean "no label"."""
        ids = np.dtype("<u2") if self.n_latents < 1 << 16 else np.dtype("<u4")
        return {"ids": ids} | ({"scores": np.dtype("<f4")} if self.scores else {})

    @property
    def nothing(self) -> int:
        """The id of "no label"."""
        return int(np.iinfo(self.dtypes["ids"]).max)

    def window_bytes(self, kind: str) -> int:
        """Bytes of a window in a file of `kind`."""
        return self.seq_len * self.n_labels * self.dtypes[kind].itemsize

    def windows_in(self, shard: int) -> int:
        """Number of windows in `shard`."""
        return min(self.shard_windows, self.n_windows - shard * self.shard_windows)

    def file(self, kind: str, shard: int) -> str:
        """File name of `kind` of `shard`."""
        return f"{kind}-{shard:05d}.bin"

    def files(self, shard: int) -> dict[str, int]:
        """Names and bytes of the files of `shard`."""
        return {self.file(kind, shard): self.windows_in(shard) * self.window_bytes(kind) for kind in self.dtypes}

    def pieces(self, start: int, count: int) -> Iterator[tuple[int, int, slice]]:
        """Windows `start` to `start + count` shard by shard: (shard, place of its first window there, which ones)."""
        done = 0
        while done < count:
            shard, place = divmod(start + done, self.shard_windows)
            many = min(count - done, self.shard_windows - place)
            yield shard, place, slice(done, done + many)
            done += many

    def blocks(self, windows: np.ndarray) -> np.ndarray:
        """Number of the block of each of `windows`, int64; windows of different blocks share no page of any file."""
        aligned = math.lcm(*(BLOCK // math.gcd(BLOCK, self.window_bytes(kind)) for kind in self.dtypes))
        shard, place = np.divmod(windows, self.shard_windows)
        return shard * math.ceil(self.shard_windows / aligned) + place // aligned

    def about(self) -> dict[str, Any]:
        """JSON-able description."""
        return {"format": FORMAT, **asdict(self)}

    @classmethod
    def of(cls, about: dict[str, Any], path: Path) -> "StoreLayout":
        """The layout that `about`, read from `path`, describes.

        Raises:
            CocomixError: it is of an earlier version, or damaged.
        """
        again = "delete its folder and run `cocomix label` again"
        if about.get("format") != FORMAT:
            raise CocomixError(f"{path} was written by another version of cocomix; {again}")
        missing = [name for name in cls.__dataclass_fields__ if name not in about]
        if missing:
            raise CocomixError(f"{path} is damaged ({missing[0]!r} is missing); {again}")
        layout = cls(**{name: about[name] for name in cls.__dataclass_fields__})
        if wrong := layout.wrong():
            raise CocomixError(f"{path} is damaged ({wrong} is {getattr(layout, wrong)!r}); {again}")
        return layout

    def wrong(self) -> str | None:
        """The first value that no store has; what is read from a file may be anything."""
        counts = {"n_tokens": LARGEST, "seq_len": self.n_tokens, "n_labels": 1 << 20, "n_latents": (1 << 32) - 1}
        for name, most in (counts | {"shard_windows": LARGEST}).items():
            value = getattr(self, name)
            if type(value) is not int or not 1 <= value <= most:
                return name
        return next(
            (name for name, kind in (("scores", bool), ("lineage", dict)) if type(getattr(self, name)) is not kind),
            None,
        )


def read_description(path: Path, missing: str) -> dict[str, Any]:
    """The JSON object in `path`; `missing` is the message where there is no such file."""
    try:
        return read_sealed(path)
    except FileNotFoundError:
        raise CocomixError(missing) from None
    except PermissionError:
        raise
    except (OSError, ValueError):
        raise CocomixError(f"{path} is damaged; delete its folder and run `cocomix label` again") from None
