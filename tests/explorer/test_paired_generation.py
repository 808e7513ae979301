"""Both rows of a paired generation are those of plain runs, token by token and without a cache, in float64."""

import itertools
import math
import threading
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from cocomix.explorer import paired_generation
from cocomix.explorer.paired_generation import CachedModel, StreamingJudge, for_streaming, generate_pair, sample
from cocomix.explorer.schemas import EndEvent, StartEvent, TokenEvent
from cocomix.model import Ablate, Amplify, Clamp, Intervention, hidden_at, steered
from cocomix.model.adapters import freeze_rest
from cocomix.sae import TopKSAE
from tests.helpers.steered_models import VOCAB, C, K, build, untouched

PROMPT, TOKENS, LAYER = [3, 1, 8, 30], 12, 1
SETTING: dict[int, Intervention] = {5: Amplify(20.0), 2: Clamp(2.0, start=6), 9: Ablate()}


def teacher() -> tuple[GPT2LMHeadModel, TopKSAE]:
    torch.manual_seed(4)
    config = GPT2Config(vocab_size=VOCAB, n_positions=20, n_embd=16, n_layer=3, n_head=2, initializer_range=0.3)
    return GPT2LMHeadModel(config).double().eval(), TopKSAE(16, C, K).double().eval()


def events_of(
    student: Any,
    setting: Mapping[int, Intervention],
    temperature: float,
    seed: int = 0,
    judge: StreamingJudge | None = None,
) -> list[Any]:
    lock = threading.RLock()
    judge = judge or StreamingJudge("itself", CachedModel(student, lock), [])
    options: dict[str, Any] = {"tokens": TOKENS, "temperature": temperature, "seed": seed}
    options["clock"] = itertools.count().__next__
    return list(generate_pair(student, lock, judge, PROMPT, setting, lambda ids: f"w{ids[0]}", **options))


def generate_alone(student: Any, setting: Mapping[int, Intervention], temperature: float, seed: int = 0) -> list[int]:
    """A continuation of one row, the whole text read again for each token."""
    generator, ids = torch.Generator().manual_seed(seed), list(PROMPT)
    for _ in range(TOKENS):
        with torch.no_grad(), steered(student, setting):
            logits = student(torch.tensor([ids]), use_cache=False).logits[0, -1]
        u = torch.rand(VOCAB, dtype=torch.float64, generator=generator)
        scores = logits / temperature - torch.log(-torch.log(u)) if temperature else logits
        ids.append(int(scores.argmax()))
    return ids[len(PROMPT) :]


@pytest.mark.parametrize("temperature", [0.0, 0.8, 3.0])
@pytest.mark.parametrize("mixer", ["interleave", "add"])
def test_each_row_is_a_plain_run_of_its_own(mixer: str, temperature: float) -> None:
    student = build(mixer=mixer)
    start, *steps, end = events_of(student, SETTING, temperature, seed=7)
    assert (
        isinstance(start, StartEvent)
        and isinstance(end, EndEvent)
        and [step.index for step in steps] == list(range(TOKENS))
    )
    assert [token.id for token in start.prompt] == PROMPT and start.concepts == list(SETTING)
    base_ids, steered_ids = (
        generate_alone(student, {}, temperature, seed=7),
        generate_alone(student, SETTING, temperature, seed=7),
    )
    assert [step.base.id for step in steps] == base_ids and [step.steered.id for step in steps] == steered_ids
    assert [step.same for step in steps] == [a == b for a, b in zip(base_ids, steered_ids, strict=True)]
    assert base_ids != steered_ids and untouched(student)


def test_without_steering_both_rows_are_the_same_and_a_seed_makes_the_text() -> None:
    student = build()
    texts = set()
    for seed in range(4):
        _, *steps, end = events_of(student, {}, 1.5, seed=seed)
        assert all(step.same and step.base == step.steered for step in steps) and end.base == end.steered
        texts.add(tuple(step.base.id for step in steps))
        assert [step.base.id for step in steps] == generate_alone(student, {}, 1.5, seed=seed)
    assert len(texts) == 4


