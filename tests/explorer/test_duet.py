"""Both rows of a duet are those of plain runs, token by token and without a cache, in float64."""

import itertools
import math
import threading
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from cocomix.explorer.paired_generation import CachedReader, End, Judge, Start, Step, draw, duet
from cocomix.model import Ablate, Amplify, Clamp, Intervention, hidden_at, steered
from cocomix.sae import TopKSAE
from tests.helpers.steered_models import VOCAB, C, K, build, untouched

PROMPT, TOKENS, LAYER = [3, 1, 8, 30], 12, 1
SETTING: dict[int, Intervention] = {5: Amplify(20.0), 2: Clamp(2.0, start=6), 9: Ablate()}


def teacher() -> tuple[GPT2LMHeadModel, TopKSAE]:
    torch.manual_seed(4)
    config = GPT2Config(vocab_size=VOCAB, n_positions=20, n_embd=16, n_layer=3, n_head=2, initializer_range=0.3)
    return GPT2LMHeadModel(config).double().eval(), TopKSAE(16, C, K).double().eval()


def played(
    student: Any, setting: Mapping[int, Intervention], temperature: float, seed: int = 0, judge: Judge | None = None
) -> list[Any]:
    lock = threading.RLock()
    judge = judge or Judge("itself", CachedReader(student, lock), [])
    how: dict[str, Any] = {"tokens": TOKENS, "temperature": temperature, "seed": seed}
    how["clock"] = itertools.count().__next__
    return list(duet(student, lock, judge, PROMPT, setting, lambda ids: f"w{ids[0]}", **how))


def plainly(student: Any, setting: Mapping[int, Intervention], temperature: float, seed: int = 0) -> list[int]:
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
    start, *steps, end = played(student, SETTING, temperature, seed=7)
    assert isinstance(start, Start) and isinstance(end, End) and [one.at for one in steps] == list(range(TOKENS))
    assert [one.id for one in start.prompt] == PROMPT and start.concepts == list(SETTING)
    base, turned = plainly(student, {}, temperature, seed=7), plainly(student, SETTING, temperature, seed=7)
    assert [one.base.id for one in steps] == base and [one.steered.id for one in steps] == turned
    assert [one.same for one in steps] == [a == b for a, b in zip(base, turned, strict=True)]
    assert base != turned and untouched(student)


def test_without_steering_both_rows_are_the_same_and_a_seed_makes_the_text() -> None:
    student = build()
    texts = set()
    for seed in range(4):
        _, *steps, end = played(student, {}, 1.5, seed=seed)
        assert all(one.same and one.base == one.steered for one in steps) and end.base == end.steered
        texts.add(tuple(one.base.id for one in steps))
        assert [one.base.id for one in steps] == plainly(student, {}, 1.5, seed=seed)
    assert len(texts) == 4


def test_the_judge_says_what_whole_passes_of_it_say() -> None:
    student, (model, sae) = build(), teacher()
    judge = Judge("teacher", CachedReader(model, threading.RLock()), list(SETTING), sae, LAYER)
    start, *steps, end = played(student, SETTING, 1.0, judge=judge)
    assert start.judge == "teacher" and untouched(model)
    seen = 0
    for row in ("base", "steered"):
        written = [getattr(one, row) for one in steps]
        ids = torch.tensor([PROMPT + [one.id for one in written]])
        with torch.no_grad():
            log_p = model(ids).logits[0].log_softmax(-1)
            active = sae.encode_dense(hidden_at(model, ids, LAYER))[0]
        losses = [-float(log_p[len(PROMPT) + at - 1, one.id]) for at, one in enumerate(written)]
        assert [one.loss for one in written] == pytest.approx(losses, rel=1e-9)
        for at, one in enumerate(written):
            truth = {concept: float(active[len(PROMPT) + at, concept]) for concept in SETTING}
            assert one.concepts == pytest.approx(truth, rel=1e-9)
            seen += sum(value > 0 for value in truth.values())
        total = getattr(end, row)
        assert total.perplexity == pytest.approx(math.exp(sum(losses) / TOKENS), rel=1e-9)
        for concept in SETTING:
            share = float((active[len(PROMPT) :, concept] > 0).double().mean())
            assert total.presence[concept] == pytest.approx(share)
        pairs = [(a.id, b.id) for a, b in itertools.pairwise(written)]
        assert total.distinct == len(set(pairs)) / len(pairs)
    assert seen and end.tokens == TOKENS and end.milliseconds == 1000


def test_a_student_can_be_its_own_judge() -> None:
    student = build()
    _, *steps, _ = played(student, SETTING, 1.0)
    ids = torch.tensor([PROMPT + [one.steered.id for one in steps]])
    with torch.no_grad():
        log_p = student(ids).logits[0].log_softmax(-1)
    losses = [-float(log_p[len(PROMPT) + at - 1, one.steered.id]) for at, one in enumerate(steps)]
    assert [one.steered.loss for one in steps] == pytest.approx(losses, rel=1e-9)


def test_closing_stops_it_and_leaves_nothing() -> None:
    student, lock = build(), threading.RLock()
    judge = Judge("itself", CachedReader(student, lock), [])
    how: dict[str, Any] = {"tokens": 10, "temperature": 1.0, "seed": 0, "clock": lambda: 0.0}
    events = duet(student, lock, judge, PROMPT, SETTING, str, **how)
    next(events), next(events)
    assert isinstance(next(events), Step) and untouched(student)
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
        counts[draw(logits, 0.7, noise)[0, 0]] += 1
    wanted = (logits[0] / 0.7).softmax(-1)
    error = (wanted * (1 - wanted) / n).sqrt()
    assert ((counts / n - wanted).abs() < 5 * error).all()
    assert int(draw(logits, 1e-320, noise)) == int(draw(logits, 0.0, noise)) == 3
