"""Interventions change the named logits before TopK, in every kind of forward pass, and nothing outside `steered`."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import GPT2Config, GPT2LMHeadModel

from cocomix import CoCoMixForCausalLM
from cocomix.model import INTERVENTIONS, Ablate, Amplify, Clamp, Dampen, Intervention, Setting, steered
from cocomix.utils.errors import CocomixError
from tests.helpers.slow_twins import concept_vector
from tests.helpers.steered_models import MIXERS, VOCAB, C, T, build, close, padded, tokens, untouched

DONE = [Amplify(3.0), Amplify(-2.0), Dampen(0.4), Dampen(1.0), Ablate(), Clamp(3.0), Clamp(-1.5)]


def by_hand(z: list[float], setting: Setting, place: int) -> list[float]:
    """One position's logits, changed one at a time."""
    unit, low = max(abs(x) for x in z), min(z)
    below = low - max(abs(low) * 2.0**-52, 2.0**-1022)
    changed = list(z)
    for concept, one in setting.items():
        if place < one.start:
            continue
        if isinstance(one, Amplify):
            changed[concept] = z[concept] + one.strength * unit
        elif isinstance(one, Dampen):
            changed[concept] = (1 - one.share) * z[concept] + one.share * below
        elif isinstance(one, Clamp):
            changed[concept] = one.value * unit
        else:
            changed[concept] = below
    return changed


def all_by_hand(z: torch.Tensor, rows: list[Setting], places: list[list[int]]) -> torch.Tensor:
    return torch.tensor(
        [
            [by_hand(one, setting, place) for one, place in zip(row, row_places, strict=True)]
            for row, setting, row_places in zip(z.tolist(), rows, places, strict=True)
        ],
        dtype=torch.double,
    )


