"""Dashboards as files: the page opened from the disk in a real browser, and what the command refuses."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from cocomix.explorer import single_page
from cocomix.explorer.catalog import ModelCatalog
from cocomix.explorer.dashboard_export import ORDERS, export
from cocomix.explorer.single_page import PAGE, dashboard_page, linked
from cocomix.utils.errors import CocomixError
from tests.helpers.browser import CONTRASTS, monitored_page
from tests.helpers.explored_run import COCOMIX

pytestmark = pytest.mark.slow
COUNT = 12


def embedded(page: Path) -> dict[str, Any]:
    """The data in a page."""
    found = re.search(r'<script type="application/json" id="exported">(.*?)</script>', page.read_text(), flags=re.S)
    assert found is not None
    return json.loads(found[1])


@pytest.fixture(scope="module")
def exported(folder: Path, catalog: ModelCatalog, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of the most predicted concepts; `catalog` has named them."""
    output = tmp_path_factory.mktemp("export") / "out"
    page, features = export(folder, "cocomix", 0, output, concepts=COUNT, by="predicted")
    assert page == output / "dashboards.html" and features.parent.parent == output / "neuronpedia"
    assert sorted(path.name for path in features.iterdir()) == sorted(
        ["release.jsonl", "model.jsonl", "sourceset.jsonl", "source.jsonl", "features", "activations", "explanations"]
    )
    return page


def test_it_holds_the_explorers_dashboards(exported: Path, catalog: ModelCatalog) -> None:
    session, data = catalog.open(COCOMIX), embedded(exported)
    chosen = [row.concept for row in session.list_concepts(q="", sort="predicted", offset=0, limit=COUNT).concepts]
    assert [one["concept"] for one in data["dashboards"]] == chosen
    for one in data["dashboards"]:
        expected = json.loads(session.dashboard(one["concept"]).model_dump_json())
        assert one["predicted"] == expected["predicted"] and one["about"] == expected["about"]
        assert [effect["id"] for effect in one["promotes"]] == [effect["id"] for effect in expected["promotes"]]
    assert data["about"]["rule"] == f"{COUNT} of {session.n_concepts} concepts: {ORDERS['predicted']}."


@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 380)])
def test_it_opens_from_the_disk_and_asks_for_nothing(browser: Any, exported: Path, scheme: str, width: int) -> None:
    dashboards = embedded(exported)["dashboards"]
    with monitored_page(
        browser, exported.as_uri(), viewport={"width": width, "height": 800}, color_scheme=scheme
    ) as monitor:
        page = monitor.open()
        page.locator(".dash-grid").wait_for()
        rows = page.locator(".exported-rows li:visible")
        assert rows.count() == COUNT
        for one in (dashboards[0], dashboards[5]):
            number = f"c{one['concept']}"
            page.locator(f".exported-row[href='#{number}']").click()
            page.locator(".name-editor .number", has_text=re.compile(f"^{number}$")).wait_for()
            assert page.locator(".exported-row[aria-current]").get_attribute("href") == f"#{number}"
            assert page.locator(".dashboard h2").inner_text() == (one["about"]["name"] or "no name")
            values = page.locator(".part", has_text="Where the student predicts it").locator(".value")
            shown = [f"{passage['strength']:.2f}" for passage in one["predicted"]["passages"]]
            assert values.all_text_contents() == shown != []
            links = page.locator(".similar a").evaluate_all("(all) => all.map((link) => link.getAttribute('href'))")
            there = {other["concept"] for other in dashboards}
            assert links == [f"#c{other['concept']}" for other in one["similar"] if other["concept"] in there]
        assert page.get_by_role("button", name="Rename").count() == page.locator(".actions").count() == 0
        assert [pale for pale in page.evaluate(CONTRASTS) if pale[0] < 4.5] == []
        assert page.evaluate("() => document.documentElement.scrollWidth") <= width
        page.get_by_label("Search concepts").fill(f"c{dashboards[5]['concept']}")
        assert rows.count() >= 1 and page.locator("#status").inner_text().endswith("found")
        page.get_by_label("Search concepts").fill("no concept is called this")
        page.get_by_text("No concept found").wait_for()
        page.get_by_label("Search concepts").fill("")
        page.go_back()
        page.locator(".name-editor .number", has_text=re.compile(f"^c{dashboards[0]['concept']}$")).wait_for()
        ground = "() => getComputedStyle(document.body).backgroundColor"
        before = page.evaluate(ground)
        page.locator("#theme").click()
        assert page.evaluate(ground) != before
        assert set(monitor.requests) <= {exported.as_uri()} | {url for url in monitor.requests if "#" in url}
        assert page.evaluate("() => performance.getEntriesByType('resource').map((entry) => entry.name)") == []


def test_what_a_dashboard_says_is_text(browser: Any, exported: Path, tmp_path: Path) -> None:
    evil = "</script><script>window.broken = 1</script><img src=x onerror='window.broken = 1'>"
    (one,) = embedded(exported)["dashboards"][:1]
    one["about"]["name"] = evil
    path = tmp_path / "evil page.html"
    path.write_text(dashboard_page([one], student=f"{evil} @data@", rule=evil), encoding="utf-8")
    with monitored_page(browser, path.as_uri()) as monitor:
        page = monitor.open()
        assert page.locator(".dashboard h2").inner_text() == evil
        assert page.evaluate("() => [window.broken, document.querySelectorAll('img').length]") == [None, 0]
        assert page.title() == f"{evil} · Concepts of {evil} @data@"


def test_modules_are_linked_once_each_after_what_they_import() -> None:
    names = re.findall(r"^const module_(\w+) = ", linked("exported.js"), flags=re.M)
    assert len(names) == len(set(names)) and names[-1] == "exported" and "api" not in names
    assert names.index("format") < names.index("charts") < names.index("dashboard")


@pytest.mark.parametrize(
    "line",
    ['import "./dom.js";', "export default 3;", 'import * as dom from "./dom.js";', 'export { el } from "./dom.js";'],
)
def test_an_unknown_form_of_a_module_is_an_error_here(
    line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "one.js").write_text(f"{line}\nexport const one = 1;\n")
    (tmp_path / "dom.js").write_bytes((PAGE / "dom.js").read_bytes())
    monkeypatch.setattr(single_page, "PAGE", tmp_path)
    with pytest.raises(AssertionError, match=r"one\.js: "):
        linked("one.js")


@pytest.mark.parametrize(
    ("student", "by", "words"),
    [
        ("nobody", "predicted", "has no student 'nobody' of seed 0; choose one of"),
        ("ntp", "predicted", "predicts no concepts"),
        ("cocomix", "luck", "cannot be chosen by 'luck'; choose one of predicted, true,"),
    ],
)
def test_what_cannot_be_exported(student: str, by: str, words: str, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CocomixError, match=re.escape(words)):
        export(folder, student, 0, tmp_path / "out", concepts=3, by=by)
    assert not (tmp_path / "out").exists()


def test_a_folder_in_use_is_left_alone(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("x")
    with pytest.raises(CocomixError, match="is not empty; give a new folder"):
        export(folder, "cocomix", 0, tmp_path, concepts=3, by="predicted")
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
