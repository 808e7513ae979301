"""Seconds a training step of each student takes, measured in turns with the baseline's.

Students of a grid are trained at different times, several at once, on a machine that does other work; their own clocks
say little about which is faster. Here each takes turns with the baseline, step by step, so that whatever
slows the machine slows both, and the ratio of the medians is what counts.
"""

import shlex
import time
from pathlib import Path
from statistics import median
from typing import Any

from cocomix.pipeline.stage import Stage
from cocomix.pipeline.student_stages import StudentStage
from cocomix.train.trainer import Trainer

WARMUP = 3
"""Steps not counted: memory is allocated and caches fill."""


class TimingStage(Stage):
    """Median seconds a step, one student after the other against the baseline.

    Args:
        students: one stage a student, any seed; their data must be made.
        baseline: the student all others take turns with.
        steps: timed steps of each.
    """

    def __init__(self, run_dir: Path, students: list[StudentStage], baseline: str, steps: int) -> None:
        command = f"cocomix experiment {shlex.quote(str(run_dir.parent / 'experiment.yaml'))}"
        super().__init__(run_dir, "timing", command, students)
        self.user_folder = self.run_dir.parent
        self.students = {stage.student: stage for stage in students}
        self.baseline, self.steps = baseline, steps

    def settings(self) -> dict[str, Any]:
        return {"baseline": self.baseline, "steps": self.steps}

    def describe(self, figures: dict[str, Any]) -> str:
        return f"{figures['seconds'][self.baseline]:.3f} s a step of {self.baseline}"

    def work(self, folder: Path, progress: Any) -> dict[str, Any]:
        ratios, base = {self.baseline: 1.0}, []
        others = [name for name in self.students if name != self.baseline]
        for number, name in enumerate(others):
            steppers = [_Stepper(self.students[student], folder) for student in (self.baseline, name)]
            for _ in range(WARMUP + self.steps):
                for stepper in steppers:
                    stepper.step()
            baseline, other = (median(stepper.seconds[WARMUP:]) for stepper in steppers)
            ratios[name] = other / baseline
            base += steppers[0].seconds[WARMUP:]
            progress(number + 1, len(others), {})
        unit = median(base) if base else self._alone(folder)
        return {"ratios": ratios, "seconds": {name: ratio * unit for name, ratio in ratios.items()}}

    def _alone(self, folder: Path) -> float:
        stepper = _Stepper(self.students[self.baseline], folder)
        for _ in range(WARMUP + self.steps):
            stepper.step()
        return median(stepper.seconds[WARMUP:])


class _Stepper:
    """A student in training that remembers how long each step took."""

    def __init__(self, stage: StudentStage, folder: Path) -> None:
        self.trainer = Trainer(stage.objective(), stage.batches(), stage.train, folder)
        self.loss_fn = self.trainer.wrapped()
        self.seconds: list[float] = []

    def step(self) -> None:
        started = time.perf_counter()
        self.trainer.train_step(self.loss_fn)
        self.trainer.step += 1
        self.seconds.append(time.perf_counter() - started)
