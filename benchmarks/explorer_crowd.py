"""Many at the explorer at once: strangers who begin requests and never end them, and readers who want right answers.

    python -m benchmarks.explorer_crowd -r runs/demo -o results/explorer/crowd.json

Starts `cocomix explore RUN`. First every reader's answer is fetched alone. Then `--half-open` connections without the
token begin a request (half of them in the head, half in the body) and stay, and `--readers` ask for their answers all
at once, which must be the same but for times. Then the same server with `--descriptors` file descriptors,
fewer than there are strangers, and one reader after the other. Exits with 1 if an answer is wrong or missing.
"""

import argparse
import http.client
import json
import os
import resource
import secrets
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.provenance import provenance

TEXT, TEXTS = "Fellow citizens of the Senate, we must reduce the public debt", 40
JSON = {"Content-Type": "application/json"}


class Client:
    """Requests to one explorer, signed in."""

    def __init__(self, port: int, token: str) -> None:
        self.port = port
        self.headers = dict(JSON)
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
        connection.request("POST", "/api/session", json.dumps({"token": token}), JSON)
        self.headers["Cookie"] = connection.getresponse().headers["Set-Cookie"].partition(";")[0]

    def ask(self, path: str, body: dict[str, Any] | None = None) -> tuple[str, Any, float]:
        """Status or the name of an error, the answer, and seconds."""
        began = time.perf_counter()
        try:
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
            data = None if body is None else json.dumps(body)
            connection.request("GET" if body is None else "POST", path, data, self.headers)
            answer = connection.getresponse()
            content = json.load(answer)
            connection.close()
            return str(answer.status), content, time.perf_counter() - began
        except OSError as error:
            return type(error).__name__, None, time.perf_counter() - began


@contextmanager
def explorer(run: Path, descriptors: int | None = None) -> Iterator[Client]:
    """A server of its own, with at most so many file descriptors."""

    def limit() -> None:
        if descriptors is not None:
            resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors, descriptors))

    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    token = secrets.token_urlsafe(32)
    command = [sys.executable, "-m", "cocomix", "explore", str(run), "--port", str(port), "--no-open"]
    environment = os.environ | {"COCOMIX_TOKEN": token}
    with subprocess.Popen(command, env=environment, preexec_fn=limit, stdout=subprocess.DEVNULL) as process:
        try:
            while True:
                if process.poll() is not None:
                    raise SystemExit("the explorer did not start")
                try:
                    client = Client(port, token)
                    break
                except OSError:
                    time.sleep(0.5)
            yield client
        finally:
            process.terminate()


def strangers(client: Client, number: int, stack: ExitStack) -> list[socket.socket]:
    """Connections that begin a request and stay."""
    head = f"GET /api/models HTTP/1.1\r\nHost: 127.0.0.1:{client.port}"
    body = head.replace("GET /api/models", "POST /api/session") + (
        "\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{"
    )
    opened = []
    for index in range(number):
        connection = stack.enter_context(socket.create_connection(("127.0.0.1", client.port), timeout=20))
        connection.sendall((head if index % 2 else body).encode())
        opened.append(connection)
    return opened


def without_times(answer: Any) -> Any:
    """An answer without what differs each time."""
    kept = answer.items() if isinstance(answer, dict) else ()
    return {key: value for key, value in kept if key != "milliseconds"}


def crowd(client: Client, half_open: int, readers: int) -> dict[str, Any]:
    """All strangers and all readers at once."""
    model = client.ask("/api/models")[1]["models"][0]["key"]
    bodies = [{"model": model, "text": f"{number} {TEXT}", "top": 3} for number in range(TEXTS)]
    alone = [without_times(client.ask("/api/read", body)[1]) for body in bodies]
    with ExitStack() as stack, ThreadPoolExecutor(readers) as pool:
        strangers(client, half_open // 2, stack)
        asked = [pool.submit(client.ask, "/api/read", bodies[number % TEXTS]) for number in range(readers)]
        strangers(client, half_open - half_open // 2, stack)
        answers = [one.result() for one in asked]
    right = sum(without_times(answer) == alone[number % TEXTS] for number, (_, answer, _) in enumerate(answers))
    seconds = sorted(answer[2] for answer in answers)
    return {
        "half_open": half_open,
        "readers": readers,
        "right": right,
        "wrong": sum(status == "200" for status, _, _ in answers) - right,
        "statuses": dict(Counter(status for status, _, _ in answers)),
        "seconds": {"median": round(median(seconds), 2), "largest": round(seconds[-1], 2)},
    }


def few_descriptors(client: Client, half_open: int, descriptors: int) -> dict[str, Any]:
    """More strangers than descriptors, then one reader after the other."""
    with ExitStack() as stack:
        strangers(client, half_open, stack)
        answers = [client.ask("/api/models") for _ in range(20)]
    statuses = Counter(status for status, _, _ in answers)
    return {"descriptors": descriptors, "half_open": half_open, "asked": 20, "statuses": dict(statuses)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-r", "--run", type=Path, required=True, help="a finished run")
    parser.add_argument("-o", "--output", type=Path, help="JSON file of the report")
    parser.add_argument("--half-open", type=int, default=300)
    parser.add_argument("--readers", type=int, default=200)
    parser.add_argument("--descriptors", type=int, default=256)
    arguments = parser.parse_args()
    origin = provenance()
    with explorer(arguments.run) as client:
        many = crowd(client, arguments.half_open, arguments.readers)
    with explorer(arguments.run, arguments.descriptors) as client:
        few = few_descriptors(client, arguments.half_open, arguments.descriptors)
    report = {"crowd": many, "few descriptors": few, **origin}
    text = json.dumps(report, indent=1)
    print(text)
    if arguments.output is not None:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text(text + "\n", encoding="utf-8")
    sys.exit(many["right"] != many["readers"] or few["statuses"] != {"200": few["asked"]})


if __name__ == "__main__":
    main()
