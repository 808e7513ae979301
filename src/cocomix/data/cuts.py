"""Where a long text may be cut without changing a byte-level BPE's tokens."""

import re
from collections.abc import Iterator

_PLACE = re.compile(r"\S(?=[ \n\r\t])")


def pieces(text: str, at_least: int) -> Iterator[str]:
    """Parts of `text`, each but the last of `at_least` characters up to the next place to cut.

    With GPT-2's splitting rule no pre-token contains whitespace after another character, and what is left of such a
    place is matched without lookahead beyond it.
    """
    start = 0
    while len(text) - start > at_least and (place := _PLACE.search(text, start + at_least - 1)) is not None:
        yield text[start : place.end()]
        start = place.end()
    yield text[start:]


def bounded_pieces(text: str, at_least: int) -> Iterator[str]:
    """`pieces`; one of twice the length or more, which has no place to cut, in parts of `at_least` characters."""
    for piece in pieces(text, at_least):
        step = at_least if len(piece) >= 2 * at_least else len(piece) or 1
        for start in range(0, len(piece), step):
            yield piece[start : start + step]
