"""The command that measures speed: `python -m benchmarks.speed`."""

from pathlib import Path
from typing import Annotated

import typer

from cocomix.cli.options import PathOption, quiet_libraries
from cocomix.utils.console import console, errors
from cocomix.utils.errors import CocomixError


def bench(
    json: Annotated[Path, PathOption("--json", help="File for everything measured; saved after each group.")],
    shape: Annotated[str, typer.Option(help="69m, 386m, 1.38b, or tiny for a try.")] = "69m",
    repeats: Annotated[int | None, typer.Option(min=1, help="Rounds of each group; default: 1 to 5.")] = None,
    only: Annotated[
        str | None,
        typer.Option(help="Only these, with commas: peak,step,memory,labelling,generate,sae,growth,gpu."),
    ] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda or auto.")] = "auto",
    seed: Annotated[int, typer.Option(min=0, help="Of weights, tokens and labels.")] = 0,
) -> None:
    """Measure our speed against Transformers' GPT-2, SAELens, sparsify and the reference's own arithmetic.

    Contestants take turns, so a slow spell hits all of them; still, give it the machine alone. 15 to 20 minutes at 69m
    on 2 CPU cores. What is measured stays, if you stop it.
    """
    from benchmarks.speed.bench import run_bench

    quiet_libraries()
    names = [name.strip() for name in only.split(",") if name.strip()] if only else []
    run_bench(shape, json, repeats=repeats, only=names, device=device, seed=seed, console=console)


def main() -> None:
    """Run the command; a problem a user can fix ends in one sentence and exit code 2."""
    try:
        typer.run(bench)
    except CocomixError as error:
        errors.print(f"benchmarks.speed: {error}", markup=False, highlight=False, soft_wrap=True)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
