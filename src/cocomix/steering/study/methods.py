"""Methods of steering: small classes, one registry, each with doses fixed before anything is measured.

All but the prompt method have the same doses, each twice the one before, and were not tuned on results; what a unit is
differs.

`residual_ntp` steers a model that knows no concepts along a direction for each concept in its residual stream. The
direction is v = mean of h / |h| over the positions at which the teacher's SAE has the concept active, less the mean
over all others, where h is the model's hidden state after a block. Steering adds dose * |h| * v: at dose 1 a position
moves as far as the two means are apart.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, ClassVar

import torch
from torch import nn
from transformers import PreTrainedModel

from cocomix.analysis.concept_index import concept_channel
from cocomix.model.interventions import Amplify, concept_head, steered
from cocomix.model.teacher import blocks, check_layer, hidden_at
from cocomix.sae.contrast import MeanDifferences, unit
from cocomix.steering.residual import steer_residual
from cocomix.steering.study.concepts import derangement
from cocomix.steering.study.context import StudyContext
from cocomix.steering.study.method_result import (
    DIGITS,
    DoseResult,
    Example,
    MethodResult,
    dose_result,
    examples_at,
    unsteered_result,
)
from cocomix.steering.study.output_score import PROMPTS as SCORING_PROMPTS
from cocomix.steering.study.output_score import output_scores
from cocomix.utils.errors import CocomixError
from cocomix.utils.registry import Registry


def middle_block(model: nn.Module) -> int:
    """The block (0-based) after which half of the blocks are left, or one more."""
    return max(0, len(blocks(model)) // 2 - 1)


@torch.no_grad()
def contrast_vectors(
    model: PreTrainedModel, layer: int, text: Iterable[tuple[torch.Tensor, torch.Tensor]]
) -> torch.Tensor:
    """Difference of means of normalised hidden states, float64 `[concepts, d_model]`.

    Args:
        layer: the block (0-based) after which the hidden states are taken.
        text: tokens int64 `[batch, seq]`, and where each concept is active, bool `[batch, seq, concepts]`. The vector
            of a concept that is active nowhere, or everywhere, is 0.
    """
    means = MeanDifferences()
    for ids, active in text:
        hidden = hidden_at(model, ids.to(model.device), layer)
        means.add(unit(hidden.flatten(0, 1)), active.flatten(0, 1).T.float().to_sparse())
    return means.differences()


@contextmanager
def shifted(model: PreTrainedModel, layer: int, vectors: torch.Tensor, dose: float) -> Iterator[None]:
    """Within: dose * |h| * v is added after block `layer`, h `[batch, seq, d_model]`.

    Args:
        vectors: v `[groups, d_model]`; the batch's rows are as many for each group, the rows of a group together.
    """

    def change(_module: nn.Module, _inputs: Any, output: Any) -> Any:
        hidden = output[0] if isinstance(output, tuple) else output
        rows = vectors.to(hidden).repeat_interleave(len(hidden) // len(vectors), 0)
        changed = hidden + dose * hidden.norm(dim=-1, keepdim=True) * rows[:, None]
        return (changed, *output[1:]) if isinstance(output, tuple) else changed

    handle = check_layer(model, layer).register_forward_hook(change)
    try:
        yield
    finally:
        handle.remove()


DOUBLING = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
SHOWN = 4.0
"""The dose whose texts are kept to look at, one that all have."""
Progress = Callable[[int, int], Any]
"""Called with the doses done, and how many there are."""


class Method(ABC):
    """Interface of all methods of steering.

    Args:
        doses: in place of the method's usual ones; the texts of the one in the middle are kept to look at.
    """

    name: ClassVar[str]
    about: ClassVar[str]
    unit: ClassVar[str]
    """what a dose is"""
    ties: ClassVar[str]
    """what it has in common with what judges it; said in the report"""
    subject: ClassVar[str] = "student"
    """whose text it steers, a name `StudyContext.models` knows"""
    derived_from: ClassVar[str | None] = None
    """another method whose result it is made from"""
    doses: tuple[float, ...]
    takes_doses: ClassVar[bool] = True
    """whether it can be given others"""
    whole_doses: ClassVar[bool] = False
    """whether a dose is a number of something"""
    shown: float = SHOWN
    """the dose whose texts are kept to look at"""

    def __init__(self, doses: Sequence[float] | None = None) -> None:
        if doses is not None:
            self.doses, self.shown = tuple(doses), doses[len(doses) // 2]

    def lead_tokens(self) -> int:
        """Tokens that stand before the prompt, at most."""
        return 0

    @abstractmethod
    def measure(self, context: StudyContext, source: MethodResult | None, progress: Progress) -> MethodResult:
        """Everything measured.

        Args:
            source: the result of the method `derived_from`.
        """


class GeneratingMethod(Method):
    """A method that generates texts of its own."""

    @abstractmethod
    def texts(self, context: StudyContext) -> Callable[[float], torch.Tensor]:
        """Gives the texts of a dose, plain prompt and continuation, `[concepts * prompts, seq]`."""

    def measure(self, context: StudyContext, source: MethodResult | None, progress: Progress) -> MethodResult:
        generate, subject = self.texts(context), context.subject(self.subject)
        at: list[DoseResult] = []
        examples: list[Example] = []
        for number, dose in enumerate(self.doses):
            texts = generate(dose)
            metrics = context.judge.read(texts)
            at.append(dose_result(dose, metrics, subject.unsteered_metrics, context.judge.latents))
            if dose == self.shown:
                examples = examples_at(context, dose, subject.unsteered, texts)
            progress(number + 1, len(self.doses))
        unsteered = unsteered_result(subject.unsteered_metrics, context.judge.latents)
        return MethodResult(unsteered=unsteered, at=at, examples=examples)


class Unsteered(GeneratingMethod):
    """A second sample of the student's unsteered text: the gains and the leak of doing nothing."""

    name, about = "none", "the student unsteered, sampled again with other chance: the noise floor"
    unit, doses, takes_doses = "nothing is done", (0.0,), False
    ties = "nothing"

    def texts(self, context: StudyContext) -> Callable[[float], torch.Tensor]:
        return lambda dose: context.subject("student").texts(context.prompt_rows, sample=1)


