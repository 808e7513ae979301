"""`cocomix explore`: from runs to a page that can be opened."""

import os
import socket
import sys
import webbrowser
from collections.abc import Sequence
from pathlib import Path

import uvicorn

from cocomix.explorer.access import access_for, url_host
from cocomix.explorer.app import create_app
from cocomix.explorer.catalog import Catalog
from cocomix.explorer.prepare import prepare
from cocomix.utils.errors import CocomixError
from cocomix.utils.pipeline_console import console


def explore(folders: Sequence[Path], *, host: str, port: int, token: str | None, browser: bool) -> None:
    """Prepare runs and serve them until it is stopped.

    Args:
        folders: of the runs.
        host, port: where to listen; port 0 is any that is free.
        token: asked of every browser; made here where it is not given and other machines can come.
        browser: open the page.

    Raises:
        CocomixError: no such run, nothing finished in it, a token that cannot be used, or an address that is taken.
    """
    listening = listen(host, port)  # first of all: preparing takes a while
    with listening:
        port = listening.getsockname()[1]
        access = access_for(host, port, token)
        catalog = Catalog(folders)
        prepare(catalog)
        address = f"http://{url_host(host)}:{port}/" + (f"?token={access.token}" if access.token else "")
        console.print(f"\nExplore: [bold]{address}[/]   (Ctrl-C stops it)", highlight=False, soft_wrap=True)
        if browser and _has_screen():
            webbrowser.open(address)
        config = uvicorn.Config(
            create_app(catalog, access),
            log_level="warning",
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_graceful_shutdown=1,
        )
        try:
            uvicorn.Server(config).run(sockets=[listening])
        except KeyboardInterrupt:
            console.print("stopped", highlight=False)


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens there.

    Raises:
        CocomixError: the address is taken, or not this machine's.
    """
    try:
        family, kind, protocol, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError, OverflowError) as error:
        raise CocomixError(f"{host} is no address of this machine; give --host 127.0.0.1") from error
    listening = socket.socket(family, kind, protocol)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind(where)
        listening.listen(128)
    except OSError as error:
        listening.close()
        raise CocomixError(
            f"port {port} of {host} cannot be listened on ({error.strerror}); give another, such as --port"
            f" {_free_port(host)}"
        ) from error
    return listening


def _free_port(host: str) -> int:
    """A port that nobody listens on now; 0, any, where even that cannot be found."""
    try:
        with socket.create_server((host, 0)) as found:
            return found.getsockname()[1]
    except OSError:
        return 0


def _has_screen() -> bool:
    """Whether a browser would have a window; one that runs in the terminal would take it over."""
    return sys.platform != "linux" or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
