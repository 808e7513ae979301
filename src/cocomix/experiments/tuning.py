"""Choosing learning rates: each variant is trained once with each, and the one with the best validation loss is kept.

The tries have a seed of their own and are never measured on test text, so what is reported was not chosen by luck of a
seed. The losses are those at the end of training, on the validation windows of the curve (`evaluation.curve_windows`).
"""

import math
from pathlib import Path
from typing import Any

from cocomix.experiments.config import ExperimentConfig, TuningConfig, try_name
from cocomix.pipeline.run import Run
from cocomix.pipeline.stage import ExternalInputs
from cocomix.pipeline.student_stages import StudentStage


class Tries:
    """The tries of one setting, students of the same run as those that are reported.

    Args:
        config: the experiment.
        tuning: its learning rates.
        setting: name of the setting.
        folder: folder of the experiment.
    """

    def __init__(
        self, config: ExperimentConfig, tuning: TuningConfig, setting: str, folder: Path, inputs: ExternalInputs
    ) -> None:
        self.tuning, self.variants = tuning, config.names(setting)
        self.tried = list(dict.fromkeys(map(tuning.tried, self.variants)))
        self.run = Run(folder / setting, config.tries_config(setting, folder, tuning), inputs)
        self._stages = {stage.student: stage for stage in self.run.students}

    def stages(self) -> list[StudentStage]:
        """Every try, variant by variant."""
        return [stage for variant in self.tried for stage in self.of(variant)]

    def of(self, variant: str) -> list[StudentStage]:
        """The tries that choose a variant's rate, in the order of the learning rates."""
        tried = self.tuning.tried(variant)
        return [self._stages[try_name(tried, number)] for number in range(len(self.tuning.learning_rates))]

    def done(self, variant: str) -> bool:
        """Whether all tries of a variant are finished."""
        return all(stage.done() for stage in self.of(variant))

    def chosen(self) -> dict[str, float | None]:
        """The best learning rate of each variant; None where its tries are not finished."""
        return {variant: self._best(variant) if self.done(variant) else None for variant in self.variants}

    def _best(self, variant: str) -> float:
        losses = [self._loss(stage) for stage in self.of(variant)]
        return self.tuning.learning_rates[losses.index(min(losses))]

    def _loss(self, stage: StudentStage) -> float:
        """Mean validation loss at the end of training, in nats a token."""
        return math.log(stage.figures["curve"][-1]["val_perplexity"])

    def figures(self) -> dict[str, Any]:
        """What was tried and chosen, by variant; `at_edge` where a rate outside the list might be better still."""
        rates, chosen = self.tuning.learning_rates, self.chosen()
        return {
            variant: {
                "tried": [
                    {"learning_rate": rate, "val_loss": self._loss(stage)}
                    for rate, stage in zip(rates, self.of(variant), strict=True)
                ],
                "chosen": rate,
                "at_edge": rate in (min(rates), max(rates)),
            }
            for variant, rate in chosen.items()
            if rate is not None and variant in self.tried
        }
