"""Contributions add up to the gradient times the vector, and are what leaving a summand out does, to first order."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from cocomix import CoCoMixForCausalLM
from cocomix.analysis import contributions, read_channel
from cocomix.model import ZeroVector
from cocomix.utils.errors import CocomixError
from tests.helpers.small_students import VOCAB, student
from tests.helpers.steered_models import untouched

K, AT = 5, 7
IDS = torch.randint(1, VOCAB, (10,), generator=torch.Generator().manual_seed(4)).tolist()


def build(channel: str = "concepts", mixer: str = "interleave", **changes: Any) -> CoCoMixForCausalLM:
    return student(channel, mixer, **changes).double()


@contextmanager
def mixing(model: Any, vector: torch.Tensor) -> Iterator[None]:
    """The mixer is handed `vector`; no hooks."""
    mix = model.mixer.forward
    model.mixer.forward = lambda hidden, _vector, blocks: mix(hidden, vector, blocks)
    try:
        yield
    finally:
        del model.mixer.forward


@torch.no_grad()
def loss_with(model: Any, vector: torch.Tensor | None = None) -> float:
    ids = torch.tensor([IDS[:AT]])
    if vector is None:
        logits = model(ids).logits
    else:
        with mixing(model, vector[None]):
            logits = model(ids).logits
    return -float(logits[0, -1].log_softmax(-1)[IDS[AT]])


@torch.no_grad()
def summands(model: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Vectors `[AT, d_model]`, and the summand of each of their concepts `[AT, K, d_model]`, from the weights."""
    channel = model.channel
    hidden = model.model.hidden_state(torch.tensor([IDS[:AT]]), top=False)
    prediction = channel.head(hidden)
    scale = 1.0 if channel.scale is None else channel.scale
    rows = prediction.values[0, :, :, None] * channel.vector.weight[prediction.ids[0]] * prediction.std[0, :, :, None]
    return channel(hidden, torch.arange(AT)[None], None).vector[0], rows * scale


SETTINGS = [
    ("interleave", {}),
    ("interleave", {"backbone": "llama", "vector_scale": 0.5, "mixer_options": {"slot": "residual"}}),
    ("keys_values", {}),
    ("drop_tokens", {}),
]


@pytest.mark.parametrize(("mixer", "changes"), SETTINGS)
def test_contributions_add_up_to_the_gradient_times_the_vector(mixer: str, changes: dict[str, Any]) -> None:
    model = build(mixer=mixer, **changes)
    found = contributions(model, IDS[:AT], IDS[AT])
    vector, rows = summands(model)
    torch.testing.assert_close(found.vector, vector, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(
        found.values.sum(-1) + found.rest, -(found.gradient * found.vector).sum(-1), rtol=1e-9, atol=1e-12
    )
    torch.testing.assert_close(found.values, -(found.gradient[:, None] * rows).sum(-1), rtol=1e-9, atol=1e-12)
    # The gradient, by differences.
    direction = torch.randn(vector.shape, dtype=vector.dtype, generator=torch.Generator().manual_seed(0))
    step = 1e-5
    slope = (loss_with(model, vector + step * direction) - loss_with(model, vector - step * direction)) / (2 * step)
    assert slope == pytest.approx(float((found.gradient * direction).sum()), rel=1e-6)
    assert untouched(model) and all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("mixer", ["interleave", "add"])
def test_they_are_what_leaving_one_out_does(mixer: str) -> None:
    model = build(mixer=mixer)
    found = contributions(model, IDS[:AT], IDS[AT])
    vector, rows = summands(model)

    def left_out(share: float) -> torch.Tensor:
        """What the loss gains when `share` of a summand is left out, over that share, `[AT, K]`."""
        effect = torch.zeros(AT, K, dtype=vector.dtype)
        for t in range(AT):
            for k in range(K):
                changed = vector.clone()
                changed[t] -= share * rows[t, k]
                effect[t, k] = (loss_with(model, changed) - float(found.loss)) / share
        return effect

    torch.testing.assert_close(found.values, left_out(1e-4), rtol=1e-2, atol=1e-6)
    whole = left_out(1.0)
    assert float(torch.corrcoef(torch.stack([whole.flatten(), found.values.flatten()]))[0, 1]) > 0.9
    assert (found.values.sign() == whole.sign())[whole.abs() > whole.abs().median()].double().mean() > 0.9


def test_a_reading_gathers_them_by_concept() -> None:
    model = build()
    found = contributions(model, IDS[:AT], IDS[AT])
    reading = read_channel(model, IDS, AT, top=100, name=lambda one: f"n{one}")
    assert reading.loss == pytest.approx(loss_with(model), rel=1e-9)
    with model.replace_vector(ZeroVector()):
        assert reading.loss_zeroed == pytest.approx(loss_with(model), rel=1e-9)
    assert reading.nats == pytest.approx(reading.loss_zeroed - reading.loss) != 0
    effects = [abs(one.nats) for one in reading.concepts]
    assert effects == sorted(effects, reverse=True) and len(effects) == len(found.ids.unique())
    for one in reading.concepts:
        mine = found.ids == one.concept
        assert one.nats == pytest.approx(float(found.values[mine].sum())) and one.name == f"n{one.concept}"
        assert one.here == pytest.approx(float(found.values[-1][mine[-1]].sum())) and one.positions == int(mine.sum())
    assert math.fsum(one.nats for one in reading.concepts) + reading.rest == pytest.approx(reading.first_order)
    assert len(read_channel(model, IDS, AT, top=2).concepts) == 2
    read_channel(model, IDS, 1)


def test_small_vectors_bring_what_the_first_order_says() -> None:
    model = build(mixer="add", vector_scale=1e-3)
    reading = read_channel(model, IDS, AT)
    assert reading.nats == pytest.approx(reading.first_order, rel=0.02)


@pytest.mark.parametrize("channel", ["mlp", "pause", "hidden", "ncp"])
def test_a_channel_without_concepts_has_nats_alone(channel: str) -> None:
    reading = read_channel(build(channel), IDS, AT)
    assert reading.concepts == [] and reading.rest == reading.first_order != 0 and reading.nats != 0


def test_what_has_no_channel_or_no_loss_is_refused() -> None:
    with pytest.raises(CocomixError, match="does not mix its vector in"):
        read_channel(build(mixer="none"), IDS, AT)
    for at in (0, len(IDS), -1):
        with pytest.raises(CocomixError, match="choose 1 to 9"):
            read_channel(build(), IDS, at)
    with pytest.raises(CocomixError, match="give more words"):
        read_channel(build(), IDS[:1], 0)
