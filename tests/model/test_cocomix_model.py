"""The model's promises: generation, losses, layouts, agreement with Transformers, and what Transformers adds."""

import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from cocomix import CoCoMixConfig, CoCoMixForCausalLM
from cocomix.model import concept_loss
from cocomix.model.transformer import HeadNorm, attention_layout
from cocomix.utils.errors import CocomixError

VOCAB, T = 37, 9


def build(backbone: str = "gpt2", mixer: str = "interleave", **changes) -> CoCoMixForCausalLM:
    torch.manual_seed(0)
    settings = {
        "vocab_size": VOCAB,
        "hidden_size": 16,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": None if backbone == "gpt2" else 2,
        "max_position_embeddings": 20,
        "concept_layer": 2,
        "num_concepts": 24,
        "concept_top_k": 5,
        "initializer_range": 0.2,
        "bos_token_id": 0,
        "eos_token_id": None,
        "pad_token_id": 0,
    }
    return CoCoMixForCausalLM(CoCoMixConfig(backbone=backbone, mixer=mixer, **{**settings, **changes})).double().eval()


@pytest.fixture(params=["gpt2-interleave", "llama-interleave", "gpt2-add", "llama-add", "qwen3-interleave"])
def model(request: pytest.FixtureRequest) -> CoCoMixForCausalLM:
    return build(*request.param.split("-"))


def tokens(batch: int = 3, length: int = T, seed: int = 1) -> torch.Tensor:
    return torch.randint(1, VOCAB, (batch, length), generator=torch.Generator().manual_seed(seed))


def close(a: torch.Tensor, b: torch.Tensor) -> None:
    assert a.shape == b.shape
    assert (a - b).abs().max() <= 1e-9 * b.abs().max().clamp_min(1)


@pytest.mark.parametrize(
    "how",
    [
        {"do_sample": False},
        {"do_sample": True, "temperature": 0.9, "top_k": 10},
        {"do_sample": False, "num_beams": 3},
    ],
    ids=["greedy", "sampling", "beam"],
)
def test_generate_cached_equals_uncached_with_left_padding(model: CoCoMixForCausalLM, how: dict) -> None:
    ids = tokens(3, 6)
    mask = torch.ones_like(ids)
    mask[1, :2], mask[2, :4] = 0, 0
    ids = ids.masked_fill(mask == 0, 0)
    runs = []
    for use_cache in (True, False):
        torch.manual_seed(7)
        runs.append(model.generate(ids, attention_mask=mask, max_new_tokens=7, use_cache=use_cache, **how))
    assert torch.equal(*runs)
    if how == {"do_sample": False}:
        alone = model.generate(ids[2:, 4:], attention_mask=mask[2:, 4:], max_new_tokens=7, **how)
        assert torch.equal(alone[0, 2:], runs[0][2, 6:])


def test_right_padded_prompts_continue_as_they_would_alone(model: CoCoMixForCausalLM) -> None:
    ids, mask = tokens(3, 6), torch.ones(3, 6, dtype=torch.long)
    mask[1, 5:], mask[2, 2:] = 0, 0
    given = {"attention_mask": mask, "max_new_tokens": 5, "do_sample": False}
    for batch in (model.generate(ids, **given), model.generate(input_ids=ids, **given)):
        for row, length in enumerate((6, 5, 2)):
            alone = model.generate(ids[row : row + 1, :length], max_new_tokens=5, do_sample=False)
            assert torch.equal(batch[row, 6:], alone[0, length:])


def test_assisted_generation_crops_the_cache_by_tokens(model: CoCoMixForCausalLM) -> None:
    ids = tokens(1, 6)
    plain = model.generate(ids, max_new_tokens=10, do_sample=False)
    assert torch.equal(model.generate(ids, max_new_tokens=10, do_sample=False, prompt_lookup_num_tokens=3), plain)
    helper = build("gpt2", hidden_size=8, num_attention_heads=2)
    assert torch.equal(model.generate(ids, max_new_tokens=10, do_sample=False, assistant_model=helper), plain)


