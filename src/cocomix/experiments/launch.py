"""Run the jobs of a grid as processes, a few at a time.

A job's output goes to a log of its own. With several at once the processor's threads are shared out among them, and
each gets a GPU of its own where there are any. A failed job does not stop the others; the first signal asks all of
them to save and stop.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from cocomix.errors import CocomixError
from cocomix.train.distributed import Interrupted, StopRequest

Job = list[str]


class Launcher:
    """Runs jobs by the command that does one stage.

    Args:
        command: arguments of `cocomix` that do a stage when its name is added.
        logs: folder of the logs.
        at_once: jobs at the same time.
        processes: processes of each under torchrun; 1 runs it plainly.
        report: told of each finished job.
    """

    def __init__(
        self,
        command: Sequence[str],
        logs: Path,
        *,
        at_once: int = 1,
        processes: int = 1,
        report: Callable[[Job, float], None] = lambda _job, _seconds: None,
    ) -> None:
        self.command, self.logs, self.at_once, self.processes, self.report = command, logs, at_once, processes, report

    def run(self, jobs: Sequence[Job]) -> None:
        """Run all `jobs`; returns when every one is done.

        Raises:
            CocomixError: some failed; the sentence has the first one's own words and names its log.
            Interrupted: a signal came; running jobs have saved.
        """
        waiting, running, failed = list(jobs), {}, []
        free = list(range(self.at_once))
        with StopRequest() as stop:
            while waiting or running:
                while waiting and free and stop.received is None:
                    place, job = free.pop(0), waiting.pop(0)
                    running[place] = (job, self._start(job, place), time.monotonic())
                for place, (job, process, started) in list(running.items()):
                    if process.poll() is None:
                        continue
                    del running[place]
                    free.append(place)
                    if process.returncode:
                        failed.append(job)
                    elif stop.received is None:
                        self.report(job, time.monotonic() - started)
                if stop.received is not None:
                    waiting.clear()
                    for _, process, _ in running.values():
                        process.send_signal(signal.SIGTERM)
                    for _, process, _ in running.values():
                        process.wait()
                    running.clear()
                time.sleep(0.05)
        if stop.received is not None:
            raise Interrupted("stopped; the same command goes on from here", by_user=stop.received == "SIGINT")
        if failed:
            failed.sort(key=jobs.index)
            log = self._log(failed[0])
            more = f" (and {len(failed) - 1} more)" if len(failed) > 1 else ""
            raise CocomixError(f"{failed[0][0]}{more} failed: {_last_words(log)}; its log is {log}")

    def _start(self, job: Job, place: int) -> subprocess.Popen[bytes]:
        environment = dict(os.environ)
        threads = max(1, (os.cpu_count() or 1) // (self.at_once * self.processes))
        environment.setdefault("OMP_NUM_THREADS", str(threads))
        gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if gpus and self.at_once > 1:
            share = [str((place * self.processes + index) % gpus) for index in range(self.processes)]
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(share)
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

    def _log(self, job: Job) -> Path:
        return self.logs / f"{job[0].replace(':', '--').replace('/', '--')}.log"


def _last_words(log: Path) -> str:
    """What a failed process said last: our own sentence if there is one, else its last line with a word in it."""
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines()]
    starts = [number for number, line in enumerate(lines) if line.startswith("cocomix: ")]
    if starts:
        return " ".join(filter(None, lines[starts[-1] :])).removeprefix("cocomix: ").rstrip(".")
    spoken = [line for line in lines if any(letter.isalpha() for letter in line)]
    return spoken[-1].strip("│ ").rstrip(".") if spoken else "it said nothing"
