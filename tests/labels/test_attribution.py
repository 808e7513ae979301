"""Attribution: golden data under `reference`, separate patched passes under `exact`, and what runs backward."""

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from cocomix.labels import attribute, attribute_active, select_active, select_labels
from cocomix.model import hidden_at
from cocomix.model.teacher import blocks
from cocomix.sae import TopKSAE, from_openai
from cocomix.sae.sae import ACTIVATIONS, NORMALISATIONS
from cocomix.utils.errors import CocomixError
from tests.helpers.patched_passes import patched_loop

GOLDEN = Path(__file__).parents[1] / "golden"
CASE = load_file(GOLDEN / "case3_attribution.safetensors")
ABOUT = json.loads((GOLDEN / "case3_attribution.json").read_text())


def gpt2() -> PreTrainedModel:
    config = GPT2Config(vocab_size=61, n_positions=24, n_embd=16, n_layer=4, n_head=2, resid_pdrop=0.1)
    return GPT2LMHeadModel(config)


def llama() -> PreTrainedModel:
    config = LlamaConfig(
        vocab_size=61,
        max_position_embeddings=24,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    return LlamaForCausalLM(config)


@pytest.fixture(params=[gpt2, llama], ids=["gpt2", "llama"])
def teacher(request: pytest.FixtureRequest) -> PreTrainedModel:
    torch.manual_seed(0)
    model = request.param().double()
    for parameter in model.parameters():  # the usual tiny initialisation makes attributions vanish
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    return model


def autoencoder() -> TopKSAE:
    torch.manual_seed(1)
    sae = TopKSAE(16, 40, 6).double()
    torch.nn.init.normal_(sae.pre_bias, std=0.1)
    torch.nn.init.normal_(sae.latent_bias, std=0.1)
    return sae


def golden_teacher() -> PreTrainedModel:
    config = ABOUT["config"]
    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=config["d_vocab"],
            n_positions=config["n_ctx"],
            n_embd=config["d_model"],
            n_layer=config["n_layers"],
            n_head=config["n_heads"],
        )
    ).double()
    weights = {name.removeprefix("hf/"): tensor.double() for name, tensor in CASE.items() if name.startswith("hf/")}
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert set(missing) <= {"lm_head.weight"} and not unexpected
    return model.eval()


def golden_sae() -> TopKSAE:
    state: dict = {
        name.removeprefix("sae/"): tensor.double() for name, tensor in CASE.items() if name.startswith("sae/")
    }
    state["activation"] = "TopK"
    state["activation_state_dict"] = {"k": ABOUT["config"]["k"], "postact_fn": "ReLU"}
    return from_openai(state)


def test_reference_rule_matches_the_golden_data() -> None:
    teacher, sae, layer = golden_teacher(), golden_sae(), ABOUT["config"]["layer"]
    ids, latents, theirs = CASE["input_ids"], CASE["f64/latents"], CASE["f64/attribute"]
    ours = sae.encode_dense(hidden_at(teacher, ids, layer)).detach()
    assert (ours - latents).abs().max() <= 1e-9 * latents.abs().max()
    scores = attribute(teacher, sae, ids, layer=layer, rule="reference", sign="signed")
    assert (scores - theirs).abs().max() <= 1e-9 * theirs.abs().max()
    labels = select_labels(scores, 4)
    unambiguous = CASE["n_positive"] >= 4
    assert int(unambiguous.sum()) == ABOUT["positions_with_at_least_4_positive"]
    assert torch.equal(labels.ids[unambiguous], CASE["f64/labels"][unambiguous])
    assert torch.equal(labels.valid, unambiguous)


@pytest.mark.parametrize("layer", [0, 1, 3])
def test_exact_equals_separate_patched_passes(teacher: PreTrainedModel, layer: int) -> None:
    sae = autoencoder()
    ids = torch.randint(0, 61, (2, 9), generator=torch.Generator().manual_seed(2))
    slow = patched_loop(teacher, sae, ids, layer)
    fast = attribute(teacher, sae, ids, layer=layer, rule="exact", sign="signed")
    assert slow.abs().max() > 1e-3
    assert (fast - slow).abs().max() <= 1e-9 * slow.abs().max()