def test_the_judge_says_what_whole_passes_of_it_say() -> None:
    student, (model, sae) = build(), teacher()
    judge = StreamingJudge("teacher", CachedModel(model, threading.RLock()), list(SETTING), sae, LAYER)
    start, *steps, end = events_of(student, SETTING, 1.0, judge=judge)
    assert start.judge == "teacher" and untouched(model)
    seen = 0
    for row in ("base", "steered"):
        generated = [getattr(step, row) for step in steps]
        ids = torch.tensor([PROMPT + [token.id for token in generated]])
        with torch.no_grad():
            log_p = model(ids).logits[0].log_softmax(-1)
            active = sae.encode_dense(hidden_at(model, ids, LAYER))[0]
        losses = [-float(log_p[len(PROMPT) + index - 1, token.id]) for index, token in enumerate(generated)]
        assert [token.loss for token in generated] == pytest.approx(losses, rel=1e-9)
        for index, token in enumerate(generated):
            expected = {concept: float(active[len(PROMPT) + index, concept]) for concept in SETTING}
            assert token.concepts == pytest.approx(expected, rel=1e-9)
            seen += sum(value > 0 for value in expected.values())
        total = getattr(end, row)
        assert total.perplexity == pytest.approx(math.exp(sum(losses) / TOKENS), rel=1e-9)
        for concept in SETTING:
            share = float((active[len(PROMPT) :, concept] > 0).double().mean())
            assert total.presence[concept] == pytest.approx(share)
        pairs = [(a.id, b.id) for a, b in itertools.pairwise(generated)]
        assert total.distinct == len(set(pairs)) / len(pairs)
    assert seen and end.tokens == TOKENS and end.milliseconds == 1000


def test_a_student_can_be_its_own_judge() -> None:
    student = build()
    _, *steps, _ = events_of(student, SETTING, 1.0)
    ids = torch.tensor([PROMPT + [step.steered.id for step in steps]])
    with torch.no_grad():
        log_p = student(ids).logits[0].log_softmax(-1)
    losses = [-float(log_p[len(PROMPT) + index - 1, step.steered.id]) for index, step in enumerate(steps)]
    assert [step.steered.loss for step in steps] == pytest.approx(losses, rel=1e-9)


def test_closing_stops_it_and_leaves_nothing() -> None:
    student, lock = build(), threading.RLock()
    judge = StreamingJudge("itself", CachedModel(student, lock), [])
    options: dict[str, Any] = {"tokens": 10, "temperature": 1.0, "seed": 0, "clock": lambda: 0.0}
    events = generate_pair(student, lock, judge, PROMPT, SETTING, str, **options)
    next(events), next(events)
    assert isinstance(next(events), TokenEvent) and untouched(student)
    elsewhere: list[bool] = []
    other = threading.Thread(target=lambda: elsewhere.append(lock.acquire(blocking=False)))
    other.start(), other.join()
    assert elsewhere == [True]
    events.close()  # pyright: ignore[reportAttributeAccessIssue]
    assert next(events, None) is None


def test_draws_are_from_the_softmax() -> None:
    logits = torch.tensor([[0.0, 1.0, -2.0, 2.0]], dtype=torch.float64)
    noise, n = torch.Generator().manual_seed(0), 20_000
    counts = torch.zeros(4)
    for _ in range(n):
        counts[sample(logits, 0.7, noise)[0, 0]] += 1
    expected = (logits[0] / 0.7).softmax(-1)
    error = (expected * (1 - expected) / n).sqrt()
    assert ((counts / n - expected).abs() < 5 * error).all()
    assert int(sample(logits, 1e-320, noise)) == int(sample(logits, 0.0, noise)) == 3


def test_bits_per_byte_of_what_was_generated() -> None:
    student, lock, sizes = build(), threading.RLock(), [token % 3 for token in range(VOCAB)]
    judge = StreamingJudge("itself", CachedModel(student, lock), [])
    options: dict[str, Any] = {"tokens": TOKENS, "temperature": 1.0, "seed": 3, "clock": itertools.count().__next__}
    _, *steps, end = generate_pair(student, lock, judge, PROMPT, SETTING, str, sizes, **options)
    for row in ("base", "steered"):
        tokens = [getattr(step, row) for step in steps]
        size = sum(sizes[token.id] for token in tokens)
        bits = sum(token.loss for token in tokens) / math.log(2)
        assert getattr(end, row).bits_per_byte == pytest.approx(bits / size)


def test_a_large_model_streams_from_a_merged_copy_in_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    student = build(mixer="add").float()
    freeze_rest(student, "lora")
    for name, weight in student.named_parameters():
        if ".lora_B." in name:
            torch.nn.init.normal_(weight, std=0.1)
    monkeypatch.setattr(paired_generation, "fast_precision", lambda: "bf16")
    assert for_streaming(student) is student
    monkeypatch.setattr(paired_generation, "LARGE", 1)
    before = {name: weight.clone() for name, weight in student.state_dict().items()}
    writer = for_streaming(student)
    assert {weight.dtype for weight in writer.parameters()} == {torch.bfloat16}
    torch.testing.assert_close(student.state_dict(), before)
    ids = torch.tensor([PROMPT])
    expected, plain = student(ids).logits[0, -1], build(mixer="add").float()(ids).logits[0, -1]
    found = CachedModel(writer, threading.RLock(), [SETTING]).next_logits(ids)
    with steered(student, SETTING):
        turned = student(ids).logits[0, -1]
    for other in (expected, plain):  # steering and LoRA are both in it
        assert (found[0] - turned).abs().max() < 0.1 * (found[0] - other).abs().max()
    monkeypatch.setattr(paired_generation, "fast_precision", lambda: "fp32")
    assert for_streaming(student) is student