def test_a_cache_without_room_for_the_slots_is_refused(model: CoCoMixForCausalLM) -> None:
    with pytest.raises(CocomixError, match="StaticCache"):
        model.generate(tokens(1, 6), max_new_tokens=3, cache_implementation="static")


def test_hidden_states_and_chosen_logits(model: CoCoMixForCausalLM) -> None:
    ids, split, slots = tokens(), model.config.concept_layer, model.mixer.cached_slots(1)[0]
    output = model(ids, output_hidden_states=True, logits_to_keep=torch.tensor([0, 3]))
    lengths = [state.shape[1] for state in output.hidden_states]
    assert lengths == [T] * (split + 1) + [T * slots] * (4 - split)
    whole = model(ids)
    assert whole.hidden_states is None
    close(output.logits, whole.logits[:, [0, 3]])
    close(model.channel.head(output.hidden_states[split]).logits, whole.concept_logits)


def test_full_length_works_and_one_more_is_refused(model: CoCoMixForCausalLM) -> None:
    assert model(tokens(1, 20)).logits.shape == (1, 20, VOCAB)
    with pytest.raises(CocomixError, match="21 tokens are more than the model's 20 positions"):
        model(tokens(1, 21))


def test_losses_equal_the_formula(model: CoCoMixForCausalLM) -> None:
    ids = tokens()
    labels = ids.clone()
    labels[0, 4] = -100
    concepts = torch.randint(0, 24, (3, T, 4), generator=torch.Generator().manual_seed(3))
    concepts[1, 2:5] = -100
    output = model(ids, labels=labels, concept_labels=concepts)
    lm = F.cross_entropy(output.logits[:, :-1].reshape(-1, VOCAB), labels[:, 1:].reshape(-1))
    each = [F.cross_entropy(output.concept_logits.reshape(-1, 24), concepts[..., i].reshape(-1)) for i in range(4)]
    close(output.lm_loss, lm)
    close(output.concept_loss, sum(each) / 4)
    close(output.loss, lm + 0.1 * sum(each) / 4)
    assert isinstance(model(ids, labels=labels, return_dict=False), tuple)


def test_concept_loss_gradient_and_nothing_labelled() -> None:
    logits = torch.randn(2, 3, 7, dtype=torch.double, requires_grad=True)
    labels = torch.randint(0, 7, (2, 3, 2))
    labels[0, 1] = -100
    (fast,) = torch.autograd.grad(concept_loss(logits, labels), logits)
    slow_loss = sum(F.cross_entropy(logits.flatten(0, 1), labels[..., i].flatten()) for i in range(2)) / 2
    (slow,) = torch.autograd.grad(slow_loss, logits)
    close(fast, slow)
    empty = concept_loss(logits, torch.full((2, 3, 2), -100))
    (gradient,) = torch.autograd.grad(empty, logits)
    assert float(empty) == 0 and not gradient.any()


