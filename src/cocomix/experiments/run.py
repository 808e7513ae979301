"""`cocomix experiment`: plan, run and report."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from cocomix.experiments.config import ExperimentConfig
from cocomix.utils.console import duration
from cocomix.utils.errors import CocomixError
from cocomix.utils.files import write_text
from cocomix.utils.pipeline_console import console
from cocomix.utils.settings import read_yaml, validate

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
        from cocomix.experiments.plan import plan
        from cocomix.experiments.plan_table import plan_table

        gpus, peak_tflops = plan_for
        console.print(plan_table(plan(config, folder, gpus=gpus, peak_tflops=peak_tflops)))
        return

    from cocomix.experiments.grid import Grid

    grid = Grid(config, folder)
    if stages:
        for stage in stages:
            grid.run_stage(stage)
        return
    output = output or folder
    if output.exists() and not output.is_dir():
        raise CocomixError(f"{output} is a file, not a folder; give another --output")
    failed = None if report_only else _run(grid, jobs=jobs, processes=processes)
    if failed is None or any(grid.finished(name) for name in grid.runs):
        _report(grid, output)
    if failed is not None:
        raise failed


def _run(grid: "Grid", *, jobs: int, processes: int) -> CocomixError | None:
    """Do what is not done yet. A failure ends the rounds that need it, no others; the first one is returned."""
    from cocomix.experiments.launch import Job, Launcher

    console.print(f"[bold]{grid.config.title}[/] in {grid.folder}", highlight=False)
    # Processes read this copy, so that editing the recipe meanwhile does not mix two experiments.
    recipe = grid.folder / "experiment.yaml"
    grid.folder.mkdir(parents=True, exist_ok=True)
    write_text(recipe, yaml.safe_dump(grid.config.model_dump(mode="json"), sort_keys=False))
    first, stuck = None, set()
    for setting, waiting, needed in grid.rounds():
        if stuck & grid.settings_of(setting):
            continue
        missing = [job for job in waiting if not grid.done(job)]
        count = 0

        def finished(job: Job, seconds: float, of: int = len(missing)) -> bool:
            nonlocal count
            if not grid.done(job):
                return False
            count += 1
            found = "; ".join(filter(None, (grid.stage(name).describe(grid.stage(name).figures) for name in job)))
            line = f"  [{count} of {of}] {job[0]}: {duration(seconds)}; {found}"
            console.print(line, highlight=False, markup=False, soft_wrap=True)
            return True

        launcher = Launcher(
            ["experiment", str(recipe), "-r", str(grid.folder)],
            grid.folder / "logs",
            at_once=1 if len(waiting) == 1 else jobs,
            processes=processes if any(grid.stage(job[0]).distributed for job in waiting) else 1,
            finished=finished,
        )
        failure = launcher.run(missing)
        if failure is not None:
            first = first or failure
            console.print(f"  {failure}", style="red", highlight=False, markup=False, soft_wrap=True)
            if needed:
                stuck.add(setting)
    return first


def _report(grid: "Grid", output: Path) -> None:
    from cocomix.experiments.collect import collect
    from cocomix.experiments.console import console_summary
    from cocomix.experiments.report import write_experiment_report

    results = write_experiment_report(collect(grid), output)
    console.print(console_summary(results))
    console.print(f"Report: {(output / 'report.html').resolve()}", highlight=False, soft_wrap=True)
