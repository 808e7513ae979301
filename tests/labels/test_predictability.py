"""Predictability of labels: marginal, token table, interval and weights against loops, probe against scikit-learn."""

import math

import numpy as np
import pytest
import torch

from cocomix.labels.predictability import (
    STRENGTHS,
    LabelledPositions,
    LinearProbe,
    TokenTable,
    concept_counts,
    concept_gains,
    label_weights,
    log_marginal,
    looked_up,
    mean_over_labels,
    mixed,
    predictability,
)

V, C, K, N = 7, 5, 2, 240
RNG = np.random.default_rng(0)
TOKENS = RNG.integers(0, V, N)
LABELS = np.stack([RNG.permutation(C)[:K] if number % 9 else [number % C, -100] for number in range(N)])
LABELS[TOKENS < 3, 0] = TOKENS[TOKENS < 3]  # so that tokens say something


def counted() -> tuple[dict[int, int], dict[tuple[int, int], int], dict[int, int]]:
    """Labels by concept, by token and concept, and by token, one after the other."""
    alone, pairs, tokens = dict.fromkeys(range(C), 0), {}, dict.fromkeys(range(V), 0)
    for token, labels in zip(TOKENS.tolist(), LABELS.tolist(), strict=True):
        for label in labels:
            if label != -100:
                alone[label] += 1
                pairs[token, label] = pairs.get((token, label), 0) + 1
                tokens[token] += 1
    return alone, pairs, tokens


def test_marginal_and_token_table_are_counts() -> None:
    alone, pairs, of_token = counted()
    total = sum(alone.values())
    marginal = log_marginal(concept_counts(LABELS, C))
    assert marginal == pytest.approx([math.log((alone[c] + 1) / (total + C)) for c in range(C)])
    assert np.exp(marginal).sum() == pytest.approx(1)

    def left_out(s: float) -> float:
        each = (
            n * math.log((n - 1 + s * math.exp(marginal[c])) / (of_token[x] - 1 + s)) for (x, c), n in pairs.items()
        )
        return sum(each)

    table = TokenTable(TOKENS, LABELS, marginal, V)
    assert table.strength == max(STRENGTHS, key=left_out)
    s, expected = table.strength, np.zeros(LABELS.shape)
    for place, label in np.ndenumerate(LABELS):
        if label != -100:
            x = int(TOKENS[place[0]])
            expected[place] = math.log((pairs.get((x, label), 0) + s * math.exp(marginal[label])) / (of_token[x] + s))
    assert table.log_probs(TOKENS, LABELS) == pytest.approx(expected)
    for token in range(V):  # a distribution, also over pairs that were not seen
        every = table.log_probs(np.full(C, token), np.arange(C)[:, None])
        assert np.exp(every).sum() == pytest.approx(1)


def test_the_probe_finds_the_optimum_of_scikit_learns() -> None:
    LogisticRegression = pytest.importorskip("sklearn.linear_model").LogisticRegression

    hidden = RNG.normal(size=(N, 3)) * [1, 10, 0.1] + [0, 5, 1]
    scores = hidden @ RNG.normal(size=(3, C)) / [1, 3, 1, 2, 1]
    labels = np.array([RNG.choice(C, p=np.exp(row) / np.exp(row).sum()) for row in scores - scores.max(1)[:, None]])
    reference = LogisticRegression(C=1e6, max_iter=5000).fit(hidden / hidden.std(0), labels)
    best = -np.log(reference.predict_proba(hidden / hidden.std(0))[np.arange(N), labels]).mean()
    states, marginal = torch.tensor(hidden, dtype=torch.float32), log_marginal(concept_counts(labels, C))
    probe = LinearProbe(states, marginal)
    assert -probe.log_probs(states, labels[:, None]).mean() == pytest.approx(-marginal[labels].mean(), abs=1e-5)
    probe.fit(states, torch.from_numpy(labels)[:, None], passes=500, batch_size=N, learning_rate=0.3)
    found = -probe.log_probs(states, labels[:, None]).mean()
    assert best - 1e-5 < found < best + 2e-3
    assert found == pytest.approx(float(probe.loss(states, torch.from_numpy(labels)[:, None]).detach()), abs=1e-5)


