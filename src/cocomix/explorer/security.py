"""What stands before every route: refuses what no page of ours would send, and adds the headers that bind browsers.

Pages of other sites must not be able to ask anything, whatever a browser lets them try: requests carry the name they
were sent to (Host), the page they come from (Origin, Sec-Fetch-Site) and a body type (JSON) that such pages cannot
choose freely.
"""

import hashlib
import hmac
import ipaddress
import json
import re
import secrets
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http.cookies import CookieError, SimpleCookie
from typing import TypeVar
from urllib.parse import parse_qs

import anyio.to_thread
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import HTMLResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cocomix.utils.errors import CocomixError

# Problems whose status a browser is told apart from 400.


class Refusal(CocomixError):
    """A problem of the asking, with its own HTTP status."""

    status = 400


class NotThere(Refusal):
    """What was asked for does not exist."""

    status = 404


class Busy(Refusal):
    """As many as can be served at a time are being served."""

    status = 429


# How much is done at a time: work in a few threads, in the order it came, and a few streams.

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


# Who may ask: host names a server answers to, and a token where it is not on loopback alone.

SHORTEST = 16
"""Characters of a token; one of ours has 43."""


@dataclass(frozen=True)
class Access:
    """Rules of one server.

    Args:
        hosts: names it answers to, lower case; a page of another name that was made to point here is refused.
        addresses: whether it answers to any bare IP address, too: to such no other page's name can point.
        token: what a browser must have been given; None: nothing.
        cookie: the cookie that keeps it. Cookies do not know ports, so servers side by side need names of their own.
    """

    hosts: frozenset[str]
    addresses: bool = False
    token: str | None = None
    cookie: str = "cocomix"

    def knows(self, host: str) -> bool:
        """Whether a Host header's value names this server; the port may be a tunnel's."""
        name = re.sub(r":\d+$", "", host.strip()).lower().rstrip(".")
        return name in self.hosts or (self.addresses and _address(name) is not None)

    def opened_by(self, token: str) -> bool:
        """Whether `token` is the one; takes as long either way."""
        return self.token is not None and _same(token, self.token)

    def remembers(self, cookie: str) -> bool:
        """Whether a cookie's value is the one given for the token."""
        return self.token is None or _same(cookie, self.ticket)

    @property
    def ticket(self) -> str:
        """Value of the cookie: proof that its holder had the token, without the token."""
        return hashlib.sha256(f"cocomix explore {self.token}".encode()).hexdigest()


def access_for(host: str, port: int, token: str | None) -> Access:
    """Rules of a server bound to `host`: a token on anything but loopback, made here if not given.

    Raises:
        CocomixError: a token that is too short, or would not survive in an address.
    """
    if token is not None and (len(token) < SHORTEST or not re.fullmatch(r"[A-Za-z0-9._~-]+", token)):
        raise CocomixError(
            f"the token must be {SHORTEST} or more letters, digits and . _ ~ -; give another, or leave --token out"
        )
    if token is None and not is_loopback(host):
        token = secrets.token_urlsafe(32)
    address = _address(host)
    everywhere = address is not None and address.is_unspecified
    own = {socket.gethostname(), socket.getfqdn()} if everywhere else {_bracketed(host)}
    hosts = {"localhost", "127.0.0.1", "[::1]", *(name.lower() for name in own)}
    return Access(frozenset(hosts), addresses=everywhere, token=token, cookie=f"cocomix-{port}")


def is_loopback(host: str) -> bool:
    """Whether only this machine can come there."""
    address = _address(host)
    return host.lower() == "localhost" if address is None else address.is_loopback


def url_host(host: str) -> str:
    """`host` as a person can type it: a server bound to all addresses by this machine's name."""
    address = _address(host)
    return socket.gethostname() if address is not None and address.is_unspecified else _bracketed(host)


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host and not host.startswith("[") else host


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return None


def _same(given: str, wanted: str) -> bool:
    return hmac.compare_digest(given.encode("utf-8", "surrogatepass"), wanted.encode())


