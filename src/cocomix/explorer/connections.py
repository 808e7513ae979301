"""How long a client may keep a connection waiting, and how many connections there may be.

uvicorn waits for the rest of a request for ever, and a process has few file descriptors: some hundred connections that
begin a request and never end it would shut out everybody else, before any token is asked for. `LimitedProtocol` is
uvicorn's HTTP protocol with

- deadlines for the head of a request, for its body, and for a client that does not read its answer;
- room for newcomers: where there are too many connections, of one peer or altogether, the longest waiting one is
  closed. A waiting connection is one without a complete request, so nobody loses an answer. A newcomer is turned away
  only if every connection is being answered.

Many users can be one peer: behind a reverse proxy, and on one machine. So the limits per peer are wide, and beyond
`half_open` waiting connections of one peer only those are closed that had a second to send their request.
"""

import asyncio
import resource
import socket
import time
from collections.abc import Iterable
from typing import Any

import h11
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

ACCEPTED, QUEUED = 16, 1024
"""Connections accepted before the requests of earlier ones are read, and those that the system keeps until then."""
OTHER_FILES = 96
"""File descriptors left for everything that is not a connection."""
REFUSAL = (
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nConnection: close\r\nRetry-After: 1\r\n\r\n"
    b'{"error": "the server has too many connections; try again in a moment"}'
)


def most_connections() -> int:
    """Connections that the process's limit of open files leaves room for."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return 1024 if limit == resource.RLIM_INFINITY else max(16, min(1024, limit - OTHER_FILES))


class LimitedProtocol(H11Protocol):
    """One connection.

    Attributes:
        head_seconds: for the head of a request, from the connection or from its first byte.
        body_seconds: for the body that follows.
        read_seconds: for reading on, once the answer has filled the buffers.
        half_open: waiting connections of one peer, beyond which those that had their `grace` (seconds) are closed.
        per_peer: the most connections of one peer.
        total: the most connections; None: as many as there are file descriptors for.
    """

    head_seconds, body_seconds, read_seconds = 10.0, 30.0, 60.0
    half_open, grace, per_peer = 64, 1.0, 512
    total: int | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """A client has connected: make room for it, or turn it away."""
        self._since, self._phase = time.monotonic(), "head"
        self._deadline: asyncio.TimerHandle | None = None
        self._reading: asyncio.TimerHandle | None = None
        super().connection_made(transport)
        has_room = self._make_room()
        self._deadline = self.loop.call_later(self.head_seconds if has_room else self.grace, self.drop)
        if not has_room:  # closed a little later: data that nobody reads would make the system take the answer back
            self._phase = "refused"
            transport.write(REFUSAL)
            transport.write_eof()

    def data_received(self, data: bytes) -> None:
        """A part of a request has come."""
        if self._phase != "refused":
            super().data_received(data)

    def handle_events(self) -> None:
        """A part of a request has come, or an answer is sent: the deadline is that of what is awaited next."""
        super().handle_events()
        phase = self._awaited()
        if phase == self._phase:
            return
        self._since, self._phase = time.monotonic(), phase
        if self._deadline is not None:
            self._deadline.cancel()
        seconds = {"head": self.head_seconds, "body": self.body_seconds}.get(phase)
        self._deadline = None if seconds is None else self.loop.call_later(seconds, self.drop)

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is closed."""
        for timer in (self._deadline, self._reading):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """The client does not read as fast as it is written to."""
        self._reading = self._reading or self.loop.call_later(self.read_seconds, self.drop)
        super().pause_writing()

    def resume_writing(self) -> None:
        """It has read on."""
        if self._reading is not None:
            self._reading.cancel()
            self._reading = None
        super().resume_writing()

    @property
    def is_waiting(self) -> bool:
        """Whether it has no complete request that is being answered."""
        return self._phase != "answer"

    @property
    def peer(self) -> str:
        """Address of the client, without its port."""
        return self.client[0] if self.client else ""

    def drop(self) -> None:
        """Close the connection at once."""
        self.connections.discard(self)
        self.transport.abort()

    def _awaited(self) -> str:
        """What comes next: the `head` of a request, its `body`, or the `answer`."""
        state = self.conn.their_state
        if state is h11.IDLE:
            return "head"
        return "body" if state is h11.SEND_BODY else "answer"

    def _make_room(self) -> bool:
        """Close waiting connections until this one has its place; False if there is none."""
        others = [other for other in self.connections if isinstance(other, LimitedProtocol) and other is not self]
        peers = [other for other in others if other.peer == self.peer]
        waiting = _longest_waiting(peers)
        patient = [other for other in waiting if time.monotonic() - other._since > self.grace]
        for other in patient[: max(0, len(waiting) - self.half_open)]:
            other.drop()
        total = most_connections() if self.total is None else self.total
        for group, limit in ((peers, min(self.per_peer, total)), (others, total)):
            present = [other for other in group if other in self.connections]
            if len(present) >= limit:
                candidates = _longest_waiting(present)
                if not candidates:
                    return False
                candidates[0].drop()
        return True


def _longest_waiting(connections: Iterable[Any]) -> list[LimitedProtocol]:
    return sorted((one for one in connections if one.is_waiting), key=lambda one: one._since)


class ExplorerServer(uvicorn.Server):
    """uvicorn, with limits on connections.

    asyncio accepts as many connections at a time as the system keeps for it, before it reads from any. A flood would
    then push out whoever came just before it, so it is told a smaller number than the system.
    """

    def __init__(self, app: ASGIApp, protocol: type[LimitedProtocol] = LimitedProtocol) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http=protocol,
                ws="none",
                backlog=ACCEPTED,
                log_level="warning",
                access_log=False,
                server_header=False,
                proxy_headers=False,
                timeout_graceful_shutdown=1,
            )
        )

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start to listen."""
        await super().startup(sockets)
        for listening in sockets or ():
            listening.listen(QUEUED)
