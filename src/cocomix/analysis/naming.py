"""Names made from what was counted, and no name where two halves of the text would not give the same one."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from cocomix.analysis.occurrences import ITSELF, NEXT, Occurrences
from cocomix.analysis.record import ConceptName, Passage, TokenScore
from cocomix.analysis.token_statistics import agreement, best_tokens, contrasts
from cocomix.data.shards import TokenShards

FEWEST = 10
"""Positions in each half below which nothing is said about a concept."""
STABLE = 0.5
"""Agreement of the two halves from which a name is given."""
LISTED, IN_A_NAME, OF_THE_BEST = 10, 3, 0.2
"""Tokens kept of each concept; tokens in a name at most; share of the first one's score that the others must reach."""
BEFORE, AFTER = 12, 6
"""Tokens of a passage before and after the one the concept is active at."""


def name_concepts(
    seen: Occurrences, decode: Callable[[Sequence[int]], str], shards: TokenShards | None = None, seq_len: int = 0
) -> list[ConceptName]:
    """A record of each concept, in order.

    Args:
        decode: text of token ids.
        shards: where windows of `seq_len` tokens were read from; without, no passages are given.
    """
    n, texts = seen.n_concepts, _Texts(decode)
    counts = seen.counts()
    tokens, scores, stable, shares = {}, {}, {}, {}
    for kind, (first, second) in seen.halves.items():
        both = first + second
        tokens[kind], scores[kind] = best_tokens(contrasts(both), LISTED)
        met = both.at(np.arange(n)[:, None], tokens[kind].clip(min=0)) * (tokens[kind] >= 0)
        shares[kind] = met / both.concepts().clip(min=1)[:, None]
        stable[kind] = agreement(contrasts(first), contrasts(second))
    by_next = scores[NEXT][:, :IN_A_NAME].sum(-1) > scores[ITSELF][:, :IN_A_NAME].sum(-1)
    passages = [[] for _ in range(n)] if shards is None else _passages(seen, decode, shards, seq_len)
    names = []
    for concept in range(n):
        kind = NEXT if by_next[concept] else ITSELF
        listed = {
            each: [
                TokenScore(token=texts(token), score=round(score, 6))
                for token, score in zip(tokens[each][concept].tolist(), scores[each][concept].tolist(), strict=True)
                if token >= 0
            ]
            for each in (ITSELF, NEXT)
        }
        enough = int(counts[:, concept].min()) >= FEWEST
        stability = float(stable[kind][concept]) if enough else None
        why = _why_not(counts[:, concept], stability)
        words = [] if why else chosen_words(listed[kind])
        in_it = [visible(one.token) in words for one in listed[kind]]
        names.append(
            ConceptName(
                concept=concept,
                name=None if why else ("before " if kind == NEXT else "") + ", ".join(words),
                coverage=None if why else float(shares[kind][concept, : len(in_it)][in_it].sum()),
                source=None if why else "tokens",
                why=why,
                occurrences=int(counts[:, concept].sum()),
                share=int(counts[:, concept].sum()) / max(1, seen.positions),
                stability=stability,
                kind=kind,
                tokens=listed[ITSELF],
                next_tokens=listed[NEXT],
                passages=passages[concept],
            )
        )
    return names


def chosen_words(listed: Sequence[TokenScore]) -> list[str]:
    """The words of a name: the best token, and those beside it that tell nearly as much."""
    kept = [one for one in listed if one.score >= OF_THE_BEST * listed[0].score]
    return list(dict.fromkeys(visible(one.token) for one in kept))[:IN_A_NAME]


def visible(token: str) -> str:
    """A token as it can stand in a line: no outer spaces, what cannot be printed as its escape."""
    bare = token.strip(" ") or token
    return printable(bare).replace(" ", "␣")


def printable(text: str) -> str:
    """`text` with what cannot be printed as its escape."""
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)


def _why_not(counts: np.ndarray, stability: float | None) -> str:
    total = int(counts.sum())
    if not total:
        return "never active in the text seen"
    if stability is None:
        return f"active at only {total} positions of the text seen"
    if stability < STABLE:
        return f"two halves of the text disagree on its tokens (stability {stability:.2f})"
    return ""


class _Texts:
    """Text of single tokens, each decoded once."""

    def __init__(self, decode: Callable[[Sequence[int]], str]) -> None:
        self._decode, self._known = decode, {}

    def __call__(self, token: int) -> str:
        if token not in self._known:
            self._known[token] = self._decode([token])
        return self._known[token]


def _passages(seen: Occurrences, decode: Callable[..., Any], shards: TokenShards, seq_len: int) -> list[list[Passage]]:
    """The strongest passages of each concept."""
    places, strengths = seen.strongest()
    passages: list[list[Passage]] = [[] for _ in range(seen.n_concepts)]
    windows, row = np.unique(places[1], return_inverse=True)
    ids = shards.windows(windows, seq_len)
    for concept, position, line, strength in zip(
        places[0].tolist(), places[2].tolist(), row.tolist(), strengths.tolist(), strict=True
    ):
        before, token, after = around(decode, ids[line].tolist(), position)
        passages[concept].append(Passage(before=before, token=token, after=after, activation=round(strength, 6)))
    return passages


def around(decode: Callable[[Sequence[int]], str], ids: Sequence[int], position: int) -> tuple[str, str, str]:
    """Text before the token at `position` of `ids`, the token, and the text after it."""
    before, after = ids[max(0, position - BEFORE) : position], ids[position + 1 : position + 1 + AFTER]
    return decode(before), decode([ids[position]]), decode(after)
