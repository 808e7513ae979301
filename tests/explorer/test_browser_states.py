"""The page in a real browser with many or no concepts, errors, small and dark screens, and the keyboard alone."""

from pathlib import Path
from typing import Any

import pytest

from cocomix.explorer.app import create_app
from cocomix.explorer.catalog import ModelCatalog
from cocomix.explorer.security import access_policy
from tests.helpers.browser import CONTRASTS, FAILED_REQUEST, monitored_page
from tests.helpers.explored_run import COCOMIX, TEXT, served
from tests.helpers.wide_run import WideCatalog

pytestmark = pytest.mark.slow
OPEN = access_policy("127.0.0.1", 0, None, no_token=True)
CHIPS = "#view-read .strip .token"
MIN_CONTRAST = 4.5
"""WCAG AA for text."""


def test_what_the_server_refuses_is_said_and_can_be_tried_again(browser: Any, home: str) -> None:
    with monitored_page(browser, home) as monitor:
        monitor.allowed.append(FAILED_REQUEST)
        page = monitor.open()
        page.get_by_label("Text to read").fill("many words " * 60)
        problem = page.locator("#view-read .error-box")
        problem.wait_for()
        assert "positions; shorten it by" in problem.inner_text()
        page.get_by_label("Text to read").fill(TEXT)
        page.locator(CHIPS).first.wait_for()
        assert problem.count() == 0
        page.get_by_label("Text to read").fill("")
        page.get_by_text("Nothing to read yet").wait_for()
        page.goto(f"{home}#steer?tokens=999999")
        page.get_by_role("button", name="Run").click()
        page.locator("#view-steer .output .error-box").wait_for()


def test_a_server_that_is_gone_is_said_and_found_again(browser: Any, catalog: ModelCatalog) -> None:
    app = create_app(catalog, access_policy("127.0.0.1", 0, None, no_token=True))
    with served(app) as port:
        home = f"http://127.0.0.1:{port}/"
        context = monitored_page(browser, home)
        monitor = context.__enter__()
        page = monitor.open()
        page.locator(CHIPS).first.wait_for()
    monitor.allowed.append(FAILED_REQUEST)
    page.get_by_label("Text to read").fill("Where did it go")
    problem = page.locator("#view-read .error-box")
    problem.wait_for()
    assert "does not answer" in problem.inner_text() and "cocomix explore" in problem.inner_text()
    page.route("**/api/read", lambda route: route.fulfill(json={**READ, "tokens": READ["tokens"]}))
    problem.get_by_role("button", name="Try again").click()
    page.locator(CHIPS, has_text="back").wait_for()
    context.__exit__(None, None, None)


READ = {
    "model": COCOMIX,
    "milliseconds": 1.0,
    "concept": None,
    "name": None,
    "n_concepts": 128,
    "tokens": [{"id": 1, "token": "back", "loss": None, "concepts": [], "labels": None, "next": [], "chosen": None}],
}


def test_a_run_without_concepts_says_what_to_do(browser: Any, home: str, catalog: ModelCatalog) -> None:
    plain = [model.model_dump() for model in catalog.models() if not model.predicts_concepts]
    with monitored_page(browser, home) as monitor:
        listed = {"models": plain, "examples": catalog.examples, "version": "0"}
        monitor.page.route("**/api/models*", lambda route: route.fulfill(json=listed))
        page = monitor.open()
        for view in ("read", "concepts", "steer"):
            page.goto(f"{home}#{view}")
            page.locator(f"#view-{view}").get_by_text("No student here predicts concepts").wait_for()
        page.keyboard.press("Control+Enter")
        page.keyboard.press("4")
        page.locator("#view-compare .total").first.wait_for()


@pytest.mark.parametrize("n_concepts", [400, 32_768])
def test_any_number_of_concepts(browser: Any, tmp_path: Path, n_concepts: int) -> None:
    with (
        served(create_app(WideCatalog(n_concepts, tmp_path), OPEN)) as port,  # pyright: ignore[reportArgumentType]
        monitored_page(browser, f"http://127.0.0.1:{port}/") as monitor,
    ):
        page = monitor.open("#concepts?sort=number")
        page.locator(".virtual-row", has_text="number 0").first.wait_for()
        assert f"{n_concepts:,} concepts" in page.locator(".list").inner_text()
        page.get_by_role("listbox", name="Concepts").focus()
        page.keyboard.press("End")
        page.locator(f"article[aria-label='Concept {n_concepts - 1}']").wait_for()
        assert page.locator(".virtual-row").count() < 60
        last = page.locator(".virtual-row.active")
        assert f"c{n_concepts - 1} " in last.inner_text() and last.get_attribute("aria-posinset") == str(n_concepts)
        page.get_by_label("Search concepts").fill(f"number {n_concepts - 2}")
        page.locator(".virtual-row", has_text=f"c{n_concepts - 2} ").wait_for()
        page.keyboard.press("Enter")
        page.locator(".name-editor h2", has_text=f"number {n_concepts - 2}").wait_for()
        page.get_by_role("button", name="Steer with it").click()
        page.locator(f".intervention[data-concept='{n_concepts - 2}']").wait_for()
        page.get_by_label("Prompt").fill("one two three")
        page.get_by_label("Tokens").fill("6")
        page.get_by_role("button", name="Run").click()
        page.get_by_text("the same noise for both").wait_for()
        assert page.locator(".column.base .token:not(.prompt)").count() == 6
        page.keyboard.press("Escape")
        page.goto(f"{monitor.home}#read?text=one two three four")
        page.locator(CHIPS).nth(3).wait_for()


