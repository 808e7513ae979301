"""Label sets that hold no concept, to compare concept labels with: hashes of tokens, and labels in the wrong places.

A control is a label set like any other (`labels: {hash: {rule: hash}}`), so a student is trained on it, starts with it
or mixes it in as on concepts. Nothing is stored, and no teacher is run. `objectives/hash.py` trains on the same hashes
without an SAE whose number of concepts they share.
"""

import hashlib
from abc import ABC, abstractmethod
from itertools import count
from typing import ClassVar

import numpy as np

from cocomix.data.shards import TokenShards
from cocomix.labels.shuffled import ShuffledLabels
from cocomix.labels.store import LabelReader
from cocomix.utils.registry import Registry


def hash_labels(vocab_size: int, n_labels: int, n_concepts: int) -> np.ndarray:
    """For each token `n_labels` different numbers below `n_concepts`; int64 `[vocab_size, n_labels]`.

    They are the first bytes of hashes of `TOKEN DRAW`, DRAW = 0, 1, 2, ..., modulo `n_concepts`, each number once.
    """

    def labels(token: int) -> list[int]:
        drawn: dict[int, None] = {}  # in the order of drawing, each once
        for draw in count():
            digest = hashlib.blake2b(f"{token} {draw}".encode(), digest_size=8).digest()
            drawn[int.from_bytes(digest, "big") % n_concepts] = None
            if len(drawn) == n_labels:
                break
        return list(drawn)

    return np.array([labels(token) for token in range(vocab_size)], dtype=np.int64)


class HashLabels(LabelReader):
    """Labels looked up by token; the last position of a window, which has no next token, has none.

    Args:
        shards: the tokens.
        seq_len: tokens a window.
        n_labels: labels per position K_attr.
        n_concepts: C.
        ahead: whether a position's labels are the next token's.
        first_position: positions of a window before it have no labels: that of a beginning-of-text token.
    """

    def __init__(
        self,
        shards: TokenShards,
        seq_len: int,
        *,
        n_labels: int,
        n_concepts: int,
        ahead: bool = False,
        first_position: int = 0,
    ) -> None:
        self.shards, self.seq_len, self.n_labels = shards, seq_len, n_labels
        self.where = f"the hashes of {'next' if ahead else 'current'} tokens"
        self._table = hash_labels(shards.vocab_size, n_labels, n_concepts)
        self._ahead, self._first = ahead, first_position

    def read(self, windows: np.ndarray, seq_len: int) -> np.ndarray:
        ids = self.shards.windows(windows, seq_len)
        labels = np.full((*ids.shape, self.n_labels), -100, dtype=np.int64)
        labels[:, :-1] = self._table[ids[:, 1:] if self._ahead else ids[:, :-1]]
        labels[:, : self._first] = -100
        return labels

    def labelled(self, windows: np.ndarray) -> np.ndarray:
        return np.full(len(windows), self.seq_len - 1 - self._first)


class LabelControl(ABC):
    """One kind of control, a value of `labels.NAME.rule`."""

    name: ClassVar[str]
    moves_labels: ClassVar[bool] = False
    """whether it takes the labels of another set, `labels.NAME.of`"""

    @classmethod
    @abstractmethod
    def reader(
        cls, source: LabelReader | None, shards: TokenShards, seq_len: int, n_labels: int, n_concepts: int, first: int
    ) -> LabelReader:
        """Its labels of one split.

        Args:
            source: the labels of the other set, for one that `moves_labels`.
            shards, seq_len, n_labels, n_concepts, first: as in `HashLabels`.
        """


class HashControl(LabelControl):
    """Fixed hashes of the current token: what the input was, and no concept."""

    name = "hash"
    ahead: ClassVar[bool] = False

    @classmethod
    def reader(
        cls, source: LabelReader | None, shards: TokenShards, seq_len: int, n_labels: int, n_concepts: int, first: int
    ) -> LabelReader:
        sizes = {"n_labels": n_labels, "n_concepts": n_concepts, "first_position": first}
        return HashLabels(shards, seq_len, ahead=cls.ahead, **sizes)


class NextHashControl(HashControl):
    """Fixed hashes of the next token: a coarser form of the target."""

    name = "hash_next"
    ahead = True


class RandomControl(LabelControl):
    """The labels of another set at other positions: each as often as there, and nothing to do with the text."""

    name = "random"
    moves_labels = True

    @classmethod
    def reader(
        cls, source: LabelReader | None, shards: TokenShards, seq_len: int, n_labels: int, n_concepts: int, first: int
    ) -> LabelReader:
        assert source is not None, "the configuration names the other set"
        return ShuffledLabels(source, shards.n_windows(seq_len))


CONTROLS: Registry[type[LabelControl]] = Registry("label control", [HashControl, NextHashControl, RandomControl])
