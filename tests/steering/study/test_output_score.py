"""Output scores against one pass for each concept and prompt, sorted by hand."""

from pathlib import Path

import numpy as np
import pytest
import torch

from cocomix.analysis import Names
from cocomix.model import CoCoMixForCausalLM
from cocomix.steering.study import output_score
from cocomix.steering.study.concepts import MOST_FREQUENT, RAREST
from cocomix.steering.study.output_score import (
    PROMPT_TOKENS,
    OutputScore,
    candidates,
    most_steerable,
    neutral_prompts,
    output_scores,
)
from cocomix.utils.errors import CocomixError
from tests.helpers.small_index import SEQ, VOCAB, WINDOWS, C, corpus, decode, names, statistics, student

OWN = {concept: [(3 * concept + place) % VOCAB for place in range(1 + concept % 4)] for concept in range(C)}


@torch.no_grad()
def by_hand(model: CoCoMixForCausalLM, prompts: torch.Tensor, concept: int | None, own: list[int]) -> float:
    """s, mean over prompts, of the student with `concept` raised by 4 times the largest logit magnitude."""

    def raise_it(_module, _inputs, logits):
        changed = logits.clone()
        if concept is not None:
            for row in range(len(logits)):
                for position in range(logits.shape[1]):
                    changed[row, position, concept] += 4 * float(logits[row, position].abs().max())
        return changed

    values = []
    for prompt in prompts:
        handle = model.channel.head.proj.register_forward_hook(raise_it)
        logits = model(prompt[None]).logits[0, -1]
        handle.remove()
        p = (logits.exp() / logits.exp().sum()).tolist()
        ranking = sorted(range(VOCAB), key=lambda token: -p[token])
        best = min(own, key=ranking.index)
        values.append((1 - ranking.index(best) / VOCAB) * p[best])
    return sum(values) / len(values)


@pytest.mark.parametrize("logit_bytes", [1, 1 << 26])
@pytest.mark.parametrize("mixer", ["interleave", "add", "keys_values"])
def test_scores_are_those_of_passes_alone(mixer: str, logit_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cocomix.analysis.concept_index.LOGIT_BYTES", logit_bytes)
    model, done = student(mixer), []
    prompts = torch.from_numpy(np.random.default_rng(0).integers(1, VOCAB, (3, 7)))
    own = dict(list(OWN.items())[::2])
    found = output_scores(model, prompts, own, progress=lambda *step: done.append(step[:2]))
    assert [(one.concept, one.tokens) for one in found] == list(own.items()) and done[-1] == (len(own), len(own))
    for one in found:
        without, with_it = (by_hand(model, prompts, which, one.tokens) for which in (None, one.concept))
        assert (one.steered, one.unsteered) == pytest.approx((with_it, without), abs=1e-8)
        assert one.score == one.steered - one.unsteered
    assert max(abs(one.score) for one in found) > 1e-2
    assert not model.channel.head.proj._forward_hooks


def test_concepts_that_cannot_be_steered_are_refused() -> None:
    prompts = torch.ones(1, 4, dtype=torch.int64)
    with pytest.raises(CocomixError, match="does not mix them in"):
        output_scores(student("none"), prompts, {0: [1]})
    with pytest.raises(CocomixError, match=f"outside the model's {C} concepts"):
        output_scores(student(), prompts, {C: [1]})
    assert output_scores(student(), prompts, {}) == []


def test_candidates_are_spread_over_those_that_qualify(tmp_path: Path) -> None:
    seen, known = statistics(student(), corpus(tmp_path / "s")), names()
    assert known.found is not None
    for one in known.found.concepts:  # half of them have own tokens: of the vocabulary, and agreed on
        one.stability = 0.9 if one.concept % 2 else 0.2
        one.tokens[0].token = f" w{one.concept}"
    share = seen.predicted / seen.positions
    fit = [
        one for one in np.argsort(-share, kind="stable").tolist() if RAREST <= share[one] <= MOST_FREQUENT and one % 2
    ]
    assert 2 < len(fit) < C // 2
    everything = candidates(seen, known, decode, vocab_size=VOCAB)
    assert everything == {one: [one] for one in fit} and list(everything) == fit
    assert list(candidates(seen, known, decode, vocab_size=VOCAB, count=2)) == [fit[0], fit[-1]]
    assert candidates(seen, Names(None, {}), decode, vocab_size=VOCAB) == {}


def test_prompts_are_beginnings_of_held_out_windows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shards = corpus(tmp_path / "s")
    found = neutral_prompts(shards, SEQ)
    assert found.shape == (output_score.PROMPTS, min(PROMPT_TOKENS, SEQ))
    assert found.tolist() == shards.windows([0, 13, 26, WINDOWS - 1], SEQ).tolist()
    monkeypatch.setattr(output_score, "PROMPT_TOKENS", 5)
    assert neutral_prompts(shards, SEQ).tolist() == found[:, :5].tolist()


def test_the_best_are_different_and_above_zero() -> None:
    def made(concept: int, score: float, token: int) -> OutputScore:
        return OutputScore(concept=concept, tokens=[token, 9], score=score, steered=score, unsteered=0)

    scores = [made(0, 0.1, 1), made(1, 0.5, 2), made(2, 0.5, 3), made(3, 0.4, 2), made(4, 0.0, 4), made(5, -0.2, 5)]
    assert [one.concept for one in most_steerable(scores, 5, decode)] == [1, 2, 0]
    assert [one.concept for one in most_steerable(scores, 2, decode)] == [1, 2]
    texts = {1: " debt", 2: ",", 3: " pay", 4: " none", 5: " less"}
    words_first = most_steerable(scores, 5, lambda ids: texts[ids[0]])
    assert [one.concept for one in words_first] == [0, 1, 2]