def vectors_by_hand(model: CoCoMixForCausalLM, z: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
    """The concepts' vectors, one position at a time."""
    rows = [[concept_vector(model, *at) for at in zip(*row, strict=True)] for row in zip(z, hidden, strict=True)]
    return torch.stack([torch.stack(row) for row in rows])


@pytest.mark.parametrize("mixer", ["interleave", "add"])
@pytest.mark.parametrize("done", DONE, ids=str)
@torch.no_grad()
def test_the_output_is_that_of_logits_changed_by_hand(done: Intervention, mixer: str) -> None:
    model, ids = build(mixer=mixer), tokens()
    torch.nn.init.normal_(model.channel.head.pre_bias, std=0.1)
    setting = {4: done, 17: done}
    base = model(ids, output_hidden_states=True)
    changed = all_by_hand(base.concept_logits, [setting] * len(ids), [list(range(T))] * len(ids))
    vectors = vectors_by_hand(model, changed, base.hidden_states[2])
    handle = model.channel.vector.register_forward_hook(lambda _module, _inputs, _output: vectors)
    expected = model(ids).logits
    handle.remove()

    with model.steer(setting):
        output = model(ids)
    close(output.concept_logits, changed)
    close(output.logits, expected)
    assert (output.logits - base.logits).abs().max() > 1e-4


def test_every_intervention_is_tested() -> None:
    assert {type(one) for one in DONE} == set(INTERVENTIONS.values())


interventions = st.one_of(
    st.builds(Amplify, st.floats(-5, 5), start=st.integers(0, T + 1)),
    st.builds(Dampen, st.floats(0, 1), start=st.integers(0, T + 1)),
    st.builds(Ablate, start=st.integers(0, T + 1)),
    st.builds(Clamp, st.floats(-5, 5), start=st.integers(0, T + 1)),
)
one_setting = st.dictionaries(st.integers(0, C - 1), interventions, max_size=4)


@settings(max_examples=25, deadline=None)
@given(st.lists(one_setting, min_size=3, max_size=3), st.sampled_from([None, "left", "right"]))
@torch.no_grad()
def test_rows_are_steered_from_their_own_token_on_whatever_the_padding(rows: list[Setting], side: str | None) -> None:
    """Also: a row that nothing is due in keeps its bits."""
    model, ids = build(), tokens()
    mask = padded(ids, side)
    base = model(ids, attention_mask=mask)
    places = (mask.cumsum(-1) - 1).tolist()
    with model.steer(rows):
        output = model(ids, attention_mask=mask)
    expected = all_by_hand(base.concept_logits, rows, places)
    real = mask.bool()
    close(output.concept_logits[real], expected[real])
    for row, setting in enumerate(rows):
        if not setting:
            assert torch.equal(output.logits[row], base.logits[row])


@settings(max_examples=15, deadline=None)
@given(st.lists(one_setting, min_size=3, max_size=3), st.sampled_from(["left", "right"]), st.sampled_from(MIXERS))
@torch.no_grad()
def test_a_row_in_a_batch_is_steered_as_it_is_alone(rows: list[Setting], side: str, mixer: str) -> None:
    model, ids = build(mixer=mixer), tokens()
    mask = padded(ids, side)
    with model.steer(rows):
        together = model(ids, attention_mask=mask)
    for row, setting in enumerate(rows):
        real = mask[row].bool()
        with model.steer(setting):
            alone = model(ids[row : row + 1, real])
        close(together.concept_logits[row, real], alone.concept_logits[0])
        close(together.logits[row, real], alone.logits[0])


@settings(max_examples=15, deadline=None)
@given(one_setting, one_setting)
@torch.no_grad()
def test_nested_settings_compose_in_order(outer: Setting, inner: Setting) -> None:
    model, ids = build(), tokens()
    places = [list(range(T))] * len(ids)
    once = all_by_hand(model(ids).concept_logits, [outer] * len(ids), places)
    twice = all_by_hand(once, [inner] * len(ids), places)
    with model.steer(outer), model.steer(inner):
        output = model(ids)
    close(output.concept_logits, twice)


@torch.no_grad()
def test_the_order_within_a_setting_is_nothing() -> None:
    model, ids = build(), tokens()
    setting = {3: Amplify(2.0), 5: Ablate(), 9: Clamp(4.0), 11: Dampen(0.5)}
    with model.steer(setting):
        one = model(ids).logits
    with model.steer(dict(reversed(setting.items()))):
        assert torch.equal(model(ids).logits, one)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_ablated_concepts_leave_topk_and_amplified_ones_lead_it(dtype: torch.dtype) -> None:
    model, ids = build(), tokens()
    model.channel.head.proj.register_forward_hook(lambda _module, _inputs, z: z.to(dtype))
    for flat in (False, True):
        if flat:  # every logit 0: all tie
            torch.nn.init.zeros_(model.channel.head.proj.weight)
            torch.nn.init.zeros_(model.channel.head.proj.bias)
        for concept in range(C):
            with model.steer({concept: Ablate(), (concept + 1) % C: Ablate()}):
                z = model.channel.head.logits(torch.randn(3, T, 16, dtype=torch.double))
            kept = z.topk(C - 2).indices
            assert z.dtype == dtype and z.isfinite().all()
            assert not ((kept == concept) | (kept == (concept + 1) % C)).any()
    del ids
    model = build()
    for concept in range(C):
        for up in (Amplify(2.5), Clamp(1.5)):
            with model.steer({concept: up}):
                assert (model(tokens()).concept_logits.argmax(-1) == concept).all()


@torch.no_grad()
def test_ablating_does_not_change_what_a_strength_means() -> None:
    model, ids = build(), tokens()
    with model.steer({5: Clamp(2.0)}):
        plain = model(ids).concept_logits[..., 5]
    base = model(ids).concept_logits
    spared = int(base.abs().amax((0, 1)).argmin())  # nobody's largest
    with model.steer({spared: Ablate()}), model.steer({5: Clamp(2.0)}):
        close(model(ids).concept_logits[..., 5], plain)


@pytest.mark.parametrize("done", [*DONE, Amplify(2.0, start=3)], ids=str)
def test_every_gradient_is_that_of_the_logits_changed_by_hand(done: Intervention) -> None:
    model, ids = build(), tokens()
    labels = torch.randint(0, C, (*ids.shape, 2), generator=torch.Generator().manual_seed(4))

    def slow(_module: Any, _inputs: Any, z: torch.Tensor) -> torch.Tensor:
        unit, low = z.abs().amax(-1), z.amin(-1)
        below = low - low.abs() * 2.0**-52
        wanted = {
            Amplify: lambda v: v + done.amount * unit,
            Dampen: lambda v: (1 - done.amount) * v + done.amount * below,
            Ablate: lambda v: below,
            Clamp: lambda v: done.amount * unit,
        }[type(done)]
        columns = list(z.unbind(-1))
        begun = torch.arange(z.shape[1]) >= done.start
        columns[7] = torch.where(begun, wanted(columns[7]), columns[7])
        return torch.stack(columns, -1)

    handle = model.channel.head.proj.register_forward_hook(slow)
    loss = model(ids, labels=ids, concept_labels=labels).loss
    expected = torch.autograd.grad(loss, list(model.parameters()))
    handle.remove()
    with model.steer({7: done}):
        steered_loss = model(ids, labels=ids, concept_labels=labels).loss
    close(steered_loss, loss)
    for mine, theirs in zip(torch.autograd.grad(steered_loss, list(model.parameters())), expected, strict=True):
        close(mine, theirs)


def test_nothing_is_left_afterwards() -> None:
    model, ids = build(), tokens()
    base = model(ids)
    with steered(model, {3: Amplify(2.0, start=1)}):
        with steered(model, {5: Ablate()}):
            pass
        once = model(ids).concept_logits
    close(once[..., 5], base.concept_logits[..., 5])
    with pytest.raises(ZeroDivisionError), model.steer([{3: Amplify(2.0)}, {4: Ablate(start=2)}, {}]):
        model(ids)
        raise ZeroDivisionError
    with (
        pytest.raises(CocomixError, match="2 rows of steering do not fit a batch of 3"),
        model.steer([{3: Ablate()}, {}]),
    ):
        model(ids)
    after = model(ids)
    assert torch.equal(after.logits, base.logits) and torch.equal(after.concept_logits, base.concept_logits)
    assert untouched(model)


@pytest.mark.parametrize("backbone", ["gpt2", "llama"])
@pytest.mark.parametrize("mixer", MIXERS)
def test_steered_generation_cached_equals_uncached(backbone: str, mixer: str) -> None:
    model, ids = build(backbone, mixer), tokens(4, 6)
    mask = torch.ones_like(ids)
    mask[1, :2], mask[2, :4] = 0, 0
    asked = {"attention_mask": mask, "max_new_tokens": 9, "do_sample": False}
    plain = model.generate(ids, **asked)
    for steering in (
        {4: Clamp(6.0), 17: Clamp(6.0)},
        [{4: Clamp(6.0, start=8)}, {}, {17: Clamp(6.0, start=4), 3: Ablate()}, {8: Amplify(-9.0), 9: Amplify(9.0)}],
    ):
        with model.steer(steering):
            cached = model.generate(ids, use_cache=True, **asked)
            uncached = model.generate(ids, use_cache=False, **asked)
        assert torch.equal(cached, uncached)
        assert not torch.equal(cached, plain)
        if isinstance(steering, list):
            assert torch.equal(cached[1], plain[1])
            for row, setting in enumerate(steering):
                with model.steer(setting):
                    alone = model.generate(ids[row : row + 1, mask[row].bool()], max_new_tokens=9, do_sample=False)
                assert torch.equal(alone[0, -9:], cached[row, -9:])
    assert torch.equal(model.generate(ids, **asked), plain)


def test_nothing_differs_before_the_token_it_starts_at() -> None:
    model, ids = build(), tokens(1, 4)
    plain = model.generate(ids, max_new_tokens=12, do_sample=False)
    differs = 0
    for start in range(4, 15):
        with model.steer({4: Clamp(9.0, start=start)}):
            found = model.generate(ids, max_new_tokens=12, do_sample=False)
        assert torch.equal(found[0, : start + 1], plain[0, : start + 1])  # token t decides the one after it
        differs += not torch.equal(found, plain)
    assert differs > 5


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize("asked", [{"num_beams": 3}, {"num_beams": 4, "num_return_sequences": 2}], ids=str)
def test_beams_are_steered_as_their_prompt(asked: dict[str, int], cached: bool) -> None:
    model, ids = build(), tokens(3, 6)
    mask = padded(ids, "left")
    rows: list[Setting] = [{4: Clamp(6.0)}, {}, {17: Clamp(5.0, start=4), 2: Ablate()}]
    asked = {"max_new_tokens": 7, "do_sample": False, "use_cache": cached, **asked}
    with model.steer(rows):
        together = model.generate(ids, attention_mask=mask, **asked)
    each = asked.get("num_return_sequences", 1)
    for row, setting in enumerate(rows):
        with model.steer(setting):
            alone = model.generate(ids[row : row + 1, mask[row].bool()], **asked)
        assert torch.equal(together[row * each : (row + 1) * each, -7:], alone[:, -7:])
    plain = model.generate(ids, attention_mask=mask, **asked)
    assert not torch.equal(plain, together)


def test_sampled_sequences_of_a_prompt_share_its_setting() -> None:
    model, ids = build(), tokens(2, 6)
    asked = {"max_new_tokens": 5, "do_sample": True, "num_return_sequences": 3}
    rows: list[Setting] = [{4: Clamp(6.0)}, {9: Clamp(-6.0), 1: Clamp(4.0)}]
    torch.manual_seed(5)
    with model.steer(rows):
        found = model.generate(ids, **asked)
    repeated = [rows[0]] * 3 + [rows[1]] * 3
    torch.manual_seed(5)
    with model.steer(repeated):
        assert torch.equal(model.generate(ids.repeat_interleave(3, 0), **{**asked, "num_return_sequences": 1}), found)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: {C: Amplify(2.0)}, "concept 24 is outside the model's 24 concepts; choose from 0 to 23"),
        (lambda: {-1: Ablate()}, "concept -1 is outside"),
        (lambda: {"ending": Ablate()}, "'ending' is not the number of a concept"),
        (lambda: {1: 4.0}, "4.0 is not an intervention for concept 1"),
        (lambda: [], "steering is an empty list"),
        (lambda: [3], "3 is not a steering setting"),
        (lambda: {1: Amplify(float("nan"))}, "nan cannot be used"),
        (lambda: {1: Clamp("2")}, "2 cannot be used"),  # pyright: ignore[reportArgumentType]
        (lambda: {1: Dampen(1.5)}, "cannot be dampened by 1.5"),
        (lambda: {1: Ablate(start=-2)}, "cannot start at token -2"),
    ],
)
def test_what_cannot_be_steered_is_refused(make: Callable[[], Any], words: str) -> None:
    model = build()
    with pytest.raises(CocomixError, match=words), steered(model, make()):
        pass
    assert untouched(model)


def test_a_model_that_uses_no_concepts_is_refused() -> None:
    plain = GPT2LMHeadModel(GPT2Config(vocab_size=VOCAB, n_positions=20, n_embd=16, n_layer=1, n_head=2))
    with pytest.raises(CocomixError, match="GPT2LMHeadModel predicts no concepts"), steered(plain, {0: Ablate()}):
        pass
    with pytest.raises(CocomixError, match="does not mix them in"), steered(build(mixer="none"), {0: Ablate()}):
        pass