@pytest.mark.parametrize("normalisation", NORMALISATIONS)
@pytest.mark.parametrize("kind", ["identity", "jumprelu", "groupmax"])
def test_exact_holds_for_every_kind_of_autoencoder(kind: str, normalisation: str) -> None:
    torch.manual_seed(0)
    model = gpt2().double().eval()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    activation = ACTIVATIONS[kind](40, **({"groups": 8} if kind == "groupmax" else {}))
    for buffer in activation.buffers():
        torch.nn.init.uniform_(buffer, 0.5, 3.0)
    sae = TopKSAE(16, 40, 6, normalisation=normalisation, activation=activation, bias_input=False).double()
    torch.nn.init.normal_(sae.pre_bias, std=0.1)
    ids = torch.randint(0, 61, (2, 7), generator=torch.Generator().manual_seed(2))
    slow = patched_loop(model, sae, ids, 1)
    fast = attribute(model, sae, ids, layer=1)
    assert slow.abs().max() > 1e-3 and (fast - slow).abs().max() <= 1e-9 * slow.abs().max()
    labels = select_labels(attribute(model, sae, ids, layer=1, sign="absolute"), 2)
    active = sae.encode_dense(hidden_at(model, ids, 1)).gather(-1, labels.ids)[labels.valid]
    assert labels.valid.any() and (active != 0).all()


