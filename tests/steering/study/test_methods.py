"""Texts of every method, against one row at a time: own loop, no cache, own steering."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from cocomix.steering.study import METHODS, MethodResult, register_method
from cocomix.steering.study.context import Noise, StudyContext, sample_texts
from cocomix.steering.study.methods import GeneratingMethod, contrast_vectors, middle_block, parse_doses
from cocomix.utils.errors import CocomixError
from tests.helpers.steering_study import LAYER, NEW, VOCAB, WIDE, active_at, models, study_context

Change = Callable[[Any, Any, Any], Any]


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> StudyContext:
    return study_context(tmp_path_factory.mktemp("study"))


@torch.no_grad()
def alone(model: Any, prompt: list[int], row: int, key: tuple[int, ...]) -> list[int]:
    """One row, token by token, the whole text every time."""
    text = list(prompt)
    for step in range(NEW):
        chances = model(torch.tensor([text]), use_cache=False).logits[0, -1].softmax(-1)
        draws = np.random.default_rng((*key, step)).standard_exponential((row + 1, VOCAB), dtype=np.float32)[row]
        text.append(int((torch.from_numpy(draws).double() / chances).argmin()))
    return text


def hooked(module: torch.nn.Module, change: Change, write: Callable[[], list[int]]) -> list[int]:
    handle = module.register_forward_hook(change)
    try:
        return write()
    finally:
        handle.remove()


def own_concept(context: StudyContext, dose: float, row: int) -> list[int]:
    concept, student = context.concepts[row // 2].concept, models()["student"]

    def change(_module: Any, _inputs: Any, z: torch.Tensor) -> torch.Tensor:
        z = z.clone()
        z[..., concept] += dose * z.abs().amax(-1)
        return z

    return hooked(student.channel.head.proj, change, lambda: alone(student, prompt(context, row), row, (4, 1, 0)))


def residual(context: StudyContext, dose: float, row: int) -> list[int]:
    one, teacher, sae = context.concepts[row // 2], models()["teacher"], models()["sae"]

    def change(_module: Any, _inputs: Any, output: Any) -> Any:
        hidden = output[0] if isinstance(output, tuple) else output
        moved = hidden + dose * one.strength * hidden.std(-1, keepdim=True) * sae.decoder_weight[one.concept]
        return (moved, *output[1:]) if isinstance(output, tuple) else moved

    block = teacher.transformer.h[LAYER]
    return hooked(block, change, lambda: alone(teacher, prompt(context, row), row, (4, 1, 0)))


def residual_ntp(context: StudyContext, dose: float, row: int) -> list[int]:
    baseline = models()["baseline"]
    vector = slow_vector(context, context.concepts[row // 2].concept)

    def change(_module: Any, _inputs: Any, output: Any) -> Any:
        hidden = output[0] if isinstance(output, tuple) else output
        moved = hidden + dose * hidden.norm(dim=-1, keepdim=True) * vector
        return (moved, *output[1:]) if isinstance(output, tuple) else moved

    block = baseline.transformer.h[1]
    return hooked(block, change, lambda: alone(baseline, prompt(context, row), row, (4, 1, 0)))


def rows(context: StudyContext, dose: float, row: int) -> list[int]:
    teacher, student = models()["teacher"], models()["student"]
    vector = student.channel.vector.weight[context.concepts[row // 2].concept]

    def change(_module: Any, _inputs: Any, output: Any) -> Any:
        hidden = output[0] if isinstance(output, tuple) else output
        moved = hidden + dose * hidden.norm(dim=-1, keepdim=True) * vector
        return (moved, *output[1:]) if isinstance(output, tuple) else moved

    return hooked(teacher.transformer.h[0], change, lambda: alone(teacher, prompt(context, row), row, (4, 1, 0)))


def led(context: StudyContext, dose: float, row: int) -> list[int]:
    words = context.concepts[row // 2].words * 8
    lead = words[: int(dose)]
    return alone(models()["student"], lead + prompt(context, row), row, (4, 1, 0))[len(lead) :]


def again(context: StudyContext, dose: float, row: int) -> list[int]:
    return alone(models()["student"], prompt(context, row), row, (4, 1, 1))


SLOW = {
    "none": again,
    "concept": own_concept,
    "residual": residual,
    "residual_ntp": residual_ntp,
    "rows": rows,
    "prompt": led,
}


def prompt(context: StudyContext, row: int) -> list[int]:
    return context.prompts[row % 2].tolist()


@torch.no_grad()
def slow_vector(context: StudyContext, concept: int) -> torch.Tensor:
    """Means over positions one by one."""
    inside, outside = [], []
    for window in context.train.windows(range(context.train.n_windows(context.seq_len)), context.seq_len).tolist():
        hidden = models()["baseline"](torch.tensor([window]), output_hidden_states=True).hidden_states[2][0]
        for h, active in zip(hidden, active_at(window), strict=True):
            (inside if concept in active else outside).append(h / h.norm())
    return torch.stack(inside).mean(0) - torch.stack(outside).mean(0)


@pytest.mark.parametrize("name", SLOW)
def test_a_batch_of_concepts_is_one_row_at_a_time(name: str, context: StudyContext) -> None:
    method = METHODS[name]()
    assert isinstance(method, GeneratingMethod)
    write = method.texts(context)
    unsteered = context.subject(method.subject).unsteered.tolist()
    for dose in (method.doses[0], method.doses[-1]):
        texts = write(dose).tolist()
        assert texts == [SLOW[name](context, dose, row) for row in range(6)]
    assert texts != unsteered
    assert context.subject(method.subject).texts(context.prompt_rows).tolist() == unsteered, "nothing is left behind"


def test_unsteered_text_is_the_first_sample(context: StudyContext) -> None:
    for name in ("student", "teacher", "baseline"):
        texts = context.subject(name).unsteered.tolist()
        assert texts == [alone(models()[name], prompt(context, row), row, (4, 1, 0)) for row in range(6)]


def test_vectors_are_differences_of_means(context: StudyContext) -> None:
    baseline = models()["baseline"]
    assert middle_block(baseline) == 1 and middle_block(models()["reader"]) == 0
    vectors = contrast_vectors(baseline, 1, context.contrast_text())
    assert vectors.shape == (3, WIDE) and float(vectors.norm(dim=-1).min()) > 1e-3
    for vector, one in zip(vectors, context.concepts, strict=True):
        assert torch.allclose(vector, slow_vector(context, one.concept), rtol=1e-9, atol=1e-12)


def test_a_concept_that_is_nowhere_has_no_direction(context: StudyContext) -> None:
    text = [(ids, torch.zeros_like(active)) for ids, active in context.contrast_text()]
    assert not contrast_vectors(models()["baseline"], 1, text).any()


def test_tokens_are_drawn_with_their_probability() -> None:
    model = models()["reader"]
    prompts = torch.tensor([[7, 3]]).expand(20_000, 2)
    drawn = sample_texts(model, prompts, 1, Noise((1,), len(prompts), VOCAB))[:, -1]
    with torch.no_grad():
        chances = model(prompts[:1]).logits[0, -1].softmax(-1)
    shares = torch.bincount(drawn, minlength=VOCAB).double() / len(drawn)
    assert ((shares - chances).abs() < 5 * (chances / len(drawn)).sqrt()).all()


def test_a_text_longer_than_the_model_is_refused() -> None:
    with pytest.raises(CocomixError, match="lower --tokens by 3"):
        sample_texts(models()["reader"], torch.ones(2, 5, dtype=torch.long), 22, Noise((0,), 2, VOCAB))


def test_other_doses_are_measured_and_the_middle_one_is_shown(context: StudyContext) -> None:
    result = METHODS["concept"]([3.0, 5.0]).measure(context, None, lambda *_: None)
    assert [dose.dose for dose in result.at] == [3.0, 5.0] and {example.dose for example in result.examples} == {5.0}
    generate = METHODS["concept"]().texts(context)  # pyright: ignore
    assert result.examples[0].steered == context.decode(generate(5.0)[0, 5:].tolist())


def test_doses_are_given_by_method() -> None:
    assert parse_doses(["concept=4,2,4", "prompt=3"]) == {"concept": (2.0, 4.0), "prompt": (3.0,)}
    for given, says in (
        ("nobody=1", "nobody"),
        ("random=1", "no doses of its own"),
        ("none=1", "no doses of its own"),
        ("concept", "write it like concept=1,2,4"),
        ("residual=1,x", "lists no numbers"),
        ("residual=0,1", "finite numbers above 0"),
        ("residual=inf", "finite numbers above 0"),
        ("prompt=1.5", "whole numbers above 0"),
    ):
        with pytest.raises(CocomixError, match=says):
            parse_doses([given])


def test_a_method_of_your_own_is_registered_by_its_name(context: StudyContext) -> None:
    class Same(GeneratingMethod):
        """The student's own text, written with the first sample's random numbers."""

        name, about, unit, ties, doses = "same", "the student unsteered", "nothing is done", "nothing", (0.0,)

        def texts(self, context: StudyContext) -> Callable[[float], torch.Tensor]:
            return lambda dose: context.subject("student").unsteered

    try:
        assert register_method(Same) is Same and list(METHODS)[-1] == "same"
        result: MethodResult = METHODS["same"]().measure(context, None, lambda *_: None)
        assert all(leak >= 0 for leak in result.at[0].leak)
        with pytest.raises(CocomixError, match="there is a steering method 'concept' already"):
            register_method(type("Other", (Same,), {"name": "concept"}))
    finally:
        METHODS.unregister("same")
