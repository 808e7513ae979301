"""Replacements of the predicted vector, and `vector_replaced`, which applies one to a student's forward passes.

They ask what a student uses its vector for: not at all if zeros do as well, as a constant if the mean does, not for
what it says about this text if another text's does. They work for every student that mixes a vector in, whatever it is
made from; losses of what is predicted (concepts, hidden states) are those of the unchanged prediction.

- A `VectorReplacement` is a small class that maps vectors to new ones. `REPLACEMENTS` is their registry; `prepare`
  makes one with what it needs of a student and of text, so that all can be tried in a loop.
- `vector_replaced` puts a hook behind the predictor. Every forward pass in the context sees the change: evaluation,
  loss, and generation, with or without a cache. It can be nested with `steered`, which changes the logits before. A
  graph that `torch.compile` has made before does not look for hooks: use the model that is not compiled.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import nn

from cocomix.model.predictors import Prediction, Predictor
from cocomix.utils.env import as_float64
from cocomix.utils.errors import CocomixError
from cocomix.utils.registry import Registry

Batches = Iterable[Mapping[str, Any]]
"""Keyword arguments of forward passes: `input_ids` `[batch, seq]` and, with padding, `attention_mask`."""


class VectorReplacement(ABC):
    """Base class of replacements."""

    name: ClassVar[str]
    """name in settings and reports"""

    @abstractmethod
    def __call__(self, vector: torch.Tensor, real: torch.Tensor | None) -> torch.Tensor:
        """The new vectors of `vector` `[batch, seq, d_model]`, which is not changed in place.

        Args:
            real: False for padding, bool `[batch, seq]`; None: no padding.
        """

    @classmethod
    def prepare(cls, model: nn.Module, batches: Batches, seed: int) -> Self:
        """One for `model`, which may read `batches` and draw with `seed`."""
        return cls()


@dataclass(frozen=True)
class ZeroVector(VectorReplacement):
    """Zeros: in a bare slot an empty slot, in a residual one the hidden state alone."""

    name = "zero"

    def __call__(self, vector: torch.Tensor, real: torch.Tensor | None) -> torch.Tensor:
        return torch.zeros_like(vector)


@dataclass(frozen=True)
class ShuffledVector(VectorReplacement):
    """The vector of another sequence of the batch, in the same column.

    Sequences are put in a random order, which follows from the seed and the number of sequences alone, and each gets
    the vectors of the one after it, the last those of the first. In a column where some are padding, the others do so
    among themselves. No vector comes from another column, so generation with and without a cache agrees. Sequences
    that one prompt was multiplied into (beams, samples) may get each other's.

    A token that is alone in its column, because the others are padding there, gets zeros. A batch of one sequence is
    refused: there is nothing to shuffle it with.

    Args:
        seed: of the order.
    """

    seed: int = 0
    name = "shuffled"

    def __call__(self, vector: torch.Tensor, real: torch.Tensor | None) -> torch.Tensor:
        batch = len(vector)
        if batch < 2:
            raise CocomixError(
                "vectors cannot be shuffled across the sequences of a batch of one; use batches of two or more"
            )
        order = torch.randperm(batch, generator=torch.Generator().manual_seed(self.seed)).to(vector.device)
        following = torch.empty_like(order)
        if real is None:
            following[order] = order.roll(-1)
            return vector[following]
        places = self._next_real(real[order])  # [batch, seq], in terms of the order
        source = torch.empty_like(places)
        source[order] = order[places]
        own = torch.arange(batch, device=vector.device)[:, None]
        shuffled = vector.gather(0, source.unsqueeze(-1).expand_as(vector))
        return shuffled.masked_fill((source == own).unsqueeze(-1), 0)

    @staticmethod
    def _next_real(real: torch.Tensor) -> torch.Tensor:
        """For each row of `real` `[rows, seq]` the next row, going round, that is real in that column, int64."""
        rows = len(real)
        twice = torch.cat((real, real))
        numbers = torch.arange(2 * rows, device=real.device)[:, None].expand_as(twice)
        at_or_after = torch.where(twice, numbers, 2 * rows).flip(0).cummin(0).values.flip(0)
        after = at_or_after[1 : rows + 1]
        own = numbers[:rows]
        return torch.where(after < 2 * rows, after % rows, own)  # nobody real is left in a column of padding

    @classmethod
    def prepare(cls, model: nn.Module, batches: Batches, seed: int) -> Self:
        return cls(seed)


@dataclass(frozen=True, eq=False)
class MeanVector(VectorReplacement):
    """One vector for all positions: the mean over text that was measured before, so that no position sees a later one.

    Args:
        mean: `[d_model]`; `mean_vector` measures it over the real positions of some batches.
    """

    mean: torch.Tensor
    name = "mean"

    def __call__(self, vector: torch.Tensor, real: torch.Tensor | None) -> torch.Tensor:
        if self.mean.shape != vector.shape[-1:]:
            raise CocomixError(
                f"a mean vector of the shape {list(self.mean.shape)} does not fit a student of {vector.shape[-1]}"
                " dimensions; measure it with the same student"
            )
        return self.mean.to(vector).expand_as(vector)

    @classmethod
    def prepare(cls, model: nn.Module, batches: Batches, seed: int) -> Self:
        return cls(mean_vector(model, batches))


REPLACEMENTS: Registry[type[VectorReplacement]] = Registry("replacement", [ZeroVector, ShuffledVector, MeanVector])


@contextmanager
def vector_replaced(model: nn.Module, replacement: VectorReplacement) -> Iterator[None]:
    """Context in which every forward pass of `model` mixes in other vectors than it predicts.

    Contexts can be nested; the inner one reads what the outer one has made. The hook is always removed on exit.

    Args:
        model: a student that mixes a predicted vector in.
        replacement: makes the new vectors.

    Raises:
        CocomixError: the model mixes no vector in; in the context, the batch does not fit the replacement.
    """

    def replace(_module: nn.Module, inputs: tuple[Any, ...], prediction: Prediction) -> Prediction:
        assert prediction.vector is not None
        return prediction._replace(vector=replacement(prediction.vector, _real(inputs)))

    handle = mixed_predictor(model).register_forward_hook(replace)
    try:
        yield
    finally:
        handle.remove()


class VectorMean:
    """The mean of the vectors that a model predicts over all real positions, gathered while it runs.

    Attributes:
        total: their sum, float64 `[d_model]`, on the CPU; a scalar before the first.
        count: how many.
    """

    def __init__(self) -> None:
        self.total, self.count = torch.zeros((), dtype=torch.float64), 0

    @contextmanager
    def gathering(self, model: nn.Module) -> Iterator[None]:
        """Context in which every forward pass of `model` counts.

        Raises:
            CocomixError: the model mixes no vector in.
        """

        def add(_module: nn.Module, inputs: tuple[Any, ...], prediction: Prediction) -> None:
            assert prediction.vector is not None
            real = _real(inputs)
            vectors = prediction.vector.flatten(0, 1) if real is None else prediction.vector[real]
            self.total = self.total + as_float64(vectors).sum(0).cpu()
            self.count += len(vectors)

        handle = mixed_predictor(model).register_forward_hook(add)
        try:
            yield
        finally:
            handle.remove()


@torch.no_grad()
def mean_vector(model: nn.Module, batches: Batches) -> torch.Tensor:
    """Mean of the predicted vector over the real positions of all batches, float64 `[d_model]`.

    The model's train or eval mode is left as it is.

    Raises:
        CocomixError: the model mixes no vector in, or there is no position.
    """
    mean = VectorMean()
    with mean.gathering(model):
        for batch in batches:
            model(**batch, use_cache=False)
    if not mean.count:
        raise CocomixError("there is no text to measure the mean vector on; give at least one batch with a token")
    return mean.total / mean.count


def mixes_vector(model: nn.Module) -> bool:
    """Whether the model mixes a predicted vector in, which can be replaced."""
    return any(isinstance(module, Predictor) and module.with_vector for module in model.modules())


def mixed_predictor(model: nn.Module) -> Predictor:
    """The model's predictor.

    Raises:
        CocomixError: the model has none, or does not mix its vector in.
    """
    predictor = next((module for module in model.modules() if isinstance(module, Predictor)), None)
    if predictor is None:
        raise CocomixError(
            f"{type(model).__name__} mixes no predicted vector in; use a student such as those of the objective cocomix"
        )
    if not predictor.with_vector:
        raise CocomixError(
            "this student does not mix its vector in, so replacing it changes nothing; use a student with a mixer such"
            " as interleave"
        )
    return predictor


def _real(inputs: tuple[Any, ...]) -> torch.Tensor | None:
    """Which of the new positions are no padding, from the inputs of a predictor; None: all."""
    hidden, _, padding = inputs[:3]
    return None if padding is None else padding[:, -hidden.shape[1] :].bool()
