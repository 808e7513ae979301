"""How a browser gets in: by the token in the opened address, and through a reverse proxy below a prefix."""

from pathlib import Path
from typing import Any

import pytest

from cocomix.explorer.app import create_app
from cocomix.explorer.catalog import ModelCatalog
from cocomix.explorer.security import access_policy
from tests.explorer.test_browser import type_text
from tests.helpers.browser import FAILED_REQUEST, monitored_page
from tests.helpers.explored_run import TEXT, served
from tests.helpers.reverse_proxy import proxied

pytestmark = pytest.mark.slow
TOKEN = "a-token-of-enough-letters"


def test_the_token_in_the_address_becomes_a_cookie_once(browser: Any, catalog: ModelCatalog, tmp_path: Path) -> None:
    app = create_app(catalog, access_policy("127.0.0.1", 0, TOKEN))
    with served(app) as port, monitored_page(browser, f"http://127.0.0.1:{port}/") as monitor:
        monitor.allowed.append(FAILED_REQUEST)
        page = monitor.open()
        assert "this server needs a token" in page.get_by_role("alert").inner_text()
        page = monitor.open("#token=a-wrong-token-of-letters")
        page.get_by_text("this token is wrong").wait_for()
        monitor.page.goto("about:blank")
        page = monitor.open(f"#token={TOKEN}")
        page.locator("#view-read").wait_for()
        type_text(page, TEXT)
        assert TOKEN not in page.url and TOKEN not in page.evaluate("document.cookie + JSON.stringify(localStorage)")
        (cookie,) = page.context.cookies()
        assert cookie["httpOnly"] and cookie["sameSite"] == "Strict" and TOKEN not in cookie["value"]
        page.reload()
        page.locator("#view-read .strip .token").first.wait_for()
        assert not any(TOKEN in url for url in monitor.requests if "#" not in url)


def test_a_file_of_this_machine_may_lead_to_it(browser: Any, catalog: ModelCatalog, tmp_path: Path) -> None:
    """As `cocomix explore` opens the browser: by a file, because everybody can read a browser's command line."""
    app = create_app(catalog, access_policy("127.0.0.1", 0, TOKEN))
    with served(app) as port:
        address = f"http://127.0.0.1:{port}/#token={TOKEN}"
        leading = tmp_path / "explore.html"
        leading.write_text(f'<!doctype html><meta http-equiv="refresh" content="0; url={address}">')
        page = browser.new_context().new_page()
        page.goto(leading.as_uri())
        page.locator("#view-read").wait_for(timeout=30_000)
        assert page.locator(".error-box").count() == 0 and TOKEN not in page.url
        page.context.close()


@pytest.mark.parametrize("strips", [True, False], ids=["prefix stripped", "prefix passed on"])
def test_behind_a_reverse_proxy(browser: Any, catalog: ModelCatalog, strips: bool, tmp_path: Path) -> None:
    policy = access_policy("127.0.0.1", 0, TOKEN, allow_hosts=["lab.localhost"], root_path="/x/cocomix")
    with served(create_app(catalog, policy)) as upstream, proxied(upstream, "/x/cocomix", strips=strips) as (port, log):
        with monitored_page(browser, f"http://lab.localhost:{port}/x/cocomix/") as monitor:
            page = monitor.open(f"#token={TOKEN}")
            page.locator("#view-read").wait_for()
            type_text(page, TEXT)
            (cookie,) = page.context.cookies()
            assert cookie["path"] == "/x/cocomix/" and cookie["httpOnly"]
            page.get_by_role("tab", name="Steer").click()
            page.get_by_role("button", name="Run").click()
            page.wait_for_function("() => /tokens.* in [\\d.]+ s/.test(document.body.innerText)", timeout=60_000)
            page.screenshot(path=tmp_path / "proxied.png")
        assert len(log) > 20 and not any(TOKEN in line for line in log)
        assert any("/x/cocomix/page/style.css" in line for line in log)
