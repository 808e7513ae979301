"""Hooks, offloading and tensor parallelism see every product of a student's layers."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import cpu_offload, disk_offload
from torch import nn

from cocomix.model import MIXERS
from cocomix.objectives.ntp import NtpObjective
from cocomix.utils.errors import ConfigError
from tests.helpers.distributed_programs import launch, program
from tests.helpers.small_students import batch, loss, student

PAIRS = [("concepts", mixer) for mixer in MIXERS]


def close(a: torch.Tensor, b: torch.Tensor) -> None:
    assert a.shape == b.shape
    assert (a - b).abs().max() <= 1e-9 * b.abs().max().clamp_min(1)


def linear_layers(model: nn.Module) -> dict[str, nn.Linear]:
    found = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    assert all(type(module) is nn.Linear for module in found.values())
    return found


@pytest.mark.parametrize(("channel", "mixer"), PAIRS)
def test_a_hook_sees_and_changes_the_output_that_is_used(channel: str, mixer: str) -> None:
    model = student(channel, mixer).double()
    plain = loss(model, channel)
    for name, layer in linear_layers(model).items():
        for skip_logits in (False, True):
            seen: list[torch.Tensor] = []

            def keep(_module: nn.Module, _inputs: Any, output: torch.Tensor, seen: list[torch.Tensor] = seen) -> None:
                output.retain_grad()
                seen.append(output)

            handle = layer.register_forward_hook(keep)
            watched = loss(model, channel, skip_logits=skip_logits)
            watched.backward()
            handle.remove()
            close(watched, plain)
            assert seen and all(output.grad is not None and output.grad.any() for output in seen), name
            handle = layer.register_forward_hook(lambda _module, _inputs, output: 1.5 * output + 0.5)
            changed = loss(model, channel, skip_logits=skip_logits)
            handle.remove()
            assert (changed - plain).abs() > 1e-6, name


@pytest.mark.parametrize(("channel", "mixer"), PAIRS)
@torch.no_grad()
def test_offloaded_equals_resident(channel: str, mixer: str, tmp_path: Path) -> None:
    model = student(channel, mixer).double()
    inputs = batch(channel)
    prompt = inputs["input_ids"][:1, :4]
    offloaded = {"cpu": copy.deepcopy(model), "disk": copy.deepcopy(model)}
    cpu_offload(offloaded["cpu"], execution_device=torch.device("cpu"))
    disk_offload(offloaded["disk"], str(tmp_path), execution_device=torch.device("cpu"))
    for other in offloaded.values():
        assert all(parameter.is_meta for parameter in other.parameters())
        expected, found = model(**inputs), other(**inputs)
        close(found.logits, expected.logits)
        close(found.loss, expected.loss)
        close(other(**inputs, skip_logits=True).loss, expected.loss)
        step = {"use_cache": True}
        past, own = model(prompt, **step), other(prompt, **step)
        token = inputs["input_ids"][:1, 4:5]
        close(
            other(token, past_key_values=own.past_key_values, **step).logits,
            model(token, past_key_values=past.past_key_values, **step).logits,
        )


def test_a_baseline_s_head_is_called_where_it_is_changed_later() -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=40, n_embd=16, n_layer=1, n_head=2, n_positions=16)).eval()
    objective, inputs = NtpObjective(model), {"input_ids": batch()["input_ids"]}
    handle = model.lm_head.register_forward_hook(lambda _module, _inputs, output: 2 * output)
    expected = model(**inputs, labels=inputs["input_ids"]).loss
    torch.testing.assert_close(objective(inputs), expected)
    handle.remove()
    model.set_output_embeddings(nn.Linear(16, 40, bias=False))
    torch.testing.assert_close(objective(inputs), model(**inputs, labels=inputs["input_ids"]).loss)


def test_part_of_the_fused_projection_is_refused_in_a_sentence() -> None:
    model = student()
    model.backbone.blocks[1].attention.qkv.register_forward_hook(lambda _module, _inputs, output: output[..., :24])
    with pytest.raises(ConfigError, match=r"gave 24 of its 48 outputs.*colwise_gather_output"):
        model(**batch())


TWO_PROCESSES = """
import copy
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from transformers import AutoModelForCausalLM
from transformers.distributed.configuration_utils import DistributedConfig
from tests.helpers.small_students import batch, student
mesh = init_device_mesh("cpu", (2,))
gathered = lambda: ColwiseParallel(output_layouts=Replicate())
def same(other, expected):
    for options in ({}, {"skip_logits": True}):
        other.zero_grad()
        loss = other(**batch(), **options).loss
        loss.backward()
        torch.testing.assert_close(loss.detach(), expected[0], rtol=1e-5, atol=1e-6)
        for name, parameter in other.named_parameters():
            gradient = parameter.grad
            gradient = gradient.full_tensor() if hasattr(gradient, "full_tensor") else gradient
            torch.testing.assert_close(gradient, expected[1][name], rtol=1e-4, atol=1e-5)
for name, options in (("a", {}), ("b", {"mixer": "keys_values", "backbone": "llama", "tie_word_embeddings": False})):
    model = student(**options)
    loss = model(**batch()).loss
    loss.backward()
    expected = loss.detach(), {name: parameter.grad for name, parameter in model.named_parameters()}
    prompt = batch()["input_ids"][:1, :4]
    text = model.generate(prompt, max_new_tokens=6, do_sample=False)
    by_torch = copy.deepcopy(model)
    plan = {"channel.head.proj": gathered()}
    for block in range(4):
        for part in ("attention.qkv", "attention.out"):
            plan[f"backbone.blocks.{block}.{part}"] = gathered()
        for part in ("up", "gate"):
            plan[f"backbone.blocks.{block}.mlp.{part}"] = ColwiseParallel()
        plan[f"backbone.blocks.{block}.mlp.down"] = RowwiseParallel()
    known = dict(model.named_modules())
    same(parallelize_module(by_torch, mesh, {key: style for key, style in plan.items() if key in known}), expected)
    by_plan = AutoModelForCausalLM.from_pretrained(home / name, distributed_config=DistributedConfig(tp_size=2)).eval()
    same(by_plan, expected)
    assert torch.equal(by_plan.generate(prompt, max_new_tokens=6, do_sample=False), text)
print("equal")
"""


def test_tensor_parallel_equals_one_process(tmp_path: Path) -> None:
    student().save_pretrained(tmp_path / "a")
    student(mixer="keys_values", backbone="llama", tie_word_embeddings=False).save_pretrained(tmp_path / "b")
    assert launch(2, program(tmp_path, TWO_PROCESSES)).stdout.count("equal") == 2
