"""Interventions change the named logits before TopK, in every kind of forward pass, and nothing outside `steered`."""

from collections.abc import Callable

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from cocomix import CoCoMixConfig, CoCoMixForCausalLM
from cocomix.errors import CocomixError
from cocomix.steer import INTERVENTIONS, Amplify, Intervention, Suppress, steered

VOCAB, C, K, T = 37, 24, 5, 9


def build(backbone: str = "gpt2", mixer: str = "interleave") -> CoCoMixForCausalLM:
    torch.manual_seed(0)
    config = CoCoMixConfig(
        vocab_size=VOCAB,
        hidden_size=16,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2 if backbone == "llama" else None,
        max_position_embeddings=20,
        backbone=backbone,
        mixer=mixer,
        concept_layer=2,
        num_concepts=C,
        concept_top_k=K,
        initializer_range=0.2,
        bos_token_id=0,
        eos_token_id=None,
        pad_token_id=0,
    )
    return CoCoMixForCausalLM(config).double().eval()


def tokens(batch: int = 3, length: int = T) -> torch.Tensor:
    return torch.randint(1, VOCAB, (batch, length), generator=torch.Generator().manual_seed(1))


def close(a: torch.Tensor, b: torch.Tensor) -> None:
    assert a.shape == b.shape
    assert (a - b).abs().max() <= 1e-9 * b.abs().max().clamp_min(1)


def amplified(z: list[float]) -> list[float]:
    return [3.0 * max(abs(x) for x in z) if i in (4, 17) else x for i, x in enumerate(z)]


def suppressed(z: list[float]) -> list[float]:
    return [min(z) if i in (4, 17) else x for i, x in enumerate(z)]


BY_HAND: dict[str, tuple[Intervention, Callable[[list[float]], list[float]]]] = {
    "amplify": (Amplify([4, 17], 3.0), amplified),
    "suppress": (Suppress([4, 17]), suppressed),
}


def vectors_by_hand(model: CoCoMixForCausalLM, z: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
    """c_hat = (W TopK(z) + b + pre_bias) * std + mean, one position at a time."""
    head, vector = model.channel.head, model.channel.vector
    made = torch.empty_like(hidden)
    for b in range(z.shape[0]):
        for t in range(z.shape[1]):
            largest = sorted(range(C), key=lambda i: -z[b, t, i].item())[:K]
            mixed = sum(z[b, t, i] * vector.weight[i] for i in largest) + vector.bias + head.pre_bias
            made[b, t] = mixed * hidden[b, t].std() + hidden[b, t].mean()
    return made


@pytest.mark.parametrize("name", INTERVENTIONS)
@pytest.mark.parametrize("mixer", ["interleave", "add"])
@torch.no_grad()
def test_the_output_is_that_of_logits_changed_by_hand(name: str, mixer: str) -> None:
    model, ids = build(mixer=mixer), tokens()
    torch.nn.init.normal_(model.channel.head.pre_bias, std=0.1)
    intervention, by_hand = BY_HAND[name]
    base = model(ids, output_hidden_states=True)
    changed = torch.tensor([[by_hand(z) for z in row] for row in base.concept_logits.tolist()], dtype=torch.double)
    vectors = vectors_by_hand(model, changed, base.hidden_states[2])
    handle = model.channel.vector.register_forward_hook(lambda _module, _inputs, _output: vectors)
    expected = model(ids).logits
    handle.remove()

    with steered(model, intervention):
        output = model(ids)
    assert torch.equal(output.concept_logits, changed)
    close(output.logits, expected)
    assert (output.logits - base.logits).abs().max() > 1e-3


def test_amplified_concepts_enter_topk_and_suppressed_ones_leave_it() -> None:
    z = torch.randn(3, T, C, generator=torch.Generator().manual_seed(2)).double()
    before = z.clone()
    assert set(BY_HAND) == set(INTERVENTIONS)
    for concept in range(C):
        up, down = Amplify([concept], 1.5)(z), Suppress([concept])(z)
        assert (up.argmax(-1) == concept).all()
        assert (down.topk(C - 2).indices != concept).all()  # it ties with the smallest for the last place
        assert (Amplify([concept], -1.5)(z).topk(C - 1).indices != concept).all()
        others = [i for i in range(C) if i != concept]
        assert torch.equal(up[..., others], z[..., others]) and torch.equal(down[..., others], z[..., others])
    assert torch.equal(z, before)


def test_nested_interventions_compose_in_order() -> None:
    model, ids = build(), tokens()
    z = model(ids).concept_logits
    with steered(model, Amplify([3], 2.0)), steered(model, Amplify([5], 2.0)):
        both = model(ids).concept_logits
    largest = z.abs().amax(-1)
    close(both[..., 3], 2 * largest)
    close(both[..., 5], 4 * largest)  # the inner one reads what the outer one made
    with steered(model, Amplify([3], 2.0)), steered(model, Suppress([3])):
        last = model(ids).concept_logits
    close(last[..., 3], z[..., [i for i in range(C) if i != 3]].amin(-1))


def test_nothing_is_left_afterwards() -> None:
    model, ids = build(), tokens()
    base = model(ids)
    with steered(model, Amplify([3], 2.0)):
        with steered(model, Suppress([5])):
            pass
        once = model(ids).concept_logits
    close(once[..., 5], base.concept_logits[..., 5])
    with pytest.raises(ZeroDivisionError), steered(model, Amplify([3], 2.0)):
        raise ZeroDivisionError
    after = model(ids)
    assert torch.equal(after.logits, base.logits) and torch.equal(after.concept_logits, base.concept_logits)
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("backbone", ["gpt2", "llama"])
@pytest.mark.parametrize("mixer", ["interleave", "add", "keys_values", "every", "drop_tokens"])
def test_steered_generation_cached_equals_uncached(backbone: str, mixer: str) -> None:
    model, ids = build(backbone, mixer), tokens(4, 6)
    mask = torch.ones_like(ids)
    mask[1, :2], mask[2, :4] = 0, 0
    given = {"attention_mask": mask, "max_new_tokens": 9, "do_sample": False}
    plain = model.generate(ids, **given)
    with steered(model, Amplify([4, 17], 6.0)):
        cached = model.generate(ids, use_cache=True, **given)
        uncached = model.generate(ids, use_cache=False, **given)
    assert torch.equal(cached, uncached)
    assert not torch.equal(cached, plain)
    assert torch.equal(model.generate(ids, **given), plain)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Amplify([2, C], 2.0), "concept 24 is outside the model's 24 concepts; choose from 0 to 23"),
        (lambda: Suppress([-1]), "concept -1 does not exist"),
        (lambda: Suppress([]), "at least one concept"),
        (lambda: Amplify([1], float("nan")), "nan cannot be used"),
    ],
)
def test_what_cannot_be_steered_is_refused(make: Callable[[], Intervention], words: str) -> None:
    model = build()
    with pytest.raises(CocomixError, match=words), steered(model, make()):
        pass
    assert not any(module._forward_hooks for module in model.modules())


def test_a_model_that_uses_no_concepts_is_refused() -> None:
    plain = GPT2LMHeadModel(GPT2Config(vocab_size=VOCAB, n_positions=20, n_embd=16, n_layer=1, n_head=2))
    with pytest.raises(CocomixError, match="GPT2LMHeadModel predicts no concepts"), steered(plain, Suppress([0])):
        pass
    with pytest.raises(CocomixError, match="does not mix them in"), steered(build(mixer="none"), Suppress([0])):
        pass
