"""The application: routes, the page's files, and one shape for every problem."""

import logging
from pathlib import Path

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Scope

from cocomix.explorer.access import Access
from cocomix.explorer.api import BROKEN, Api
from cocomix.explorer.catalog import Catalog
from cocomix.explorer.limits import Limits
from cocomix.explorer.security import Guard, problem
from cocomix.utils.errors import CocomixError

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
