"""What several commands share: options, and the way from them to a run."""

import warnings
from functools import partial
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cocomix.utils.console import errors
from cocomix.utils.errors import CocomixError

if TYPE_CHECKING:
    from cocomix.pipeline.run import Run

# A path that must not be read is left to the command, which says how to mend that.
PathOption = partial(typer.Option, readable=False)
PathArgument = partial(typer.Argument, readable=False)
RunDir = Annotated[Path, PathOption("--run", "-r", help="The run's folder.")]
ConfigFile = Annotated[
    Path | None,
    PathOption("--config", "-c", help="YAML to start from; default: the run's own config.yaml, else the demo's."),
]
Overrides = Annotated[list[str] | None, typer.Argument(help="Overrides, e.g. sae.k=8.", show_default=False)]
Seeds = Annotated[int | None, typer.Option("--seeds", min=1, help="Train every student with seeds 0 to N-1.")]
DEFAULT_RUN = Path("runs/demo")


def recipe_file(name: str) -> Path:
    """The YAML of a recipe that comes with the package."""
    return Path(str(resources.files("cocomix") / "recipes" / f"{name}.yaml"))


def open_run(run: Path, config: Path | None, overrides: list[str] | None, seeds: int | None = None) -> "Run":
    """The run in folder `run`, with its own settings, or those of `config`, or the demo's, and overrides on top.

    Raises:
        CocomixError: its own are gone: with the demo's, what it holds would be made anew and replaced.
    """
    from cocomix.pipeline.config import CONFIG, load_config
    from cocomix.pipeline.run import Run, load_run
    from cocomix.pipeline.stage import RECORD

    quiet_libraries()
    extra = [*(overrides or []), *([f"seeds={list(range(seeds))}"] if seeds else [])]
    if config is None and (run / CONFIG).exists():
        return load_run(run, extra)
    opened = Run(run, load_config(config or recipe_file("demo"), extra))
    if config is None:
        # A command that is killed once its stage is done leaves no config.yaml either; that stage is the demo's, then.
        for stage in opened.stages.values():
            if (stage.folder / RECORD).exists() and not stage.done():
                raise CocomixError(
                    f"{run} has {stage.name} of other settings than the demo's, and its config.yaml is gone; restore"
                    " config.yaml, or give the settings the run was made with as --config"
                )
    return opened


def quiet_libraries() -> None:
    """Leave the screen to our own progress; the library's loading bars and notices are not for a run's user."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    warnings.showwarning = lambda message, *_: errors.print(
        "cocomix:", str(message), style="yellow", highlight=False, markup=False, soft_wrap=True
    )
