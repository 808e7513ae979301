"""Several label sets for one student: one after the other over the training, or mixed, or both.

`LabelPart` is a set with the share of the training until which it is read. Parts with the same `until` are a mixture:
each window, or each position, gets the labels of one of them, drawn by their shares. What is drawn is a function of
seed, step and window alone, so a resumed training and any number of processes draw the same.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from pydantic import Field

from cocomix.labels.store import LabelReader
from cocomix.utils.settings import Section


class LabelPart(Section):
    """One of the label sets of a student."""

    set: str = Field(description="name of the label set")
    sign: str | None = Field(default=None, description="sign of its labels; empty: the first one it has")
    until: float | None = Field(
        default=None, gt=0, lt=1, description="share of the training until which it is read; empty: to the end"
    )
    share: float = Field(
        default=1.0,
        gt=0,
        allow_inf_nan=False,
        description="of the windows or positions, relative to that of the other parts with the same `until`",
    )


class LabelPhase(NamedTuple):
    """The parts that are read at the same time."""

    until: float
    """share of the training at which it ends"""
    parts: tuple[int, ...]
    """their places in the list"""
    shares: tuple[float, ...]
    """of the windows or positions; their sum is 1"""


def label_phases(parts: Sequence[LabelPart]) -> list[LabelPhase]:
    """The phases of `parts`, in the order of training.

    Raises:
        ValueError: they are in another order, or leave the end of the training without labels.
    """
    untils = [1.0 if part.until is None else part.until for part in parts]
    if untils != sorted(untils):
        raise ValueError("the parts of `labels` are not in the order of their `until`; sort them")
    if not untils or untils[-1] < 1:
        end = f" after {untils[-1]:.0%} of it" if untils else ""
        raise ValueError(f"`labels` leave the training without any{end}; leave `until` out of the last part")
    phases = []
    for until in dict.fromkeys(untils):
        places = tuple(place for place, other in enumerate(untils) if other == until)
        total = sum(parts[place].share for place in places)
        phases.append(LabelPhase(until, places, tuple(parts[place].share / total for place in places)))
    return phases


def shares_of_training(parts: Sequence[LabelPart]) -> list[float]:
    """The share of a training's windows or positions for which each part is read; their sum is 1."""
    shares, begin = [0.0] * len(parts), 0.0
    for phase in label_phases(parts):
        for place, share in zip(phase.parts, phase.shares, strict=True):
            shares[place] = (phase.until - begin) * share
        begin = phase.until
    return shares


def describe_parts(parts: Sequence[LabelPart], unit: str) -> str:
    """The sets in a few words, e.g. `a until 40%, then b (75%) and c/signed (25%) by window`."""
    phases = []
    for phase in label_phases(parts):
        names = [f"{parts[place].set}{f'/{parts[place].sign}' if parts[place].sign else ''}" for place in phase.parts]
        mixed = " and ".join(f"{name} ({share:.0%})" for name, share in zip(names, phase.shares, strict=True))
        words = names[0] if len(names) == 1 else f"{mixed} by {unit}"
        phases.append(words + (f" until {phase.until:.0%}" if phase.until < 1 else ""))
    return ", then ".join(phases)


class ScheduledLabels(LabelReader):
    """The labels of several sources, as `parts` say; `begin_step` says where the training is.

    Args:
        sources: one a part, with as many labels a position each.
        parts: see `LabelPart`.
        by_position: whether a mixture draws for each position, not for each window.
        seed: of what is drawn.
    """

    def __init__(
        self, sources: Sequence[LabelReader], parts: Sequence[LabelPart], *, by_position: bool, seq_len: int, seed: int
    ) -> None:
        self.sources, self.phases = list(sources), label_phases(parts)
        self.by_position, self.seq_len, self.seed = by_position, seq_len, seed
        self.n_labels = self.sources[0].n_labels
        self.where = ", ".join(dict.fromkeys(source.where for source in self.sources))
        self._step, self._phase = 0, self.phases[0]

    def begin_step(self, step: int, total: int) -> None:
        progress = step / total
        self._step = step
        self._phase = next((phase for phase in self.phases if progress < phase.until), self.phases[-1])
        for source in self.sources:
            source.begin_step(step, total)

    def read(self, windows: np.ndarray, seq_len: int) -> np.ndarray:
        return self._gather(windows, lambda source, some: source.read(windows[some], seq_len))

    def weights(self, windows: np.ndarray, labels: np.ndarray) -> np.ndarray | None:
        def of_source(source: LabelReader, some: np.ndarray) -> np.ndarray:
            found = source.weights(windows[some], labels[some])
            return np.ones(labels[some].shape, dtype=np.float32) if found is None else found

        return self._gather(windows, of_source) if any(source.weighted for source in self.sources) else None

    def labelled(self, windows: np.ndarray) -> np.ndarray:
        if len(self._phase.parts) == 1:
            return self.sources[self._phase.parts[0]].labelled(windows)
        return (self.read(windows, self.seq_len)[..., 0] >= 0).sum(-1)

    def _gather(self, windows: np.ndarray, of: Callable[[LabelReader, np.ndarray], np.ndarray]) -> np.ndarray:
        """What `of` gives for the windows at the places it is given, each value from the source that was drawn."""
        everywhere = np.arange(len(windows))
        if len(self._phase.parts) == 1:
            return of(self.sources[self._phase.parts[0]], everywhere)
        drawn = self._drawn(windows)
        found: np.ndarray | None = None
        for number, place in enumerate(self._phase.parts):
            some = np.flatnonzero((drawn == number).any(-1))
            if len(some):
                values = of(self.sources[place], some)
                found = np.empty((len(windows), *values.shape[1:]), dtype=values.dtype) if found is None else found
                found[some] = np.where((drawn[some] == number)[..., None], values, found[some])
        assert found is not None, "every window has a source"
        return found

    def _drawn(self, windows: np.ndarray) -> np.ndarray:
        """Number of the part that each window, `[len, 1]`, or position, `[len, seq_len]`, is to be read from."""
        size, edges = self.seq_len if self.by_position else 1, np.cumsum(self._phase.shares)[:-1]
        draws = [np.random.default_rng((self.seed, self._step, int(window))).random(size) for window in windows]
        return np.searchsorted(edges, np.stack(draws), side="right")


class WeightedLabels(LabelReader):
    """Labels with a weight each, by their concept.

    Args:
        source: the labels.
        by_concept: weight of each concept's labels, float32 `[C]`.
    """

    weighted = True

    def __init__(self, source: LabelReader, by_concept: np.ndarray) -> None:
        self.source, self.by_concept = source, by_concept
        self.n_labels, self.where = source.n_labels, source.where

    def begin_step(self, step: int, total: int) -> None:
        self.source.begin_step(step, total)

    def read(self, windows: np.ndarray, seq_len: int) -> np.ndarray:
        return self.source.read(windows, seq_len)

    def labelled(self, windows: np.ndarray) -> np.ndarray:
        return self.source.labelled(windows)

    def weights(self, windows: np.ndarray, labels: np.ndarray) -> np.ndarray:
        return np.where(labels >= 0, self.by_concept[np.maximum(labels, 0)], np.float32(0))