def test_a_link_is_followed_while_the_address_is_being_rewritten(browser: Any, home: str) -> None:
    with monitored_page(browser, home) as monitor:
        page = monitor.open("#read?concept=3")
        page.locator(CHIPS).first.wait_for()
        # what the timer of an earlier change does between a navigation and its event
        page.evaluate("() => { const old = location.href; location.hash = '#concepts';"
                      " history.replaceState(null, '', old); }")  # fmt: skip
        page.locator("article").first.wait_for(timeout=20_000)
        page.wait_for_function("() => location.hash.startsWith('#concepts')", timeout=20_000)


def test_the_keyboard_is_enough(browser: Any, home: str) -> None:
    with monitored_page(browser, home) as monitor:
        page = monitor.open()
        page.locator(CHIPS).first.wait_for()
        panel, focused = (
            page.locator("#view-read .side"),
            "() => document.activeElement.getAttribute('aria-label') ?? ''",
        )
        page.keyboard.press("?")
        page.locator("dialog[open]").wait_for()
        page.keyboard.press("Escape")
        page.locator("dialog[open]").wait_for(state="hidden")
        page.evaluate("() => document.activeElement.blur()")
        for key, number in (("ArrowLeft", -2), ("Home", 1), ("ArrowRight", 2), ("ArrowDown", None), ("End", 0)):
            page.keyboard.press(key)
            n = page.locator(CHIPS).count()
            if number is not None:
                assert f"token {number if number > 0 else n + 1 + number if number else n} of {n}" in panel.inner_text()
        page.keyboard.press("Tab")
        while not page.evaluate("() => document.activeElement.matches('.side button.concept-row')"):
            page.keyboard.press("Tab")
        chosen = page.evaluate("() => document.activeElement.dataset.concept")
        page.keyboard.press("Enter")
        page.locator("#view-read .odds.paired").wait_for()
        assert page.evaluate("() => document.activeElement.dataset.concept") == chosen
        page.keyboard.press("Escape")
        page.locator("#view-read .odds.paired").wait_for(state="hidden")
        page.keyboard.press("/")
        assert page.evaluate(focused) == "Search concepts"
        page.keyboard.type("c9")
        page.locator(".virtual-row", has_text="c9 ").first.wait_for()
        page.keyboard.press("ArrowDown")
        page.locator("article[aria-label='Concept 9']").wait_for()
        assert page.evaluate(focused) == "Concepts"
        page.keyboard.press("3")
        page.keyboard.press("/")
        assert page.evaluate(focused) == "Add a concept to steer"
        page.keyboard.type("c9")
        page.locator(".picker-row", has_text="c9 ").first.wait_for()
        page.keyboard.press("Enter")
        page.locator(".intervention[data-concept='9']").wait_for()
        assert page.evaluate(focused) == "Amplify c9 by"
        page.keyboard.press("Control+Enter")
        page.locator(".meter").first.wait_for()
        page.keyboard.press("4")
        page.locator("#view-compare .total").first.wait_for()
        page.locator("#tab-compare").focus()
        page.keyboard.press("ArrowRight")
        assert page.locator("#tab-read").get_attribute("aria-selected") == "true"
        assert page.evaluate("() => document.activeElement.id") == "tab-read"


@pytest.mark.parametrize(("scheme", "width"), [("light", 380), ("dark", 1280)])
@pytest.mark.long
def test_every_view_is_legible_and_fits(browser: Any, home: str, scheme: str, width: int, tmp_path: Path) -> None:
    settings = {"viewport": {"width": width, "height": 780}, "color_scheme": scheme, "reduced_motion": "reduce"}
    with monitored_page(browser, home, **settings) as monitor:
        page = monitor.open(f"#read?text={TEXT}")
        page.locator(CHIPS).first.wait_for()
        page.locator("#view-read .concept-row").first.click()
        page.locator("#view-read .odds.paired").wait_for()
        for view, ready in (
            ("read?concept=3", ".chip"),
            ("concepts", "article"),
            ('steer?steering=[{"concept":3,"do":"amplify","amount":4}]', ".intervention"),
            ("compare", ".total"),
        ):
            page.goto(f"{home}#{view}")
            page.locator(ready).first.wait_for()
            if view.startswith("steer"):
                page.keyboard.press("Control+Enter")
                page.get_by_text("the same noise for both").wait_for()
            pale = [contrast for contrast in page.evaluate(CONTRASTS) if contrast[0] < MIN_CONTRAST]
            assert pale == [], (scheme, view)
            assert page.evaluate("() => document.documentElement.scrollWidth") <= width
            assert len(page.screenshot(path=tmp_path / "shot.png")) > 10_000
        ground = page.evaluate("() => getComputedStyle(document.body).backgroundColor")
        page.locator("#theme").click()
        turned = page.evaluate("() => getComputedStyle(document.body).backgroundColor")
        page.reload()
        assert ground != turned == page.evaluate("() => getComputedStyle(document.body).backgroundColor")
