"""Commands that look at what a run's concepts are and do."""

from pathlib import Path
from typing import Annotated

import typer

from cocomix.cli.options import DEFAULT_RUN, PathArgument, PathOption, RunDir, check_text, quiet_libraries
from cocomix.utils.console import console


def name_command(
    run: RunDir = DEFAULT_RUN,
    tokens: Annotated[int, typer.Option(min=1, help="Tokens of the training split to read, evenly spread.")] = 250_000,
    llm: Annotated[
        str | None,
        typer.Option(help="Program that reads a concept's passages as JSON and prints a name; no shell is used."),
    ] = None,
    llm_seconds: Annotated[float, typer.Option(min=0.1, help="Its time for each concept.")] = 30.0,
    edit: Annotated[
        list[str] | None, typer.Option(help="CONCEPT=NAME: only set this name, by hand; may be repeated.")
    ] = None,
    layer: Annotated[
        int | None, typer.Option(help="Of the autoencoder of a block in sae.also; default: sae.layer.")
    ] = None,
) -> None:
    """Name the run's concepts by the tokens that most set them apart.

    A name is given only where two halves of the text agree on it. Kept in names.json; names by hand are kept apart
    and never overwritten. All students of the run share them.
    """
    from cocomix.pipeline.concept_stages import edit_run, name_run, print_names

    quiet_libraries()
    if edit:
        names = edit_run(run, edit, layer)
    else:
        names = name_run(run, tokens=tokens, llm=llm, llm_seconds=llm_seconds, layer=layer)
    print_names(names, run)


def inspect_command(
    text: Annotated[str, typer.Argument(help="Text to look at.")],
    run: RunDir = DEFAULT_RUN,
    student: Annotated[str, typer.Option(help="Student of the run, one that predicts concepts.")] = "cocomix",
    seed: Annotated[int, typer.Option(help="Which of the student's seeds.")] = 0,
    top: Annotated[int, typer.Option(min=1, help="Concepts and next tokens shown for each token.")] = 3,
    concept: Annotated[
        int | None, typer.Option(min=0, help="Shade the text by this concept, and show the odds without it.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """What a student makes of a text: concepts, losses and next-token odds at each token.

    A tick says that the teacher's attribution, by the rule the student was taught with, has the concept there, too.
    """
    from cocomix.analysis.inspect import print_reading
    from cocomix.pipeline.trained import inspect_text

    quiet_libraries()
    check_text(text)
    reading = inspect_text(run, text, student=student, seed=seed, top=top, concept=concept)
    if as_json:
        console.print_json(reading.model_dump_json())
    else:
        print_reading(reading, console)


def explore(
    run: Annotated[Path, PathArgument(help="The run's folder.", show_default=True)] = DEFAULT_RUN,
    others: Annotated[
        list[Path] | None, PathOption("--with", help="Another run to compare with; may be repeated.")
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 is any free port.")] = 7860,
    token: Annotated[
        str | None,
        typer.Option(
            envvar="COCOMIX_TOKEN",
            help="Token that browsers must present; default: generated. Other users can read a command line, so"
            " rather set the variable.",
        ),
    ] = None,
    no_token: Annotated[
        bool, typer.Option("--no-token", help="Ask for no token, though other users of this machine can connect.")
    ] = False,
    allow_host: Annotated[
        list[str] | None, typer.Option(help="Name under which a reverse proxy shows it; may be repeated.")
    ] = None,
    root_path: Annotated[str, typer.Option(help="Path below which the proxy shows it, e.g. /cocomix.")] = "",
    no_open: Annotated[bool, typer.Option("--no-open", help="Do not open the browser.")] = False,
) -> None:
    """Explore a run's students in the browser: read texts, look up concepts, steer, compare.

    The first time, it names the run's concepts and indexes held-out text. The results are kept in the run, if it can be
    written. The token is in the printed address: only who has it can use the explorer.
    """
    from cocomix.explorer.app import explore as serve

    quiet_libraries()
    serve(
        [run, *(others or [])],
        host=host,
        port=port,
        token=token,
        browser=not no_open,
        no_token=no_token,
        allow_hosts=allow_host or [],
        root_path=root_path,
    )
