"""The reference implementation's student, to 1e-9 relative in float64: outputs, losses and every gradient."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from cocomix.model import CoCoMixForCausalLM
from cocomix.model.convert_reference import load_student, to_reference_layout
from cocomix.utils.errors import CocomixError

GOLDEN = Path(__file__).parents[1] / "golden"
CASE = load_file(GOLDEN / "case1_student.safetensors")
ABOUT = json.loads((GOLDEN / "case1_student.json").read_text())
STATE = {name.removeprefix("state/"): tensor.double() for name, tensor in CASE.items() if name.startswith("state/")}


def close(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    """Relative to the tensor's largest element, as small gradients sum terms of that size."""
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max() <= 1e-9 * theirs.abs().max()


@pytest.fixture(scope="module")
def model() -> CoCoMixForCausalLM:
    config = ABOUT["config"]
    return load_student(
        dict(STATE), n_head=config["n_head"], concept_layer=config["insert_layer_idx"], top_k=config["concept_num"]
    )


def test_outputs_losses_and_every_gradient(model: CoCoMixForCausalLM) -> None:
    ids = CASE["input_ids"]
    interleaved = []
    hook = model.backbone.blocks[2].register_forward_pre_hook(lambda _, inputs: interleaved.append(inputs[0]))
    output = model(input_ids=ids, labels=ids, concept_labels=CASE["concept_labels"])
    hook.remove()
    close(output.logits, CASE["f64/logits"])
    close(output.concept_logits, CASE["f64/concept_logits"])
    close(interleaved[0], CASE["f64/inter/interleaved"])
    close(output.lm_loss[None], CASE["f64/loss_lm"])
    close(output.concept_loss[None], CASE["f64/loss_concept"])
    close(output.loss[None], CASE["f64/loss_total"])

    model.zero_grad()
    output.loss.backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    ours = to_reference_layout(model, gradients)
    theirs = {
        name.split("grad/", 1)[1]: tensor for name, tensor in CASE.items() if "grad/" in name and "f32" not in name
    }
    assert set(ours) == set(theirs) and len(theirs) == len(STATE)
    for name, gradient in theirs.items():
        close(ours[name], gradient)
    assert sum(parameter.numel() for parameter in model.parameters()) == ABOUT["n_params"]


@pytest.mark.parametrize("use_cache", [False, True])
def test_greedy_tokens(model: CoCoMixForCausalLM, use_cache: bool) -> None:
    prompt = CASE["input_ids"][:, :6]
    output = model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=8,
        do_sample=False,
        use_cache=use_cache,
        pad_token_id=0,
        eos_token_id=None,
    )
    assert torch.equal(output, CASE["greedy_nocache_from6_plus8"])


def test_a_checkpoint_that_does_not_fit_is_refused_by_name() -> None:
    arguments = {"n_head": 4, "concept_layer": 2, "top_k": 8}
    missing = {name: tensor for name, tensor in STATE.items() if name != "transformer.ln_f.bias"}
    with pytest.raises(CocomixError, match=r"transformer\.ln_f\.bias is missing"):
        load_student(missing, **arguments)
    with pytest.raises(CocomixError, match=r"extra\.weight is unknown"):
        load_student({**STATE, "extra.weight": torch.zeros(1)}, **arguments)
    with pytest.raises(CocomixError, match=r"ln_1\.weight has shape"):
        load_student({**STATE, "transformer.h.1.ln_1.weight": torch.zeros(3)}, **arguments)
    with pytest.raises(CocomixError, match="lm_head"):
        load_student({**STATE, "lm_head.weight": STATE["transformer.wte.weight"] + 1}, **arguments)


def test_saved_causal_masks_are_ignored() -> None:
    masks = {
        "transformer.h.0.attn.bias": torch.ones(1, 1, 4, 4),
        "transformer.h.0.attn.masked_bias": torch.tensor(-1e4),
    }
    loaded = load_student({**STATE, **masks}, n_head=4, concept_layer=2, top_k=8)
    assert torch.equal(loaded.lm_head.weight, STATE["transformer.wte.weight"])


def test_layout_round_trip(model: CoCoMixForCausalLM) -> None:
    back = to_reference_layout(model, dict(model.named_parameters()))
    assert set(back) == set(STATE)
    for name, tensor in STATE.items():
        assert torch.equal(back[name], tensor)
