"""Which requests are refused, and the headers of every answer."""

from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route
from starlette.testclient import TestClient
from starlette.types import Receive, Scope, Send

from cocomix.explorer.app import _no_route, _server_error
from cocomix.explorer.security import (
    HEADERS,
    MAX_BODY_BYTES,
    AccessPolicy,
    SecurityMiddleware,
    access_policy,
    is_loopback,
    url_host,
)
from cocomix.utils.errors import CocomixError

TOKEN = "a-token-of-enough-letters"
JSON = {"Content-Type": "application/json"}


def client_of(policy: AccessPolicy, base_url: str = "http://127.0.0.1:7860") -> TestClient:
    async def echo(request: Request) -> JSONResponse:
        return JSONResponse({"bytes": len(await request.body())})

    app = Starlette(routes=[Route("/", echo), Route("/api/x", echo, methods=["GET", "POST"])])
    return TestClient(SecurityMiddleware(app, policy), base_url=base_url)


LOOPBACK = client_of(access_policy("127.0.0.1", 7860, None, no_token=True))


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Host": "localhost:7860"}, 200),
        ({"Host": "LocalHost:9999"}, 200),
        ({"Host": "[::1]:7860"}, 200),
        ({"Host": "evil.example"}, 421),
        ({"Host": "127.0.0.1.evil.example:7860"}, 421),
        ({"Host": "localhost:7860@evil.example"}, 421),
        ({"Host": "192.168.0.3:7860"}, 421),
        ({"Host": ""}, 421),
        ({"Origin": "http://127.0.0.1:7860", "Sec-Fetch-Site": "same-origin"}, 200),
        ({"Origin": "http://127.0.0.1:1234"}, 403),
        ({"Origin": "http://localhost:7860"}, 403),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
        ({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}, 403),
        ({"Sec-Fetch-Site": "none"}, 200),
    ],
)
def test_only_our_own_page_is_answered(headers: dict[str, str], status: int) -> None:
    for answer in (
        LOOPBACK.get("/api/x", headers=headers),
        LOOPBACK.post("/api/x", headers=headers | JSON, content="1"),
    ):
        assert answer.status_code == status, answer.text
        assert all(answer.headers[name] == value for name, value in HEADERS.items())
        assert ("error" in answer.json()) == (status != 200) and answer.headers["Cache-Control"] == "no-store"


def test_a_link_from_elsewhere_may_be_followed_to_the_page_alone() -> None:
    headers = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}
    assert LOOPBACK.get("/", headers=headers).status_code == 200
    assert LOOPBACK.get("/", headers=headers | {"Sec-Fetch-Mode": "no-cors"}).status_code == 403


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""])
def test_only_json_is_taken(kind: str) -> None:
    answer = LOOPBACK.post("/api/x", content="{}", headers={"Content-Type": kind})
    assert answer.status_code == 415 and "application/json" in answer.json()["error"]
    spelled = {"Content-Type": "Application/JSON; charset=utf-8"}
    assert LOOPBACK.post("/api/x", content="{}", headers=spelled).json() == {"bytes": 2}


def test_large_bodies_are_refused_however_they_come() -> None:
    def parts(n: int):
        yield from (b" " * 1024 for _ in range(n))

    full = MAX_BODY_BYTES // 1024
    assert LOOPBACK.post("/api/x", content=b" " * MAX_BODY_BYTES, headers=JSON).json() == {"bytes": MAX_BODY_BYTES}
    assert LOOPBACK.post("/api/x", content=parts(full), headers=JSON).json() == {"bytes": MAX_BODY_BYTES}
    bodies = [b" " * (MAX_BODY_BYTES + 1), parts(full + 1)]
    answers = [LOOPBACK.post("/api/x", content=body, headers=JSON) for body in bodies]
    answers.append(LOOPBACK.post("/api/x", content="1", headers=JSON | {"Content-Length": "-5"}))
    assert [answer.status_code for answer in answers] == [413] * 3 and "1 MiB" in answers[0].json()["error"]


