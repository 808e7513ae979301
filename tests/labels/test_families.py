"""Concept models of the families people use: hidden states, resuming, and the exact rule against T patched passes."""

from collections.abc import Callable

import pytest
import torch
import transformers as hf
from transformers import PreTrainedModel
from transformers.masking_utils import AttentionMaskInterface, eager_mask

from cocomix.labels import attribute
from cocomix.model import hidden_at
from cocomix.model.teacher import model_inputs, resumed_at
from cocomix.sae import TopKSAE
from cocomix.utils.errors import CocomixError
from tests.helpers.patched_passes import patched_loop

WIDTH, LAYERS, VOCAB = 16, 3, 61
SHARED = {
    "vocab_size": VOCAB,
    "hidden_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "intermediate_size": 24,
    "max_position_embeddings": 32,
    "pad_token_id": 0,
}
GROUPED = SHARED | {"num_key_value_heads": 2}
GEMMA = GROUPED | {"head_dim": 8}
SLIDING = ["sliding_attention", "full_attention", "sliding_attention"]

FAMILIES: dict[str, Callable[[], PreTrainedModel]] = {
    "gpt2": lambda: hf.GPT2LMHeadModel(hf.GPT2Config(vocab_size=VOCAB, n_embd=WIDTH, n_layer=LAYERS, n_head=4)),
    "gpt_neox": lambda: hf.GPTNeoXForCausalLM(hf.GPTNeoXConfig(**SHARED, rotary_pct=0.5)),
    "gpt_neox sequential": lambda: hf.GPTNeoXForCausalLM(hf.GPTNeoXConfig(**SHARED, use_parallel_residual=False)),
    "llama": lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**GROUPED)),
    "mistral, window": lambda: hf.MistralForCausalLM(hf.MistralConfig(**GROUPED, sliding_window=4)),
    "qwen2": lambda: hf.Qwen2ForCausalLM(hf.Qwen2Config(**GROUPED)),
    "qwen2, windows": lambda: hf.Qwen2ForCausalLM(
        hf.Qwen2Config(**GROUPED, use_sliding_window=True, sliding_window=4, max_window_layers=1)
    ),
    "qwen3": lambda: hf.Qwen3ForCausalLM(hf.Qwen3Config(**GEMMA)),
    "gemma": lambda: hf.GemmaForCausalLM(hf.GemmaConfig(**GEMMA)),
    "gemma2": lambda: hf.Gemma2ForCausalLM(
        hf.Gemma2Config(
            **GEMMA,
            query_pre_attn_scalar=8,
            sliding_window=4,
            attn_logit_softcapping=2.0,
            final_logit_softcapping=3.0,
        )
    ),
    "gemma3": lambda: hf.Gemma3ForCausalLM(
        hf.Gemma3TextConfig(**GEMMA, query_pre_attn_scalar=8, sliding_window=4, layer_types=SLIDING)
    ),
    "opt": lambda: hf.OPTForCausalLM(
        hf.OPTConfig(
            vocab_size=VOCAB,
            hidden_size=WIDTH,
            num_hidden_layers=LAYERS,
            num_attention_heads=4,
            ffn_dim=24,
            max_position_embeddings=32,
            word_embed_proj_dim=WIDTH,
        )
    ),
    "phi": lambda: hf.PhiForCausalLM(hf.PhiConfig(**SHARED)),
    "gptj": lambda: hf.GPTJForCausalLM(
        hf.GPTJConfig(vocab_size=VOCAB, n_embd=WIDTH, n_layer=LAYERS, n_head=4, rotary_dim=4, n_positions=32)
    ),
}
CUSTOM_ATTENTION: dict[str, Callable[[], PreTrainedModel]] = {
    "bloom": lambda: hf.BloomForCausalLM(hf.BloomConfig(vocab_size=VOCAB, hidden_size=WIDTH, n_layer=LAYERS, n_head=4)),
    "falcon": lambda: hf.FalconForCausalLM(hf.FalconConfig(**SHARED)),
    "mpt": lambda: hf.MptForCausalLM(
        hf.MptConfig(vocab_size=VOCAB, d_model=WIDTH, n_layers=LAYERS, n_heads=4, max_seq_len=32)
    ),
}


