"""Ways to bring a concept into a text: small classes, one registry, each with doses fixed before anything is measured.

All but the prompt method have the same doses, each twice the one before, and were not tuned on results; what a unit is
differs.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, ClassVar

import torch
from torch import nn
from transformers import PreTrainedModel

from cocomix.model.interventions import Amplify, steered
from cocomix.model.teacher import blocks, check_layer, hidden_at
from cocomix.steering.residual import steer_residual
from cocomix.steering.study.concepts import derangement
from cocomix.steering.study.material import Material
from cocomix.steering.study.method_result import Dose, Example, Part, dose_of, examples_of, part_of

# A direction for each concept in the residual stream of a model that knows no concepts, and adding it.
#
# The vector of a concept is v = mean of h / |h| over the positions at which the teacher's SAE has the concept active,
# less the mean over all others, where h is the model's hidden state after a block. Steering adds dose * |h| * v: at
# dose 1 a position moves as far as the two means are apart.


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
    inside: Any = 0.0
    counts: Any = 0.0
    total: Any = 0.0
    positions = 0
    for ids, active in text:
        hidden = hidden_at(model, ids.to(model.device), layer).flatten(0, 1).double()
        unit = hidden / hidden.norm(dim=-1, keepdim=True)
        on = active.flatten(0, 1).to(unit)
        inside, counts, total = inside + on.T @ unit, counts + on.sum(0)[:, None], total + unit.sum(0)
        positions += len(unit)
    vectors = inside / counts - (total - inside) / (positions - counts)
    return torch.where((counts > 0) & (counts < positions), vectors, 0.0)


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


DOUBLING = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0)
SHOWN = 4.0
"""The dose whose texts are kept to look at, one that all have."""
Tick = Callable[[int, int], Any]
"""Told of doses done, and how many there are."""


class Method(ABC):
    """One way."""

    name: ClassVar[str]
    about: ClassVar[str]
    unit: ClassVar[str]
    """what a dose is"""
    ties: ClassVar[str]
    """what it has in common with what judges it; said in the report"""
    doses: ClassVar[tuple[float, ...]]
    subject: ClassVar[str] = "student"
    """whose text it steers, a name `Material.models` knows"""
    reads: ClassVar[str | None] = None
    """another method whose part it is made from"""

    @abstractmethod
    def measure(self, material: Material, read: Part | None, tick: Tick) -> Part:
        """Everything measured.

        Args:
            read: the part of the method `reads`.
        """


class Writing(Method):
    """A method that writes texts of its own."""

    @abstractmethod
    def texts(self, material: Material) -> Callable[[float], torch.Tensor]:
        """Gives the texts of a dose, plain prompt and continuation, `[concepts * prompts, seq]`."""

    def measure(self, material: Material, read: Part | None, tick: Tick) -> Part:
        write, subject = self.texts(material), material.subject(self.subject)
        at: list[Dose] = []
        examples: list[Example] = []
        for number, dose in enumerate(self.doses):
            texts = write(dose)
            at.append(dose_of(dose, material.judge.read(texts), subject.unsteered_found, material.own))
            if dose == SHOWN:
                examples = examples_of(material, dose, subject.unsteered, texts)
            tick(number + 1, len(self.doses))
        return part_of(subject.unsteered_found, material.own, at, examples)


class Unsteered(Writing):
    """A second sample of the student's own text: what gains and leak come to where nothing is done."""

    name, about = "none", "the student unsteered, sampled again with other chance: the noise floor"
    unit, doses = "nothing is done", (0.0,)
    ties = "nothing"

    def texts(self, material: Material) -> Callable[[float], torch.Tensor]:
        return lambda dose: material.subject("student").texts(material.rows, sample=1)


