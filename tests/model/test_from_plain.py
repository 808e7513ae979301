"""A plain model becomes a student that computes the same, and a channel that can learn: against Transformers."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GemmaConfig,
    GemmaForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from cocomix import CoCoMixForCausalLM
from cocomix.model.mixers import MIXERS
from cocomix.model.plain_models import PLAIN_FAMILIES, fill_plain
from cocomix.model.predictors import GATE_RATE
from cocomix.sae import TopKSAE
from cocomix.utils.errors import CocomixError

VOCAB, WIDTH, LAYERS = 60, 32, 4
SHAPE: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": WIDTH,
    "intermediate_size": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 1000.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
LOCAL = {
    "full_attention": {"rope_type": "default", "rope_theta": 1e6},
    "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
}
KINDS = ["sliding_attention", "full_attention", "sliding_attention", "full_attention"]
MODELS: dict[str, tuple[Any, Any]] = {
    "gpt2": (
        GPT2LMHeadModel,
        GPT2Config(
            vocab_size=VOCAB, n_positions=64, n_embd=WIDTH, n_layer=LAYERS, n_head=4, n_inner=80, initializer_range=0.2
        ),
    ),
    "llama": (LlamaForCausalLM, LlamaConfig(**SHAPE)),
    "llama3": (LlamaForCausalLM, LlamaConfig(**SHAPE, rope_parameters=LLAMA3, tie_word_embeddings=True)),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config(**SHAPE, tie_word_embeddings=True)),
    "qwen3": (Qwen3ForCausalLM, Qwen3Config(**SHAPE, head_dim=12)),
    "gemma": (GemmaForCausalLM, GemmaConfig(**SHAPE, head_dim=16)),
    "gemma3": (
        Gemma3ForCausalLM,
        Gemma3TextConfig(
            **SHAPE,
            head_dim=12,
            query_pre_attn_scalar=20,
            sliding_window=5,
            layer_types=KINDS,
            rope_parameters=LOCAL,
            final_logit_softcapping=9.0,
        ),
    ),
}
MIXINGS: list[tuple[str, dict[str, Any], int]] = [
    ("add", {}, 2),
    ("gated_add", {}, 1),
    ("drop_tokens", {"blocks": 1, "slot": "residual"}, 1),
    ("interleave", {"slot": "residual"}, LAYERS - 1),
    ("none", {}, 2),
]
CONCEPTS, K = 24, 5


def plain(name: str) -> PreTrainedModel:
    """A small random model whose biases and norms are random, too, in float32 and evaluation mode."""
    torch.manual_seed(0)
    kind, config = MODELS[name]
    model = kind(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim < 2:
                parameter.add_(0.2 * torch.randn_like(parameter))
    return model.eval()


def student(model: PreTrainedModel, mixing: int = 0, **options: Any) -> CoCoMixForCausalLM:
    mixer, settings, layer = MIXINGS[mixing]
    sizes = {"concept_layer": layer, "num_concepts": CONCEPTS, "concept_top_k": K}
    return CoCoMixForCausalLM.from_plain(model, **{**sizes, "mixer": mixer, "mixer_options": settings, **options})


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.randint(3, VOCAB, (3, 20), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[0, :7] = 0
    mask[1, 15:] = 0
    return ids, mask


def assert_same(theirs: PreTrainedModel, ours: CoCoMixForCausalLM) -> None:
    """With padding on either side, and without."""
    ids, mask = batch()
    positions = (mask.cumsum(-1) - 1).clamp_min(0)
    for inputs in ({}, {"attention_mask": mask, "position_ids": positions}):
        expected, logits = theirs(input_ids=ids, **inputs).logits, ours(input_ids=ids, **inputs).logits
        real = inputs.get("attention_mask", torch.ones_like(ids)).bool()
        assert (expected - logits)[real].abs().max() < 1e-5 * max(1.0, float(expected.abs().max()))


def test_every_family_is_tried() -> None:
    assert {config.model_type for _, config in MODELS.values()} == set(PLAIN_FAMILIES)


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_each_family_computes_the_same(name: str, tmp_path: Path) -> None:
    """Logits, generation with a cache and after saving and loading."""
    theirs = plain(name)
    ours = student(theirs)
    assert_same(theirs, ours)
    ids, mask = batch()
    prompt = {"input_ids": ids[[0, 2]], "attention_mask": mask[[0, 2]]}
    options: dict[str, Any] = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    expected = theirs.generate(**prompt, **options)
    assert torch.equal(ours.generate(**prompt, **options), expected)
    ours.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert_same(theirs, loaded)
    assert torch.equal(loaded.generate(**prompt, **options), expected)


@pytest.mark.parametrize("mixing", range(len(MIXINGS)))
@torch.no_grad()
def test_each_mixer_computes_the_same(mixing: int) -> None:
    theirs = plain("llama")
    ours = student(theirs, mixing)
    assert_same(theirs, ours)
    ids = batch()[0]
    options: dict[str, Any] = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
    assert torch.equal(ours.generate(ids, **options), theirs.generate(ids, **options))


@pytest.mark.parametrize("mixer", MIXERS)
@pytest.mark.parametrize("slot", ["bare", "residual"])
@pytest.mark.parametrize("layer", [1, LAYERS - 1])
@torch.no_grad()
def test_what_mixers_say_of_a_zero_vector_is_so(mixer: str, slot: str, layer: int) -> None:
    """`leaves_model` is true exactly where the logits stay as they are."""
    theirs = plain("llama")
    options = {"slot": slot} if "slot" in MIXERS.options(mixer) else {}
    if mixer == "every":
        options["every"] = 2
    made = MIXERS[mixer](WIDTH, **options)
    try:
        ours = student(theirs, concept_layer=layer, mixer=mixer, mixer_options=options)
    except CocomixError as error:
        assert mixer in str(error) and not made.leaves_model(LAYERS - layer)
        ours = student(theirs, concept_layer=layer)
        ours.mixer = made
        ids = batch()[0]
        assert (ours(ids).logits - theirs(ids).logits).abs().max() > 1e-3
    else:
        assert_same(theirs, ours)


@pytest.mark.parametrize("mixing", range(len(MIXINGS) - 1))
def test_a_vector_that_starts_at_zero_learns(mixing: int) -> None:
    """Its projection has a gradient from the next-token loss alone, and after a step the model is another one."""
    theirs = plain("gpt2")
    ours = student(theirs, mixing)
    ids = batch()[0]
    ours(input_ids=ids, labels=ids).loss.backward()
    weight = ours.channel.vector.weight  # pyright: ignore
    assert weight.grad is not None and weight.grad.abs().max() > 1e-4
    with torch.no_grad():
        weight -= 0.1 * weight.grad
    assert (ours(ids).logits - theirs(ids).logits).abs().max() > 1e-3


@pytest.mark.parametrize("bias_input", [True, False])
@torch.no_grad()
def test_a_head_that_starts_as_the_autoencoder(bias_input: bool) -> None:
    """Its logits are the autoencoder's pre-activations of the hidden state that enters concept_layer."""
    theirs = plain("llama")
    torch.manual_seed(1)
    sae = TopKSAE(WIDTH, CONCEPTS, K, bias_input=bias_input)
    sae.pre_bias.normal_()
    sae.latent_bias.normal_()
    ours = student(theirs, sae=sae)
    ids = batch()[0]
    hidden = theirs(ids, output_hidden_states=True).hidden_states[2]
    expected = sae.pre_activations(sae.preprocess(hidden)[0])
    torch.testing.assert_close(ours(ids).concept_logits, expected, rtol=1e-4, atol=1e-4)
    assert_same(theirs, ours)


