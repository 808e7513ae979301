"""A reverse proxy of the standard library: shows another server below a prefix, and nothing else."""

import http.client
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@contextmanager
def proxied(upstream: int, prefix: str, *, strips: bool) -> Iterator[tuple[int, list[str]]]:
    """Serve the server at port `upstream` below `prefix`; gives the port, and the request lines and Referers it saw.

    Args:
        strips: whether it removes the prefix from the path, as nginx does after `proxy_pass http://…/;`.
    """
    log: list[str] = []

    class Proxy(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            log.append(f"{self.requestline} {self.headers.get('Referer', '')}")
            if not self.path.startswith(f"{prefix}/"):
                self.send_error(404)
                return
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            connection = http.client.HTTPConnection("127.0.0.1", upstream, timeout=60)
            path = self.path.removeprefix(prefix) if strips else self.path
            kept = {name: value for name, value in self.headers.items() if name.lower() != "connection"}
            connection.request(self.command, path, body or None, kept)  # Host is passed on as it came
            answer = connection.getresponse()
            self.send_response_only(answer.status)
            for name, value in answer.getheaders():
                if name.lower() not in ("transfer-encoding", "content-length", "connection"):
                    self.send_header(name, value)
            self.send_header("Connection", "close")
            self.end_headers()
            while part := answer.read1(1 << 16):
                self.wfile.write(part)
            connection.close()
            self.close_connection = True

        do_POST = do_GET

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Proxy) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield server.server_address[1], log
        finally:
            server.shutdown()
            thread.join(20)
