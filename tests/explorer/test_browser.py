"""The page in a real browser, against the real server on a tiny run: what a person does in each view."""

import json
import math
from typing import Any

import pytest

from cocomix.explorer.catalog import ModelCatalog
from tests.helpers.browser import FAILED_REQUEST, MonitoredPage
from tests.helpers.explored_run import COCOMIX, NTP, TEXT

pytestmark = pytest.mark.slow
CHIPS = "#view-read .strip .token"


def written(page: Any, text: str, chips: str = CHIPS) -> list[str]:
    """The tokens the page shows, once they are those of `text`."""
    page.wait_for_function(
        "([chips, text]) => [...document.querySelectorAll(chips)].map((chip) => chip.textContent).join('') === text",
        arg=[chips, text],
    )
    return page.locator(chips).all_text_contents()


def type_text(page: Any, text: str) -> list[str]:
    page.get_by_label("Text to read").fill(text)
    return written(page, text)


def test_typing_shows_tokens_and_a_panel_at_once(monitor: MonitoredPage, catalog: ModelCatalog) -> None:
    page, reader = monitor.open(), catalog.open(COCOMIX)
    assert type_text(page, TEXT) == [reader.decode([token]) for token in reader.encode(TEXT)]
    panel, n = page.locator("#view-read .side"), len(reader.encode(TEXT))
    assert f"token {n} of {n}" in panel.inner_text()
    reading = reader.read(TEXT, concept=None, top=8)
    for at in (2, 5):
        page.locator(CHIPS).nth(at).click()
        assert f"token {at + 1} of {n}" in panel.inner_text()
        shown = panel.locator(".concept-rows a.number").all_text_contents()
        assert shown == [f"c{predicted.concept}" for predicted in reading.tokens[at].concepts]
        assert f"{reading.tokens[at].loss:.2f} nats" in panel.inner_text()
    page.keyboard.press("ArrowRight")
    assert f"token 7 of {n}" in panel.inner_text()


def test_a_chosen_concept_shades_the_text_and_pairs_the_odds(monitor: MonitoredPage, catalog: ModelCatalog) -> None:
    page = monitor.open()
    type_text(page, TEXT)
    assert page.locator(f"{CHIPS}.loss").count() > 0 and page.locator(".odds.paired").count() == 0
    row = page.locator("#view-read .concept-row").nth(1)
    concept = int(row.get_attribute("data-concept"))
    row.click()
    page.locator("#view-read .odds.paired").wait_for()
    assert page.locator(f"#view-read .concept-row[data-concept='{concept}']").get_attribute("aria-pressed") == "true"
    tokens = catalog.open(COCOMIX).read(TEXT, concept=concept, top=8).tokens
    classes = [name.split() for name in page.locator(CHIPS).evaluate_all("(all) => all.map((chip) => chip.className)")]
    for token, marks in zip(tokens, classes, strict=True):
        assert token.chosen is not None
        assert ("strength" in marks, "used" in marks) == (token.chosen.strength >= 0, token.chosen.used)
        assert ("agreed" in marks) == bool(token.chosen.agreed)
    levels = page.locator(CHIPS).evaluate_all(
        "(all) => all.map((chip) => Number(chip.style.getPropertyValue('--level')))"
    )
    assert levels == pytest.approx([abs(token.chosen.strength) for token in tokens if token.chosen], abs=1e-3)
    page.wait_for_function("() => location.hash.includes('concept=')")
    page.reload()
    written(page, TEXT)
    assert page.locator(f"{CHIPS}.used").count() == sum(token.chosen.used for token in tokens if token.chosen)
    page.keyboard.press("Escape")
    page.locator(f"{CHIPS}.loss").first.wait_for()
    page.go_back()
    page.locator("#view-read .odds.paired").wait_for()


