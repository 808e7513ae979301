"""The grid of an experiment: its runs, their stages, and the order in which these can be made.

Corpus, tokens, teacher, SAE, labels and stored logits are made once a setting and shared by all of its variants and
seeds. Every stage is a process of its own, so a crash costs one student, and the same command goes on from what is
finished.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cocomix.errors import CocomixError
from cocomix.experiments.config import ExperimentConfig
from cocomix.pipeline.run import Run
from cocomix.pipeline.stage import Stage
from cocomix.pipeline.timing_stage import TimingStage

if TYPE_CHECKING:
    from cocomix.pipeline.steering_stage import SteeringStage


INDEPENDENT = ("labels/", "logits/")
"""Shared stages that need nothing of each other."""


class Grid:
    """All runs of an experiment.

    Args:
        config: the experiment.
        folder: settings live below it, by name.
    """

    def __init__(self, config: ExperimentConfig, folder: Path) -> None:
        self.config, self.folder = config, folder
        self.runs = {name: Run(folder / name, config.run_config(name, folder)) for name in config.settings}
        self.steering = {name: self._steering(run) for name, run in self.runs.items()}
        self.timing = {name: self._timing(run) for name, run in self.runs.items() if config.timing_steps}

    def _steering(self, run: Run) -> "list[SteeringStage]":
        settings = self.config.steering
        if settings is None:
            return []
        from cocomix.pipeline.steering_stage import SteeringStage

        return [SteeringStage(stage, settings) for stage in run.students if stage.student == settings.variant]

    def _timing(self, run: Run) -> TimingStage:
        first = [stage for stage in run.students if stage.seed == run.config.seeds[0]]
        return TimingStage(run.folder, first, run.config.baseline, self.config.timing_steps)

    def rounds(self) -> Iterator[list[list[str]]]:
        """Rounds of jobs; a job is stages done one after the other, `SETTING:STAGE` each.

        The jobs of a round need nothing of each other, only rounds before it. Timing comes last, alone.
        """
        for name, run in self.runs.items():
            for stage in run.shared():
                if stage.name.startswith(INDEPENDENT):
                    continue
                yield [[f"{name}:{stage.name}"]]
            yield [[f"{name}:{stage.name}"] for stage in run.shared() if stage.name.startswith(INDEPENDENT)]
            jobs = []
            for student, evaluation in zip(run.students, run.evaluations, strict=True):
                steering = [one for one in self.steering[name] if one.student is student]
                jobs.append([f"{name}:{stage.name}" for stage in (student, evaluation, *steering)])
            yield jobs
        for name, stage in self.timing.items():
            yield [[f"{name}:{stage.name}"]]

    def done(self, job: list[str]) -> bool:
        """Whether all stages of a job are finished with the present settings."""
        return all(self.stage(name).record() is not None for name in job)

    def stage(self, name: str) -> Stage:
        """The stage called `SETTING:STAGE`.

        Raises:
            CocomixError: there is none.
        """
        setting, _, path = name.partition(":")
        run = self.runs.get(setting)
        if run is None:
            raise CocomixError(f"there is no setting {setting!r} in this experiment; it has {', '.join(self.runs)}")
        extra: list[Stage] = [*self.steering[setting], *([self.timing[setting]] if setting in self.timing else [])]
        found = run.stages | {stage.name: stage for stage in extra}
        if path not in found:
            raise CocomixError(f"there is no stage {path!r} in the setting {setting}; it has {', '.join(found)}")
        return found[path]

    def run_stage(self, name: str) -> dict[str, Any]:
        """Do one stage in this process, unless it is done."""
        run = self.runs[name.partition(":")[0]] if ":" in name else None
        stage = self.stage(name)
        assert run is not None, "the stage was found"
        return run.do(stage, name)