def double_attention(module, query, key, value, attention_mask, scaling=None, softcap=None, **_):
    """Attention by its definition, in the inputs' precision."""
    groups = query.shape[1] // key.shape[1]
    scores = query @ key.repeat_interleave(groups, 1).transpose(-1, -2) * scaling
    scores = softcap * (scores / softcap).tanh() + attention_mask
    return (scores.softmax(-1) @ value.repeat_interleave(groups, 1)).transpose(1, 2), None


hf.AttentionInterface.register("double", double_attention)
AttentionMaskInterface.register("double", eager_mask)


def made(build: Callable[[], PreTrainedModel]) -> PreTrainedModel:
    torch.manual_seed(0)
    model = build().eval()
    for parameter in model.parameters():  # the usual tiny initialisation makes attributions vanish
        torch.nn.init.normal_(parameter, std=0.4 if parameter.ndim > 1 else 0.2)
    model.tie_weights()
    return model


def autoencoder() -> TopKSAE:
    torch.manual_seed(1)
    sae = TopKSAE(WIDTH, 40, 5)
    torch.nn.init.normal_(sae.pre_bias, std=0.1)
    torch.nn.init.normal_(sae.latent_bias, std=0.1)
    return sae


def tokens() -> torch.Tensor:
    return torch.randint(1, VOCAB, (2, 9), generator=torch.Generator().manual_seed(2))


def left_padding() -> torch.Tensor:
    mask = torch.ones(2, 9, dtype=torch.long)
    mask[0, :3] = 0
    return mask


@pytest.mark.parametrize("masked", [False, True], ids=["whole", "left-padded"])
@pytest.mark.parametrize("family", [*FAMILIES, *CUSTOM_ATTENTION])
def test_hidden_states_and_what_follows_from_them_are_the_library_s_own(family: str, masked: bool) -> None:
    model, ids = made((FAMILIES | CUSTOM_ATTENTION)[family]), tokens()
    mask = left_padding() if masked else None
    inputs = model_inputs(model, ids, mask)
    with torch.no_grad():
        plain = model(**inputs, output_hidden_states=True)
        for layer in range(LAYERS):
            hidden = hidden_at(model, ids, layer, mask)
            if layer < LAYERS - 1:  # the library's last ones have gone through the final norm
                assert torch.equal(hidden, plain.hidden_states[layer + 1])
            with resumed_at(model, layer, hidden):
                again = model(**inputs).logits
            assert torch.equal(again, plain.logits)
            with resumed_at(model, layer, hidden.roll(1, -1)):  # a constant would go in the norms
                assert not torch.allclose(model(**inputs).logits, plain.logits)


@pytest.mark.parametrize("masked", [False, True], ids=["whole", "left-padded"])
@pytest.mark.parametrize("family", FAMILIES)
def test_exact_equals_separate_patched_passes(family: str, masked: bool) -> None:
    model, sae, ids = made(FAMILIES[family]).double(), autoencoder().double(), tokens()
    mask = left_padding() if masked else None
    if getattr(model.config, "attn_logit_softcapping", None):
        # The library's softmax is in float32 there, whatever the model's precision.
        theirs = model(ids).logits
        model.set_attn_implementation("double")
        assert (model(ids).logits - theirs).abs().max() < 1e-5
    slow = patched_loop(model, sae, ids, 0, mask)
    fast = attribute(model, sae, ids, layer=0, rule="exact", attention_mask=mask)
    assert slow.abs().max() > 1e-3
    assert (fast - slow).abs().max() <= 1e-9 * slow.abs().max()


@pytest.mark.parametrize("family", CUSTOM_ATTENTION)
def test_custom_attention_code_is_refused_by_the_exact_rule_and_works_with_the_others(family: str) -> None:
    model, sae, ids = made(CUSTOM_ATTENTION[family]).double(), autoencoder().double(), tokens()
    with pytest.raises(CocomixError, match=f"0 of 2 upper blocks of {type(model).__name__}"):
        attribute(model, sae, ids, layer=0)
    with torch.enable_grad():
        hidden = hidden_at(model, ids, 0).detach().requires_grad_()
        with resumed_at(model, 0, hidden):
            logits = model(ids).logits
        loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
        (gradient,) = torch.autograd.grad(loss, hidden)
    slow = sae.encode_dense(hidden).detach() * (gradient @ sae.decoder_weight.T)
    fast = attribute(model, sae, ids, layer=0, rule="reference")
    assert slow.abs().max() > 1e-4 and (fast - slow).abs().max() <= 1e-9 * slow.abs().max()
