"""vector_scale: the vector starts as that share of its token's hidden state, at any width, K and C, and is learned."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from cocomix import CoCoMixConfig, CoCoMixForCausalLM
from cocomix.model import PREDICTORS, Amplify, Clamp, Predictor, Sizes, register_predictor
from cocomix.model.vector_scale import gelu_square, largest_squares, softmax_squares
from cocomix.objectives import OBJECTIVES
from cocomix.objectives.retrofit import BaseStudent
from cocomix.train.config import TrainConfig
from cocomix.train.optimizer import adamw
from cocomix.utils.errors import CocomixError
from cocomix.utils.settings import identity

VOCAB, T = 200, 32
OPTIONS = {"hidden": {"target_size": 48}, "ncp": {"chunk": 4, "segments": 2, "codes": 8}}
SHAPES = [(1, 40), (8, 64), (16, 1024), (32, 4096)]
"""K and C"""


def build(channel: str = "concepts", width: int = 32, k: int = 8, c: int = 64, seed: int = 0, **changes: Any):
    torch.manual_seed(seed)
    settings = {
        "vocab_size": VOCAB,
        "hidden_size": width,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": width,
        "max_position_embeddings": T,
        "concept_layer": 1,
        "num_concepts": c,
        "concept_top_k": k,
        "channel": channel,
        "channel_options": OPTIONS.get(channel),
        "vector_scale": 0.3,
    }
    return CoCoMixForCausalLM(CoCoMixConfig(**{**settings, **changes})).eval()


def ids(batch: int = 4) -> torch.Tensor:
    return torch.randint(VOCAB, (batch, T), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def seen(model: CoCoMixForCausalLM) -> tuple[torch.Tensor, torch.Tensor]:
    """The hidden states that enter concept_layer and the vectors made there, of one pass over random tokens."""
    passes: list[tuple[torch.Tensor, torch.Tensor]] = []
    handle = model.channel.register_forward_hook(
        lambda _module, inputs, prediction: passes.append((inputs[0], prediction.vector))
    )
    model(ids())
    handle.remove()
    return passes[0]


def share(*models: CoCoMixForCausalLM) -> float:
    """rms of the vectors over that of their hidden states: root of its mean square over tokens and models."""
    squares = []
    for model in models:
        hidden, vector = seen(model)
        squares.append(vector.square().mean(-1) / hidden.square().mean(-1))
    return float(torch.stack(squares).mean().sqrt())


@pytest.mark.parametrize(
    ("width", "backbone"),
    [(32, "gpt2"), (32, "llama"), (64, "llama"), (128, "gpt2"), (256, "llama"), (512, "gpt2")],
)
@pytest.mark.parametrize("channel", PREDICTORS)
def test_the_first_vector_is_its_share_of_the_hidden_state(channel: str, width: int, backbone: str) -> None:
    """A narrow student whose tokens all have nearly the same vector (ncp) is drawn several times."""
    draws = max(1, 256 // width) if channel == "ncp" else 1
    for k, c in SHAPES if channel in ("concepts", "mlp") else SHAPES[1:2]:
        models = (build(channel, width, k, c, seed, backbone=backbone) for seed in range(draws))
        assert share(*models) == pytest.approx(0.3, rel=0.12), (k, c)


@pytest.mark.parametrize("channel", PREDICTORS)
def test_it_holds_for_any_share_and_scale_of_the_weights_and_after_loading(channel: str, tmp_path: Any) -> None:
    for start, deviation in ((0.05, 0.02), (1.0, 0.1)):
        model = build(channel, 256, vector_scale=start, initializer_range=deviation)
        assert share(model) == pytest.approx(start, rel=0.15)
    model.save_pretrained(tmp_path)
    again = CoCoMixForCausalLM.from_pretrained(tmp_path).eval()
    assert torch.equal(again(ids()).logits, model(ids()).logits)


def test_without_it_nothing_is_there() -> None:
    plain = build(vector_scale=None)
    assert not [name for name in plain.state_dict() if "scale" in name]
    assert share(build(width=64, vector_scale=None)) < 0.15
    bare = {"objective": "pause", "mix": {"concept_layer": 1}}
    settings = OBJECTIVES["pause"].model_validate(bare)
    assert "vector_scale" not in identity(settings)["mix"]


@torch.no_grad()
def test_the_vector_is_a_sum_of_rows_and_a_stronger_concept_adds_more_of_its_own() -> None:
    model = build().double()
    hidden, vector = seen(model)
    make, z = model.channel.vector, model.channel.head.logits(hidden)
    top = z.topk(8)
    row = (top.values[..., None] * make.weight[top.indices]).sum(-2)
    mean, std = hidden.mean(-1, keepdim=True), hidden.std(-1, keepdim=True)
    torch.testing.assert_close(vector, 0.3 * (row * std + mean), rtol=1e-6, atol=1e-12)
    unit = z.abs().amax(-1, keepdim=True)
    parts = []
    for strength in (2.0, 4.0):
        with model.steer({3: Clamp(strength)}):
            parts.append(seen(model)[1])
    torch.testing.assert_close(parts[1] - parts[0], 0.3 * std * 2 * unit * make.weight[3], rtol=1e-6, atol=1e-12)
    with model.steer({3: Amplify(8.0)}):
        assert seen(model)[1].norm() > parts[1].norm()


@pytest.mark.parametrize("channel", PREDICTORS)
def test_the_share_is_learned_and_not_decayed(channel: str) -> None:
    model = build(channel).train()
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    optimizer = adamw(model, TrainConfig(steps=1))
    decayed = [names[id(p)] for group in optimizer.param_groups if group["weight_decay"] for p in group["params"]]
    shares = [parameter for name, parameter in model.named_parameters() if name == "channel.scale"]
    assert len(shares) == 1 and "channel.scale" not in decayed
    model(ids(), labels=ids()).loss.backward()
    optimizer.step()
    assert shares[0].item() != pytest.approx(0.3, abs=1e-6)


def test_the_rules_against_random_draws() -> None:
    generator = torch.Generator().manual_seed(0)
    for k, n in SHAPES:
        drawn = torch.randn(400, n, generator=generator).topk(k).values.square().sum(-1)
        assert float(drawn.mean()) == pytest.approx(largest_squares(n, k), rel=0.12)
    assert largest_squares(7, 7) == 7
    normal = torch.randn(400_000, generator=generator)
    for variance in (0.01, 0.2, 4.0):
        drawn = F.gelu(variance**0.5 * normal).square().mean()
        assert float(drawn) == pytest.approx(gelu_square(variance), rel=0.02)
    for n in (2, 8, 64):  # few or even logits: the ratio of means is close to the mean of ratios
        assert softmax_squares(n, 0.0) == pytest.approx(1 / n)
        assert softmax_squares(n, 0.2) == pytest.approx(1 / (1 + (n - 1) * math.exp(-0.2)), rel=0.06)
        assert softmax_squares(n, 1e6) > 0.98


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"vector_scale": 0.0}, "choose a number above 0"),
        ({"vector_scale": True}, "choose a number above 0"),
        ({"vector_scale": float("inf")}, "choose a number above 0"),
        ({"vector_scale": "0.3"}, "choose a number above 0"),
        ({"mixer": "none"}, "the mixer none uses no vector"),
    ],
)
def test_what_it_cannot_scale_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(CocomixError, match=words):
        build(**changes)


def test_a_predictor_without_a_rule_is_refused() -> None:
    class Still(PREDICTORS["pause"]):
        name, takes_scale = "still", Predictor.takes_scale

    register_predictor(Still)
    try:
        with pytest.raises(CocomixError, match="the channel still does not say how"):
            build("still")
    finally:
        PREDICTORS.unregister("still")


def test_every_student_with_a_vector_takes_it_from_its_settings() -> None:
    sizes = Sizes(vocab_size=VOCAB, seq_len=T, n_concepts=64, top_k=8, teacher_width=24, sae_layer=0)
    tried = 0
    for name, settings in OBJECTIVES.items():
        section = next((key for key in ("concept", "mix") if key in settings.model_fields), None)
        if section is None or issubclass(settings, BaseStudent):  # whose vector starts at zero
            continue
        given = {"objective": name, section: {"concept_layer": 1, "vector_scale": 0.3, "mixer": "interleave"}}
        given |= {"labels": "exact"} if name in ("cocomix", "dropped") else {}
        student = settings.model_validate(given | {"model": {"width": 64, "layers": 2, "heads": 2}})
        torch.manual_seed(0)
        assert share(student.build(sizes).eval()) == pytest.approx(0.3, rel=0.25), name  # pyright: ignore
        assert "interleave (vector scale 0.3)" in student.summary()
        tried += 1
    assert tried == 8
    with pytest.raises(ValueError, match="the mixer none uses no vector"):
        OBJECTIVES["mlp"].model_validate({"objective": "mlp", "mix": {"mixer": "none", "vector_scale": 0.3}})
