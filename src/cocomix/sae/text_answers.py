"""What text itself says about the positions of windows: `TextProperty` answers at tokens, and the probes' figures.

A property is answered after a number of characters of a document; a position takes the answer where its token ends. A
position is not asked at a special token, at a token that ends inside a character, or where the tokenizer's tokens
cannot be located in the text.
"""

from collections.abc import Callable, Iterable, Mapping

import numpy as np

from cocomix.data.document_windows import DocumentWindows
from cocomix.data.shards import TokenShards
from cocomix.data.sources import Document
from cocomix.sae.probing import TEXT_PROPERTIES, TextProperty, probe

NOT_ASKED = -1
KS = (1, 5)
"""Numbers of latents of the k-sparse probes."""


def window_answers(
    shards: TokenShards | DocumentWindows,
    documents: Iterable[Document],
    byte_ends: Callable[[str, np.ndarray], np.ndarray],
    windows: np.ndarray,
    seq_len: int,
    properties: Mapping[str, type[TextProperty]] = TEXT_PROPERTIES,
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Answers at the positions of `windows`.

    Args:
        documents: those of the shards, in their order.
        byte_ends: see `cocomix.data.byte_offsets.ByteOffsets.ends`.
        windows: numbers of windows, ascending.

    Returns:
        answers by property, int8 `[len, seq_len]`: 1, 0, or -1 where it is not asked; and each position's document,
        int64 of the same shape, -1 outside all.
    """
    offsets = shards.places(windows, seq_len)
    owner = np.searchsorted(shards.documents, offsets, side="right") - 1
    answers = {name: np.full(offsets.shape, NOT_ASKED, dtype=np.int8) for name in properties}
    needed = set(np.unique(owner[offsets >= 0]).tolist())
    bounds = shards.text_bounds().tolist()
    for number, document in enumerate(documents):
        if number > max(needed, default=-1):
            break
        if number not in needed:
            continue
        begin, end = bounds[number]
        ends = _character_ends(document.text, byte_ends(document.text, shards.span(begin, end)))
        inside = (owner == number) & (offsets >= begin) & (offsets < end)
        places = ends[offsets[inside] - begin]
        for name, kind in properties.items():
            found = kind().answers(document)
            answers[name][inside] = np.where(places >= 0, found[np.maximum(places, 0)], NOT_ASKED)
    return answers, np.where(offsets >= 0, owner, -1)


def _character_ends(text: str, byte_ends: np.ndarray) -> np.ndarray:
    """Characters read after each token, int64; -1 for a token without a place or that ends inside a character."""
    if text.isascii():
        return byte_ends
    sizes = np.cumsum([0, *(len(character.encode(errors="surrogatepass")) for character in text)])
    places = np.searchsorted(sizes, byte_ends)
    found = (byte_ends >= 0) & (places < len(sizes)) & (sizes[np.minimum(places, len(sizes) - 1)] == byte_ends)
    return np.where(found, places, -1)


def probing_figures(
    answers: Mapping[str, np.ndarray],
    documents: np.ndarray,
    values: np.ndarray,
    ids: np.ndarray,
    hidden: np.ndarray,
    n_latents: int,
) -> dict[str, dict[str, float]]:
    """Accuracies of the k-sparse probes and of the dense one, by property; one without enough documents is left out.

    Args:
        answers, documents: of each position, `[positions]`; see `window_answers`.
        values, ids: its active latents, `[positions, K]`.
        hidden: its hidden state, `[positions, d_model]`.
    """
    figures = {}
    for name, found in answers.items():
        one = probe(values, ids, hidden, found, documents, n_latents=n_latents, ks=KS)
        if one is not None:
            figures[name] = one
    return figures
