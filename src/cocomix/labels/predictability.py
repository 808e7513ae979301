"""How well labels can be predicted from the text before them, in nats a label, by a linear probe.

Three predictions of a label are compared on held-out windows, each fitted on the same training windows:

- the marginal: how often each concept is a label, whatever the text; one is added to every count.
- the token table: how often, given the current token. A token's counts are joined by `s` labels distributed as the
  marginal says; `s` is chosen by the likelihood of each training label given the others.
- the probe: softmax regression from hidden states, as the concept head is, fitted by AdamW without decay from the
  marginal on, with a learning rate that falls to 0.

The cross entropy is a mean over labels, like the concept loss. K labels of a position cannot be told apart in order, so
it does not fall below log K. Marginal minus probe is what labels offer to learn. What of it is more than the current
token is token table minus a mixture of table and probe, a p_table + (1 - a) p_probe, because a probe of narrow states
may know the token less well than the table. A better predictor would find more, so both are lower bounds.
"""

from typing import NamedTuple, Self

import numpy as np
import torch
from torch import nn

from cocomix.kernels.linear_cross_entropy import linear_losses

STRENGTHS = tuple(2.0**power for power in range(-3, 13))
"""Values of `s` that are tried."""
CHUNK = 4096
"""Positions whose scores are held at a time."""


class LabelledPositions(NamedTuple):
    """Positions that have labels, of some windows."""

    hidden: torch.Tensor
    """hidden states, float32 `[n, d_model]`"""
    tokens: np.ndarray
    """their tokens, int64 `[n]`"""
    labels: np.ndarray
    """concepts, int64 `[n, K_attr]`; -100 where there is none"""
    windows: np.ndarray
    """number of the window each is in, int64 `[n]`"""

    def among(self, chosen: np.ndarray) -> Self:
        """Those where `chosen`, bool `[n]`, is true."""
        rest = (field[chosen] for field in self[1:])
        return type(self)(self.hidden[torch.from_numpy(chosen)], *rest)


def concept_counts(labels: np.ndarray, n_concepts: int) -> np.ndarray:
    """How often each concept is a label, int64 `[C]`."""
    return np.bincount(labels[labels >= 0], minlength=n_concepts)


def log_marginal(counts: np.ndarray) -> np.ndarray:
    """Log-probability of each concept by counts `[C]`, with one added to each; float64 `[C]`."""
    return np.log(counts + 1) - np.log(counts.sum() + len(counts))