def test_a_token_shows_what_came_through_the_channel(monitor: MonitoredPage, catalog: ModelCatalog) -> None:
    page, session = monitor.open(), catalog.open(COCOMIX)
    type_text(page, TEXT)
    panel, at = page.locator("#view-read .side"), 5
    page.locator(CHIPS).nth(at).click()
    found = session.read_channel(TEXT, at=at, top=6)
    panel.locator(".brought").wait_for()
    shown = panel.locator(".brought a.number").all_text_contents()
    assert shown == [f"c{one.concept}" for one in found.concepts]
    value = f"{found.nats:+.{3 if abs(found.nats) < 0.1 else 2}f}".replace("-", "\u2212")
    assert f"through the channel {value} nats" in panel.inner_text() and "first order" in panel.inner_text()
    page.get_by_role("button", name="the channel", exact=True).click()
    tokens = session.read(TEXT, concept=None, top=8).tokens
    levels = page.locator(CHIPS).evaluate_all(
        "(all) => all.map((chip) => Number(chip.style.getPropertyValue('--level')))"
    )
    assert levels == pytest.approx([min(abs(token.channel or 0), 1) for token in tokens], abs=2e-3)
    page.locator(CHIPS).nth(0).click()
    panel.locator(".channel").wait_for(state="hidden")


def test_an_old_answer_never_replaces_a_newer_one(monitor: MonitoredPage) -> None:
    page, held = monitor.open(), []
    type_text(page, "first")

    def hold(route: Any) -> None:
        held.append(route) if "slow" in route.request.post_data else route.continue_()

    page.route("**/api/read", hold)
    page.get_by_label("Text to read").fill("slow")
    page.wait_for_timeout(400)
    assert len(held) == 1
    type_text(page, "and quick")
    held[0].abort()
    page.wait_for_timeout(150)
    assert "".join(page.locator(CHIPS).all_text_contents()) == "and quick"


def test_concepts_are_searched_sorted_and_opened(monitor: MonitoredPage, catalog: ModelCatalog) -> None:
    page, session = monitor.open("#concepts"), catalog.open(COCOMIX)
    first = session.list_concepts(q="", sort="predicted", offset=0, limit=1).concepts[0].concept
    page.locator(f"article[aria-label='Concept {first}']").wait_for()
    assert f"{session.n_concepts} concepts" in page.locator(".list").inner_text()
    page.get_by_label("Sort concepts by").select_option("recall")
    best = [row.concept for row in session.list_concepts(q="", sort="recall", offset=0, limit=3).concepts]
    page.wait_for_function(
        "(id) => document.querySelector('.virtual-row .line-soft')?.textContent.startsWith(`c${id} `)", arg=best[0]
    )
    page.get_by_label("Search concepts").fill(f"c{best[1]}")
    page.locator(".virtual-row:first-child", has_text=f"c{best[1]} ").click()
    page.locator(f"article[aria-label='Concept {best[1]}']").wait_for()
    board, shown = session.dashboard(best[1]), page.locator("article").inner_text()
    assert board.agreement is not None
    for fact in (
        f"{board.agreement.positions:,} positions",
        board.agreement.truth,
        board.about.name or board.about.why,
    ):
        assert fact in shown
    strongest = page.locator(".part", has_text="Where the student predicts it").locator("li")
    assert strongest.count() == len(board.predicted.passages) > 0
    assert strongest.first.locator("mark").text_content() == board.predicted.passages[0].token.replace("\n", "↵")
    assert page.locator(".similar a").first.get_attribute("href") == f"#concepts?concept={board.similar[0].concept}"
    page.locator(".similar a").first.click()
    page.locator(f"article[aria-label='Concept {board.similar[0].concept}']").wait_for()
    page.get_by_role("button", name="Shade text by it").click()
    page.locator("#view-read .chip").wait_for()
    assert f"c{board.similar[0].concept}" in page.locator("#view-read .chip").inner_text()
    page.get_by_label("Search concepts").wait_for(state="hidden")
    page.goto(f"{monitor.home}#concept=7")
    page.locator("article[aria-label='Concept 7']").wait_for()
    page.keyboard.press("2")
    page.get_by_label("Search concepts").fill("no such name at all")
    page.get_by_text("No concept found").wait_for()


