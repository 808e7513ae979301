"""The application: routes, the page's files, and one shape for every problem."""

import logging
import os
import socket
import sys
import webbrowser
from collections.abc import Sequence
from pathlib import Path

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Scope

from cocomix.analysis.naming import read_names
from cocomix.explorer.api import BROKEN, Api
from cocomix.explorer.catalog import Catalog
from cocomix.explorer.security import Access, Guard, Limits, access_for, problem, url_host
from cocomix.pipeline.concept_stages import name_run
from cocomix.utils.console import console
from cocomix.utils.errors import CocomixError

# What an explorer needs of a run beside its models: names and concept statistics, made where they are missing.

NAME_TOKENS = 250_000
"""Of the training split, as `cocomix name` reads."""


def prepare(catalog: Catalog, *, name_tokens: int = NAME_TOKENS) -> None:
    """Name the concepts of every run, look through every finished student, and load what the first question needs.

    What cannot be made is said, and does without: a run may lack its teacher.
    """
    for run in catalog.runs:
        if run.has_sae and read_names(run.folder, run.run.sae.checksum()).found is None:
            name_run(run.folder, tokens=name_tokens)
        if run.has_sae:
            run.load()
    for info in reversed(catalog.models()):
        if info.predicts and catalog.entry(info.key).whole:
            try:
                opened = catalog.open(info.key)
                opened.look()
                for text in catalog.examples[:1]:  # the first passes of a process are slow
                    opened.read(text, concept=None, top=1)
            except CocomixError as error:
                console.print(f"{info.label}: {error}", style="yellow", highlight=False, markup=False, soft_wrap=True)


PAGE = Path(__file__).parent / "page"
_log = logging.getLogger(__name__)


def create_app(catalog: Catalog, access: Access, limits: Limits | None = None) -> ASGIApp:
    """The explorer of `catalog`, for whoever `access` lets in."""
    api = Api(catalog, limits or Limits())
    app = Starlette(
        routes=[Route("/", _page), *api.routes(), Mount("/page", _PageFiles(directory=PAGE, check_dir=False))],
        exception_handlers={CocomixError: _refused, HTTPException: _not_served, Exception: _broken},
    )
    return Guard(app, access)  # outermost: what broke is answered with the headers, too


class _PageFiles(StaticFiles):
    """The page's files; a browser asks each time whether its copy is still the right one."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        answer = await super().get_response(path, scope)
        answer.headers["Cache-Control"] = "no-cache"
        return answer


async def _page(_request: Request) -> Response:
    return FileResponse(PAGE / "index.html", headers={"Cache-Control": "no-cache"})


async def _refused(_request: Request, error: Exception) -> Response:
    return problem(getattr(error, "status", 400), str(error))


async def _not_served(request: Request, error: Exception) -> Response:
    status = getattr(error, "status_code", 400)
    return problem(status, f"{request.method} {_path(request)} is nothing that is served here; open / instead")


async def _broken(request: Request, error: Exception) -> Response:
    _log.error("%s %s failed", request.method, _path(request), exc_info=error)
    return problem(500, BROKEN)


def _path(request: Request) -> str:
    """The path asked for; `request.url` would read the query, too, which may be no UTF-8."""
    return request.scope["path"]


# `cocomix explore`: from runs to a page that can be opened.


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
