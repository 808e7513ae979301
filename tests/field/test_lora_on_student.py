"""LoRA on a student: every adapter gets a gradient and an effect, and merging changes nothing.

Adapters of the block before the head were dead: its queries, keys and values came from slices of `qkv.weight`, so the
adapter's module was never called, and `merge_and_unload` gave another model.
"""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn

from tests.helpers.small_students import PAIRS, C, batch, loss, student


def adapted(model: nn.Module, targets: Any, **options: Any) -> Any:
    settings = LoraConfig(r=2, target_modules=targets, task_type="CAUSAL_LM", init_lora_weights=False, **options)
    return get_peft_model(model.double(), settings)  # pyright: ignore[reportArgumentType]


def without_gradient(model: nn.Module) -> list[str]:
    trained = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert trained
    return [name for name, parameter in trained if parameter.grad is None or not parameter.grad.any()]


@torch.no_grad()
def assert_merging_changes_nothing(model: Any, channel: str) -> None:
    inputs = batch(channel)
    model.eval()
    before, before_loss = model(**inputs).logits, model(**inputs, skip_logits=True).loss
    merged = model.merge_and_unload().eval()
    logits = merged(**inputs).logits
    assert (logits - before).abs().max() <= 1e-9 * before.abs().max()
    torch.testing.assert_close(merged(**inputs, skip_logits=True).loss, before_loss, rtol=1e-9, atol=0)


CASES = [(*pair, "gpt2") for pair in PAIRS] + [(*pair, "llama") for pair in PAIRS if pair[0] == "concepts"]


@pytest.mark.parametrize(("channel", "mixer", "backbone"), CASES)
def test_every_linear_layer_of_every_student(channel: str, mixer: str, backbone: str) -> None:
    base = student(channel, mixer, backbone)
    names = {name for name, module in base.named_modules() if isinstance(module, nn.Linear) and name != "lm_head"}
    model = adapted(base, "all-linear")
    with_adapter = {name.removeprefix("base_model.model.") for name, m in model.named_modules() if hasattr(m, "lora_A")}
    assert with_adapter == names
    loss(model.train(), channel).backward()
    assert without_gradient(model) == []
    assert_merging_changes_nothing(model, channel)


@pytest.mark.parametrize("target", ["qkv", "out", "up", "down", "gate", "head.proj", "lm_head"])
@pytest.mark.parametrize("skip_logits", [False, True])
def test_one_layer_alone(target: str, skip_logits: bool) -> None:
    """Also through the losses that do without logits."""
    model = adapted(student(mixer="keys_values", backbone="llama", tie_word_embeddings=False), [target])
    loss(model, skip_logits=skip_logits).backward()
    assert without_gradient(model) == []
    assert_merging_changes_nothing(model, "concepts")


def test_dora_and_trained_heads() -> None:
    model = adapted(
        student(tie_word_embeddings=False), "all-linear", use_dora=True, modules_to_save=["channel.vector", "lm_head"]
    )
    loss(model, skip_logits=True).backward()
    assert without_gradient(model) == []
    assert_merging_changes_nothing(model, "concepts")


@torch.no_grad()
def test_generation_and_a_saved_adapter(tmp_path: Path) -> None:
    base = student()
    model = adapted(copy.deepcopy(base), "all-linear").eval()
    prompt, options = batch()["input_ids"][:1, :5], {"max_new_tokens": 10, "do_sample": False}
    text, without = model.generate(input_ids=prompt, **options), base.generate(prompt, **options)
    assert not torch.equal(text, without)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(copy.deepcopy(base).double(), tmp_path).eval()  # pyright: ignore[reportArgumentType]
    assert torch.equal(loaded(**batch()).logits, model(**batch()).logits)
    assert torch.equal(model.merge_and_unload().generate(prompt, **options), text)


@torch.no_grad()
def test_an_adapted_student_is_steered() -> None:
    from cocomix.steering import Clamp

    model = adapted(student(), ["head.proj"]).eval()
    with model.base_model.model.steer({3: Clamp(2.0)}):
        logits = model(**batch()).concept_logits
    assert logits.shape[-1] == C and (logits.argmax(-1) == 3).all()
