"""Clients that begin a request and never end it, do not read, or come by hundreds: everybody else is served."""

import asyncio
import http.client
import json
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, StreamingResponse
from starlette.routing import Route

from cocomix.explorer.connections import LimitedProtocol, most_connections
from cocomix.explorer.security import SecurityMiddleware, access_policy
from tests.helpers.explored_run import served, wait_until

HEAD = b"GET /api/number?n=1 HTTP/1.1\r\nHost: 127.0.0.1"
BODY = HEAD.replace(b"GET", b"POST") + b"\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n{"
WHOLE = HEAD + b"\r\n\r\n"


def application() -> Any:
    async def number(request: Request) -> JSONResponse:
        return JSONResponse({"n": int(request.query_params["n"])})

    async def endless(_request: Request) -> StreamingResponse:
        async def parts() -> Any:
            while True:
                await asyncio.sleep(0)
                yield b"x" * 65536

        return StreamingResponse(parts())

    app = Starlette(routes=[Route("/api/number", number, methods=["GET", "POST"]), Route("/api/endless", endless)])
    return SecurityMiddleware(app, access_policy("127.0.0.1", 0, None, no_token=True))


@contextmanager
def server(**limits: Any) -> Iterator[int]:
    with served(application(), type("Limited", (LimitedProtocol,), limits)) as port:
        yield port


def asked(port: int, n: int) -> tuple[int, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    try:
        connection.request("GET", f"/api/number?n={n}")
        answer = connection.getresponse()
        return answer.status, json.load(answer)
    finally:
        connection.close()


def opened(port: int, stack: ExitStack, begun: bytes) -> socket.socket:
    client = stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=20))
    client.sendall(begun)
    return client


def is_closed(client: socket.socket) -> bool:
    client.setblocking(False)
    try:
        return client.recv(1 << 16) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True


@pytest.mark.parametrize("begun", [b"", HEAD, BODY, WHOLE + HEAD, WHOLE + BODY], ids=len)
def test_a_request_must_end_in_time(begun: bytes) -> None:
    with server(head_seconds=0.2, body_seconds=0.2) as port, ExitStack() as stack:
        client = opened(port, stack, begun)
        wait_until(lambda: is_closed(client))
        assert asked(port, 3) == (200, {"n": 3})


def test_a_byte_now_and_then_gives_no_more_time() -> None:
    with server(head_seconds=0.3) as port, ExitStack() as stack:
        client = opened(port, stack, HEAD)
        began = time.monotonic()
        while not is_closed(client):
            time.sleep(0.05)
            client.setblocking(True)
            try:
                client.sendall(b".")
            except OSError:
                break
        assert time.monotonic() - began < 10


def test_who_does_not_read_is_disconnected() -> None:
    with server(read_seconds=0.2) as port, ExitStack() as stack:
        client = opened(port, stack, WHOLE.replace(b"number?n=1", b"endless"))
        time.sleep(1)  # unread, so that all buffers fill up
        with pytest.raises(OSError):
            while client.recv(1 << 20):
                pass
            raise ConnectionError("ended")
        assert asked(port, 3) == (200, {"n": 3})


@pytest.mark.parametrize("begun", [HEAD, BODY])
def test_hundreds_that_wait_shut_nobody_out(begun: bytes) -> None:
    """300 half requests where there is room for 100 connections."""
    with server(total=100, head_seconds=30, body_seconds=30) as port, ExitStack() as stack:
        strangers = [opened(port, stack, begun) for _ in range(300)]
        assert [asked(port, n) for n in range(20)] == [(200, {"n": n}) for n in range(20)]
        assert sum(not is_closed(client) for client in strangers) <= 100


def test_many_readers_beside_them_get_right_answers() -> None:
    with server(half_open=20, grace=0.5, total=800, per_peer=800) as port, ExitStack() as stack:
        strangers = [opened(port, stack, HEAD) for _ in range(150)]
        with ThreadPoolExecutor(60) as clients:
            answers = [clients.submit(asked, port, n) for n in range(60)]
            strangers += [opened(port, stack, BODY) for _ in range(150)]
            assert [answer.result() for answer in answers] == [(200, {"n": n}) for n in range(60)]


def test_of_one_peers_waiting_connections_the_oldest_are_closed() -> None:
    with server(half_open=5, grace=0.1, total=500) as port, ExitStack() as stack:
        waiting = [opened(port, stack, HEAD) for _ in range(20)]
        assert asked(port, 1) == (200, {"n": 1}) and not any(map(is_closed, waiting))  # they had no second yet
        time.sleep(0.3)
        assert asked(port, 2) == (200, {"n": 2})
        wait_until(lambda: sum(map(is_closed, waiting)) == 15)
        assert not any(map(is_closed, waiting[15:]))


def test_a_newcomer_is_turned_away_only_where_everybody_is_being_answered() -> None:
    with server(total=3, read_seconds=30) as port, ExitStack() as stack:
        for _ in range(3):
            busy = opened(port, stack, WHOLE.replace(b"number?n=1", b"endless"))
            assert busy.recv(12) == b"HTTP/1.1 200"
        status, answer = asked(port, 1)
        assert status == 503 and "try again" in answer["error"]


def test_connections_leave_descriptors_for_files(monkeypatch: pytest.MonkeyPatch) -> None:
    for limit, room in ((256, 160), (64, 16), (100_000, 1024), (-1, 1024)):
        monkeypatch.setattr("resource.getrlimit", lambda _, limit=limit: (limit, limit))
        assert most_connections() == room