def looked_up(log_probs: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Log-probability of each label by its concept's, float64 `[n, K_attr]`; 0 where there is no label."""
    return np.where(labels >= 0, log_probs[np.maximum(labels, 0)], 0.0)


class TokenTable:
    """Concept frequencies by token: p(c | x) = (n[x, c] + s p(c)) / (n[x] + s).

    Args:
        tokens: int64 `[n]`.
        labels: int64 `[n, K_attr]`.
        marginal: log p(c), `[C]`.
        vocab_size: number of tokens.

    Attributes:
        strength: s, of `STRENGTHS` the one under which the training labels are likeliest, each given all others.
    """

    def __init__(self, tokens: np.ndarray, labels: np.ndarray, marginal: np.ndarray, vocab_size: int) -> None:
        self._p, used = np.exp(marginal), labels >= 0
        pairs = self._pairs(tokens, labels)[used]
        self._keys, self._counts = np.unique(pairs, return_counts=True)
        self._of_token = np.bincount(pairs // len(marginal), minlength=vocab_size)
        self.strength = max(STRENGTHS, key=self._left_out) if len(pairs) else STRENGTHS[0]

    def log_probs(self, tokens: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """Log-probability of each label given its token, float64 `[n, K_attr]`; 0 where there is no label."""
        pairs = self._pairs(tokens, labels)
        places = np.minimum(np.searchsorted(self._keys, pairs), max(len(self._keys) - 1, 0))
        found = self._keys[places] == pairs if len(self._keys) else np.zeros(pairs.shape, dtype=bool)
        counts = np.where(found, self._counts[places], 0) if len(self._keys) else np.zeros(pairs.shape)
        s, prior = self.strength, self._p[np.maximum(labels, 0)]
        return np.where(labels >= 0, np.log((counts + s * prior) / (self._of_token[tokens][:, None] + s)), 0.0)

    def _pairs(self, tokens: np.ndarray, labels: np.ndarray) -> np.ndarray:
        return tokens[:, None] * len(self._p) + np.maximum(labels, 0)

    def _left_out(self, strength: float) -> float:
        """Log-likelihood of every training label by the counts of the others."""
        tokens, concepts = np.divmod(self._keys, len(self._p))
        others = self._counts - 1 + strength * self._p[concepts]
        return float((self._counts * np.log(others / (self._of_token[tokens] - 1 + strength))).sum())


class LinearProbe(nn.Module):
    """Softmax regression of concepts on hidden states, each feature centred and scaled as in the training positions.

    Args:
        hidden: the training positions', `[n, d_model]`.
        marginal: log p(c) `[C]`, its first bias; its first weights are 0.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, hidden: torch.Tensor, marginal: np.ndarray) -> None:
        super().__init__()
        self.register_buffer("mean", hidden.mean(0))
        self.register_buffer("std", hidden.std(0, correction=0).clamp_min(1e-6))
        self.weight = nn.Parameter(torch.zeros(len(marginal), hidden.shape[1], device=hidden.device))
        self.bias = nn.Parameter(torch.as_tensor(marginal, dtype=torch.float32, device=hidden.device))

    def loss(self, hidden: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Mean cross entropy of the labels, a scalar."""
        return linear_losses((hidden - self.mean) / self.std, self.weight, self.bias, labels).mean

    def fit(
        self,
        hidden: torch.Tensor,
        labels: torch.Tensor,
        *,
        passes: float,
        batch_size: int = 1024,
        learning_rate: float = 3e-2,
        seed: int = 0,
    ) -> Self:
        """Fit to `hidden` `[n, d_model]` and `labels` `[n, K_attr]`, in `passes` passes of batches of positions."""
        total = max(1, round(passes * len(hidden) / batch_size))
        optimizer = torch.optim.Adam(self.parameters(), lr=learning_rate, betas=(0.9, 0.99))
        generator = torch.Generator().manual_seed(seed)
        order = torch.empty(0, dtype=torch.int64)
        for step in range(total):
            while len(order) < min(batch_size, len(hidden)):
                order = torch.cat([order, torch.randperm(len(hidden), generator=generator)])
            chosen, order = order[:batch_size].to(hidden.device), order[batch_size:]
            for group in optimizer.param_groups:
                group["lr"] = learning_rate * (1 - step / total)
            optimizer.zero_grad(set_to_none=True)
            self.loss(hidden[chosen], labels[chosen]).backward()
            optimizer.step()
        return self

    @torch.no_grad()
    def log_probs(self, hidden: torch.Tensor, labels: np.ndarray) -> np.ndarray:
        """Log-probability of each label, float64 `[n, K_attr]`; 0 where there is no label."""
        found = np.zeros(labels.shape)
        for start in range(0, len(hidden), CHUNK):
            part = labels[start : start + CHUNK]
            scores = (hidden[start : start + CHUNK] - self.mean) / self.std @ self.weight.T + self.bias
            targets = torch.from_numpy(np.maximum(part, 0)).to(hidden.device)
            chosen = scores.gather(-1, targets) - scores.logsumexp(-1, keepdim=True)
            found[start : start + CHUNK] = np.where(part >= 0, chosen.double().cpu().numpy(), 0.0)
        return found


class Interval(NamedTuple):
    """A mean and its 95 % interval."""

    mean: float
    low: float
    high: float


def mean_over_labels(
    values: np.ndarray, labels: np.ndarray, windows: np.ndarray, *, samples: int = 1000, seed: int = 0
) -> Interval:
    """The mean of `values` over all labels, with a percentile bootstrap over windows, whose positions go together.

    Args:
        values, labels: `[n, K_attr]`; values count where there is a label.
        windows: `[n]`.
    """
    names, place = np.unique(windows, return_inverse=True)
    used = labels >= 0
    sums = np.bincount(place, weights=np.where(used, values, 0.0).sum(-1), minlength=len(names))
    counts = np.bincount(place, weights=used.sum(-1), minlength=len(names))
    drawn = np.random.default_rng(seed).multinomial(len(names), np.full(len(names), 1 / len(names)), size=samples)
    totals = drawn @ counts
    means = (drawn @ sums)[totals > 0] / totals[totals > 0]
    low, high = np.quantile(means, (0.025, 0.975))
    return Interval(float(sums.sum() / counts.sum()), float(low), float(high))


def concept_gains(gains: np.ndarray, labels: np.ndarray, n_concepts: int, strength: float = 16.0) -> np.ndarray:
    """Mean gain of each concept's labels, drawn to the mean of all as if `strength` more labels had it; `[C]`."""
    used = labels >= 0
    counts = np.bincount(labels[used], minlength=n_concepts)
    sums = np.bincount(labels[used], weights=gains[used], minlength=n_concepts)
    return (sums + strength * sums.sum() / max(counts.sum(), 1)) / (counts + strength)


def label_weights(gains: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Weight of a label of each concept: its gain, 0 if negative, over the mean gain of labels; float32 `[C]`.

    The weights of labels as frequent as in `counts` have the mean 1. All 0 where nothing can be predicted.
    """
    positive = np.maximum(gains, 0)
    mean = (positive * counts).sum() / max(counts.sum(), 1)
    return (positive / mean if mean > 0 else positive).astype(np.float32)


class Predictability(NamedTuple):
    """What is found of one label set."""

    marginal: float
    """cross entropies, nats a label"""
    given_token: float
    probe: float
    above_marginal: Interval
    """marginal - probe"""
    mixture: float
    """of token table and probe"""
    beyond_token: Interval
    """token table - mixture"""
    table_share: float
    """a, the share of the token table in the mixture; chosen on training windows that nothing was fitted to"""
    strength: float
    """s of the token table"""
    gains: np.ndarray
    """of each concept, marginal - probe in nats, on training windows that nothing was fitted to, float64 `[C]`"""
    weights: np.ndarray
    """`label_weights` of these, float32 `[C]`"""


def mixed(table: np.ndarray, probe: np.ndarray, share: float) -> np.ndarray:
    """Log-probabilities of the mixture a p_table + (1 - a) p_probe from those of its parts, of any shape."""
    if share in (0, 1):
        return table if share else probe
    return np.logaddexp(np.log(share) + table, np.log(1 - share) + probe)


SHARES = tuple(number / 20 for number in range(21))
"""Values of a that are tried."""
HELD_OUT = 8
"""One of so many training windows is left out of every fit, and gives the concepts' gains."""


def predictability(
    train: LabelledPositions, val: LabelledPositions, *, n_concepts: int, vocab_size: int, passes: float
) -> Predictability:
    """Fit marginal, token table and probe on `train` and measure them on `val`."""
    held_out = train.windows % HELD_OUT == HELD_OUT - 1
    held_out &= not held_out.all()
    fitted, rest = train.among(~held_out), train.among(held_out)
    counts = concept_counts(fitted.labels, n_concepts)
    marginal = log_marginal(counts)
    table = TokenTable(fitted.tokens, fitted.labels, marginal, vocab_size)
    probe = LinearProbe(fitted.hidden, marginal)
    probe.fit(fitted.hidden, torch.from_numpy(fitted.labels).to(fitted.hidden.device), passes=passes)

    by_marginal, by_token = looked_up(marginal, val.labels), table.log_probs(val.tokens, val.labels)
    by_probe, where = probe.log_probs(val.hidden, val.labels), (val.labels, val.windows)
    rest_by_probe, rest_by_token = probe.log_probs(rest.hidden, rest.labels), table.log_probs(rest.tokens, rest.labels)
    rest_used = rest.labels >= 0
    share = max(SHARES, key=lambda a: mixed(rest_by_token, rest_by_probe, a)[rest_used].sum())
    by_both = mixed(by_token, by_probe, share)
    gains = rest_by_probe - looked_up(marginal, rest.labels)
    by_concept = concept_gains(gains, rest.labels, n_concepts)
    used = val.labels >= 0
    return Predictability(
        marginal=-float(by_marginal[used].mean()),
        given_token=-float(by_token[used].mean()),
        probe=-float(by_probe[used].mean()),
        above_marginal=mean_over_labels(by_probe - by_marginal, *where),
        mixture=-float(by_both[used].mean()),
        beyond_token=mean_over_labels(by_both - by_token, *where),
        table_share=share,
        strength=table.strength,
        gains=by_concept,
        weights=label_weights(by_concept, counts),
    )
