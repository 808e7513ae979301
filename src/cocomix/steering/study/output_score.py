"""The output score: how much a concept can steer, known before any text is generated.

Amplifying a concept steers only if it makes the concept's own tokens likely next. After Arad, Mueller and Belinkov
("SAEs Are Good for Steering - If You Select the Right Features", 2025, arXiv:2505.20063), with p the distribution of
the token after a prompt, m the largest p of the concept's own tokens, V the vocabulary:

    s(p) = (1 - (number of tokens with p > m) / V) * m

The score is s with the concept amplified at every position of the prompt, less s of the student as it is, mean over
the prompts. It differs from the paper's in three ways. The own tokens are those of the concept's name, found in text,
where the paper takes what the feature's vector promotes by its weights: some mixers have no direct path, and a vector
would be measured by itself. What the student says anyway is taken off, because names of frequent tokens would win. And
there are several prompts, beginnings of held-out text, in place of one English phrase.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel, Field

from cocomix.analysis.concept_index import ConceptStatistics, concept_channel, windows_at_once
from cocomix.analysis.naming import Names
from cocomix.data.shards import TokenShards
from cocomix.evaluation.perplexity import window_subset
from cocomix.model.interventions import Amplify, steered
from cocomix.steering.study.concepts import MOST_FREQUENT, RAREST, ids_by_text, own_tokens

STRENGTH = 4.0
"""Strength of `Amplify`; 2 or more makes the concept the first of TopK."""
PROMPTS, PROMPT_TOKENS = 4, 16
"""Beginnings of held-out windows, and the most tokens of each."""
LETTERS = 4
CANDIDATES = 256
"""Concepts scored at most."""


class OutputScore(BaseModel):
    """What amplifying a concept does to the probability of its own tokens."""

    concept: int
    tokens: list[int] = Field(description="ids of its own tokens, best first")
    score: float = Field(description="`steered` less `unsteered`, -1 to 1")
    steered: float = Field(description="s with the concept amplified, mean over prompts")
    unsteered: float = Field(description="s of the student as it is")


def candidates(
    statistics: ConceptStatistics,
    names: Names,
    decode: Callable[[Sequence[int]], str],
    *,
    vocab_size: int,
    count: int = CANDIDATES,
) -> dict[int, list[int]]:
    """Own tokens of up to `count` concepts, evenly spread over the ranking by how often they are predicted.

    Those that have own tokens and are predicted at RAREST to MOST_FREQUENT of the positions qualify.

    Args:
        decode: text of token ids.
    """
    share = statistics.predicted / max(1, statistics.positions)
    order = np.argsort(-share, kind="stable")
    order = order[(share[order] >= RAREST) & (share[order] <= MOST_FREQUENT)]
    ids = ids_by_text(decode, vocab_size) if names.found is not None and len(order) else {}
    usable = {concept: own for concept in order.tolist() if (own := own_tokens(names.of(concept), ids))}
    ranking = list(usable)
    return {ranking[place]: usable[ranking[place]] for place in window_subset(len(ranking), count)}


def neutral_prompts(shards: TokenShards, seq_len: int) -> torch.Tensor:
    """Beginnings of windows that are evenly spread over held-out shards, int64 `[prompts, seq]`."""
    chosen = window_subset(shards.n_windows(seq_len), PROMPTS)
    return torch.from_numpy(shards.windows(chosen, seq_len)[:, : min(PROMPT_TOKENS, seq_len)])


@torch.no_grad()
def output_scores(
    student: Any,
    prompts: torch.Tensor,
    own: Mapping[int, Sequence[int]],
    *,
    strength: float = STRENGTH,
    progress: Callable[..., Any] | None = None,
) -> list[OutputScore]:
    """Scores of concepts, in the order of `own`. Hooks are set on the student meanwhile: nothing else may run it.

    Args:
        student: one that mixes its concepts in, in evaluation mode.
        prompts: int64 `[prompts, seq]`, without padding.
        own: ids of each concept's own tokens, at least one.
        strength: of `Amplify`.
        progress: called with the concepts done, how many there are, and {}.

    Raises:
        CocomixError: the student has not these concepts, or does not mix them in.
    """
    rows, seq = prompts.shape
    prompts = prompts.to(student.device)
    base = _next_token(student, prompts)
    at_once = max(1, windows_at_once(concept_channel(student).head.num_concepts, seq) // rows)
    concepts, scores = list(own), []
    for start in range(0, len(concepts), at_once):
        chosen = concepts[start : start + at_once]
        with steered(student, [{concept: Amplify(strength)} for concept in chosen]):
            changed = _next_token(student, prompts.repeat(len(chosen), 1)).unflatten(0, (len(chosen), rows))
        for concept, probabilities in zip(chosen, changed, strict=True):
            tokens = list(own[concept])
            with_it, without = (float(_score(each, tokens).mean()) for each in (probabilities, base))
            scores.append(
                OutputScore(concept=concept, tokens=tokens, score=with_it - without, steered=with_it, unsteered=without)
            )
        if progress is not None:
            progress(len(scores), len(concepts), {})
    return scores


def most_steerable(
    scores: Sequence[OutputScore], count: int, decode: Callable[[Sequence[int]], str]
) -> list[OutputScore]:
    """The `count` best scores above 0 at most, best first; of concepts with the same best token only the best one.

    Those whose best token is a word of LETTERS letters or more come before all others: of full stops and prepositions
    a reader sees little, and their probability is the easiest to raise.
    """

    def order(score: OutputScore) -> tuple[bool, float, int]:
        word = sum(map(str.isalpha, decode(score.tokens[:1]))) >= LETTERS
        return not word, -score.score, score.concept

    best: dict[int, OutputScore] = {}
    for score in sorted(scores, key=order):
        if score.score > 0:
            best.setdefault(score.tokens[0], score)
    return list(best.values())[:count]


def _next_token(student: Any, prompts: torch.Tensor) -> torch.Tensor:
    """Probabilities of the token after each prompt, `[rows, vocab]`."""
    logits = student(input_ids=prompts, use_cache=False, logits_to_keep=1).logits[:, -1]
    return logits.to(torch.promote_types(logits.dtype, torch.float32)).softmax(-1)


def _score(probabilities: torch.Tensor, tokens: Sequence[int]) -> torch.Tensor:
    """s of each row of `probabilities` `[rows, vocab]`, `[rows]`."""
    largest = probabilities[:, list(tokens)].amax(-1, keepdim=True)
    better = (probabilities > largest).sum(-1)
    return (1 - better / probabilities.shape[-1]) * largest[:, 0]
