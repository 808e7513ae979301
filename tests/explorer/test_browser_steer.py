"""Steering in a real browser: interventions, paired generation, and settings saved and opened again."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from cocomix.explorer.catalog import ModelCatalog
from cocomix.model import Ablate, Amplify, Clamp
from cocomix.steering import format_steering, from_json
from cocomix.steering.study.output_score import OutputScore
from tests.helpers.browser import FAILED_REQUEST, MonitoredPage
from tests.helpers.explored_run import COCOMIX

pytestmark = pytest.mark.slow


def add_concept(page: Any, concept: int) -> Any:
    page.get_by_label("Add a concept to steer").fill(f"c{concept}")
    page.locator(".picker-row", has_text=re.compile(rf"c{concept} ")).click()
    return page.locator(f".intervention[data-concept='{concept}']")


def run(page: Any) -> None:
    page.get_by_role("button", name="Run").click()
    page.get_by_text(re.compile(r"tokens.* in [\d.]+ s")).wait_for()


def test_steering_streams_both_sides_and_marks_where_they_differ(monitor: MonitoredPage) -> None:
    page = monitor.open("#steer?tokens=30&temperature=1&seed=3")
    page.get_by_label("Prompt").fill("Fellow citizens")
    run(page)
    base, steered = (page.locator(f".column.{side} .token:not(.prompt)") for side in ("base", "steered"))
    plain = base.all_text_contents()
    assert len(plain) == 30 and steered.all_text_contents() == plain and page.locator(".column .differs").count() == 0
    intervention = add_concept(page, 3)
    intervention.get_by_label("Amplify c3 by, as a number").fill("1000")
    other = add_concept(page, 7)
    other.get_by_role("radio", name="Ablate").check()
    other.get_by_label("c7 from token").fill("2")
    setting = {3: Amplify(1000.0), 7: Ablate(start=2)}
    quoted = shlex.quote(format_steering(setting))
    page.wait_for_function(
        "(line) => document.querySelector('.snippets .line').textContent.endsWith(`--steer ${line}`)", arg=quoted
    )
    run(page)
    assert base.all_text_contents() == plain and steered.all_text_contents() != plain
    differ = [left != right for left, right in zip(plain, steered.all_text_contents(), strict=True)]
    marked = base.evaluate_all("(all) => all.map((chip) => chip.classList.contains('differs'))")
    assert marked == differ and page.locator(".column.steered .first").count() == 1
    assert f"first difference at token {differ.index(True) + 1}" in page.locator(".output").inner_text()
    meters = page.locator(".meter").all_inner_texts()
    assert [meter.split(":")[0] for meter in meters] == ["Fluency", "Fluency", "Presence", "Presence", "Variety"]
    page.reload()
    page.locator(".intervention").nth(1).wait_for()
    assert page.get_by_label("Amplify c3 by, as a number").input_value() == "1000"


def test_a_setting_is_saved_and_opened_again(monitor: MonitoredPage, tmp_path: Path) -> None:
    page = monitor.open("#steer")
    line = "c3=+4,c9=clamp:2@10"
    page.get_by_label("Steering line").fill(line)
    page.get_by_role("button", name="Use line").click()
    page.locator(".intervention").nth(1).wait_for()
    page.get_by_label("Clamp c9 by, as a number").fill("-1.5")
    page.wait_for_function("() => document.querySelector('.snippets .line').textContent.includes('clamp:-1.5@10')")
    with page.expect_download() as download:
        page.get_by_role("button", name="Save file").click()
    download.value.save_as(tmp_path / "steering.json")
    saved = (tmp_path / "steering.json").read_text()
    assert from_json(saved) == {3: Amplify(4.0), 9: Clamp(-1.5, start=10)}
    page.get_by_label("Remove c3").click()
    page.get_by_label("Remove c9").click()
    page.locator(".interventions-hint").wait_for()
    page.locator("input[type=file]").set_input_files(tmp_path / "steering.json")
    page.locator(".intervention").nth(1).wait_for()
    page.get_by_text("Opened steering.json.").wait_for()
    page.wait_for_function("() => decodeURIComponent(location.hash).includes('clamp')")
    page.get_by_label("Steering line").fill("c3=loud")
    page.get_by_role("button", name="Use line").click()
    page.locator(".snippets .bad").wait_for()
    assert page.locator(".intervention").count() == 2
    monitor.allowed.append(FAILED_REQUEST)


def test_stop_ends_a_stream(monitor: MonitoredPage) -> None:
    page = monitor.open("#steer")
    page.get_by_label("Prompt").fill("Fellow")
    page.evaluate(
        """() => {
          const real = window.fetch;
          window.fetch = (path, options) => {
            if (path !== "api/steer") return real(path, options);
            const token = { id: 1, token: " on", loss: 1, concepts: {} };
            const lines = [{ event: "start", prompt: [], judge: "teacher", concepts: [] },
              { event: "token", index: 0, base: token, steered: token, same: true }];
            const text = lines.map((line) => JSON.stringify(line) + "\\n").join("");
            const body = new ReadableStream({
              start(out) {
                out.enqueue(new TextEncoder().encode(text));
                options.signal.addEventListener("abort", () => {
                  window.stopped = true;
                  out.error(new DOMException("stopped", "AbortError"));
                });
              },
            });
            return Promise.resolve(new Response(body));
          };
        }"""
    )
    page.get_by_role("button", name="Run").click()
    page.locator(".column.base .token").wait_for()
    page.get_by_role("button", name="Stop").click()
    page.get_by_text("Stopped.").wait_for()
    assert page.evaluate("() => window.stopped") is True
    assert (
        page.get_by_role("button", name="Run").is_enabled() and not page.get_by_role("button", name="Stop").is_visible()
    )


def test_a_preset_steers_with_one_click(
    monitor: MonitoredPage, catalog: ModelCatalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = [
        OutputScore(concept=concept, tokens=[concept + 10], score=score, steered=score, unsteered=0.0)
        for concept, score in ((3, 0.1), (7, 0.5), (9, -0.1), (11, 0.2), (5, 0.3), (2, 0.05), (6, 0.01))
    ]
    monkeypatch.setitem(catalog.open(COCOMIX).__dict__, "_output_scores", made)
    page = monitor.open("#steer?tokens=8&seed=3")
    gallery = page.locator(".preset")
    gallery.nth(4).wait_for()
    shown = gallery.evaluate_all("(all) => all.map((button) => Number(button.dataset.concept))")
    assert shown == [7, 5, 11, 3, 2]
    for place in (0, 1):
        gallery.nth(place).click()
        page.locator(f".intervention[data-concept='{shown[place]}']").wait_for()
        page.get_by_text(re.compile(r"tokens.* in [\d.]+ s")).wait_for()
        assert page.locator(".intervention").count() == 1
        assert page.get_by_label(f"Amplify c{shown[place]} by, as a number").input_value() == "4"
        line = format_steering({shown[place]: Amplify(4.0)})
        page.wait_for_function(
            "(line) => document.querySelector('.snippets .line').textContent.endsWith(`--steer ${line}`)", arg=line
        )
    page.go_back()
    page.locator(".intervention[data-concept='7']").wait_for()
    page.locator(".column.steered .token:not(.prompt)").nth(7).wait_for()