@pytest.mark.parametrize(("new", "past", "slots"), [(4, 0, 2), (3, 2, 2), (1, 5, 1), (1, 5, 2), (4, 3, 1)])
def test_layout_equals_its_definition(new: int, past: int, slots: int) -> None:
    padding = torch.ones(2, past + new, dtype=torch.long)
    padding[1, 0] = 0
    for given in (None, padding):
        layout = attention_layout(given, new, past, slots=slots, device=torch.device("cpu"))
        for b in range(2):
            for q in range(new * slots):
                for k in range((past + new) * slots):
                    here = past * slots + q
                    seen = k <= here and (given is None or bool(given[b, k // slots]) or k == here)
                    if layout.mask is None:
                        got = k <= here if layout.causal else True
                    else:
                        got = bool(layout.mask[b if layout.mask.shape[0] > 1 else 0, 0, q, k])
                    assert got == seen


def _copy_gpt2(model: CoCoMixForCausalLM, source: GPT2LMHeadModel) -> None:
    ours, theirs = model.backbone, source.transformer
    ours.embed_tokens.weight.data.copy_(theirs.wte.weight)
    ours.embed_positions.weight.data.copy_(theirs.wpe.weight)
    ours.final_norm.load_state_dict(theirs.ln_f.state_dict())
    for a, b in zip(ours.blocks, theirs.h, strict=True):
        a.norm_1.load_state_dict(b.ln_1.state_dict())
        a.norm_2.load_state_dict(b.ln_2.state_dict())
        for linear, conv in (
            (a.attention.qkv, b.attn.c_attn),
            (a.attention.out, b.attn.c_proj),
            (a.mlp.up, b.mlp.c_fc),
            (a.mlp.down, b.mlp.c_proj),
        ):
            linear.weight.data.copy_(conv.weight.T)
            linear.bias.data.copy_(conv.bias)


def _copy_llama(model: CoCoMixForCausalLM, source: LlamaForCausalLM | Qwen3ForCausalLM) -> None:
    ours, theirs = model.backbone, source.model
    ours.embed_tokens.weight.data.copy_(theirs.embed_tokens.weight)
    ours.final_norm.weight.data.copy_(theirs.norm.weight)
    for a, b in zip(ours.blocks, theirs.layers, strict=True):
        a.norm_1.weight.data.copy_(b.input_layernorm.weight)
        a.norm_2.weight.data.copy_(b.post_attention_layernorm.weight)
        attention = b.self_attn
        a.attention.qkv.weight.data.copy_(
            torch.cat([attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight])
        )
        a.attention.out.weight.data.copy_(attention.o_proj.weight)
        if isinstance(source, Qwen3ForCausalLM):
            a.attention.q_norm.weight.data.copy_(attention.q_norm.weight)
            a.attention.k_norm.weight.data.copy_(attention.k_norm.weight)
        a.mlp.gate.weight.data.copy_(b.mlp.gate_proj.weight)
        a.mlp.up.weight.data.copy_(b.mlp.up_proj.weight)
        a.mlp.down.weight.data.copy_(b.mlp.down_proj.weight)


def _in_float64(plain: LlamaForCausalLM | Qwen3ForCausalLM) -> LlamaForCausalLM | Qwen3ForCausalLM:
    """With its norms and its rotary table, which it computes in float32, in float64."""

    def table(_x: torch.Tensor, position_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        angles = position_ids[..., None].double() / 10000 ** (torch.arange(2).double() / 2)
        return torch.cat((angles, angles), -1).cos(), torch.cat((angles, angles), -1).sin()

    plain.model.rotary_emb.forward = table
    for module in plain.modules():
        if type(module).__name__.endswith("RMSNorm"):
            module.forward = lambda x, norm=module: norm.weight * x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    return plain


@pytest.mark.parametrize("backbone", ["gpt2", "llama", "qwen3"])
def test_blocks_agree_with_transformers_when_the_concept_adds_nothing(backbone: str) -> None:
    """With additive mixing of a zero vector the model is Transformers' own; c_hat is 0 when std * (...) = -mean."""
    model = build(backbone, "add", norm_eps=1e-5)
    torch.manual_seed(5)
    if backbone == "gpt2":
        plain = (
            GPT2LMHeadModel(
                GPT2Config(vocab_size=VOCAB, n_positions=20, n_embd=16, n_layer=4, n_head=4, initializer_range=0.2)
            )
            .double()
            .eval()
        )
        _copy_gpt2(model, plain)
    else:
        kind, settings = (LlamaForCausalLM, LlamaConfig) if backbone == "llama" else (Qwen3ForCausalLM, Qwen3Config)
        plain = (
            kind(
                settings(
                    vocab_size=VOCAB,
                    head_dim=4,
                    max_position_embeddings=20,
                    hidden_size=16,
                    intermediate_size=64,
                    num_hidden_layers=4,
                    num_attention_heads=4,
                    num_key_value_heads=2,
                    initializer_range=0.2,
                    rms_norm_eps=1e-5,
                    tie_word_embeddings=True,
                )
            )
            .double()
            .eval()
        )
        for name, weight in plain.named_parameters():
            if name.endswith(("q_norm.weight", "k_norm.weight")):
                torch.nn.init.uniform_(weight, 0.5, 2.0)
        _copy_llama(model, plain)
    handle = model.channel.vector.register_forward_hook(lambda _m, _i, output: torch.zeros_like(output))
    ids = tokens()
    ours, theirs = model(ids).logits, plain(ids).logits
    exact = theirs if backbone == "gpt2" else _in_float64(plain)(ids).logits
    handle.remove()
    assert (ours - exact).abs().max() <= 1e-9 * exact.abs().max()
    # Transformers computes Llama's rotary table in float32 even for float64 weights.
    tolerance = 1e-9 if backbone == "gpt2" else 1e-5
    assert (ours - theirs).abs().max() <= tolerance * theirs.abs().max()


def test_a_fresh_process_loads_the_same_bits_through_transformers(tmp_path: Path) -> None:
    model, ids = build(), tokens()
    model.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").exists()
    torch.save((dict(model.named_parameters()), model(ids).logits.detach()), tmp_path / "expected.pt")
    program = (
        "import sys, torch, cocomix.model\n"
        "from transformers import AutoModelForCausalLM\n"
        "model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float64).eval()\n"
        "ids = torch.randint(1, 37, (3, 9), generator=torch.Generator().manual_seed(1))\n"
        "weights, logits = torch.load(sys.argv[1] + '/expected.pt', weights_only=True)\n"
        "same = all(torch.equal(p, weights[name]) for name, p in model.named_parameters())\n"
        "near = (model(ids).logits - logits).abs().max() < 1e-12\n"
        "sys.exit(0 if same and near and model.lm_head.weight is model.get_input_embeddings().weight else 1)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_gradient_checkpointing_gives_the_same_gradients(model: CoCoMixForCausalLM) -> None:
    ids, concepts = tokens(), torch.randint(0, 24, (3, T, 4))
    model.train()
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            model.gradient_checkpointing_enable()
        model.zero_grad()
        model(ids, labels=ids, concept_labels=concepts).loss.backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters()])
    for a, b in zip(*gradients, strict=True):
        close(a, b)


def test_compiles_whole_and_agrees(model: CoCoMixForCausalLM) -> None:
    torch._dynamo.reset()
    ids, concepts = tokens(), torch.randint(0, 24, (3, T, 4))
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    output = compiled(ids, labels=ids, concept_labels=concepts, use_cache=False)
    close(output.loss, model(ids, labels=ids, concept_labels=concepts, use_cache=False).loss)


@pytest.mark.filterwarnings("error")
def test_norms_of_heads_are_torchs_to_the_bit_in_both_precisions() -> None:
    norm, theirs = HeadNorm(8, eps=1e-6), torch.nn.RMSNorm(8, eps=1e-6)
    with torch.no_grad():
        theirs.weight.copy_(norm.weight.uniform_(0.5, 2))
    x = torch.randn(2, 3, 5, 8)
    assert torch.equal(norm(x), theirs(x))
    half = norm(x.bfloat16())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert half.dtype == torch.bfloat16 and torch.equal(half, theirs(x.bfloat16()))


def test_bf16_autocast_trains(model: CoCoMixForCausalLM) -> None:
    model = model.float().train()
    ids, concepts = tokens(), torch.randint(0, 24, (3, T, 4))
    exact = model(ids, labels=ids, concept_labels=concepts).loss
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model(ids, labels=ids, concept_labels=concepts).loss
    loss.backward()
    assert abs(float(loss) - float(exact)) < 0.05 * float(exact)
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"concept_layer": 4}, "concept_layer 4 is outside"),
        ({"concept_layer": 0}, "concept_layer 0 is outside"),
        ({"concept_top_k": 25}, "25 does not fit into 24"),
        ({"num_attention_heads": 3, "num_key_value_heads": None}, "not a multiple"),
        ({"num_key_value_heads": 3}, "does not divide"),
        ({"backbone": "rnn"}, "no backbone 'rnn'"),
        ({"backbone": "llama", "hidden_size": 12}, "odd head width"),
        ({"mixer": "blend"}, "no mixer 'blend'"),
    ],
)
def test_a_config_that_does_not_fit_is_refused(change: dict, words: str) -> None:
    settings = {
        "hidden_size": 16,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_concepts": 24,
        "concept_top_k": 5,
    }
    with pytest.raises(CocomixError, match=words):
        CoCoMixConfig(**{**settings, **change})
