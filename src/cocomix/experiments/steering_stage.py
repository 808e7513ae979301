"""The stage that measures how well a trained student can be steered, for the paper's claim 9.

It is a small steering study (`cocomix.steering.study`): the methods `concept` and `random` at one dose, the recipe's
`steering.strength`. The teacher judges both concepts and fluency, so a grid needs no further student.
"""

import math
import shlex
from pathlib import Path
from statistics import mean
from typing import Any

from cocomix.analysis.token_statistics import StrongestPlaces
from cocomix.data.shards import TokenShards
from cocomix.experiments.config import SteeringConfig
from cocomix.pipeline.stage import Stage
from cocomix.pipeline.student_stages import StudentStage
from cocomix.steering.study.concepts import Concept, choose_concepts, concept_activity, spread_windows
from cocomix.steering.study.context import StudyContext
from cocomix.steering.study.method_result import Example, MethodResult
from cocomix.steering.study.methods import OwnConcept, RandomConcept
from cocomix.utils.errors import CocomixError
from cocomix.utils.files import write_json

PLACES, BEFORE, AFTER = 5, 8, 2
"""Contexts shown of a concept, and tokens of each before and after the one it is active at."""


class SteeringStage(Stage):
    """Steering of one trained student by its own concepts, and for each concept a text to look at, in `samples.json`.

    Figures: `amplified`, `unsteered` and `control`, the share of generated positions at which the SAE has the concept
    active with it amplified, without steering, and with another one amplified, as means over the concepts;
    `perplexity_amplified` and `perplexity_unsteered` of the generated tokens under the teacher; `concepts`, the three
    shares of each, and its id as `concept`.

    Raises:
        CocomixError: the student learns no concepts of the SAE, or the texts would be longer than it can take.
    """

    version = 2  # version 1 clamped the logit instead of adding to it, and had a sampler and a judge of its own

    def __init__(self, student: StudentStage, config: SteeringConfig) -> None:
        name = student.name.replace("students/", "steering/", 1)
        command = f"cocomix experiment {shlex.quote(str(student.run_dir.parent / 'experiment.yaml'))}"
        super().__init__(student.run_dir, name, command, [student, student.sae])
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
        strongest = StrongestPlaces(PLACES)
        context = self.context(strongest)
        doses = [self.config.strength]

        amplified = OwnConcept(doses).measure(context, None, lambda step, total: progress(step, total, {}))
        control = RandomConcept(doses).measure(context, amplified, lambda *_: None)
        places = _places_by_concept(strongest)
        shards = self.student.tokens.shards("val")
        samples = [
            self._sample(example, shards, context, places.get(example.concept, [])) for example in amplified.examples
        ]
        write_json(folder / "samples.json", samples)
        return claim_figures(context.concepts, amplified, control)

    def context(self, strongest: StrongestPlaces | None = None) -> StudyContext:
        """What the methods work with; `strongest` collects where in validation text each concept is most active."""
        self.student.sae.teacher.must_read_tokens("judges steered texts")
        student, config, sae = self.student, self.config, self.student.sae.model()
        models = {"student": student.model(), "teacher": student.sae.teacher.model()}
        shards, layer = student.tokens.shards("val"), student.sae.layer
        tokenizer = student.tokens.tokenizer()
        activity = concept_activity(
            models["teacher"], sae, shards, layer=layer, seq_len=self.seq_len, strongest=strongest
        )
        return StudyContext(
            models=models.__getitem__,
            sae=sae,
            layer=layer,
            reader=models["teacher"],
            concepts=choose_concepts(activity, config.concepts),
            prompts=spread_windows(shards, config.prompts, self.seq_len)[:, : config.prompt_tokens],
            new_tokens=config.new_tokens,
            key=(0, student.seed),
            train=student.tokens.shards("train"),
            seq_len=self.seq_len,
            decode=lambda ids: str(tokenizer.decode(list(ids))),
        )

    def _sample(
        self, example: Example, shards: TokenShards, context: StudyContext, places: list[tuple[int, int, float]]
    ) -> dict[str, Any]:
        """One concept, for a reader: the texts from one prompt, and where the concept is most active."""
        windows = shards.windows([window for window, _, _ in places], self.seq_len).tolist()
        return {
            "concept": example.concept,
            "prompt": example.prompt,
            "unsteered": example.unsteered,
            "amplified": example.steered,
            "most_active": [
                {
                    "token": context.decode([ids[position]]),
                    "context": context.decode(ids[max(0, position - BEFORE) : position + AFTER + 1]),
                    "activation": activation,
                }
                for ids, (_, position, activation) in zip(windows, places, strict=True)
            ],
        }


def claim_figures(concepts: list[Concept], amplified: MethodResult, control: MethodResult) -> dict[str, Any]:
    """The figures of `SteeringStage` from the results of `concept` and `random`, each at one dose."""
    (own,), (other,), unsteered = amplified.at, control.at, amplified.unsteered
    rows: list[dict[str, Any]] = [
        {
            "concept": concept.concept,
            "amplified": own.presence[i][i],
            "unsteered": unsteered.presence[i],
            "control": other.presence[i][i],
        }
        for i, concept in enumerate(concepts)
    ]
    return {
        **{figure: mean(row[figure] for row in rows) for figure in ("amplified", "unsteered", "control")},
        "perplexity_amplified": _perplexity(mean(own.loss)),
        "perplexity_unsteered": _perplexity(unsteered.loss),
        "concepts": rows,
    }


def _places_by_concept(strongest: StrongestPlaces) -> dict[int, list[tuple[int, int, float]]]:
    """Window, position and activation of each concept's strongest places."""
    found, strengths = strongest.found()
    places: dict[int, list[tuple[int, int, float]]] = {}
    for concept, window, position, strength in zip(*found.tolist(), strengths.tolist(), strict=True):
        places.setdefault(concept, []).append((window, position, strength))
    return places


def _perplexity(loss: float) -> float:
    return math.exp(loss) if loss < 700 else math.inf
