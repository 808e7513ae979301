"""The explorer of a run in a real browser: how long a person waits, and pictures of each view.

python -m benchmarks.explorer_latency -r runs/demo -o results/explorer --pictures docs/images

Needs Playwright (`pip install 'cocomix[dev]'`) and Chromium. Milliseconds are medians; the machine should be idle.
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

ROUNDS = 9
OPTIONS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
TEXT = (
    "Fellow citizens of the Senate and House of Representatives: we must reduce the public debt of the United States"
    " and strengthen our relations with foreign nations, because the public welfare depends on them."
)
PANELS = """async () => {
  const took = [];
  for (const chip of [...document.querySelectorAll("#view-read .strip .token")].slice(0, %d)) {
    const began = performance.now();
    chip.click();
    await new Promise((done) => requestAnimationFrame(() => setTimeout(done)));
    took.push(performance.now() - began);
  }
  return took;
}"""
ASK = """async ([path, body]) => {
  const began = performance.now();
  const told = body ? { method: "POST", headers: { "Content-Type": "application/json" }, body } : {};
  await (await fetch(path, told)).json();
  return performance.now() - began;
}"""


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        return found.getsockname()[1]


def serve(run: Path) -> tuple[subprocess.Popen[bytes], str]:
    """`cocomix explore RUN` and its address, once it answers."""
    port = free_port()
    command = [sys.executable, "-m", "cocomix", "explore", str(run), "--port", str(port), "--no-open"]
    process, home = subprocess.Popen(command), f"http://127.0.0.1:{port}/"
    while process.poll() is None:
        try:
            urllib.request.urlopen(home, timeout=1).close()
            return process, home
        except OSError:
            time.sleep(0.5)
    raise SystemExit("the explorer did not start")


def waits(page: Page, home: str, model: str, concept: int) -> dict[str, Any]:
    """Milliseconds from asking to an answer, seen from the page."""
    page.goto(f"{home}#read?{urlencode({'model': model, 'text': TEXT})}")
    page.wait_for_selector("#view-read .strip .token")

    def asked(path: str, body: dict[str, Any] | None = None) -> float:
        return page.evaluate(ASK, [path, None if body is None else json.dumps(body)])

    reads = [{"model": model, "text": f"{number} {TEXT}", "concept": concept} for number in range(ROUNDS)]
    found = {
        "panel of a token, from click to picture": page.evaluate(PANELS % ROUNDS),
        "reading a new text, a concept ablated": [asked("/api/read", body) for body in reads],
        "list of concepts": [asked(f"/api/concepts?model={model}&q=the") for _ in range(ROUNDS)],
        "dashboard of a concept, first time": [
            asked(f"/api/concept?model={model}&id={row}") for row in range(concept, concept + ROUNDS)
        ],
    }
    return {name: {"median": round(median(ms), 1), "runs": [round(one, 1) for one in ms]} for name, ms in found.items()}


def pictures(browser: Any, home: str, model: str, concept: int, at: int, steer: str, folder: Path) -> None:
    """Each view as PNG, dark and light in turn."""
    folder.mkdir(parents=True, exist_ok=True)
    items = [
        {"concept": int(one[1:].split("=")[0]), "do": "amplify", "amount": float(one.split("=")[1])}
        for one in steer.split(",")
    ]
    views = {
        "read": ("light", {"model": model, "text": TEXT, "concept": concept, "at": at}, "#view-read .strip .token"),
        "concepts": ("dark", {"model": model, "concept": concept}, "#view-concepts h2"),
        "steer": (
            "light",
            {"model": model, "prompt": "The people of the United States", "steering": json.dumps(items)},
            ".dial",
        ),
        "compare": ("dark", {"text": TEXT}, "#view-compare .strip .token"),
    }
    for view, (scheme, asked, shown) in views.items():
        page = browser.new_page(viewport={"width": 1280, "height": 800}, color_scheme=scheme)
        page.goto(f"{home}#{view}?{urlencode(asked)}")
        page.wait_for_selector(shown)
        if view == "steer":
            page.get_by_role("button", name="Run").click()
            page.wait_for_function("() => /tokens.* in [\\d.]+ s/.test(document.body.innerText)", timeout=60_000)
        page.wait_for_timeout(1500)
        page.screenshot(path=folder / f"explorer-{view}.png")
        page.close()


def main() -> None:
    arguments = argparse.ArgumentParser(
        prog="python -m benchmarks.explorer_latency",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    arguments.add_argument("-r", "--run", type=Path, required=True)
    arguments.add_argument("-o", "--output", type=Path, help="folder for latency.json")
    arguments.add_argument("--pictures", type=Path, help="folder for PNGs")
    arguments.add_argument("--model", default="0/cocomix/0", help="key of a model")
    arguments.add_argument("--concept", type=int, default=0, help="one to shade by and to open")
    arguments.add_argument("--at", type=int, default=19, help="token of the text whose panel is shown")
    arguments.add_argument(
        "--steer", default="", help="dials of the picture, such as c12=4; default: that concept by 4"
    )
    given = arguments.parse_args()
    process, home = serve(given.run)
    try:
        with sync_playwright() as running:
            browser = running.chromium.launch(executable_path=shutil.which("chromium"), args=OPTIONS)
            if given.output:
                page = browser.new_page()
                report = {
                    **provenance(),
                    "run": given.run.name,
                    "milliseconds": waits(page, home, given.model, given.concept),
                }
                given.output.mkdir(parents=True, exist_ok=True)
                (given.output / "latency.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
                for name, one in report["milliseconds"].items():
                    print(f"{one['median']:8.1f} ms  {name}")
            if given.pictures:
                steer = given.steer or f"c{given.concept}=4"
                pictures(browser, home, given.model, given.concept, given.at, steer, given.pictures)
            browser.close()
    finally:
        process.terminate()
        process.wait()


if __name__ == "__main__":
    main()
