"""`cocomix retrofit`: a concept channel for a finished model."""

from pathlib import Path
from typing import Annotated

import typer

from cocomix.cli.options import (
    ConfigFile,
    Overrides,
    PathOption,
    Replace,
    Seeds,
    open_run,
    quiet_libraries,
    recipe_file,
)
from cocomix.utils.console import console, is_main


def retrofit(
    model: Annotated[
        str, typer.Argument(help="Folder, hub id, GGUF file or package:NAME; `teacher`: the run's own concept model.")
    ],
    overrides: Overrides = None,
    run: Annotated[Path, PathOption("--run", "-r", help="The run's folder.")] = Path("runs/retrofit"),
    config: ConfigFile = None,
    trains: Annotated[
        str | None, typer.Option(help="The part to train: channel, lora or all; default: lora.", show_default=False)
    ] = None,
    pack: Annotated[
        str | None,
        typer.Option(help="Folder, name or hub id of a concept pack in place of an autoencoder and labels of the run."),
    ] = None,
    seeds: Seeds = None,
    replace: Replace = False,
) -> None:
    """Give a finished language model a concept channel, train it, and compare it with itself.

    At first the model computes what it did before. Then concept head and mixing, with LoRA or with everything, learn
    from the run's concept labels. The table has the loss of the model as it is, fine-tuned the same way without a
    channel, and retrofitted, and how well its concepts are predicted. The result, RUN/students/retrofit/seed0/model,
    loads with AutoModelForCausalLM. Finished stages are kept; rerun the same command to resume.
    """
    from cocomix.pipeline.config import CONFIG
    from cocomix.pipeline.retrofit import retrofit_overrides, retrofit_table, run_retrofit
    from cocomix.utils.settings import read_yaml

    quiet_libraries()
    source = config or (
        run / CONFIG if (run / CONFIG).exists() else recipe_file("retrofit" if pack is None else "retrofit-pack")
    )
    extra = [*retrofit_overrides(model, read_yaml(source, overrides or []), trains, pack), *(overrides or [])]
    given = source if source != run / CONFIG else None
    stages = run_retrofit(open_run(run, given, extra, seeds, replace=replace))
    if is_main():
        console.print(retrofit_table(stages))
        for stage in stages:
            folder = stage.student.folder / "model"
            console.print(f"{stage.student.student}: {folder}", highlight=False, markup=False, soft_wrap=True)
