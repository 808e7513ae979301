"""The explorer's server, from `cocomix explore` to the page.

- `explore` is the command: it prepares the runs and serves them.
- `prepare` makes what the explorer needs beside the models (names and concept indexes), once for each run.
- `create_app` is the application: the routes of `api.py`, the page's files, and one JSON form for every error. The
  routes work on a `ModelCatalog` (`catalog.py`), which opens models as `ModelSession`s (`sessions.py`).
  `SecurityMiddleware` (`security.py`) stands around all of it, and `ExplorerServer` (`connections.py`) runs it.
"""

import html
import logging
import os
import socket
import sys
import tempfile
import webbrowser
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.text import Text
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Scope

from cocomix.analysis.naming import read_names, write_found
from cocomix.explorer.api import SERVER_ERROR, Api, Limits
from cocomix.explorer.catalog import ModelCatalog
from cocomix.explorer.connections import ExplorerServer
from cocomix.explorer.schemas import error_response
from cocomix.explorer.security import AccessPolicy, SecurityMiddleware, access_policy, url_host
from cocomix.pipeline.concept_stages import find_names, print_unkept
from cocomix.utils.console import console
from cocomix.utils.errors import CocomixError

PAGE = Path(__file__).parent / "page"
NAME_TOKENS = 250_000
"""Tokens of the training split that concepts are named from, as in `cocomix name`."""
_log = logging.getLogger(__name__)


def explore(
    folders: Sequence[Path],
    *,
    host: str,
    port: int,
    token: str | None,
    browser: bool,
    no_token: bool = False,
    allow_hosts: Sequence[str] = (),
    root_path: str = "",
) -> None:
    """Prepare runs and serve them until the process is stopped.

    Args:
        folders: of the runs.
        host, port: where to listen; port 0 is any free port.
        token: asked of every browser; generated if not given.
        browser: open the page.
        no_token: ask for no token, though other users of this machine can connect.
        allow_hosts, root_path: where a reverse proxy shows it; see `access_policy`.

    Raises:
        CocomixError: no such run, no finished student in it, an unusable token, or an address that is taken.
    """
    listening = listen(host, port)  # first, because preparing takes a while
    with listening:
        port = listening.getsockname()[1]
        policy = access_policy(host, port, token, no_token=no_token, allow_hosts=allow_hosts, root_path=root_path)
        catalog = ModelCatalog(folders)
        prepare(catalog)
        address = f"http://{url_host(host)}:{port}{policy.root_path}/"
        address += f"#token={policy.token}" if policy.token else ""
        console.print(Text.assemble("\nExplore: ", (address, "bold"), "   (Ctrl-C stops it)"), soft_wrap=True)
        for name in allow_hosts:
            shown = f"https://{name}{policy.root_path}/" + (f"#token={policy.token}" if policy.token else "")
            console.print(f"  through the proxy: {shown}", highlight=False, markup=False, soft_wrap=True)
        try:
            with _opened(address if browser and _has_screen() else None):
                ExplorerServer(create_app(catalog, policy)).run(sockets=[listening])
        except KeyboardInterrupt:
            console.print("stopped", highlight=False)


@contextmanager
def _opened(address: str | None) -> Iterator[None]:
    """Open an address in the browser.

    By a file that only this user can read and that leads there: the command line of a browser, and with it an address
    with a token, can be read by every user of the machine.
    """
    if address is None:
        yield
        return
    with tempfile.TemporaryDirectory(prefix="cocomix-") as folder:
        page = Path(folder) / "explore.html"
        target = html.escape(address)
        page.write_text(
            f'<!doctype html><meta charset="utf-8"><meta name="referrer" content="no-referrer"><title>cocomix</title>'
            f'<meta http-equiv="refresh" content="0; url={target}"><a href="{target}">cocomix explore</a>',
            encoding="utf-8",
        )
        webbrowser.open(page.as_uri())
        yield


def prepare(catalog: ModelCatalog, *, name_tokens: int = NAME_TOKENS) -> None:
    """Name the concepts of every run, index every finished student, and load what the first request needs.

    Names and indexes are kept in the run, or in memory if it cannot be written. A run that lacks its teacher is
    explored without them; what cannot be made is printed.
    """
    for run in catalog.runs:
        for layer in run.run.sae_layers_read if run.has_sae else ():
            sae = run.run.sae.of_layer(layer)
            if read_names(run.folder, sae.checksum(), sae.names_file).found is not None:
                continue
            found = find_names(run.run, tokens=name_tokens, layer=layer)
            run.found_names[found.sae] = found
            try:
                write_found(run.folder, found, sae.names_file)
            except OSError as error:
                print_unkept("the names of concepts", error)
        if run.has_sae:
            run.load()
    for info in reversed(catalog.models()):
        if info.predicts_concepts and catalog.entry(info.key).is_finished:
            try:
                session = catalog.open(info.key)
                session.build_index()
                for text in catalog.examples[:1]:  # the first passes of a process are slow
                    session.read(text, concept=None, top=1)
            except CocomixError as error:
                console.print(f"{info.label}: {error}", style="yellow", highlight=False, markup=False, soft_wrap=True)


def create_app(catalog: ModelCatalog, policy: AccessPolicy, limits: Limits | None = None) -> ASGIApp:
    """The application that serves `catalog` to everyone whom `policy` allows."""
    api = Api(catalog, limits or Limits())
    app = Starlette(
        routes=[Route("/", _page), *api.routes(), Mount("/page", _PageFiles(directory=PAGE, check_dir=False))],
        exception_handlers={CocomixError: _bad_request, HTTPException: _no_route, Exception: _server_error},
    )
    return SecurityMiddleware(app, policy)  # outermost, so that answers to errors carry its headers, too


class _PageFiles(StaticFiles):
    """The page's files; a browser asks each time whether its copy is still current."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        response = await super().get_response(path, scope)
        response.headers["Cache-Control"] = "no-cache"
        return response


async def _page(_request: Request) -> Response:
    return FileResponse(PAGE / "index.html", headers={"Cache-Control": "no-cache"})


async def _bad_request(_request: Request, error: Exception) -> Response:
    return error_response(getattr(error, "status", 400), str(error))


async def _no_route(request: Request, error: Exception) -> Response:
    status = getattr(error, "status_code", 400)
    return error_response(status, f"{request.method} {_path(request)} is not served here; open / instead")


async def _server_error(request: Request, error: Exception) -> Response:
    _log.error("%s %s failed", request.method, _path(request), exc_info=error)
    return error_response(500, SERVER_ERROR)


def _path(request: Request) -> str:
    """The requested path. `request.url` would also read the query, which may not be UTF-8."""
    return request.scope["path"]


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens on `host` and `port`.

    Raises:
        CocomixError: the address is taken, or is not this machine's.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError, OverflowError) as error:
        raise CocomixError(f"{host} is not an address of this machine; give --host 127.0.0.1") from error
    listening = socket.socket(family, kind, protocol)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind(address)
        listening.listen(128)
    except OSError as error:
        listening.close()
        raise CocomixError(
            f"port {port} of {host} cannot be listened on ({error.strerror}); give another, such as --port"
            f" {_free_port(host)}"
        ) from error
    return listening


def _free_port(host: str) -> int:
    """A port that is free now; 0, which means any, if that cannot be found out."""
    try:
        with socket.create_server((host, 0)) as server:
            return server.getsockname()[1]
    except OSError:
        return 0


def _has_screen() -> bool:
    """Whether a browser would open a window; one that runs in the terminal would take the terminal over."""
    return sys.platform != "linux" or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