def test_a_token_is_asked_for_once() -> None:
    policy = access_policy("0.0.0.0", 7860, None)
    assert policy.token and len(policy.token) > 40 and policy.token != access_policy("0.0.0.0", 7860, None).token
    client = client_of(policy, "http://192.168.0.3:7860")
    assert client.get("/").status_code == 200  # the page, which is the same for everybody
    for path in ("/api/x", f"/api/x?token={policy.token}", "/elsewhere", "/api/session/x"):
        answer = client.get(path)
        assert answer.status_code == 401 and "#token=" in answer.json()["error"] and not client.cookies
    for wrong in (
        '{"token": "wrong"}',
        '{"token": 3}',
        "{}",
        "[]",
        "3",
        "{",
        '{"token": null}',
        '{"token": "\\ud83d"}',
    ):
        answer = client.post("/api/session", content=wrong, headers=JSON)
        assert answer.status_code == 401 and "wrong" in answer.json()["error"] and not client.cookies
    assert client.get("/api/session").status_code == 405
    welcome = client.post("/api/session", json={"token": policy.token})
    cookie = welcome.headers["Set-Cookie"].lower()
    assert welcome.status_code == 200 and policy.token not in welcome.text
    assert "httponly" in cookie and "samesite=strict" in cookie and "secure" not in cookie and "path=/" in cookie
    assert policy.token.lower() not in cookie
    assert client.get("/").status_code == client.post("/api/x", content="1", headers=JSON).status_code == 200
    assert client.get("/api/x", headers={"Host": "evil.example"}).status_code == 421
    for cookie in (
        "cocomix-7860=wrong",
        "cocomix-7861=" + policy.cookie_value,
        "cocomix-7860=\xe9",
        ";;=",
        "cocomix-7860=",
    ):
        stranger = client_of(policy, "http://192.168.0.3:7860")
        assert stranger.get("/api/x", headers={"Cookie": cookie.encode("latin-1")}).status_code == 401
    other = access_policy("0.0.0.0", 7860, None)
    assert not other.accepts_cookie(policy.cookie_value) and other.accepts_cookie(other.cookie_value)


@pytest.mark.parametrize("token", [None, TOKEN])
def test_a_token_is_asked_for_on_loopback_too(token: str | None) -> None:
    policy = access_policy("localhost", 7860, token)
    client = client_of(policy)
    assert client.get("/api/x").status_code == 401
    assert (
        client.post("/api/session", json={"token": policy.token}).status_code == 200 == client.get("/api/x").status_code
    )


