"""A quantised student: its weights really are packed, and it computes what the weights it holds say.

Transformers replaces layers whose type is exactly `nn.Linear`. Ours were a subclass, so `load_in_4bit` packed nothing
and said that it had; had they been replaced, slices of `qkv.weight` would have been slices of packed bytes.
"""

import copy
import warnings
from pathlib import Path
from typing import Any

import bitsandbytes
import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from cocomix import CoCoMixForCausalLM
from tests.helpers.small_students import batch, student

# bitsandbytes' kernel for CPUs needs outputs in multiples of 32. All concepts are kept, so that rounding flips none.
SHAPE = {"hidden_size": 64, "num_concepts": 32, "concept_top_k": 32}


def quantised(folder: Path, mixer: str = "interleave", **options: Any) -> tuple[Any, Any]:
    """A student loaded with its linear layers packed, and the student it was saved from."""
    resident = student(mixer=mixer, **SHAPE)
    resident.save_pretrained(folder)
    settings = BitsAndBytesConfig(**options)
    return AutoModelForCausalLM.from_pretrained(folder, quantization_config=settings, device_map="cpu"), resident


def dequantised(packed: nn.Module, resident: CoCoMixForCausalLM) -> CoCoMixForCausalLM:
    """A student of plain layers that hold the values of `packed`'s."""
    plain = copy.deepcopy(resident)
    for name, layer in packed.named_modules():
        if isinstance(layer, bitsandbytes.nn.Linear4bit):
            weight = bitsandbytes.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
            plain.get_submodule(name).weight.data = weight.float()  # pyright: ignore[reportAttributeAccessIssue]
    return plain


def linear_names(model: nn.Module) -> set[str]:
    return {name for name, module in model.named_modules() if isinstance(module, nn.Linear) and name != "lm_head"}


@pytest.mark.parametrize("mixer", ["interleave", "keys_values", "gated_add"])
@torch.no_grad()
def test_four_bits_are_four_bits(tmp_path: Path, mixer: str) -> None:
    packed, resident = quantised(tmp_path, mixer, load_in_4bit=True)
    layers = {name for name, module in packed.named_modules() if isinstance(module, bitsandbytes.nn.Linear4bit)}
    assert layers == linear_names(resident)
    for name in layers:
        assert packed.get_submodule(name).weight.dtype == torch.uint8
        assert packed.get_submodule(name).weight.numel() == resident.get_submodule(name).weight.numel() / 2
    assert packed.get_memory_footprint() < 0.4 * resident.get_memory_footprint()
    plain = dequantised(packed, resident)
    # In training mode bitsandbytes unpacks and multiplies; in evaluation its CPU kernel rounds to bfloat16.
    for exact, tolerance in ((True, 1e-5), (False, 0.05)):
        packed.train(exact)
        for options in ({}, {"skip_logits": True}):
            found, expected = packed(**batch(), **options), plain(**batch(), **options)
            torch.testing.assert_close(found.loss, expected.loss, rtol=tolerance, atol=0)
            if not options:
                assert (found.logits - expected.logits).abs().max() <= tolerance * expected.logits.abs().max()
    assert packed.generate(batch()["input_ids"][:, :4], max_new_tokens=6, do_sample=False).shape == (2, 10)


@torch.no_grad()
def test_eight_bits(tmp_path: Path) -> None:
    packed, resident = quantised(tmp_path, load_in_8bit=True)
    layers = {name for name, module in packed.named_modules() if isinstance(module, bitsandbytes.nn.Linear8bitLt)}
    assert layers == linear_names(resident)
    assert all(packed.get_submodule(name).weight.dtype == torch.int8 for name in layers)
    assert packed.get_memory_footprint() < 0.5 * resident.get_memory_footprint()
    found, expected = packed(**batch()), resident(**batch())
    assert (found.logits - expected.logits).abs().max() <= 0.1 * expected.logits.abs().max()
    torch.testing.assert_close(found.loss, expected.loss, rtol=0.02, atol=0)


@torch.no_grad()
def test_adapters_on_four_bits_are_trained(tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    packed, _ = quantised(tmp_path, load_in_4bit=True)
    settings = LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False)
    model = get_peft_model(packed, settings).train()
    with torch.enable_grad():
        model(**batch(), skip_logits=True).loss.backward()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert trained and all(parameter.grad is not None and parameter.grad.any() for parameter in trained)


@torch.no_grad()
def test_torch_s_dynamic_quantisation_sees_every_layer() -> None:
    resident = student(**SHAPE)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is deprecated in favour of torchao
        packed = torch.ao.quantization.quantize_dynamic(resident, {nn.Linear})
    dynamic = torch.ao.nn.quantized.dynamic.Linear
    layers = {name for name, module in packed.named_modules() if isinstance(module, dynamic)}
    assert layers == linear_names(resident) | {"lm_head"}
    for options in ({}, {"skip_logits": True}):
        torch.testing.assert_close(
            packed(**batch(), **options).loss, resident(**batch(), **options).loss, rtol=0.05, atol=0
        )
    assert packed.generate(batch()["input_ids"][:, :4], max_new_tokens=6, do_sample=False).shape == (2, 10)
