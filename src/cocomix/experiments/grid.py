"""The grid of an experiment: its runs, their stages, and the order in which these can be made.

Corpus, tokens, teacher, SAE, labels and stored logits are made once a setting and shared by all of its variants and
seeds. Every stage is a process of its own, so a crash costs one student, and the same command goes on from what is
finished.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from cocomix.experiments.config import ExperimentConfig
from cocomix.experiments.cost_stage import TimingStage
from cocomix.pipeline.lent import Lending, Lent
from cocomix.pipeline.run import Run
from cocomix.pipeline.stage import Stage
from cocomix.utils.errors import CocomixError

if TYPE_CHECKING:
    from cocomix.experiments.steering_stage import SteeringStage


INDEPENDENT = ("labels/", "logits/")
"""Shared stages that need nothing of each other."""


class Round(NamedTuple):
    """Jobs that may be done at the same time; a job is stages done one after the other, `SETTING:STAGE` each."""

    setting: str
    jobs: list[list[str]]
    needed: bool
    """whether the later rounds of this setting need them"""


class Grid:
    """All runs of an experiment.

    Args:
        config: the experiment.
        folder: settings live below it, by name.
    """

    def __init__(self, config: ExperimentConfig, folder: Path) -> None:
        self.config, self.folder = config, folder
        self.runs: dict[str, Run] = {}
        for name in config.settings:
            self.runs[name] = Run(folder / name, config.run_config(name, folder), self._lending(name))
        self.steering = {name: self._steering(run) for name, run in self.runs.items()}
        self.timing = {name: self._timing(run) for name, run in self.runs.items() if config.timing_steps}

    def _lending(self, setting: str) -> Lending:
        """Stages of earlier settings that this one names."""
        lending = {}
        for text, (other, name) in self.config.borrowed(setting).items():
            stages = self.runs[other].stages
            if name not in stages:
                raise CocomixError(f"setting {setting}: {text!r} names no stage of {other}; it has {', '.join(stages)}")
            lending[str(self.folder / text[1:])] = Lent(text, stages[name])
        return lending

    def _steering(self, run: Run) -> "list[SteeringStage]":
        settings = self.config.steering
        if settings is None:
            return []
        from cocomix.experiments.steering_stage import SteeringStage

        return [SteeringStage(stage, settings) for stage in run.students if stage.student == settings.variant]

    def _timing(self, run: Run) -> TimingStage:
        first = [stage for stage in run.students if stage.seed == run.config.seeds[0]]
        return TimingStage(run.folder, first, run.config.baseline, self.config.timing_steps)

    def rounds(self) -> Iterator[Round]:
        """Rounds of jobs in the order they can be done; timing comes last, alone.

        The jobs of a round need nothing of each other, only rounds before it.
        """
        for name, run in self.runs.items():
            alone = [stage for stage in run.shared() if not stage.name.startswith(INDEPENDENT)]
            others = [stage for stage in run.shared() if stage.name.startswith(INDEPENDENT)]
            for stages in (*([stage] for stage in alone), others):
                yield Round(name, [[f"{name}:{stage.name}"] for stage in stages], needed=True)
            jobs = []
            for student, evaluation in zip(run.students, run.evaluations, strict=True):
                steering = [one for one in self.steering[name] if one.student is student]
                jobs.append([f"{name}:{stage.name}" for stage in (student, evaluation, *steering)])
            yield Round(name, jobs, needed=False)
        for name, stage in self.timing.items():
            yield Round(name, [[f"{name}:{stage.name}"]], needed=False)

    def settings_of(self, name: str) -> set[str]:
        """The setting `name` and those it borrows from."""
        return {name, *(other for other, _ in self.config.borrowed(name).values())}

    def finished(self, setting: str) -> list[str]:
        """Variants of `setting` whose evaluations are finished with every seed."""
        ready: dict[str, bool] = {}
        for stage in self.runs[setting].evaluations:
            name = stage.student.student
            ready[name] = ready.get(name, True) and stage.student.done() and stage.done()
        return [name for name, done in ready.items() if done]

    def done(self, job: list[str]) -> bool:
        """Whether all stages of a job are finished with the present settings."""
        return all(self.stage(name).done() for name in job)

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
        stage = self.stage(name)
        return self.runs[name.partition(":")[0]].do(stage, name)