def test_the_interval_draws_windows() -> None:
    windows = np.repeat(np.arange(24), 10)
    values = RNG.normal(size=LABELS.shape) + windows[:, None] / 8
    found = mean_over_labels(values, LABELS, windows, samples=4000)
    sums, counts = np.zeros(24), np.zeros(24)
    for place, label in np.ndenumerate(LABELS):
        if label != -100:
            sums[windows[place[0]]] += values[place]
            counts[windows[place[0]]] += 1
    assert found.mean == pytest.approx(sums.sum() / counts.sum())
    rng, means = np.random.default_rng(5), []
    for _ in range(4000):
        drawn = rng.integers(0, 24, 24)
        means.append(sums[drawn].sum() / counts[drawn].sum())
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(means, (0.025, 0.975))), abs=0.05)
    assert mean_over_labels(values, LABELS, windows) == mean_over_labels(values, LABELS, windows)


def test_weights_of_concepts() -> None:
    gains, counts = RNG.normal(size=LABELS.shape) + 0.5, concept_counts(LABELS, C)
    each = [[g for g, label in zip(gains.flat, LABELS.flat, strict=True) if label == c] for c in range(C)]
    mean = sum(map(sum, each)) / sum(map(len, each))
    expected = [(sum(found) + 16 * mean) / (len(found) + 16) for found in each]
    by_concept = concept_gains(gains, LABELS, C)
    assert by_concept == pytest.approx(expected)
    by_concept[2] = -1.0
    weights = label_weights(by_concept, counts)
    assert weights[2] == 0 and (weights * counts).sum() / counts.sum() == pytest.approx(1, abs=1e-6)
    assert weights[0] / weights[1] == pytest.approx(by_concept[0] / by_concept[1], rel=1e-5)
    assert not label_weights(np.full(C, -1.0), counts).any()


def test_a_mixture_is_of_probabilities() -> None:
    parts = np.log(RNG.random((2, 3, 2)))
    for share in (0, 0.3, 1):
        expected = np.log(share * np.exp(parts[0]) + (1 - share) * np.exp(parts[1]))
        assert mixed(*parts, share) == pytest.approx(expected)


def made(n: int, kind: str, seed: int) -> LabelledPositions:
    """One label a position: of the token, of the hidden state beside the token, or of nothing."""
    rng = np.random.default_rng(seed)
    tokens, other = rng.integers(0, V, n), rng.integers(0, C, n)
    hidden = np.concatenate([np.eye(V)[tokens], np.eye(C)[other]], axis=1)
    labels = {"token": tokens % C, "state": other, "nothing": rng.integers(0, C, n)}[kind]
    return LabelledPositions(torch.tensor(hidden, dtype=torch.float32), tokens, labels[:, None], np.arange(n) // 16)


@pytest.mark.parametrize(("kind", "above", "beyond"), [("token", 1.55, 0), ("state", 1.61, 1.61), ("nothing", 0, 0)])
def test_what_is_more_than_the_token_is_told_apart(kind: str, above: float, beyond: float) -> None:
    sizes = {"n_concepts": C, "vocab_size": V, "passes": 40}
    found = predictability(made(4096, kind, 1), made(1024, kind, 2), **sizes)
    assert found.above_marginal.mean == pytest.approx(above, abs=0.05)
    assert found.beyond_token.mean == pytest.approx(beyond, abs=0.05)
    assert found.above_marginal.low <= found.above_marginal.mean <= found.above_marginal.high
    assert found.marginal - found.probe == pytest.approx(found.above_marginal.mean)
    assert found.given_token - found.mixture == pytest.approx(found.beyond_token.mean)
    assert found.mixture < min(found.given_token, found.probe) + 0.01
    assert looked_up(np.log([0.5, 0.5]), np.array([[1, -100]])).tolist() == [[math.log(0.5), 0]]
