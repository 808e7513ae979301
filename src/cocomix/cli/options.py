"""Options that several commands share, and how a run is opened from them."""

import logging
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

# Typer would refuse an unreadable path with its own message; the commands name the fix.
PathOption = partial(typer.Option, readable=False)
PathArgument = partial(typer.Argument, readable=False)
RunDir = Annotated[Path, PathOption("--run", "-r", help="The run's folder.")]
ConfigFile = Annotated[
    Path | None,
    PathOption("--config", "-c", help="Settings to use; default: the run's own config.yaml, or else the demo's."),
]
Overrides = Annotated[list[str] | None, typer.Argument(help="Overrides, e.g. sae.k=8.", show_default=False)]
Seeds = Annotated[int | None, typer.Option("--seeds", min=1, help="Train every student with seeds 0 to N-1.")]
Replace = Annotated[
    bool, typer.Option("--replace", help="Do not ask before stages finished with other settings are done anew.")
]
DEFAULT_RUN = Path("runs/demo")


PACK_RECIPE = "demo-pack"


def demo_recipe() -> str:
    """The recipe of `cocomix demo`: the one with a concept pack where that pack is, else the one from scratch."""
    from cocomix.pipeline.pack import is_here
    from cocomix.utils.settings import read_yaml

    return PACK_RECIPE if is_here(read_yaml(recipe_file(PACK_RECIPE))["pack"]) else "demo"


def recipe_file(name: str) -> Path:
    """The YAML file of a recipe in the package."""
    return Path(str(resources.files("cocomix") / "recipes" / f"{name}.yaml"))


def open_run(
    run: Path,
    config: Path | None,
    overrides: list[str] | None,
    seeds: int | None = None,
    *,
    replace: bool = False,
    default: str = "demo",
) -> "Run":
    """The run in folder `run`, with the settings of `config`, or its own, or the demo's, and overrides on top.

    Args:
        replace: do not ask before stages finished with other settings are done anew.
        default: recipe of a run that has no settings yet.

    Raises:
        CocomixError: its own settings are gone; with the demo's, its stages would be redone and replaced.
    """
    from cocomix.pipeline.config import CONFIG, load_config
    from cocomix.pipeline.run import Run, load_run
    from cocomix.pipeline.stage import RECORD

    quiet_libraries()
    if not is_text(str(run)):
        raise CocomixError(f"the name of {run} is not in UTF-8, so no tokenizer can be saved there; give another --run")
    extra = [*(overrides or []), *([f"seeds={list(range(seeds))}"] if seeds else [])]
    if config is None and (run / CONFIG).exists():
        opened = load_run(run, extra)
        opened.advise(extra)
        opened.replace = replace
        return opened
    opened = Run(run, load_config(config or recipe_file(default), extra))
    named = config or (recipe_file(default) if default != "demo" else None)
    opened.advise([*(["--config", str(named)] if named else []), *extra])
    opened.replace = replace
    if config is None:
        # A command killed just after its stage was done leaves no config.yaml either; its stage then fits the demo's.
        for stage in opened.stages.values():
            if (stage.folder / RECORD).exists() and not stage.done():
                raise CocomixError(
                    f"{run} has {stage.name} of other settings than the demo's, and its config.yaml is gone; restore"
                    " config.yaml, or give the settings the run was made with as --config"
                )
    return opened


def check_text(text: str) -> None:
    """Refuse a text of the command line that tokenizers cannot read.

    Raises:
        CocomixError: it was not given in UTF-8.
    """
    if not is_text(text):
        raise CocomixError(f"the text {text!r} was not given in UTF-8; set the terminal's encoding, or LC_ALL=C.UTF-8")


def is_text(name: str) -> bool:
    """Whether an argument was given in UTF-8; Python shows other bytes as halves of surrogate pairs."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def quiet_libraries() -> None:
    """Silence libraries' progress bars and notices, and print warnings in our own style."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    # peft imports bitsandbytes wherever it is installed, which says at once what 4-bit kernels it lacks.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    warnings.showwarning = lambda message, *_: errors.print(
        "cocomix:", str(message), style="yellow", highlight=False, markup=False, soft_wrap=True
    )