LARGEST = 1 << 20
"""Bytes of a body."""
HEADERS: Mapping[str, str] = {
    "Content-Security-Policy": (
        "default-src 'self'; base-uri 'none'; form-action 'none'; object-src 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}


class Guard:
    """ASGI middleware around the whole application; bodies are read here, and so they come whole or not at all."""

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self.app, self.access = app, access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return
        headers = Headers(scope=scope)

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                sent = MutableHeaders(scope=message)
                sent.update(HEADERS)
                sent.setdefault("Cache-Control", "no-store")
            await send(message)

        refusal = self._refusal(scope, headers)
        if refusal is not None:
            await refusal(scope, receive, guarded)
            return
        body = await _body(receive)
        if body is None:
            await too_large()(scope, receive, guarded)
        else:
            await self.app(scope, _first(body, receive), guarded)

    def _refusal(self, scope: Scope, headers: Headers) -> Response | None:
        """The answer to what must not go further; None: it may."""
        host = headers.get("host", "")
        if not self.access.knows(host):
            return problem(421, f"this server is not called {host!r}; open the address that it printed")
        for check in (_of_another_page, _of_another_kind):
            refused = check(scope, headers, host)
            if refused is not None:
                return refused
        return self._locked(scope, headers)

    def _locked(self, scope: Scope, headers: Headers) -> Response | None:
        """Asks for the token, or takes it; None where there is nothing to ask."""
        access = self.access
        given = parse_qs(scope["query_string"].decode("latin-1")).get("token", [])
        if access.token is not None and scope["path"] == "/" and given:
            return _welcome(access) if access.opened_by(given[0]) else _locked_out("this token is not the server's")
        return None if access.remembers(_cookie(headers, access.cookie)) else _locked_out("this server wants a token")


def problem(status: int, sentence: str) -> Response:
    """A problem as every client gets it."""
    return Response(json.dumps({"error": sentence}), status, media_type="application/json")


def too_large() -> Response:
    """To a body over `LARGEST`."""
    return problem(413, f"the request is larger than {LARGEST >> 20} MiB; send a shorter text")


def _of_another_page(scope: Scope, headers: Headers, host: str) -> Response | None:
    """Refuses what another site's page sent; a link that leads here may be followed."""
    origin = headers.get("origin")
    foreign = origin is not None and origin.lower() not in {f"{kind}://{host.lower()}" for kind in ("http", "https")}
    followed = scope["method"] == "GET" and scope["path"] == "/" and headers.get("sec-fetch-mode") == "navigate"
    site = headers.get("sec-fetch-site", "none")
    if foreign or (site not in ("same-origin", "none") and not followed):
        return problem(403, "the request came from another site's page; open the explorer's own address instead")
    return None


def _of_another_kind(scope: Scope, headers: Headers, host: str) -> Response | None:
    """Refuses bodies that are no JSON, and those that say that they are too large."""
    if scope["method"] != "POST":
        return None
    if headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        return problem(415, "the body is not marked as JSON; send it with Content-Type: application/json")
    length = headers.get("content-length", "0")
    if not length.isascii() or not length.isdecimal() or int(length[:20]) > LARGEST:
        return too_large()
    return None


async def _body(receive: Receive) -> list[Message] | None:
    """All messages of a body; None where it is larger than it said."""
    messages: list[Message] = []
    total = 0
    while not messages or messages[-1].get("more_body", False):
        messages.append(await receive())
        total += len(messages[-1].get("body", b""))
        if total > LARGEST:
            return None
    return messages


def _first(messages: list[Message], receive: Receive) -> Receive:
    """`receive`, after `messages`."""

    async def following() -> Message:
        return messages.pop(0) if messages else await receive()

    return following


def _welcome(access: Access) -> Response:
    """Keeps the token in a cookie and leads to the page without it in the address.

    By a page of ours, not by a redirect: after a link on another site, browsers hold a Strict cookie back from that.
    """
    answer = HTMLResponse('<!doctype html><title>cocomix</title><meta http-equiv="refresh" content="0; url=/">')
    answer.set_cookie(access.cookie, access.ticket, httponly=True, samesite="strict", path="/")
    return answer


def _locked_out(cause: str) -> Response:
    return problem(401, f"{cause}; open the whole address that `cocomix explore` printed, with ?token=")


def _cookie(headers: Headers, name: str) -> str:
    """A cookie's value; empty where there is none."""
    found: SimpleCookie = SimpleCookie()
    try:
        found.load(headers.get("cookie", ""))
    except CookieError:
        return ""
    return found[name].value if name in found else ""
