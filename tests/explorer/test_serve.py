"""Over a real socket: many clients at once, clients that leave, and the command itself."""

import http.client
import json
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from cocomix.explorer.api import Limits
from cocomix.explorer.app import create_app, listen
from cocomix.explorer.catalog import ModelCatalog
from cocomix.explorer.security import access_policy
from cocomix.utils.errors import CocomixError
from tests.helpers.command import cocomix, refused
from tests.helpers.explored_run import COCOMIX, NTP, STEERING, TEXT, hooked, served, wait_until

pytestmark = pytest.mark.slow
JSON = {"Content-Type": "application/json"}
STEER = {"model": COCOMIX, "prompt": "Fellow", "steering": STEERING}


def posted(port: int, path: str, body: Any) -> tuple[int, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("POST", path, json.dumps(body), JSON)
    answer = connection.getresponse()
    text = answer.read().decode()
    connection.close()
    return answer.status, [json.loads(line) for line in text.splitlines()]


def test_many_clients_at_once_all_get_right_answers(catalog: ModelCatalog) -> None:
    texts = [f"{TEXT[: 12 + number]}, and the {number} others" for number in range(25)]
    bodies = [{"model": key, "text": text, "top": 2} for text in texts for key in (COCOMIX, NTP)]
    bodies = [
        body | {"concept": number % 100} if body["model"] == COCOMIX else body for number, body in enumerate(bodies)
    ]
    steered = STEER | {"tokens": 20}
    with served(create_app(catalog, access_policy("127.0.0.1", 0, None, no_token=True))) as port:
        alone = [posted(port, "/api/read", body)[1][0]["tokens"] for body in bodies]
        expected = posted(port, "/api/steer", steered)[1][1:-1]
        with ThreadPoolExecutor(len(bodies) + 2) as clients:
            streams = [clients.submit(posted, port, "/api/steer", steered) for _ in range(2)]
            readings = [clients.submit(posted, port, "/api/read", body) for body in bodies]
            assert [reading.result()[0] for reading in readings] == [200] * 50
            assert [reading.result()[1][0]["tokens"] for reading in readings] == alone
            assert [stream.result()[1][1:-1] for stream in streams] == [expected] * 2
    assert len({json.dumps(tokens) for tokens in alone}) == 50 and not hooked(catalog, COCOMIX)


def test_a_client_that_leaves_makes_room(catalog: ModelCatalog, monkeypatch: pytest.MonkeyPatch) -> None:
    passes: Counter[str] = Counter()
    slow = threading.Event()

    def counted(reader: Any, ids: Any) -> Any:
        passes["all"] += 1
        slow.wait(0.02)
        return reader.model(input_ids=ids, use_cache=True, **reader._past)

    monkeypatch.setattr("cocomix.explorer.paired_generation.CachedModel._forward", counted)
    limits = Limits(streams=1)
    with served(create_app(catalog, access_policy("127.0.0.1", 0, None, no_token=True), limits)) as port:
        body = json.dumps(STEER | {"tokens": 60}).encode()
        with socket.create_connection(("127.0.0.1", port)) as client:
            head = ["POST /api/steer HTTP/1.1", "Host: localhost", "Content-Type: application/json"]
            client.sendall("\r\n".join([*head, f"Content-Length: {len(body)}\r\n\r\n"]).encode() + body)
            first = client.recv(65536)
            assert b"200 OK" in first and limits._open_streams == 1
            status, lines = posted(port, "/api/steer", STEER)
            assert status == 429 and "1 texts are being written already" in lines[0]["error"]
            assert posted(port, "/api/read", {"model": COCOMIX, "text": TEXT})[0] == 200
            assert limits._open_streams == 1
        wait_until(lambda: limits._open_streams == 0)
        stopped = passes["all"]
        time.sleep(0.2)
        assert passes["all"] == stopped < 100 and not hooked(catalog, COCOMIX)
        slow.set()
        assert posted(port, "/api/steer", STEER | {"tokens": 3})[0] == 200
        assert posted(port, "/api/steer", STEER | {"prompt": ""})[0] == 400 and limits._open_streams == 0


def test_tokens_are_sent_when_they_are_there(catalog: ModelCatalog) -> None:
    with served(create_app(catalog, access_policy("127.0.0.1", 0, None, no_token=True))) as port:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        connection.request("POST", "/api/steer", json.dumps(STEER | {"tokens": 50}), JSON)
        answer = connection.getresponse()
        parts = 0
        while answer.read1(1 << 16):
            parts += 1
        assert parts > 10


def test_an_address_that_cannot_be_had() -> None:
    with listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(CocomixError, match=rf"port {port} of 127\.0\.0\.1 cannot be listened on .*--port [1-9]"):
            listen("127.0.0.1", port)
    with pytest.raises(CocomixError, match="is not an address of this machine"):
        listen("no.such.host.invalid", 0)


def test_the_command(folder: Path, tmp_path: Path) -> None:
    refused(cocomix("explore", "nowhere", "--port", "0", cwd=tmp_path, check=False), "there is no run in nowhere")
    command = [sys.executable, "-m", "cocomix", "explore", str(folder), "--port", "0", "--no-open", "--no-token"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            line = next(line for line in process.stdout if "Explore:" in line)
            address = line.split()[1]
            with urllib.request.urlopen(f"{address}api/models", timeout=20) as answer:
                assert len(json.load(answer)["models"]) == 4
        finally:
            process.terminate()
        assert "Traceback" not in process.communicate(timeout=20)[1]
