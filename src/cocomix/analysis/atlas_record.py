"""An atlas in memory and on disk: one safetensors file that says of which weights and which text it is."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from cocomix.utils.files import write_bytes

BINS = 40
"""Bins of a strength's histogram."""
EDGES = np.arange(-BINS // 2, BINS // 2 + 1) / (BINS // 2)
"""Their edges; a bin holds its lower one, the last one both."""
UNLABELLED = -1
"""A place's `true` where the position carries no labels."""


class AtlasKey(BaseModel):
    """What an atlas is of; with another key it is made anew."""

    model_config = ConfigDict(frozen=True)
    format: Literal[1] = 1
    student: str = Field(description="checksum of its weights")
    shards: str = Field(description="fingerprint of the token shards")
    labels: str | None = Field(default=None, description="checksum of all that the labels depend on")
    seq_len: int
    tokens: int = Field(description="about how many were asked for")


class _About(BaseModel):
    """What is beside the arrays."""

    key: AtlasKey
    truth: str | None
    windows: int
    positions: int
    labelled: int


@dataclass(frozen=True)
class Atlas:
    """What was found of C concepts in some windows of text. A concept is predicted where it is among the K mixed in."""

    key: AtlasKey
    truth: str | None
    """what the labels are, e.g. "exact/absolute labels"; None: there are none"""
    windows: int
    positions: int
    """looked at"""
    labelled: int
    """of these, positions with labels"""
    predicted: np.ndarray
    """positions each concept is predicted at, int64 `[C]`"""
    predicted_labelled: np.ndarray
    """the same among labelled positions, int64 `[C]`"""
    true: np.ndarray
    """positions it is among the labels of, int64 `[C]`"""
    both: np.ndarray
    """positions with both, int64 `[C]`"""
    histogram: np.ndarray
    """its strengths where it is predicted, between `EDGES`, int32 `[C, BINS]`"""
    starts: np.ndarray
    """where each concept's places start and the last one's end, int64 `[C + 1]`"""
    places: np.ndarray
    """its strongest places: window, position, and whether it is a label there (1, 0, `UNLABELLED`), int32 `[n, 3]`"""
    strengths: np.ndarray
    """strengths there, falling within a concept, float32 `[n]`"""

    @property
    def n_concepts(self) -> int:
        """C."""
        return len(self.predicted)

    def places_of(self, concept: int, most: int) -> tuple[np.ndarray, np.ndarray]:
        """The `most` strongest places of `concept` at most, int64 `[n, 3]`, and their strengths, float32 `[n]`."""
        first = int(self.starts[concept])
        chosen = slice(first, min(first + most, int(self.starts[concept + 1])))
        return self.places[chosen].astype(np.int64), self.strengths[chosen]

    def precision(self) -> np.ndarray:
        """Share of labelled predictions that are true; NaN without any, float64 `[C]`."""
        return share(self.both, self.predicted_labelled)

    def recall(self) -> np.ndarray:
        """Share of true positions at which it is predicted; NaN without any, float64 `[C]`."""
        return share(self.both, self.true)


_SHAPES = {
    "predicted": (np.int64, ("C",)),
    "predicted_labelled": (np.int64, ("C",)),
    "true": (np.int64, ("C",)),
    "both": (np.int64, ("C",)),
    "histogram": (np.int32, ("C", BINS)),
    "starts": (np.int64, ("C + 1",)),
    "places": (np.int32, ("n", 3)),
    "strengths": (np.float32, ("n",)),
}


def share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """`part / whole`, NaN where `whole` is 0, float64."""
    return np.divide(part, whole, out=np.full(part.shape, np.nan), where=whole > 0)


def write_atlas(path: Path, atlas: Atlas) -> None:
    """Keep `atlas` in the file `path`; folders are made."""
    about = _About(**{name: getattr(atlas, name) for name in _About.model_fields})
    arrays = {name: np.ascontiguousarray(getattr(atlas, name), dtype) for name, (dtype, _) in _SHAPES.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, save(arrays, metadata={"about": about.model_dump_json()}))


def read_atlas(path: Path, key: AtlasKey) -> Atlas | None:
    """The atlas in the file `path`; None where there is none of this key, or a damaged one: it can be made again."""
    try:
        with safe_open(path, framework="numpy") as stored:
            about = _About.model_validate_json((stored.metadata() or {})["about"])
            arrays = {name: stored.get_tensor(name) for name in _SHAPES}
    except (OSError, SafetensorError, KeyError, ValueError, TypeError, AttributeError):
        return None  # the last two are safetensors' words for a type NumPy has not
    if about.key != key or not _fits(arrays):
        return None
    return Atlas(**{name: getattr(about, name) for name in _About.model_fields}, **arrays)


def _fits(arrays: dict[str, np.ndarray]) -> bool:
    """Whether types and shapes are those of an atlas, and the places end where they should."""
    n, n_concepts = arrays["strengths"].size, arrays["predicted"].size
    sizes = {"C": n_concepts, "C + 1": n_concepts + 1, "n": n}
    right = all(
        arrays[name].dtype == dtype and arrays[name].shape == tuple(sizes.get(size, size) for size in shape)
        for name, (dtype, shape) in _SHAPES.items()
    )
    return right and bool((np.diff(arrays["starts"], prepend=0) >= 0).all()) and int(arrays["starts"][-1]) == n
