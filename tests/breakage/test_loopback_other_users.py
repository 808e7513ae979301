"""Another user of the machine connects to the explorer: he sees the page, and no text, model or name."""

import json
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from cocomix.explorer.app import _opened, create_app
from cocomix.explorer.catalog import ModelCatalog
from cocomix.explorer.security import access_policy
from tests.helpers.explored_run import COCOMIX, served

pytestmark = pytest.mark.slow


def status(port: int, path: str, body: dict[str, Any] | None = None) -> int:
    """What a program without a cookie is answered; a server cannot tell whose program it is."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", data, {"Content-Type": "application/json"})
    try:
        return urllib.request.urlopen(request, timeout=60).status
    except urllib.error.HTTPError as error:
        return error.code


def test_without_the_token_another_user_gets_nothing(tiny: Path) -> None:
    catalog = ModelCatalog([tiny / "runs" / "tiny"])
    with served(create_app(catalog, access_policy("127.0.0.1", 0, None))) as port:
        assert status(port, "/") == 200
        assert status(port, "/api/models") == 401
        assert status(port, "/api/read", {"model": COCOMIX, "text": "we must"}) == 401
        assert status(port, "/api/name", {"model": COCOMIX, "concept": 2, "name": "x"}) == 401
        assert status(port, "/api/session", {"token": "guessed-and-wrong"}) == 401
    assert not (tiny / "runs" / "tiny" / "names-edited.json").exists()


def test_the_token_is_in_no_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    monkeypatch.setattr("webbrowser.open", lambda address: opened.append(address))
    with _opened("http://127.0.0.1:1/#token=secret&<"):
        (address,) = opened
        file = Path(address.removeprefix("file://"))
        assert "secret" not in address and file.parent.stat().st_mode & 0o077 == 0
        assert 'url=http://127.0.0.1:1/#token=secret&amp;&lt;"' in file.read_text()
    assert not file.exists()
    with _opened(None):
        assert len(opened) == 1
