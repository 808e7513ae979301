"""Counts and scores against loops over every position, and stability on planted concepts."""

import math
from collections import Counter

import numpy as np
import pytest

from cocomix.analysis import token_statistics as counting
from cocomix.analysis.token_statistics import COMPARED, PRIOR, PairCounts, agreement, best_tokens, contrast_scores

C, V, K, N = 7, 11, 3, 300


def positions(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Concepts (distinct at a position), which are active, and tokens with a skewed distribution."""
    rng = np.random.default_rng(seed)
    concepts = rng.permuted(np.tile(np.arange(C), (N, 1)), axis=1)[:, :K]
    tokens = np.minimum(rng.geometric(0.3, N) - 1, V - 1)
    return concepts, rng.random((N, K)) < 0.6, tokens


def counted(*parts: tuple[np.ndarray, np.ndarray, np.ndarray]) -> PairCounts:
    pairs = PairCounts(C, V)
    for part in parts:
        pairs.add(*part)
    return pairs


def pairs_by_loop(*parts: tuple[np.ndarray, np.ndarray, np.ndarray]) -> Counter[tuple[int, int]]:
    return Counter(
        (int(concept), int(token))
        for concepts, active, tokens in parts
        for row, on, token in zip(concepts, active, tokens, strict=True)
        for concept, is_on in zip(row, on, strict=True)
        if is_on
    )


def scores_by_loop(*parts: tuple[np.ndarray, np.ndarray, np.ndarray]) -> dict[tuple[int, int], float]:
    pairs = pairs_by_loop(*parts)
    tokens = Counter(int(token) for *_, all_tokens in parts for token in all_tokens)
    total = sum(tokens.values())
    scores = {}
    for (concept, token), count in pairs.items():
        of_concept = sum(many for (other, _), many in pairs.items() if other == concept)
        p = tokens[token] / total
        q = (count + PRIOR * p) / (of_concept + PRIOR)
        scores[concept, token] = max(0.0, q * math.log(q / p))
    return scores


def ranking_by_loop(scores: dict[tuple[int, int], float], concept: int, wanted: int) -> list[int]:
    mine = [(-score, token) for (which, token), score in scores.items() if which == concept and score > 0]
    return [token for _, token in sorted(mine)][:wanted]


@pytest.mark.parametrize("pending", [counting.PENDING_PAIRS, 100])
def test_counts_are_those_of_a_loop(pending: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counting, "PENDING_PAIRS", pending)
    parts = [positions(seed) for seed in range(3)]
    for pairs in (counted(*parts), counted(*parts[:2]) + counted(parts[2])):
        keys, counts = pairs.pairs()
        found = {divmod(key, V): count for key, count in zip(keys.tolist(), counts.tolist(), strict=True)}
        expected = pairs_by_loop(*parts)
        assert found == expected and (np.diff(keys) > 0).all()
        for concept in range(C):
            assert pairs.concepts()[concept] == sum(many for (which, _), many in expected.items() if which == concept)
        assert pairs.tokens.tolist() == [sum(int((part[2] == token).sum()) for part in parts) for token in range(V)]


def test_scores_and_rankings_are_those_of_a_loop() -> None:
    part = positions(0)
    found, expected = contrast_scores(counted(part)), scores_by_loop(part)
    assert len(found.keys) == len(expected)
    for key, score in zip(found.keys.tolist(), found.scores.tolist(), strict=True):
        assert score == pytest.approx(expected[divmod(key, V)], rel=1e-12)
    assert 0 < (found.scores == 0).sum() < len(found.keys)
    wanted = 3
    tokens, values = best_tokens(found, wanted)
    for concept in range(C):
        ranking = ranking_by_loop(expected, concept, wanted)
        assert [token for token in tokens[concept].tolist() if token >= 0] == ranking
        assert values[concept][: len(ranking)].tolist() == pytest.approx([expected[concept, one] for one in ranking])


def test_agreement_is_that_of_a_loop() -> None:
    parts = [positions(1), positions(2)]
    found = agreement(*(contrast_scores(counted(part)) for part in parts))
    first, second = (scores_by_loop(part) for part in parts)
    for concept in range(C):
        union = {*ranking_by_loop(first, concept, COMPARED), *ranking_by_loop(second, concept, COMPARED)}
        pairs = [(first.get((concept, token), 0.0), second.get((concept, token), 0.0)) for token in union]
        assert found[concept] == pytest.approx(sum(map(min, pairs)) / sum(map(max, pairs)))
    assert found.min() > 0 and found.max() < 1


def test_halves_that_are_alike_agree_wholly_and_silent_concepts_not_at_all() -> None:
    concepts, active, tokens = positions(3)
    active &= concepts != 5
    same = contrast_scores(counted((concepts, active, tokens)))
    found = agreement(same, same)
    assert found[5] == 0
    assert found[[concept for concept in range(C) if concept != 5]] == pytest.approx(1)
    assert best_tokens(same, 4)[0][5].tolist() == [-1] * 4


def test_nothing_counted_is_nothing_found() -> None:
    empty = contrast_scores(PairCounts(C, V))
    assert (agreement(empty, empty) == 0).all() and (best_tokens(empty, 2)[0] == -1).all()