def test_a_name_given_in_the_page_stays(monitor: MonitoredPage, catalog: ModelCatalog) -> None:
    page, before = monitor.open("#concept=5"), catalog.open(COCOMIX).name_store.names().of(5)
    new = 'war & <b>"peace"</b>'
    try:
        page.get_by_role("button", name="Rename").click()
        page.get_by_label("Name of concept 5").fill(new)
        page.keyboard.press("Enter")
        page.locator(".name-editor h2", has_text=new).wait_for()
        page.reload()
        page.locator(".name-editor h2", has_text=new).wait_for()
        assert (
            catalog.open(COCOMIX).name_store.names().of(5).name == new and page.locator(".name-editor b").count() == 0
        )
        page.get_by_label("Search concepts").fill("& <b>")
        page.locator(".virtual-row", has_text=new).wait_for()
        assert page.locator(".virtual-row").count() == 1
        page.get_by_role("button", name="Rename").click()
        page.get_by_label("Name of concept 5").fill("")
        page.keyboard.press("Enter")
        page.get_by_role("button", name="Rename").wait_for()
        assert page.locator(".name-editor .badge").count() == 0
        assert catalog.open(COCOMIX).name_store.names().of(5) == before
    finally:
        catalog.open(COCOMIX).rename(5, "")


def test_two_students_are_compared(monitor: MonitoredPage, catalog: ModelCatalog) -> None:
    page = monitor.open("#compare")
    page.get_by_label("Left model").select_option(NTP)
    page.get_by_label("Right model").select_option(COCOMIX)
    page.get_by_label("Text to compare on").fill(TEXT)
    tokens = "#view-compare .strip .token"
    written(page, TEXT, tokens)
    read = {key: catalog.open(key).read(TEXT, concept=None, top=5).tokens for key in (NTP, COCOMIX)}
    losses = {key: [token.loss for token in tokens if token.loss is not None] for key, tokens in read.items()}
    page.wait_for_function("() => document.querySelectorAll('.total').length === 3")
    totals = page.locator(".total").all_inner_texts()
    for key, total in zip((NTP, COCOMIX), totals, strict=False):
        assert f"{math.exp(sum(losses[key]) / len(losses[key])):.1f}" in total
    better = ["right" if left > right else "left" for left, right in zip(losses[NTP], losses[COCOMIX], strict=True)]
    shown = page.locator(tokens).evaluate_all("(all) => all.slice(1).map((chip) => [...chip.classList])")
    assert [side in marks for side, marks in zip(better, shown, strict=True)] == [True] * len(better)
    page.locator(tokens).nth(3).click()
    assert page.locator("#view-compare .side").count() == 2
    assert page.locator("#view-compare .side.right .concept-rows li").count() == 5
    page.get_by_label("Swap the two").click()
    page.locator("#view-compare .side.left .concept-rows").wait_for()
    assert page.get_by_label("Left model").input_value() == COCOMIX


def test_markup_in_a_text_is_text(monitor: MonitoredPage) -> None:
    evil = "<script>window.broken = 1</script><img src=x onerror='window.broken = 1'>"
    page = monitor.open(f"#read?text={evil}&model=<b>&concept=99999999")
    written(page, evil)
    page.locator(CHIPS).first.click()
    assert page.evaluate("() => [window.broken, document.querySelectorAll('main img, main script').length]") == [
        None,
        0,
    ]
    page.goto(f"{monitor.home}#steer?steering={json.dumps([{'concept': 'x'}, {'concept': 3, 'do': '<b>'}, None])}")
    page.locator("#view-steer").wait_for()
    monitor.allowed.append(FAILED_REQUEST)
