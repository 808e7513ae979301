"""The exceptions a user is meant to read.

Raise `CocomixError` with one sentence naming the cause and the mend; the command line prints it without a
traceback and exits with code 2.
"""


class CocomixError(Exception):
    """A problem the user can fix; the message says what is wrong and what to do."""


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
