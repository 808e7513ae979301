"""What stands before every route: refuses what no page of ours would send, and adds the headers that bind browsers.

Pages of other sites must not be able to ask anything, whatever a browser lets them try: requests carry the name they
were sent to (Host), the page they come from (Origin, Sec-Fetch-Site) and a body type (JSON) that such pages cannot
choose freely.
"""

import json
from collections.abc import Mapping
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qs

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import HTMLResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cocomix.explorer.access import Access

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