class OwnConcept(GeneratingMethod):
    """CoCoMix: the concept that the student predicts is amplified, at every position."""

    name, about = "concept", "CoCoMix: the student's own predicted concept amplified"
    unit = "added to the concept's logit, in multiples of the position's largest; from 2 up it leads"
    ties = "the student learned to predict the concepts of the SAE that made its labels"
    doses = DOUBLING

    def measure(self, context: StudyContext, source: MethodResult | None, progress: Progress) -> MethodResult:
        result = super().measure(context, source, progress)
        own = {concept.concept: concept.words for concept in context.concepts}
        if not all(own.values()):
            return result
        prompts = context.prompts[:SCORING_PROMPTS]
        scores = output_scores(context.subject("student").model, prompts, own)
        return result.model_copy(update={"output_scores": [round(score.score, DIGITS) for score in scores]})

    def texts(self, context: StudyContext) -> Callable[[float], torch.Tensor]:
        subject = context.subject("student")
        n_concepts = concept_head(subject.model).num_concepts
        if n_concepts != context.sae.n_latents:
            raise CocomixError(
                f"the student predicts {n_concepts} concepts and the SAE has {context.sae.n_latents} latents; use the"
                " SAE its labels were made with"
            )

        def generate(dose: float) -> torch.Tensor:
            with steered(subject.model, [{concept.concept: Amplify(dose)} for concept in context.concepts]):
                return subject.texts(context.prompt_rows)

        return generate


class RandomConcept(Method):
    """The control: another concept amplified, judged on the wanted one.

    The other one is drawn at random among the chosen concepts, so its texts are those of `OwnConcept`.
    """

    name, about = "random", "the student with another concept amplified, drawn at random: the control"
    unit, ties, doses, derived_from = OwnConcept.unit, OwnConcept.ties, OwnConcept.doses, OwnConcept.name

    def measure(self, context: StudyContext, source: MethodResult | None, progress: Progress) -> MethodResult:
        assert source is not None, "it is made from the texts of the wanted concepts"
        seed = sum(number * 1009**place for place, number in enumerate(context.key))
        order = derangement(len(context.concepts), torch.Generator().manual_seed(seed))
        progress(1, 1)
        return source.judged_on_others(order)


class Residual(GeneratingMethod):
    """The usual way: the SAE's latent raised in the residual stream of the model it was trained on."""

    name, about = "residual", "a plain language model with the SAE's latent raised in the residual stream"
    unit = "added to the latent, in multiples of its mean where it is active"
    ties = "it steers along the decoder of the SAE that made the student's labels, whose hidden states the judge reads"
    doses, subject = DOUBLING, "plain"

    def texts(self, context: StudyContext) -> Callable[[float], torch.Tensor]:
        subject = context.subject("plain")

        def generate(dose: float) -> torch.Tensor:
            settings = [{concept.concept: Amplify(dose * concept.strength)} for concept in context.concepts]
            with steer_residual(subject.model, context.sae, context.layer, settings):
                return subject.texts(context.prompt_rows)

        return generate


