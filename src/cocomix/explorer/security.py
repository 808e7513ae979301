"""Who may use the server: a middleware around the whole application.

The explorer runs on the user's machine, so any web page the user visits can send requests to it. `SecurityMiddleware`
answers only what the explorer's own page sends. In order, it checks:

1. the Host header, with Starlette's `TrustedHostMiddleware`: no other name may be pointed at this server (421);
2. Origin and Sec-Fetch-Site: no other site's page may send requests, but a link to / may be followed (403);
3. Content-Type: bodies must be JSON, which other sites' pages cannot send without asking first (415);
4. the token, for everything but the page's own files, which are the same for everybody (401);
5. the size of the body (413).

Anybody who has an account on this machine can connect to it, too, and a loopback address keeps nobody of them out; so
there is a token by default. It stands in the fragment of the opened address, which browsers send to no server and put
into no Referer. The page exchanges it for a cookie by a request to `SESSION` and removes it from the address.

Every answer carries headers that forbid browsers to run or embed anything foreign.
"""

import hashlib
import hmac
import ipaddress
import re
import secrets
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http.cookies import CookieError, SimpleCookie

from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cocomix.explorer.schemas import error_response
from cocomix.utils.errors import CocomixError
from cocomix.utils.files import parse_json

MIN_TOKEN_LENGTH = 16
"""Characters of a token that the user chooses; a generated one has 43."""
MAX_BODY_BYTES = 1 << 20
SESSION = "/api/session"
"""Where the page exchanges the token for the cookie."""
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

# --- The rules of one server ---


@dataclass(frozen=True)
class AccessPolicy:
    """Which host names and which token a server accepts.

    Args:
        hosts: names it answers to, lower case. A page of another name that was pointed at this address is refused.
        any_address: whether it also answers to any bare IP address. No other site's name can be one.
        token: what a browser must present once; None: nothing.
        cookie_name: the cookie that remembers it. Cookies are shared by all ports, so each server needs its own name.
        root_path: path below which a reverse proxy shows the explorer, `/prefix`; empty: /. The proxy may pass it on
            or strip it.
    """

    hosts: frozenset[str]
    any_address: bool = False
    token: str | None = None
    cookie_name: str = "cocomix"
    root_path: str = ""

    async def accepts_host(self, scope: Scope) -> bool:
        """Whether the Host header names this server; the port may be a tunnel's.

        `TrustedHostMiddleware` decides about names. It answers 400 in plain text and has no rule for "any IP address",
        so it runs around an app that only notes that it was reached; the refusal is then this module's own.
        """
        host = Headers(scope=scope).get("host", "")
        if self.any_address and _ip_address(re.sub(r":\d+$", "", host)) is not None:
            return True
        reached = False

        async def note(_scope: Scope, _receive: Receive, _send: Send) -> None:
            nonlocal reached
            reached = True

        async def discard(_message: Message) -> None:
            pass

        names = [*self.hosts, *(f"{name}." for name in self.hosts)]  # a full domain name may end in a dot
        await TrustedHostMiddleware(note, names, www_redirect=False)(scope, _nothing, discard)
        return reached

    def accepts_token(self, token: str) -> bool:
        """Whether this is the token, compared in constant time."""
        return self.token is not None and _equal(token, self.token)

    def accepts_cookie(self, cookie: str) -> bool:
        """Whether this is the cookie's value, or no token is needed."""
        return self.token is None or _equal(cookie, self.cookie_value)

    @property
    def cookie_value(self) -> str:
        """A hash of the token: it proves that the browser had the token, but does not contain it."""
        return hashlib.sha256(f"cocomix explore {self.token}".encode()).hexdigest()


