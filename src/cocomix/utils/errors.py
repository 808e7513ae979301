"""Exceptions whose message is for the user.

Raise `CocomixError` with one sentence that names the cause and the fix; the command line prints it without a
traceback and exits with code 2.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

LONGEST = 900
"""Characters of a message."""
_HEAD, _TAIL = 550, 320


class CocomixError(Exception):
    """A problem the user can fix; the message says what is wrong and what to do.

    Messages quote the content of files, and a hostile file may contain line breaks, terminal commands or a million
    digits: such characters are shown as escapes, and the middle of a long message is cut out.
    """

    def __init__(self, message: str) -> None:
        super().__init__(_printable(message))


class ConfigError(CocomixError, ValueError):
    """A value that does not fit; also a ValueError, which users of Transformers expect from a config."""


class Interrupted(Exception):
    """Work was stopped by a signal and has been saved; the message says how to resume.

    Args:
        by_user: whether it was Ctrl-C; a script of several commands then stops, too.
    """

    def __init__(self, message: str, *, by_user: bool = False) -> None:
        super().__init__(message)
        self.by_user = by_user


def reason(error: BaseException) -> str:
    """First line of an error's message, or its type if the message is empty."""
    message = str(error).strip()
    return message.splitlines()[0] if message else type(error).__name__


@contextmanager
def tokenizer_errors(source: Any) -> Iterator[None]:
    """Context in which a failure inside the Tokenizers library is one sentence about the tokenizer `source`.

    Its Rust code panics, for instance, where a regular expression of the tokenizer takes too many steps on a text. A
    panic is not an `Exception`: it would end any program with a traceback. A model without an unknown token raises a
    bare `Exception` for a text that it cannot write.

    Raises:
        CocomixError: the library panicked, or cannot encode the text.
    """
    try:
        yield
    except BaseException as error:
        if type(error) is Exception:
            raise CocomixError(
                f"the tokenizer {source} cannot encode a text ({reason(error)}); use one whose vocabulary covers any"
                " text, or that has an unknown token"
            ) from None
        if type(error).__name__ != "PanicException":
            raise
        raise CocomixError(
            f"the tokenizer {source} failed on a text ({reason(error)}); use another tokenizer, or shorten the text"
        ) from None


def _printable(message: str) -> str:
    message = _cut(message)
    if not message.isprintable():
        message = _cut("".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in message))
    return message


def _cut(message: str) -> str:
    return message if len(message) <= LONGEST else f"{message[:_HEAD]} [...] {message[-_TAIL:]}"