class ResidualOfBaseline(GeneratingMethod):
    """A plain model as large as the student, pushed along a difference of means."""

    name = "residual_ntp"
    about = "a next-token student, with a difference of mean hidden states added in the residual stream"
    unit = "times the difference of means, in units of the hidden state's length"
    ties = "its directions come from training positions at which the judging SAE has the concept active"
    doses, subject = DOUBLING, "baseline"

    def texts(self, context: StudyContext) -> Callable[[float], torch.Tensor]:
        subject = context.subject("baseline")
        layer = middle_block(subject.model)
        vectors = contrast_vectors(subject.model, layer, context.contrast_text())

        def generate(dose: float) -> torch.Tensor:
            with shifted(subject.model, layer, vectors, dose):
                return subject.texts(context.prompt_rows)

        return generate


class StudentRows(GeneratingMethod):
    """The directions of the student's channel without the channel: what they do to the base alone."""

    name = "rows"
    about = "the student's base without a channel, with the student's rows added in the residual stream"
    unit = "times the vector's row, in units of the hidden state's length"
    ties = "its directions are the student's"
    doses, subject = DOUBLING, "base"

    def texts(self, context: StudyContext) -> Callable[[float], torch.Tensor]:
        subject, student = context.subject(self.subject), context.subject("student").model
        vector = concept_channel(student).vector
        assert vector is not None, "a student that is steered mixes its vector in"
        rows = vector.weight.detach()[context.concept_ids]

        def generate(dose: float) -> torch.Tensor:
            with shifted(subject.model, student.config.concept_layer - 1, rows, dose):
                return subject.texts(context.prompt_rows)

        return generate


class Prompt(GeneratingMethod):
    """No steering at all: the concept's words stand before the prompt, repeated where there are fewer than the dose.

    The judges read the continuation after the plain prompt, as they do for all methods.
    """

    name, about = "prompt", "the student unsteered, its prompt led by the concept's distinguishing tokens"
    unit = "tokens before the prompt"
    ties = "the tokens are those that are counted in the text"
    doses, whole_doses = (1.0, 2.0, 4.0, 8.0), True

    def lead_tokens(self) -> int:
        return round(max(self.doses))

    def texts(self, context: StudyContext) -> Callable[[float], torch.Tensor]:
        return partial(self._generate, context)

    def _generate(self, context: StudyContext, dose: float) -> torch.Tensor:
        count, n_prompts = round(dose), len(context.prompts)
        leads = torch.tensor(
            [[concept.words[i % len(concept.words)] for i in range(count)] for concept in context.concepts]
        )
        prompts = torch.cat([leads.repeat_interleave(n_prompts, 0), context.prompt_rows], 1)
        return context.subject("student").texts(prompts)[:, count:]


METHODS: Registry[type[Method]] = Registry(
    "steering method",
    [Unsteered, OwnConcept, RandomConcept, Residual, ResidualOfBaseline, StudentRows, Prompt],
    own=("doses",),
)
"""All methods in the report's order; one that is derived from another comes after it."""


def parse_doses(texts: Sequence[str]) -> dict[str, tuple[float, ...]]:
    """Doses of methods from `METHOD=DOSE,DOSE…`, smallest first.

    Raises:
        CocomixError: no such method, one without doses of its own, or doses that it cannot have.
    """
    found: dict[str, tuple[float, ...]] = {}
    for text in texts:
        name, _, listed = text.partition("=")
        method = METHODS.choose(name)
        if method.derived_from is not None or not method.takes_doses:
            raise CocomixError(f"the method {name} has no doses of its own; give doses of another one")
        try:
            doses = sorted(float(dose) for dose in listed.split(","))
        except ValueError:
            raise CocomixError(f"--doses {text} lists no numbers; write it like {name}=1,2,4") from None
        whole = method.whole_doses
        if not all(0 < dose < math.inf and (not whole or dose == int(dose)) for dose in doses):
            kind = "whole numbers" if whole else "finite numbers"
            raise CocomixError(f"doses of {name} are {kind} above 0, not {listed}; write them like {name}=1,2,4")
        found[name] = tuple(dict.fromkeys(doses))
    return found


def register_method(cls: type[Method]) -> type[Method]:
    """Make a steering method of your own known by its `name`; usable as a decorator."""
    return METHODS.register(cls)
