"""`cocomix experiment`: plan, run and report."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cocomix.config.load import read_yaml, validate
from cocomix.errors import CocomixError
from cocomix.experiments.config import ExperimentConfig
from cocomix.pipeline.console import console
from cocomix.pipeline.progress import duration

if TYPE_CHECKING:
    from cocomix.experiments.grid import Grid


def run_experiment(
    recipe: Path,
    overrides: Sequence[str],
    *,
    folder: Path,
    output: Path | None,
    jobs: int,
    processes: int,
    plan_for: tuple[int, float | None] | None,
    report_only: bool,
    stages: Sequence[str],
) -> None:
    """Do what the command line asks for; see `cocomix experiment --help`. `plan_for`: GPUs and the peak of one."""
    config = validate(ExperimentConfig, read_yaml(recipe, overrides), str(recipe))
    if plan_for is not None:
        from cocomix.experiments.plan import plan, plan_table

        gpus, peak_tflops = plan_for
        console.print(plan_table(plan(config, folder, gpus=gpus, peak_tflops=peak_tflops)))
        return

    from cocomix.experiments.grid import Grid

    grid = Grid(config, folder)
    if stages:
        for stage in stages:
            grid.run_stage(stage)
        return
    if not report_only:
        command = ["experiment", str(recipe), *overrides, "-r", str(folder)]
        _run(grid, command, jobs=jobs, processes=processes)
    _report(grid, output or folder)


def _run(grid: "Grid", command: list[str], *, jobs: int, processes: int) -> None:
    from cocomix.experiments.launch import Job, Launcher

    console.print(f"[bold]{grid.config.title}[/] in {grid.folder}", highlight=False)
    total = done = 0

    def report(job: Job, seconds: float) -> None:
        nonlocal done
        done += 1
        found = "; ".join(filter(None, (grid.stage(name).describe(grid.stage(name).figures) for name in job)))
        line = f"  [{done} of {total}] {job[0]}: {duration(seconds)}; {found}"
        console.print(line, highlight=False, markup=False, soft_wrap=True)

    for waiting in grid.rounds():
        missing = [job for job in waiting if not grid.done(job)]
        total, done = len(missing), 0
        alone = len(waiting) == 1
        launcher = Launcher(
            command, grid.folder / "logs", at_once=1 if alone else jobs, processes=processes, report=report
        )
        launcher.run(missing)


def _report(grid: "Grid", output: Path) -> None:
    from cocomix.experiments.collect import collect
    from cocomix.experiments.report import console_summary, write_experiment_report

    if output.exists() and not output.is_dir():
        raise CocomixError(f"{output} is a file, not a folder; give another --output")
    output.mkdir(parents=True, exist_ok=True)
    results = write_experiment_report(collect(grid), output)
    console.print(console_summary(results))
    console.print(f"Report: {(output / 'report.html').resolve()}", highlight=False, soft_wrap=True)
