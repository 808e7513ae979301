"""An explorer of a finished tiny run, in this process and over a real socket."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from starlette.testclient import TestClient
from starlette.types import ASGIApp

from cocomix.explorer.api import Limits
from cocomix.explorer.app import create_app, listen
from cocomix.explorer.catalog import ModelCatalog
from cocomix.explorer.connections import ExplorerServer, LimitedProtocol
from cocomix.explorer.security import AccessPolicy, access_policy

COCOMIX, NTP = "0/cocomix/0", "0/ntp/0"
TEXT = "Fellow citizens of the Senate and of the House of Representatives"
STEERING = [{"concept": 3, "do": "amplify", "amount": 4.0}, {"concept": 7, "do": "ablate", "start": 2}]


def client_of(catalog: ModelCatalog, policy: AccessPolicy | None = None, limits: Limits | None = None) -> TestClient:
    """A client in this process that sends what the page would send."""
    app = create_app(catalog, policy or access_policy("127.0.0.1", 7860, None, no_token=True), limits)
    return TestClient(app, base_url="http://127.0.0.1:7860", raise_server_exceptions=False)


@contextmanager
def served(app: ASGIApp, protocol: type[LimitedProtocol] = LimitedProtocol) -> Iterator[int]:
    """Serve `app` as `cocomix explore` does; gives the port."""
    with listen("127.0.0.1", 0) as listening:
        server = ExplorerServer(app, protocol)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            wait_until(lambda: server.started)
            yield listening.getsockname()[1]
        finally:
            server.should_exit = True
            thread.join(20)


def wait_until(condition: Callable[[], bool], seconds: float = 20) -> None:
    """Wait until `condition()` is true."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "the condition did not become true in time"
        time.sleep(0.01)


def hooked(catalog: ModelCatalog, key: str) -> bool:
    """Whether any hook is left on a model."""
    model = catalog.open(key).model
    return any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
