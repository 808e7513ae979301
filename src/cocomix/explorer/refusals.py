"""Problems whose status a browser is told apart from 400."""

from cocomix.utils.errors import CocomixError


class Refusal(CocomixError):
    """A problem of the asking, with its own HTTP status."""

    status = 400


class NotThere(Refusal):
    """What was asked for does not exist."""

    status = 404


class Busy(Refusal):
    """As many as can be served at a time are being served."""

    status = 429