def access_policy(
    host: str,
    port: int,
    token: str | None,
    *,
    no_token: bool = False,
    allow_hosts: Sequence[str] = (),
    root_path: str = "",
) -> AccessPolicy:
    """The policy of a server bound to `host`; a token is generated unless one is given.

    Args:
        no_token: ask for none; only where no other machine can connect.
        allow_hosts: further names it answers to: those under which a reverse proxy shows it.
        root_path: as in `AccessPolicy`.

    Raises:
        CocomixError: the token is too short or has characters that an address cannot carry, a name is none, or
            there must be a token.
    """
    if token is not None and (len(token) < MIN_TOKEN_LENGTH or not re.fullmatch(r"[A-Za-z0-9._~-]+", token)):
        raise CocomixError(
            f"the token must be {MIN_TOKEN_LENGTH} or more letters, digits and . _ ~ -; give another, or leave --token"
            " out"
        )
    for name in allow_hosts:
        if not re.fullmatch(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*\.?", name) and _ip_address(name) is None:
            raise CocomixError(f"{name!r} is no host name; give --allow-host one without http:// and port")
    if root_path and not re.fullmatch(r"(/[A-Za-z0-9._~-]+)+/?", root_path):
        raise CocomixError(f"{root_path!r} is no path of an address; give --root-path one such as /cocomix")
    if no_token and (not is_loopback(host) or allow_hosts):
        raise CocomixError("other machines can connect, so there must be a token; leave --no-token out")
    if no_token and token is not None:
        raise CocomixError("there is a token and --no-token; leave one of them out")
    if token is None and not no_token:
        token = secrets.token_urlsafe(32)
    address = _ip_address(host)
    all_addresses = address is not None and address.is_unspecified
    names = {socket.gethostname(), socket.getfqdn()} if all_addresses else {_bracketed(host)}
    names |= {_bracketed(name) for name in allow_hosts}
    hosts = {"localhost", "127.0.0.1", "[::1]", *(name.lower().rstrip(".") for name in names)}
    return AccessPolicy(
        frozenset(hosts),
        any_address=all_addresses,
        token=token,
        cookie_name=f"cocomix-{port}",
        root_path=root_path.rstrip("/"),
    )


def is_loopback(host: str) -> bool:
    """Whether only this machine can connect to `host`."""
    address = _ip_address(host)
    return host.lower() == "localhost" if address is None else address.is_loopback


def url_host(host: str) -> str:
    """`host` as it stands in a URL; for a server bound to all addresses, this machine's name."""
    address = _ip_address(host)
    return socket.gethostname() if address is not None and address.is_unspecified else _bracketed(host)


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host and not host.startswith("[") else host


def _ip_address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return None


def _equal(text: str, secret: str) -> bool:
    return hmac.compare_digest(text.encode("utf-8", "surrogatepass"), secret.encode())


async def _nothing() -> Message:
    return {"type": "http.disconnect"}


# --- The middleware ---


class SecurityMiddleware:
    """Refuses requests that the explorer's own page would not send, and adds `HEADERS` to every answer.

    A body is read here and passed on whole, so that its size is known before the application sees any of it.
    """

    def __init__(self, app: ASGIApp, policy: AccessPolicy) -> None:
        self.app, self.policy = app, policy

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.update(HEADERS)
                headers.setdefault("Cache-Control", "no-store")
            await send(message)

        scope = self._below_root(scope)
        refusal = await self._refusal(scope)
        if refusal is not None:
            await refusal(scope, receive, send_with_headers)
            return
        body = await _read_body(receive)
        if body is None:
            await _too_large()(scope, receive, send_with_headers)
        elif body[-1]["type"] == "http.disconnect":
            return  # it left, or was too slow, before the request was complete
        elif scope["path"] == SESSION:
            await self._session(scope, body)(scope, receive, send_with_headers)
        else:
            await self.app(scope, _replay(body, receive), send_with_headers)

    def _below_root(self, scope: Scope) -> Scope:
        """The scope with a path that begins below `root_path`, where a proxy has passed it on."""
        root, path = self.policy.root_path, scope["path"]
        return dict(scope, path=path.removeprefix(root)) if root and path.startswith(f"{root}/") else scope

    async def _refusal(self, scope: Scope) -> Response | None:
        """The answer to a request that is refused; None for one that may pass."""
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        if not await self.policy.accepts_host(scope):
            return error_response(421, f"this server is not called {host!r}; open the address that it printed")
        if self.policy.root_path and scope["path"] == self.policy.root_path:
            return RedirectResponse(f"{self.policy.root_path}/")
        return (
            _check_origin(scope, headers, host) or _check_body_type(scope, headers) or self._check_token(scope, headers)
        )

    def _check_token(self, scope: Scope, headers: Headers) -> Response | None:
        """Refuses a browser without the cookie; the page's files need none, because the page asks for it."""
        path: str = scope["path"]
        if path in ("/", SESSION) or path.startswith("/page/"):
            return None
        if self.policy.accepts_cookie(_cookie(headers, self.policy.cookie_name)):
            return None
        return _token_needed("this server needs a token")

    def _session(self, scope: Scope, body: list[Message]) -> Response:
        """Exchanges the token for the cookie."""
        policy, headers = self.policy, Headers(scope=scope)
        if scope["method"] != "POST":
            return error_response(405, "the token is exchanged with POST; open the address that the server printed")
        try:
            request = parse_json(b"".join(message.get("body", b"") for message in body))
        except ValueError:
            request = None
        token = request.get("token") if isinstance(request, dict) else None
        if policy.token is not None and not (isinstance(token, str) and policy.accepts_token(token)):
            return _token_needed("this token is wrong")
        response = JSONResponse({"signed_in": True})
        if policy.token is not None:
            response.set_cookie(
                policy.cookie_name,
                policy.cookie_value,
                httponly=True,
                samesite="strict",
                secure=headers.get("origin", "").lower().startswith("https://"),
                path=f"{policy.root_path}/",
            )
        return response


def _check_origin(scope: Scope, headers: Headers, host: str) -> Response | None:
    """Refuses requests of another site's page; a link that leads to / may be followed."""
    origin = headers.get("origin")
    foreign = origin is not None and origin.lower() not in {f"{kind}://{host.lower()}" for kind in ("http", "https")}
    followed_link = scope["method"] == "GET" and scope["path"] == "/" and headers.get("sec-fetch-mode") == "navigate"
    site = headers.get("sec-fetch-site", "none")
    if foreign or (site not in ("same-origin", "none") and not followed_link):
        return error_response(403, "the request came from another site's page; open the explorer's own address instead")
    return None


def _check_body_type(scope: Scope, headers: Headers) -> Response | None:
    """Refuses bodies that are not JSON, and those whose Content-Length is too large."""
    if scope["method"] != "POST":
        return None
    if headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        return error_response(415, "the body is not marked as JSON; send it with Content-Type: application/json")
    length = headers.get("content-length", "0")
    if not length.isascii() or not length.isdecimal() or int(length[:20]) > MAX_BODY_BYTES:
        return _too_large()
    return None


def _too_large() -> Response:
    return error_response(413, f"the request is larger than {MAX_BODY_BYTES >> 20} MiB; send a shorter text")


async def _read_body(receive: Receive) -> list[Message] | None:
    """All messages of a body; None if it is larger than `MAX_BODY_BYTES`, whatever its Content-Length said."""
    messages: list[Message] = []
    total = 0
    while not messages or messages[-1].get("more_body", False):
        messages.append(await receive())
        total += len(messages[-1].get("body", b""))
        if total > MAX_BODY_BYTES:
            return None
    return messages


def _replay(messages: list[Message], receive: Receive) -> Receive:
    """A `receive` that returns `messages` first."""

    async def replaying() -> Message:
        return messages.pop(0) if messages else await receive()

    return replaying


def _token_needed(cause: str) -> Response:
    return error_response(401, f"{cause}; open the whole address that `cocomix explore` printed, with #token=")


def _cookie(headers: Headers, name: str) -> str:
    """A cookie's value; empty if there is none."""
    cookies: SimpleCookie = SimpleCookie()
    try:
        cookies.load(headers.get("cookie", ""))
    except CookieError:
        return ""
    return cookies[name].value if name in cookies else ""
