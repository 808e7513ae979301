"""A real browser on the explorer's page. Errors in its console and requests to other servers fail the test."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

EXECUTABLE = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
OPTIONS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]
FAILED_REQUEST = "Failed to load resource"
"""What Chromium's console prints for an answer with an error status."""


@contextmanager
def chromium() -> Iterator[Any]:
    """A headless browser; skips the test if none is installed."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if EXECUTABLE is None:
        pytest.skip("no Chromium is installed")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=EXECUTABLE, args=OPTIONS)
        try:
            yield browser
        finally:
            browser.close()


class MonitoredPage:
    """A page, its console errors and its requests.

    Attributes:
        page: playwright's page.
        allowed: beginnings of console errors that are expected.
    """

    def __init__(self, context: Any, home: str) -> None:
        self.home, self.allowed = home, []
        self.errors: list[str] = []
        self.requests: list[str] = []
        self.page = context.new_page()
        self.page.set_default_timeout(90_000)
        self.page.on(
            "console", lambda message: message.type in ("error", "warning") and self.errors.append(message.text)
        )
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        context.on("request", lambda request: self.requests.append(request.url))

    def open(self, address: str = "") -> Any:
        """Open the page at an address such as #concepts."""
        self.page.goto(self.home + address)
        return self.page

    def check(self) -> None:
        """Assert that there was no unexpected error and no request to another server."""
        assert [error for error in self.errors if not error.startswith(tuple(self.allowed))] == []
        elsewhere = [url for url in self.requests if not url.startswith((self.home, "blob:", "data:"))]
        assert elsewhere == []


@contextmanager
def monitored_page(browser: Any, home: str, **settings: Any) -> Iterator[MonitoredPage]:
    """A new page in `browser`, checked at the end; `settings` are those of a browser context."""
    context = browser.new_context(**{"viewport": {"width": 1280, "height": 800}, **settings})
    try:
        page = MonitoredPage(context, home)
        yield page
        page.check()
    finally:
        context.close()


CONTRASTS = (Path(__file__).parent / "contrasts.js").read_text()
"""Script that returns every visible text's contrast with its background: ratio, element, text."""
