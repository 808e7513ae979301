"""The command that opens a run in the browser."""

from pathlib import Path
from typing import Annotated

import typer

from cocomix.cli.options import DEFAULT_RUN, PathArgument, PathOption, quiet_libraries
from cocomix.utils.errors import CocomixError


def explore(
    run: Annotated[Path, PathArgument(help="The run's folder.", show_default=True)] = DEFAULT_RUN,
    others: Annotated[
        list[Path] | None, PathOption("--with", help="A further run, to compare with; may be repeated.")
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on; beyond loopback a token is needed.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 is any that is free.")] = 7860,
    token: Annotated[
        str | None,
        typer.Option(envvar="COCOMIX_TOKEN", help="Ask every browser for it; default: one is made where needed."),
    ] = None,
    no_open: Annotated[bool, typer.Option("--no-open", help="Do not open the browser.")] = False,
) -> None:
    """Look into a run's students and steer them, in the browser.

    The first time it names the run's concepts and looks at held-out text; that is kept in the run.
    """
    try:
        from cocomix.explorer.serve import explore as serve
    except ModuleNotFoundError as error:
        if error.name not in ("starlette", "uvicorn", "anyio"):
            raise
        raise CocomixError(f"the explorer needs {error.name}; run `pip install starlette uvicorn`") from error
    quiet_libraries()
    serve([run, *(others or [])], host=host, port=port, token=token, browser=not no_open)
