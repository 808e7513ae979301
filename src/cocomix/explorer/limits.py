"""How much is done at a time: work in a few threads, in the order it came, and a few streams."""

from collections.abc import Callable
from typing import TypeVar

import anyio.to_thread

from cocomix.explorer.refusals import Busy

THREADS, STREAMS = 8, 4
"""Models run one at a time each; further threads let quick questions pass a slow one of another model."""

Result = TypeVar("Result")


class Limits:
    """Threads and streams of one server.

    Args:
        threads: pieces of work at a time; further ones wait.
        streams: streams at a time; a further one is refused.
    """

    def __init__(self, *, threads: int = THREADS, streams: int = STREAMS) -> None:
        self._threads = anyio.CapacityLimiter(threads)
        self._streams, self._running = streams, 0

    async def run(self, work: Callable[[], Result]) -> Result:
        """The result of `work`, done in a thread."""
        return await anyio.to_thread.run_sync(work, limiter=self._threads)

    def take_stream(self) -> None:
        """Take a place for a stream, until `leave_stream`; in the event loop only.

        Raises:
            Busy: there is none.
        """
        if self._running >= self._streams:
            raise Busy(f"{self._streams} texts are being written already; wait until one is done, or stop one")
        self._running += 1

    def leave_stream(self) -> None:
        """Give the place back."""
        self._running -= 1