@pytest.mark.parametrize("rule", ["exact", "reference", "activation"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing(teacher: PreTrainedModel, rule: str, side: str) -> None:
    sae = autoencoder()
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(0, 61, (1, 7), generator=generator)
    junk = torch.randint(0, 61, (1, 4), generator=generator)
    ones, zeros = torch.ones_like(ids), torch.zeros_like(junk)
    order = (junk, ids) if side == "left" else (ids, junk)
    masks = (zeros, ones) if side == "left" else (ones, zeros)
    plain = attribute(teacher, sae, ids, layer=1, rule=rule)
    padded = attribute(teacher, sae, torch.cat(order, 1), layer=1, rule=rule, attention_mask=torch.cat(masks, 1))
    real = slice(4, None) if side == "left" else slice(0, 7)
    assert (padded[:, real] - plain).abs().max() <= 1e-9 * plain.abs().max()
    outside = slice(0, 4) if side == "left" else slice(7, None)
    assert padded[:, outside].abs().max() == 0
    assert plain[:, -1].abs().max() == 0


def test_reference_rule_equals_plain_autograd(teacher: PreTrainedModel) -> None:
    sae = autoencoder()
    ids = torch.randint(0, 61, (2, 8), generator=torch.Generator().manual_seed(4))
    kept = []

    def keep(_module, _inputs, output):
        hidden = output[0] if isinstance(output, tuple) else output
        hidden.retain_grad()
        kept.append(hidden)

    teacher.eval()
    handle = blocks(teacher)[1].register_forward_hook(keep)
    logits = teacher(ids).logits
    F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()).backward()
    handle.remove()
    slow = sae.encode_dense(kept[0]).detach() * (kept[0].grad @ sae.decoder_weight.T)
    fast = attribute(teacher, sae, ids, layer=1, rule="reference")
    assert (fast - slow).abs().max() <= 1e-9 * slow.abs().max()


@pytest.mark.parametrize("rule", ["exact", "reference"])
def test_the_teacher_takes_no_gradients_and_is_left_as_it_was(teacher: PreTrainedModel, rule: str) -> None:
    teacher.train()
    before = teacher.config._attn_implementation
    touched = []
    handles = [
        block.register_full_backward_hook(lambda *_, i=i: touched.append(i)) for i, block in enumerate(blocks(teacher))
    ]
    attribute(teacher, autoencoder(), torch.randint(0, 61, (1, 6)), layer=1, rule=rule)
    for handle in handles:
        handle.remove()
    assert sorted(touched) == [2, 3]
    assert all(parameter.grad is None and parameter.requires_grad for parameter in teacher.parameters())
    assert teacher.training and teacher.config._attn_implementation == before
    assert not any("forward" in block.__dict__ for block in blocks(teacher))


def test_a_forward_somebody_wrapped_stays_wrapped(teacher: PreTrainedModel) -> None:
    calls, block = [], blocks(teacher)[0]
    original = block.forward

    def wrapped(*arguments, **keywords):
        calls.append(1)
        return original(*arguments, **keywords)

    block.forward = wrapped
    ids = torch.randint(0, 61, (1, 6))
    attribute(teacher, autoencoder(), ids, layer=1)
    assert block.__dict__["forward"] is wrapped
    before = len(calls)
    teacher(ids)
    assert len(calls) == before + 1


def test_attention_sinks_are_refused(teacher: PreTrainedModel) -> None:
    from cocomix.labels.exact import _attention, two_streams

    x = torch.zeros(1, 2, 3, 4)
    with two_streams(teacher, 1), pytest.raises(CocomixError, match="sinks"):
        _attention(teacher, x, x, x, None, s_aux=torch.zeros(2))


def test_signs_and_sparse_selection_agree_with_dense(teacher: PreTrainedModel) -> None:
    sae = autoencoder()
    ids = torch.randint(0, 61, (2, 8), generator=torch.Generator().manual_seed(5))
    signed = attribute(teacher, sae, ids, layer=1)
    assert torch.equal(attribute(teacher, sae, ids, layer=1, sign="helpful"), -signed)
    assert torch.equal(attribute(teacher, sae, ids, layer=1, sign="absolute"), signed.abs())
    activation = attribute(teacher, sae, ids, layer=1, rule="activation", sign="helpful")
    assert (activation >= 0).all() and (activation[:, :-1] > 0).sum() > 0
    for sign in ("signed", "helpful", "absolute"):
        dense = select_labels(attribute(teacher, sae, ids, layer=1, sign=sign), 2)
        sparse = select_active(attribute_active(teacher, sae, ids, layer=1, sign=sign), 2)
        assert torch.equal(dense.valid, sparse.valid) and dense.valid.any()
        assert torch.equal(dense.ids[dense.valid], sparse.ids[sparse.valid])
        assert torch.equal(dense.scores[dense.valid], sparse.scores[sparse.valid])
        assert not dense.valid[:, -1].any()
        assert (dense.targets()[~dense.valid] == -100).all()


def test_positions_with_too_few_usable_concepts_are_not_valid() -> None:
    scores = torch.zeros(1, 3, 6)
    scores[0, 0, [4, 2]] = torch.tensor([2.0, 1.0])
    scores[0, 1, 3] = 1.0
    labels = select_labels(scores, 2)
    assert labels.valid.tolist() == [[True, False, False]]
    assert labels.ids[0, 0].tolist() == [4, 2]


def test_bf16_autocast_finds_mostly_the_same_labels(teacher: PreTrainedModel) -> None:
    teacher, sae = teacher.float(), autoencoder().float()
    ids = torch.randint(0, 61, (4, 16), generator=torch.Generator().manual_seed(6))
    full = select_active(attribute_active(teacher, sae, ids, layer=1, sign="absolute"), 2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = select_active(attribute_active(teacher, sae, ids, layer=1, sign="absolute"), 2)
    both = full.valid & half.valid
    overlap = (full.ids[both][:, :, None] == half.ids[both][:, None, :]).any(-1).double().mean()
    assert overlap > 0.8


@pytest.mark.parametrize(
    ("change", "words"),
    [({"rule": "magic"}, "rule 'magic'"), ({"sign": "up"}, "sign 'up'"), ({"layer": 4}, "layer 4 is outside")],
)
def test_wrong_arguments_are_named(teacher: PreTrainedModel, change: dict, words: str) -> None:
    with pytest.raises(CocomixError, match=words):
        attribute(teacher, autoencoder(), torch.zeros(1, 4, dtype=torch.long), **{"layer": 1, **change})
    with pytest.raises(CocomixError, match="8 wide"):
        attribute(teacher, TopKSAE(8, 10, 2), torch.zeros(1, 4, dtype=torch.long), layer=1)
