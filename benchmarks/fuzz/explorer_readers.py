"""Readers of the explorer's requests, and of a whole run as the explorer, the push and the report read it."""

import asyncio
import json
import shutil
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import unquote_to_bytes

from benchmarks.fuzz.reader import Reader
from benchmarks.fuzz.run_readers import STEERING
from cocomix.explorer.app import create_app, prepare
from cocomix.explorer.catalog import ModelCatalog
from cocomix.explorer.security import access_policy
from cocomix.hub import lineage, measured
from cocomix.pipeline.run import collect_results
from cocomix.pipeline.trained import existing_run
from cocomix.utils.errors import CocomixError

MODEL, TEXT, HOST = "0/cocomix/0", "Fellow citizens of the Senate", "127.0.0.1:7860"
BODIES: dict[str, Any] = {
    "read": {"model": MODEL, "text": TEXT, "concept": 3, "top": 5},
    "compare": {"left": MODEL, "right": "0/ntp/0", "text": TEXT, "top": 3},
    "name": {"model": MODEL, "concept": 3, "name": "war"},
    "steering": {"model": MODEL, "prompt": TEXT, "tokens": 4, **STEERING},
    "steering read": {"text": json.dumps(STEERING)},
    "steer": {"model": MODEL, "prompt": TEXT, "tokens": 4, "temperature": 0.5, "seed": 1, **STEERING},
}
TARGETS = (
    "/api/models",
    f"/api/concepts?model={MODEL}&q=war&sort=predicted&offset=2&limit=4",
    f"/api/concept?model={MODEL}&id=3",
    "/page/main.js",
    "/",
)


class Explorer:
    """An explorer of a copy of a run, called through its ASGI interface, so that no client cleans up the requests.

    Every file is a request: a JSON file is the body of a request to the route it is named after, a text file holds
    method, target and headers.
    """

    def __init__(self, run: Path, folder: Path) -> None:
        self.run, self.folder = run, folder
        self.valid: dict[str, bytes] = {}

    @cached_property
    def app(self) -> Any:
        """The ASGI application."""
        copy = self.folder / "explored"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(self.run, copy)
        catalog = ModelCatalog([copy])
        prepare(catalog, name_tokens=2000)
        return create_app(catalog, access_policy("127.0.0.1", 7860, None, no_token=True))

    @cached_property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The event loop that runs it."""
        return asyncio.new_event_loop()

    def make(self, folder: Path) -> None:
        """Write valid requests."""
        for name, body in BODIES.items():
            (folder / f"{name}.json").write_text(json.dumps(body))
        for number, target in enumerate(TARGETS):
            (folder / f"{number}.txt").write_text(f"GET {target}\nHost: {HOST}\nCookie: a=b\nOrigin: http://{HOST}\n")
        self.valid = {path.name: path.read_bytes() for path in folder.iterdir()}

    def read(self, folder: Path) -> None:
        """Send the requests that differ from the valid ones, or all of them if none does.

        Raises:
            CocomixError: if a request was refused.
            RuntimeError: if the server failed.
        """
        requests = {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
        changed = {name for name, content in requests.items() if content != self.valid.get(name)}
        refused = ""
        for name in changed or requests:
            status, answer = self.loop.run_until_complete(self._send(name, requests[name]))
            if status >= 500 or b"the server failed at this" in answer:
                raise RuntimeError(f"{name}: {status} {answer[:300]!r}")
            if status >= 400:
                refused = json.loads(answer)["error"]
        if refused:
            raise CocomixError(refused)

    async def _send(self, name: str, content: bytes) -> tuple[int, bytes]:
        method, target, body = "POST", f"/api/{Path(name).stem.replace(' ', '/')}".encode(), content
        headers = [(b"host", HOST.encode()), (b"content-type", b"application/json")]
        if not name.endswith(".json"):
            first, *lines = content.split(b"\n")
            method_bytes, _, target = first.partition(b" ")
            method, body = method_bytes.decode("latin-1"), b""
            headers = [
                (key.strip().lower(), value.strip()) for key, _, value in (line.partition(b":") for line in lines)
            ]
        path, _, query = target.partition(b"?")
        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": unquote_to_bytes(path).decode("utf-8", "replace"),
            "raw_path": path,
            "query_string": query,
            "root_path": "",
            "headers": headers,
            "client": ("127.0.0.1", 1234),
            "server": ("127.0.0.1", 7860),
        }
        messages: list[Any] = []
        done = asyncio.Event()

        async def receive() -> dict[str, Any]:
            if not messages:
                messages.append(None)
                return {"type": "http.request", "body": body}
            await done.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            messages.append(message)

        await self.app(scope, receive, send)
        done.set()
        start, *rest = [message for message in messages if message]
        return start["status"], b"".join(message.get("body", b"") for message in rest)


REPLACED_FILES = (
    "config.yaml",
    "corpus/stage.json",
    "tokens/stage.json",
    "tokens/tokenizer/tokenizer_config.json",
    "students/cocomix/seed0/stage.json",
    "students/cocomix/seed0/model/config.json",
    "evaluation/cocomix/seed0/stage.json",
)


class WholeRun:
    """A run as the explorer, the report and the push read it; an input replaces some of its small files."""

    def __init__(self, run: Path, folder: Path) -> None:
        self.run, self.folder = run, folder

    def make(self, folder: Path) -> None:
        """Copy the valid files."""
        shutil.rmtree(self.folder, ignore_errors=True)
        shutil.copytree(self.run, self.folder)
        for name in REPLACED_FILES:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(self.run / name, folder / name)

    def read(self, folder: Path) -> None:
        """Read the run with the files of `folder` in place of its own."""
        for name in REPLACED_FILES:
            (self.folder / name).unlink(missing_ok=True)
            if (folder / name).is_file():
                shutil.copyfile(folder / name, self.folder / name)
        ModelCatalog([self.folder])
        run = existing_run(self.folder)
        collect_results(run, {})
        student = next(student for student in run.students if student.student == "cocomix")
        lineage(run, student)
        measured(run, student)


def readers(run: Path, kept: Path) -> tuple[Reader, ...]:
    """Return the readers that need the finished tiny run `run`; copies of it are kept below `kept`."""
    explorer = Explorer(run, kept)
    whole = WholeRun(run, kept / "whole")
    return (
        Reader("run", whole.make, whole.read, works_in=(kept,), anywhere=True, share=0.2),
        Reader("explorer", explorer.make, explorer.read, works_in=(kept,)),
    )