def test_a_vector_that_starts_as_the_decoder_behind_a_closed_gate() -> None:
    theirs = plain("llama")
    torch.manual_seed(1)
    sae = TopKSAE(WIDTH, CONCEPTS, K)
    sae.latent_bias.data.normal_()
    ours = student(theirs, sae=sae, vector_rows=sae.decoder_weight.detach())
    assert_same(theirs, ours)
    channel: Any = ours.channel
    ids = batch()[0]
    ours(input_ids=ids, labels=ids).loss.backward()
    assert channel.gate.grad.abs() > 1e-5 and channel.vector.weight.grad.abs().max() == 0

    with torch.no_grad():
        channel.gate.fill_(-0.01)
        hidden = theirs(ids, output_hidden_states=True).hidden_states[2]
        latents = sae.encode(hidden)
        found = channel(hidden, torch.arange(20)[None], None).vector
        for row, position in torch.cartesian_prod(torch.arange(3), torch.arange(20)).tolist():
            pairs = zip(latents.values[row, position], latents.ids[row, position].tolist(), strict=True)
            explained = sum(value * sae.decoder_weight[concept] for value, concept in pairs)
            expected = GATE_RATE * -0.01 * explained * latents.std[row, position]
            torch.testing.assert_close(found[row, position], expected, rtol=1e-3, atol=1e-4)


def test_an_mlp_in_the_channels_place_starts_at_zero_and_learns() -> None:
    theirs = plain("llama")
    ours = student(theirs, channel="mlp").double()
    assert_same(theirs.double(), ours)
    ids, _ = batch()
    optimizer = torch.optim.SGD(ours.channel.parameters(), lr=1e-2)
    losses = []
    for _ in range(3):
        loss = ours(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    assert losses[0] > losses[1] > losses[2] and ours.channel.down.weight.any()


@torch.no_grad()
def test_half_precision_keeps_its_dtype() -> None:
    ours = student(plain("llama").bfloat16())
    assert ours.dtype == torch.bfloat16


def test_refusals_name_the_cause() -> None:
    theirs = plain("llama")
    gemma2 = Gemma2ForCausalLM(Gemma2Config(**SHAPE, head_dim=8))
    cases = [
        (lambda: student(gemma2), "gemma2"),
        (lambda: student(theirs, mixer="interleave", mixer_options={}), "interleave.*drop_tokens"),
        (lambda: student(theirs, channel="pause", mixer="add"), "pause"),
        (lambda: student(theirs, concept_layer=LAYERS), "concept_layer"),
        (lambda: student(theirs, sae=TopKSAE(WIDTH, CONCEPTS + 1, K)), "num_concepts"),
        (lambda: student(theirs, vector_rows=torch.zeros(CONCEPTS, WIDTH + 1)), "rows of the shape"),
        (lambda: student(theirs, vector_rows=torch.zeros(CONCEPTS, WIDTH), mixer="none"), "mixer that uses the vector"),
        (lambda: student(theirs, sae=TopKSAE(WIDTH, CONCEPTS, K, normalisation="none")), "normalisation"),
        (lambda: student(LlamaForCausalLM(LlamaConfig(**SHAPE, attention_bias=True))), "attention_bias"),
    ]
    for make, words in cases:
        with pytest.raises(CocomixError, match=words):
            make()


@pytest.mark.parametrize("name", MODELS)
def test_a_student_without_its_channel_fills_a_plain_model(name: str) -> None:
    base = plain(name)
    tensors = student(base).without_channel().state_dict()
    other = MODELS[name][0](MODELS[name][1]).eval()
    fill_plain(other, tensors)
    for key, tensor in base.state_dict().items():
        torch.testing.assert_close(other.state_dict()[key], tensor, rtol=1e-6, atol=1e-6)