class OwnConcept(Writing):
    """CoCoMix: the student's own predicted concept is amplified, at every position."""

    name, about = "concept", "CoCoMix: the student's own predicted concept amplified"
    unit = "added to the concept's logit, in multiples of the position's largest; from 2 up it leads"
    ties = "the student learned to predict this SAE's concepts, from labels made with the teacher"
    doses = DOUBLING

    def texts(self, material: Material) -> Callable[[float], torch.Tensor]:
        subject = material.subject("student")

        def write(dose: float) -> torch.Tensor:
            with steered(subject.model, [{one.concept: Amplify(dose)} for one in material.concepts]):
                return subject.texts(material.rows)

        return write


class RandomConcept(Method):
    """The control: another concept amplified, judged on the wanted one.

    The other one is drawn at random among the chosen concepts, so its texts are those of `OwnConcept`.
    """

    name, about = "random", "the student with another concept amplified, drawn at random: the control"
    unit, ties, doses, reads = OwnConcept.unit, OwnConcept.ties, OwnConcept.doses, OwnConcept.name

    def measure(self, material: Material, read: Part | None, tick: Tick) -> Part:
        assert read is not None, "it is made from the texts of the wanted concepts"
        seed = sum(number * 1009**place for place, number in enumerate(material.key))
        order = derangement(len(material.concepts), torch.Generator().manual_seed(seed))
        tick(1, 1)
        return read.judged_on_others(order)


class Residual(Writing):
    """The usual way: the SAE's latent raised in the residual stream of the model it was trained on."""

    name, about = "residual", "the teacher, a plain language model, with its SAE's latent raised in the residual stream"
    unit = "added to the latent, in multiples of its mean where it is active"
    ties = "it steers the very SAE that judges, in the very model that reads"
    doses, subject = DOUBLING, "teacher"

    def texts(self, material: Material) -> Callable[[float], torch.Tensor]:
        subject = material.subject("teacher")

        def write(dose: float) -> torch.Tensor:
            settings = [{one.concept: Amplify(dose * one.strength)} for one in material.concepts]
            with steer_residual(subject.model, material.sae, material.layer, settings):
                return subject.texts(material.rows)

        return write


class ResidualOfBaseline(Writing):
    """A plain model as large as the student, pushed along a difference of means."""

    name = "residual_ntp"
    about = "a next-token student, with a difference of mean hidden states added in the residual stream"
    unit = "times the difference of means, in units of the hidden state's length"
    ties = "its directions come from training positions at which the judging SAE has the concept active"
    doses, subject = DOUBLING, "baseline"

    def texts(self, material: Material) -> Callable[[float], torch.Tensor]:
        subject = material.subject("baseline")
        layer = middle_block(subject.model)
        vectors = contrast_vectors(subject.model, layer, material.contrast_text())

        def write(dose: float) -> torch.Tensor:
            with shifted(subject.model, layer, vectors, dose):
                return subject.texts(material.rows)

        return write


class Prompt(Writing):
    """No steering at all: the concept's words stand before the prompt, over again where there are fewer than asked.

    The judges read the continuation after the plain prompt, as they do for all methods.
    """

    name, about = "prompt", "the student unsteered, its prompt led by the concept's distinguishing tokens"
    unit = "tokens before the prompt"
    ties = "the tokens are those that are counted in the text"
    doses = (1.0, 2.0, 4.0, 8.0)

    def texts(self, material: Material) -> Callable[[float], torch.Tensor]:
        return partial(self._write, material)

    def _write(self, material: Material, dose: float) -> torch.Tensor:
        words, each = round(dose), len(material.prompts)
        leads = torch.tensor([[one.words[i % len(one.words)] for i in range(words)] for one in material.concepts])
        led = torch.cat([leads.repeat_interleave(each, 0), material.rows], 1)
        return material.subject("student").texts(led)[:, words:]


METHODS: dict[str, Method] = {
    one.name: one for one in (Unsteered(), OwnConcept(), RandomConcept(), Residual(), ResidualOfBaseline(), Prompt())
}
"""All methods, by name, in the report's order; one that is made from another's part comes after it."""
