"""`cocomix experiment`: plan, run and report.

The jobs of a grid run as processes, a few at a time. A job's output goes to a log of its own. With several at once the
processor's threads are shared out among them, and each gets GPUs of its own where there are any. A failed job does not
stop the others; the first signal asks all of them to save and stop, and none outlives this process unless it is killed
outright.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import yaml
from rich.text import Text

from cocomix.experiments.config import ExperimentConfig
from cocomix.experiments.grid import Grid, collect
from cocomix.experiments.plan import plan, plan_table
from cocomix.experiments.report import console_summary, write_experiment_report
from cocomix.pipeline.run import ask_before_replacing
from cocomix.utils.console import console, duration
from cocomix.utils.distributed import StopRequest
from cocomix.utils.errors import CocomixError, Interrupted
from cocomix.utils.files import write_text
from cocomix.utils.settings import read_yaml, validate

Job = list[str]


class Launcher:
    """Runs jobs by the command that does one stage.

    Args:
        command: arguments of `cocomix` that do a stage when its name is added.
        logs: folder of the logs.
        at_once: jobs at the same time.
        processes: processes of each under torchrun; 1 runs it plainly.
        finished: called with each job whose process succeeded, and its seconds; returns whether its stages are done.
    """

    def __init__(
        self,
        command: Sequence[str],
        logs: Path,
        *,
        at_once: int = 1,
        processes: int = 1,
        finished: Callable[[Job, float], bool] = lambda _job, _seconds: True,
    ) -> None:
        self.command, self.logs, self.at_once, self.processes = command, logs, at_once, processes
        self.finished = finished

    def run(self, jobs: Sequence[Job]) -> CocomixError | None:
        """Run all `jobs`; returns when every one has ended, with the first failure in the order of `jobs`.

        Raises:
            Interrupted: a signal came; running jobs were asked to save first.
        """
        waiting, failed = list(jobs), []
        free = list(range(self.at_once))
        running: dict[int, tuple[Job, subprocess.Popen[bytes], float]] = {}
        try:
            with StopRequest() as stop:
                while (waiting or running) and stop.received is None:
                    while waiting and free:
                        place, job = free.pop(0), waiting.pop(0)
                        running[place] = (job, self._start(job, place), time.monotonic())
                    for place, (job, process, started) in list(running.items()):
                        if process.poll() is None:
                            continue
                        del running[place]
                        free.append(place)
                        if process.returncode or not self.finished(job, time.monotonic() - started):
                            failed.append(job)
                    time.sleep(0.05)
                if stop.received is not None:
                    raise Interrupted("stopped; rerun the same command to resume", by_user=stop.received == "SIGINT")
        finally:
            for _, process, _ in running.values():
                process.send_signal(signal.SIGTERM)
            for _, process, _ in running.values():
                process.wait()
        return self._failure(sorted(failed, key=jobs.index)) if failed else None

    def _failure(self, failed: list[Job]) -> CocomixError:
        log = self._log(failed[0])
        more = f" (and {len(failed) - 1} more)" if len(failed) > 1 else ""
        return CocomixError(f"{failed[0][0]}{more} failed: {_last_message(log)}; its log is {log}")

    def _start(self, job: Job, place: int) -> subprocess.Popen[bytes]:
        environment = dict(os.environ)
        threads = max(1, (os.cpu_count() or 1) // (self.at_once * self.processes))
        environment.setdefault("OMP_NUM_THREADS", str(threads))
        if self.at_once > 1 and torch.cuda.is_available():
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(self._gpus(place))
        starter = [sys.executable, "-m"]
        if self.processes > 1:
            starter += ["torch.distributed.run", "--standalone", "--nproc-per-node", str(self.processes), "-m"]
        log = self._log(job)
        log.parent.mkdir(parents=True, exist_ok=True)
        stages = [part for stage in job for part in ("--stage", stage)]
        with log.open("wb") as stream:
            return subprocess.Popen(
                [*starter, "cocomix", *self.command, *stages],
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,  # a Ctrl-C reaches it once, from here
            )

    def _gpus(self, place: int) -> list[str]:
        """The GPUs of the job at `place`, out of those this process may use."""
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        gpus = visible.split(",") if visible else [str(index) for index in range(torch.cuda.device_count())]
        if self.processes > len(gpus):
            raise CocomixError(f"{self.processes} processes need as many GPUs, and there are {len(gpus)}; lower it")
        return [gpus[(place * self.processes + index) % len(gpus)] for index in range(self.processes)]

    def _log(self, job: Job) -> Path:
        return self.logs / f"{job[0].replace(':', '--').replace('/', '--')}.log"


def _last_message(log: Path) -> str:
    """The last message of a failed process: our own sentence if there is one, else its last line with a letter."""
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines()]
    starts = [number for number, line in enumerate(lines) if line.startswith("cocomix: ")]
    if starts:
        return " ".join(filter(None, lines[starts[-1] :])).removeprefix("cocomix: ").rstrip(".")
    messages = [line for line in lines if any(letter.isalpha() for letter in line)]
    return messages[-1].strip("│ ").rstrip(".") if messages else "it printed nothing"


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
    replace: bool,
) -> None:
    """Plan, run or report as the command line says; see `cocomix experiment --help`.

    Args:
        plan_for: print a plan for so many GPUs, with the peak TFLOPS of one, and do nothing else.
        replace: do not ask before stages finished with other settings are done anew.
    """
    config = validate(ExperimentConfig, read_yaml(recipe, overrides), str(recipe))
    if plan_for is not None:
        gpus, peak_tflops = plan_for
        console.print(plan_table(plan(config, folder, gpus=gpus, peak_tflops=peak_tflops)))
        return

    grid = Grid(config, folder)
    if stages:
        for stage in stages:
            grid.run_stage(stage)
        return
    output = output or folder
    if output.exists() and not output.is_dir():
        raise CocomixError(f"{output} is a file, not a folder; give another --output")
    if not (report_only or replace):
        for name, run in grid.runs.items():
            ask_before_replacing(run.folder, grid.stages(name), "add --replace")
    failed = None if report_only else _run(grid, jobs=jobs, processes=processes)
    if failed is None or any(grid.finished(name) for name in grid.runs):
        _report(grid, output)
    if failed is not None:
        raise failed


def _run(grid: Grid, *, jobs: int, processes: int) -> CocomixError | None:
    """Run what is not done yet. A failure ends only the rounds that need it; the first one is returned."""
    console.print(Text(grid.config.title, style="bold"), f"in {grid.folder}", soft_wrap=True)
    # Processes read this copy, so that editing the recipe meanwhile does not mix two experiments.
    recipe = grid.folder / "experiment.yaml"
    grid.folder.mkdir(parents=True, exist_ok=True)
    write_text(recipe, yaml.safe_dump(grid.config.model_dump(mode="json"), sort_keys=False))
    first, blocked = None, set()
    for setting, waiting, needed in grid.rounds():
        if blocked & grid.settings_of(setting):
            continue
        missing = [job for job in waiting if not grid.done(job)]
        count = 0

        def finished(job: Job, seconds: float, total: int = len(missing)) -> bool:
            nonlocal count
            if not grid.done(job):
                return False
            count += 1
            figures = "; ".join(filter(None, (grid.stage(name).describe(grid.stage(name).figures) for name in job)))
            line = f"  [{count} of {total}] {job[0]}: {duration(seconds)}; {figures}"
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
                blocked.add(setting)
    return first


def _report(grid: Grid, output: Path) -> None:
    results = write_experiment_report(collect(grid), output)
    console.print(console_summary(results))
    console.print(f"Report: {(output / 'report.html').resolve()}", highlight=False, soft_wrap=True)
