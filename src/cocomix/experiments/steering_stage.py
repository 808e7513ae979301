"""The stage that measures how well a trained student can be steered."""

from pathlib import Path
from typing import Any

from cocomix.experiments.config import SteeringConfig
from cocomix.pipeline.stage import Stage
from cocomix.pipeline.student_stages import StudentStage
from cocomix.steering.score import Place, Trial, steering_score, strongest_places
from cocomix.utils.errors import CocomixError
from cocomix.utils.files import write_json

PLACES, BEFORE, AFTER = 5, 8, 2
"""Contexts shown of a concept, and tokens of each before and after the one it is active at."""


class SteeringStage(Stage):
    """Steering score of one trained student, and for each concept a text to look at, in `samples.json`.

    Raises:
        CocomixError: the student learns no concepts of the SAE, or the texts would be longer than it can take.
    """

    def __init__(self, student: StudentStage, config: SteeringConfig) -> None:
        name = student.name.replace("students/", "steering/", 1)
        super().__init__(student.run_dir, name, "cocomix experiment RECIPE", [student, student.sae])
        self.user_folder = self.run_dir.parent
        self.student, self.config = student, config
        self.seq_len = student.run_config.seq_len
        length = config.prompt_tokens + config.new_tokens
        if length > self.seq_len:
            raise CocomixError(
                f"steering.prompt_tokens and steering.new_tokens make {length} tokens, more than the {self.seq_len} of"
                " seq_len; lower one of them"
            )
        if not student.config.uses_sae_concepts or student.labels is None:
            raise CocomixError(
                f"the student {student.student} is not trained on the SAE's concepts, so steering cannot be measured on"
                " it; set steering.variant to a cocomix student with labels"
            )

    def settings(self) -> dict[str, Any]:
        return self.config.model_dump(mode="json", exclude={"variant"}) | {"seq_len": self.seq_len}

    def outputs(self) -> list[str]:
        return ["samples.json"]

    def describe(self, figures: dict[str, Any]) -> str:
        return (
            f"concepts at {figures['amplified']:.1%} of positions when amplified, {figures['control']:.1%} with another"
            f" amplified, {figures['unsteered']:.1%} unsteered; perplexity {figures['perplexity_amplified']:.1f} for"
            f" {figures['perplexity_unsteered']:.1f}"
        )

    def work(self, folder: Path, progress: Any) -> dict[str, Any]:
        student, sae = self.student.model(), self.student.sae.model()
        teacher, shards = self.student.sae.teacher.model(), self.student.tokens.shards("val")
        layer = self.student.sae.config.layer
        trials: list[Trial] = []

        def watch(trial: Trial) -> None:
            trials.append(trial)
            progress(trial.number + 1, trial.total, {})

        settings = self.config.model_dump(exclude={"variant"})
        figures = steering_score(
            student,
            teacher,
            sae,
            shards,
            layer=layer,
            seed=self.student.seed,
            seq_len=self.seq_len,
            watch=watch,
            **settings,
        )
        named = [trial.concept for trial in trials]
        places = strongest_places(teacher, sae, shards, named, layer=layer, seq_len=self.seq_len, wanted=PLACES)
        tokenizer = self.student.tokens.tokenizer()
        samples = [self._sample(tokenizer, trial, places[trial.concept]) for trial in trials]
        write_json(folder / "samples.json", samples)
        return figures

    def _sample(self, tokenizer: Any, trial: Trial, places: list[Place]) -> dict[str, Any]:
        """One concept, for a reader: the texts from one prompt, and where the concept is most active."""
        cut = self.config.prompt_tokens
        row = trial.number % len(trial.unsteered)  # another prompt for each concept
        return {
            "concept": trial.concept,
            "prompt": tokenizer.decode(trial.unsteered[row, :cut].tolist()),
            "unsteered": tokenizer.decode(trial.unsteered[row, cut:].tolist()),
            "amplified": tokenizer.decode(trial.amplified[row, cut:].tolist()),
            "most_active": [
                {
                    "token": tokenizer.decode([place.window[place.position]]),
                    "context": tokenizer.decode(
                        place.window[max(0, place.position - BEFORE) : place.position + AFTER + 1]
                    ),
                    "activation": place.activation,
                }
                for place in places
            ],
        }
