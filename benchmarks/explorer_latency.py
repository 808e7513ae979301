"""Measure how long a user of the explorer waits, in a real browser, and take a picture of each view.

    python -m benchmarks.explorer_latency -r runs/demo -o results/explorer --pictures docs/images

Needs Playwright (`pip install 'cocomix[dev]'`) and Chromium. Milliseconds are medians. The machine should be idle.
"""

import argparse
import json
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from statistics import median
from typing import Any
from urllib.parse import urlencode

from playwright.sync_api import Page, sync_playwright

from benchmarks.provenance import provenance
from cocomix.utils.console import use_any_encoding

ROUNDS = 9
OPTIONS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
TEXT = (
    "Fellow citizens of the Senate and House of Representatives: we must reduce the public debt of the United States"
    " and strengthen our relations with foreign nations, because the public welfare depends on them."
)
PANELS = """async () => {
  const times = [];
  for (const chip of [...document.querySelectorAll("#view-read .strip .token")].slice(0, %d)) {
    const began = performance.now();
    chip.click();
    await new Promise((done) => requestAnimationFrame(() => setTimeout(done)));
    times.push(performance.now() - began);
  }
  return times;
}"""
FETCH = """async ([path, body]) => {
  const began = performance.now();
  const options = body ? { method: "POST", headers: { "Content-Type": "application/json" }, body } : {};
  await (await fetch(path, options)).json();
  return performance.now() - began;
}"""
STREAM = """async (body) => {
  const options = { method: "POST", headers: { "Content-Type": "application/json" }, body };
  return await (await fetch("/api/steer", options)).text();
}"""
STREAMED, STREAMS = 40, 3
"""Tokens of a streamed text, and how many streams."""


def free_port() -> int:
    """Return a free TCP port."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def serve(run: Path) -> tuple[subprocess.Popen[bytes], str]:
    """Start `cocomix explore RUN` and wait until it answers; return the process and its address."""
    port = free_port()
    command = [sys.executable, "-m", "cocomix", "explore", str(run), "--port", str(port), "--no-open", "--no-token"]
    process, home = subprocess.Popen(command), f"http://127.0.0.1:{port}/"
    while process.poll() is None:
        try:
            urllib.request.urlopen(home, timeout=1).close()
            return process, home
        except OSError:
            time.sleep(0.5)
    raise SystemExit("the explorer did not start")


def latencies(page: Page, home: str, model: str, concept: int) -> dict[str, Any]:
    """Measure the milliseconds from a user's action to the answer, in the page."""
    page.goto(f"{home}#read?{urlencode({'model': model, 'text': TEXT})}")
    page.wait_for_selector("#view-read .strip .token")

    def fetch(path: str, body: dict[str, Any] | None = None) -> float:
        return page.evaluate(FETCH, [path, None if body is None else json.dumps(body)])

    reads = [{"model": model, "text": f"{number} {TEXT}", "concept": concept} for number in range(ROUNDS)]
    measured = {
        "panel of a token, from click to picture": page.evaluate(PANELS % ROUNDS),
        "reading a new text, a concept ablated": [fetch("/api/read", body) for body in reads],
        "list of concepts": [fetch(f"/api/concepts?model={model}&q=the") for _ in range(ROUNDS)],
        "dashboard of a concept, first time": [
            fetch(f"/api/concept?model={model}&id={row}") for row in range(concept, concept + ROUNDS)
        ],
    }
    return {
        name: {"median": round(median(times), 1), "runs": [round(ms, 1) for ms in times]}
        for name, times in measured.items()
    }


def streaming(page: Page, home: str, model: str, concept: int) -> dict[str, Any]:
    """Measure how fast two texts stream side by side, without steering and with it; a first stream is not counted."""
    page.goto(home)
    steering = [{"concept": concept, "do": "amplify", "amount": 4.0}]
    speeds = []
    for number in range(STREAMS + 1):
        body = {"model": model, "prompt": TEXT, "steering": steering, "tokens": STREAMED, "seed": number}
        end = [line for line in page.evaluate(STREAM, json.dumps(body)).splitlines() if '"event":"end"' in line][-1]
        found = json.loads(end[end.index("{") :])
        speeds.append(1000 * found["tokens"] / found["milliseconds"])
    return {"median": round(median(speeds[1:]), 2), "runs": [round(speed, 2) for speed in speeds[1:]]}


def pictures(browser: Any, home: str, model: str, concept: int, at: int, steer: str, folder: Path) -> None:
    """Save a picture of each view as PNG, alternating light and dark."""
    folder.mkdir(parents=True, exist_ok=True)
    items = [
        {"concept": int(item[1:].split("=")[0]), "do": "amplify", "amount": float(item.split("=")[1])}
        for item in steer.split(",")
    ]
    views = {
        "read": ("light", {"model": model, "text": TEXT, "concept": concept, "at": at}, "#view-read .strip .token"),
        "concepts": ("dark", {"model": model, "concept": concept}, "#view-concepts h2"),
        "steer": (
            "light",
            {"model": model, "prompt": "The people of the United States", "steering": json.dumps(items)},
            ".intervention",
        ),
        "compare": ("dark", {"text": TEXT}, "#view-compare .strip .token"),
    }
    for view, (scheme, query, selector) in views.items():
        page = browser.new_page(viewport={"width": 1280, "height": 800}, color_scheme=scheme)
        page.goto(f"{home}#{view}?{urlencode(query)}")
        page.wait_for_selector(selector)
        if view == "steer":
            page.get_by_role("button", name="Run").click()
            page.wait_for_function("() => /tokens.* in [\\d.]+ s/.test(document.body.innerText)", timeout=60_000)
        page.wait_for_timeout(1500)
        page.screenshot(path=folder / f"explorer-{view}.png")
        page.close()


def main() -> None:
    """Parse the command line, start the explorer, and measure or take pictures."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.explorer_latency",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("-r", "--run", type=Path, required=True, help="folder of a finished run")
    parser.add_argument("-o", "--output", type=Path, help="folder for latency.json")
    parser.add_argument("--pictures", type=Path, help="folder for the PNG files")
    parser.add_argument("--model", default="0/cocomix/0", help="key of a model")
    parser.add_argument("--concept", type=int, default=0, help="concept to shade by and to open")
    parser.add_argument("--at", type=int, default=19, help="index of the token whose panel is shown")
    parser.add_argument(
        "--steer", default="", help="steering shown in the picture, such as c12=4; default: --concept by 4"
    )
    arguments = parser.parse_args()
    process, home = serve(arguments.run)
    try:
        with sync_playwright() as running:
            browser = running.chromium.launch(executable_path=shutil.which("chromium"), args=OPTIONS)
            if arguments.output:
                page = browser.new_page()
                report = {
                    **provenance(),
                    "run": arguments.run.name,
                    "milliseconds": latencies(page, home, arguments.model, arguments.concept),
                    "tokens_per_second": streaming(page, home, arguments.model, arguments.concept),
                }
                arguments.output.mkdir(parents=True, exist_ok=True)
                (arguments.output / "latency.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
                for name, latency in report["milliseconds"].items():
                    print(f"{latency['median']:8.1f} ms  {name}")
                speed = report["tokens_per_second"]["median"]
                print(f"{speed:8.1f} tokens a second, each of two texts that stream side by side")
            if arguments.pictures:
                steer = arguments.steer or f"c{arguments.concept}=4"
                pictures(browser, home, arguments.model, arguments.concept, arguments.at, steer, arguments.pictures)
            browser.close()
    finally:
        process.terminate()
        process.wait()


if __name__ == "__main__":
    use_any_encoding()
    main()
