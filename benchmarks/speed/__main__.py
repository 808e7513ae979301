"""`python -m benchmarks.speed`: measure speed against other libraries and the reference's arithmetic."""

from pathlib import Path
from typing import Annotated

import typer

from cocomix.cli.options import PathOption, quiet_libraries
from cocomix.utils.console import console, errors, use_any_encoding
from cocomix.utils.errors import CocomixError


def bench(
    json: Annotated[Path, PathOption("--json", help="Report file; written after each group.")],
    shape: Annotated[str, typer.Option(help="69m, 386m, 1.38b, or tiny for a quick try.")] = "69m",
    repeats: Annotated[int | None, typer.Option(min=1, help="Rounds per group; default: 1 to 5, by group.")] = None,
    only: Annotated[
        str | None,
        typer.Option(help="Groups, separated by commas: peak,step,memory,labelling,generate,sae,growth,gpu."),
    ] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda or auto (a GPU if there is one).")] = "auto",
    seed: Annotated[int, typer.Option(min=0, help="Seed of weights, tokens and labels.")] = 0,
) -> None:
    """Measure cocomix against Transformers' GPT-2, SAELens, sparsify and the reference's own arithmetic.

    Workloads take turns, so a slow phase of the machine affects all of them. Run nothing else at the same time. At 69m
    it takes 15 to 20 minutes on 2 CPU cores. If you stop it, the groups measured so far stay in the report.
    """
    from benchmarks.speed.bench import run_bench

    quiet_libraries()
    names = [name.strip() for name in only.split(",") if name.strip()] if only else []
    run_bench(shape, json, repeats=repeats, only=names, device=device, seed=seed, console=console)


def main() -> None:
    """Run the command; an error a user can fix is printed as one sentence, with exit code 2."""
    try:
        typer.run(bench)
    except CocomixError as error:
        errors.print(f"benchmarks.speed: {error}", markup=False, highlight=False, soft_wrap=True)
        raise SystemExit(2) from None


if __name__ == "__main__":
    use_any_encoding()
    main()
