"""The command that measures steering."""

from pathlib import Path
from typing import Annotated

import typer

from cocomix.cli.options import DEFAULT_RUN, PathOption, RunDir, quiet_libraries
from cocomix.utils.pipeline_console import console


def steer_eval_command(
    run: RunDir = DEFAULT_RUN,
    output: Annotated[
        Path | None, PathOption("--output", "-o", help="Folder for the report; default: RUN/steer-eval.")
    ] = None,
    student: Annotated[
        str, typer.Option(help="Student of the run, one that was taught the SAE's concepts.")
    ] = "cocomix",
    concepts: Annotated[int, typer.Option(min=2, help="Concepts to steer, evenly spread by frequency.")] = 24,
    prompts: Annotated[int, typer.Option(min=1, help="Validation prompts for each.")] = 8,
    tokens: Annotated[int, typer.Option(min=4, help="Tokens generated after each prompt.")] = 40,
    seed: Annotated[int, typer.Option(min=0, help="Of the sampling.")] = 0,
) -> None:
    """Measure steering: how much of a concept it brings, for how much fluency, and how far it leaks.

    On every seed of the student, against no steering, a random concept, residual steering and prompting, at fixed
    doses. Writes report.html and report.json. Finished parts are kept: stopped, the same command goes on.
    """
    from cocomix.pipeline.steering_stages import steer_eval
    from cocomix.steering.study.report import steering_table

    quiet_libraries()
    folder = output or run / "steer-eval"
    report = steer_eval(run, folder, student, concepts=concepts, prompts=prompts, tokens=tokens, seed=seed)
    console.print(steering_table(report))
    console.print(f"Report: {(folder / 'report.html').resolve()}", highlight=False, soft_wrap=True)
