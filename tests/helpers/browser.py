"""A real browser on the explorer's page, watched: errors in its console and requests to elsewhere fail the test."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

FOUND = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
OPTIONS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]
REFUSED = "Failed to load resource"
"""How Chromium's console says that an answer was no 200."""


@contextmanager
def chromium() -> Iterator[Any]:
    """Within: a browser without a window; skips the test where there is none."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if FOUND is None:
        pytest.skip("no Chromium is installed")
    with playwright.sync_playwright() as running:
        browser = running.chromium.launch(executable_path=FOUND, args=OPTIONS)
        try:
            yield browser
        finally:
            browser.close()


class Watched:
    """A page, and what went on in it.

    Attributes:
        page: playwright's.
        allowed: starts of console errors that are meant to be.
    """

    def __init__(self, context: Any, home: str) -> None:
        self.home, self.allowed = home, []
        self.errors: list[str] = []
        self.asked: list[str] = []
        self.page = context.new_page()
        self.page.set_default_timeout(90_000)
        self.page.on("console", lambda said: said.type in ("error", "warning") and self.errors.append(said.text))
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        context.on("request", lambda request: self.asked.append(request.url))

    def open(self, address: str = "") -> Any:
        """The page at an address of its own, such as #concepts."""
        self.page.goto(self.home + address)
        return self.page

    def check(self) -> None:
        """Nothing went wrong that was not meant to."""
        assert [one for one in self.errors if not one.startswith(tuple(self.allowed))] == []
        elsewhere = [url for url in self.asked if not url.startswith((self.home, "blob:", "data:"))]
        assert elsewhere == []


@contextmanager
def watched(browser: Any, home: str, **settings: Any) -> Iterator[Watched]:
    """Within: a page of its own in `browser`, checked at the end; `settings` are a context's."""
    context = browser.new_context(**{"viewport": {"width": 1280, "height": 800}, **settings})
    try:
        one = Watched(context, home)
        yield one
        one.check()
    finally:
        context.close()


CONTRASTS = (Path(__file__).parent / "contrasts.js").read_text()
"""Contrast of every visible text with what lies under it: ratio, element, text."""
