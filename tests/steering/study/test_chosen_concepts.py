"""Which concepts are steered, against a search of all."""

import pytest
import torch

from cocomix.analysis import ConceptName, FoundNames, Names, TokenScore
from cocomix.steering.study.concepts import MOST_FREQUENT, RAREST, ConceptActivity, choose_named_concepts
from cocomix.utils.errors import CocomixError

TEXTS = ["a", "b", "c", "�", "�", " a"]


def decode(ids: list[int]) -> str:
    return "".join(TEXTS[token] for token in ids)


def named(concept: int, stability: float | None, kind: str = "token", tokens: str = "ab") -> ConceptName:
    scores = [TokenScore(token=token, score=1 / (1 + place)) for place, token in enumerate(tokens)]
    other = [TokenScore(token=" a", score=0.5)]
    mine, theirs = (scores, other) if kind == "token" else (other, scores)
    name = "x" if stability and stability >= 0.5 else None
    fields = {"name": name, "stability": stability, "kind": kind, "tokens": mine, "next_tokens": theirs}
    return ConceptName.model_validate({"concept": concept, **fields})


def names(records: list[ConceptName], edits: dict[int, str] | None = None) -> Names:
    found = FoundNames(sae="s", tokens="t", split="train", windows=1, positions=1, concepts=records)
    return Names(found, edits or {})


def activity(shares: list[float]) -> ConceptActivity:
    share = torch.tensor(shares, dtype=torch.double)
    return ConceptActivity(share, share * 100)


def test_chosen_are_spread_over_those_that_qualify() -> None:
    shares = [0.001 * (i + 1) for i in range(120)]
    records = [named(i, stability=0.9 if i % 3 else 0.4) for i in range(120)]
    fit = [i for i in range(119, -1, -1) if RAREST <= shares[i] <= MOST_FREQUENT and i % 3]
    chosen = choose_named_concepts(activity(shares), names(records), decode, vocab_size=6, count=7)
    assert [one.concept for one in chosen] == [fit[round(place * (len(fit) - 1) / 6)] for place in range(7)]
    for one in chosen:
        assert one.share == pytest.approx(shares[one.concept]) and one.strength == pytest.approx(100 * one.share)
    everything = choose_named_concepts(activity(shares), names(records), decode, vocab_size=6, count=1000)
    assert [one.concept for one in everything] == fit
    known = set(fit[5:20])
    some = choose_named_concepts(activity(shares), names(records), decode, vocab_size=6, count=1000, among=known)
    assert [one.concept for one in some] == fit[5:20]


def test_words_are_those_near_the_best_of_the_kind_that_tells_it_apart() -> None:
    records = [named(0, 1.0, tokens="abcabcabc"), named(1, 1.0, "next", "cb"), named(2, 1.0, tokens="�c")]
    chosen = choose_named_concepts(
        activity([0.09, 0.05, 0.01]), names(records, {1: "mine"}), decode, vocab_size=6, count=3
    )
    assert [one.words for one in chosen] == [[0, 1, 2, 0, 1], [2, 1], [2]]
    assert [one.follow for one in chosen] == [[5], [2, 1], [5]]
    assert [one.name for one in chosen] == ["x", "mine", "x"]


def test_too_few_are_refused() -> None:
    records = [named(0, 1.0), named(1, None), named(2, 1.0, tokens="�")]
    with pytest.raises(CocomixError, match="only 1 concepts have distinguishing tokens"):
        choose_named_concepts(activity([0.05] * 3), names(records), decode, vocab_size=6, count=3)
    with pytest.raises(CocomixError, match="raise --concepts"):
        choose_named_concepts(activity([0.05] * 3), names(records), decode, vocab_size=6, count=1)