def test_no_other_sites_page_can_sign_anybody_in() -> None:
    client = client_of(access_policy("127.0.0.1", 7860, TOKEN))
    for headers in (
        {"Origin": "http://evil.example"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Content-Type": "text/plain"},
    ):
        answer = client.post("/api/session", content=f'{{"token": "{TOKEN}"}}', headers=JSON | headers)
        assert answer.status_code in (403, 415) and not client.cookies


@pytest.mark.parametrize(
    ("host", "options", "words"),
    [
        ("0.0.0.0", {"no_token": True}, "leave --no-token out"),
        ("127.0.0.1", {"no_token": True, "allow_hosts": ["lab.example"]}, "leave --no-token out"),
        ("127.0.0.1", {"no_token": True, "token": TOKEN}, "leave one of them out"),
        ("127.0.0.1", {"allow_hosts": ["http://lab.example"]}, "no host name"),
        ("127.0.0.1", {"allow_hosts": ["lab.example:80"]}, "no host name"),
        ("127.0.0.1", {"allow_hosts": ["*"]}, "no host name"),
        ("127.0.0.1", {"root_path": "cocomix"}, "no path of an address"),
        ("127.0.0.1", {"root_path": "/a/../b\n"}, "no path of an address"),
        ("127.0.0.1", {"root_path": "/"}, "no path of an address"),
    ],
)
def test_policies_that_cannot_be(host: str, options: dict[str, Any], words: str) -> None:
    with pytest.raises(CocomixError, match=words):
        access_policy(host, 7860, options.pop("token", None), **options)


def test_a_reverse_proxys_name_and_path() -> None:
    policy = access_policy("127.0.0.1", 7860, TOKEN, allow_hosts=["Lab.Example", "::1"], root_path="/x/cocomix/")
    client = client_of(policy, "https://lab.example")
    origin = {"Origin": "https://lab.example"}
    for prefix in ("", "/x/cocomix"):  # the proxy strips the prefix, or does not
        assert client.get(f"{prefix}/").status_code == 200 and client.get(f"{prefix}/api/x").status_code == 401
    bare = client.get("/x/cocomix", follow_redirects=False)
    assert bare.status_code == 307 and bare.headers["Location"] == "/x/cocomix/"
    assert client.get("/x/cocomixer/").status_code == 401
    welcome = client.post("/x/cocomix/api/session", json={"token": TOKEN}, headers=origin)
    cookie = welcome.headers["Set-Cookie"].lower()
    assert "path=/x/cocomix/;" in cookie and "; secure" in cookie and "httponly" in cookie
    assert client.get("/x/cocomix/api/x").status_code == 200
    for other in ("https://evil.example", "https://lab.example:8443", "http://127.0.0.1:7860"):
        assert client.get("/x/cocomix/api/x", headers={"Origin": other}).status_code == 403
    followed = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}
    assert client.get("/x/cocomix/", headers=followed).status_code == 200
    assert client.get("/x/cocomix/api/x", headers=followed).status_code == 403
    for host, status in (("lab.example:443", 200), ("evil.example", 421), ("x.lab.example", 421), ("10.0.0.1", 421)):
        assert client.get("/", headers={"Host": host}).status_code == status


@pytest.mark.parametrize("token", ["", "short", "with spaces in between", "ünïcödé-ünïcödé-ünïcödé", "a" * 30 + "\n"])
def test_tokens_that_cannot_be_used(token: str) -> None:
    with pytest.raises(CocomixError, match="the token must be 16 or more"):
        access_policy("127.0.0.1", 7860, token)


@pytest.mark.parametrize(
    ("host", "loopback", "known", "unknown"),
    [
        ("127.0.0.1", True, "localhost", "10.0.0.1"),
        ("127.8.0.1", True, "127.8.0.1:80", "10.0.0.1"),
        ("::1", True, "[::1]:80", "[fe80::1]"),
        ("localhost", True, "127.0.0.1", "example.org"),
        ("10.0.0.1", False, "10.0.0.1:7860", "10.0.0.2"),
        ("box.example.org", False, "BOX.example.org.", "example.org"),
        ("0.0.0.0", False, "10.1.2.3", "example.org"),
        ("::", False, "[fe80::1]:80", "example.org"),
    ],
)
def test_names_a_server_answers_to(host: str, loopback: bool, known: str, unknown: str) -> None:
    policy = access_policy(host, 7860, None)
    assert is_loopback(host) == loopback and policy.token is not None
    assert (
        answers_to(policy, known) and answers_to(policy, f"{url_host(host)}:7860") and not answers_to(policy, unknown)
    )


def answers_to(policy: AccessPolicy, host: str) -> bool:
    """Whether a request with this Host header is not refused for its host."""
    return client_of(policy).get("/", headers={"Host": host}).status_code != 421


@pytest.mark.parametrize("path", ["/nothing", "/broken"])
def test_a_query_that_is_no_text_is_answered_like_any_other(path: str) -> None:
    """Servers pass on whatever bytes an address holds."""

    async def broken(_request: Request) -> JSONResponse:
        raise RuntimeError

    handlers = {HTTPException: _no_route, Exception: _server_error}
    app = Starlette(routes=[Route("/broken", broken)], exception_handlers=handlers)

    async def raw(scope: Scope, receive: Receive, send: Send) -> None:
        await app(scope | {"query_string": b"model=\xff\xfe"}, receive, send)

    answer = TestClient(raw, raise_server_exceptions=False).get(path)
    assert answer.status_code == (404 if path == "/nothing" else 500) and "error" in answer.json()
