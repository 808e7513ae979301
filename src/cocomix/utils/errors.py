"""The exceptions a user is meant to read.

Raise `CocomixError` with one sentence naming the cause and the mend; the command line prints it without a
traceback and exits with code 2.
"""

LONGEST = 900
"""Characters of a message."""
_HEAD, _TAIL = 550, 320


class CocomixError(Exception):
    """A problem the user can fix; the message says what is wrong and what to do.

    Messages quote what files hold, and a hostile one holds line ends, a terminal's commands or a million digits: such
    characters are shown by their codes, and of what is too long the middle is left out.
    """

    def __init__(self, message: str) -> None:
        super().__init__(_to_be_shown(message))


class ConfigError(CocomixError, ValueError):
    """A value that does not fit; also a ValueError, which Transformers' users expect of a config."""


class Interrupted(Exception):
    """Work was asked to stop and has been saved; the message says how to go on.

    Args:
        by_user: whether it was Ctrl-C, so that a script of several commands stops, too.
    """

    def __init__(self, message: str, *, by_user: bool = False) -> None:
        super().__init__(message)
        self.by_user = by_user


def reason(error: BaseException) -> str:
    """First line of an error, or its type where it says nothing."""
    said = str(error).strip()
    return said.splitlines()[0] if said else type(error).__name__


def _to_be_shown(message: str) -> str:
    message = _cut(message)
    if not message.isprintable():
        message = _cut("".join(one if one.isprintable() else ascii(one)[1:-1] for one in message))
    return message


def _cut(message: str) -> str:
    return message if len(message) <= LONGEST else f"{message[:_HEAD]} [...] {message[-_TAIL:]}"
