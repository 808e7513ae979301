"""Small adapters of a retrofitted model: what is trained, what is saved, and what it costs."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, pipeline

from cocomix import CoCoMixForCausalLM
from cocomix.model.flops import TrainedPart, partial_training_flops
from cocomix.model.loading import load_causal_lm
from cocomix.utils.errors import CocomixError
from tests.model.test_from_plain import CONCEPTS, MIXINGS, VOCAB, WIDTH, batch, plain, student

PARTS = ("channel", "lora")


def trained(part: str, base: Any = None, mixing: int = 0, gated: bool = False) -> CoCoMixForCausalLM:
    """A student whose trained part is no longer where it started."""
    torch.manual_seed(1)
    start = {"vector_rows": torch.randn(CONCEPTS, WIDTH)} if gated else {}
    model = student(plain("llama") if base is None else base, mixing, **start)
    model.freeze_rest(part, rank=3)
    torch.manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def loss(model: CoCoMixForCausalLM) -> torch.Tensor:
    ids = batch()[0]
    labels = torch.randint(CONCEPTS, (*ids.shape, 2), generator=torch.Generator().manual_seed(3))
    return model(input_ids=ids, labels=ids, concept_labels=labels, use_cache=False, skip_logits=True).loss


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("mixing", range(len(MIXINGS) - 1))
def test_only_the_part_has_gradients_and_all_of_it(part: str, mixing: int) -> None:
    model = trained(part, mixing=mixing)
    loss(model.train()).backward()
    layer = MIXINGS[mixing][2]
    for name, parameter in model.named_parameters():
        expected = (name.startswith(("channel.", "mixer.")) and not name.endswith("pre_bias")) or ".lora_" in name
        assert (parameter.grad is not None and bool(parameter.grad.any())) == expected, name
        if ".lora_" in name:
            assert int(name.split(".")[2]) >= layer


@pytest.mark.parametrize("part", PARTS)
def test_lower_blocks_run_once_and_autograd_keeps_nothing_of_them(part: str) -> None:
    model = trained(part).train()
    runs, kept = [0] * len(model.backbone.blocks), [0] * len(model.backbone.blocks)  # pyright: ignore
    running: list[int] = []

    def start(index: int) -> Any:
        def hook(*_: Any) -> None:
            runs[index] += 1
            running.append(index)

        return hook

    def end(*_: Any) -> None:
        running.pop()

    for index, block in enumerate(model.backbone.blocks):  # pyright: ignore
        block.register_forward_pre_hook(start(index))
        block.register_forward_hook(end)

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if running:
            kept[running[-1]] += 1
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss(model).backward()
    layer = model.config.concept_layer
    assert runs == [1] * len(runs)
    assert kept[:layer] == [0] * layer and all(kept[layer:])


@pytest.mark.parametrize(("part", "gated"), [("channel", False), ("lora", False), ("lora", True)])
@torch.no_grad()
def test_an_adapter_is_small_and_loads_with_its_base(part: str, gated: bool, tmp_path: Path) -> None:
    base = plain("llama")
    base.save_pretrained(tmp_path / "base")
    model = trained(part, AutoModelForCausalLM.from_pretrained(tmp_path / "base"), gated=gated)
    model.save_adapter(tmp_path / "adapter")
    assert ("channel.gate" in load_file(tmp_path / "adapter/model.safetensors")) == gated
    saved = load_file(tmp_path / "adapter/model.safetensors")
    assert saved and all(name.startswith(("channel.", "mixer.")) or ".lora_" in name for name in saved)
    ids, mask = batch()
    expected = model(input_ids=ids, attention_mask=mask).logits
    assert (expected - base(ids).logits).abs().max() > 1e-2
    options: dict[str, Any] = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
    text = model.generate(ids, **options)
    for loaded in (
        AutoModelForCausalLM.from_pretrained(tmp_path / "adapter").eval(),
        AutoModelForCausalLM.from_pretrained(tmp_path / "adapter", base_model=base).eval(),
        load_causal_lm(tmp_path / "adapter", "the adapter"),
    ):
        torch.testing.assert_close(loaded(input_ids=ids, attention_mask=mask).logits, expected)
        assert torch.equal(loaded.generate(ids, **options), text)
    # Merged: a whole model, without PEFT.
    model.save_pretrained(tmp_path / "merged")
    whole = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    assert not any(".lora_" in name for name in whole.state_dict())
    torch.testing.assert_close(whole(input_ids=ids, attention_mask=mask).logits, expected, rtol=1e-4, atol=1e-5)


def test_another_base_is_refused(tmp_path: Path) -> None:
    base = plain("llama")
    base.save_pretrained(tmp_path / "base")
    trained("channel", base).save_adapter(tmp_path / "adapter", base="../base")
    AutoModelForCausalLM.from_pretrained(tmp_path / "adapter")
    with torch.no_grad():
        base.get_input_embeddings().weight[3, 4] += 1e-3  # pyright: ignore
    base.save_pretrained(tmp_path / "base")
    with pytest.raises(CocomixError, match=r"trained on other weights.*base_model"):
        AutoModelForCausalLM.from_pretrained(tmp_path / "adapter")
    with pytest.raises(CocomixError, match="base"):
        AutoModelForCausalLM.from_pretrained(tmp_path / "adapter", base_model=str(tmp_path / "gone"))


@torch.no_grad()
def test_weights_that_were_rounded_belong_to_the_same_base(tmp_path: Path) -> None:
    """A base of float32 files that was loaded in bfloat16, and an adapter saved again."""
    plain("llama").save_pretrained(tmp_path / "base")
    half = AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.bfloat16)
    trained("channel", half).save_adapter(tmp_path / "adapter", base="../base")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "adapter")
    assert loaded.dtype == torch.bfloat16
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "adapter", dtype=torch.float32).dtype == torch.float32
    loaded.save_adapter(tmp_path / "again", base=str(tmp_path / "base"))
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "again")
    ids = batch()[0]
    assert torch.equal(again(ids).logits, loaded(ids).logits)


def test_what_cannot_be_an_adapter_is_refused(tmp_path: Path) -> None:
    model = student(plain("llama"))
    with pytest.raises(CocomixError, match="save_pretrained"):
        model.save_adapter(tmp_path, base="base")
    model.freeze_rest("channel")
    with pytest.raises(CocomixError, match="base="):
        model.save_adapter(tmp_path)
    with pytest.raises(CocomixError, match="lora"):
        model.freeze_rest("head")


def test_a_pipeline_serves_an_adapter(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocab = {f"w{number}": number for number in range(VOCAB)}
    backend = Tokenizer(models.WordLevel(vocab, unk_token="w0"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()  # pyright: ignore
    base = plain("llama")
    base.save_pretrained(tmp_path / "base")
    trained("lora", base).save_adapter(tmp_path / "adapter", base=str(tmp_path / "base"))
    PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="w0").save_pretrained(tmp_path / "adapter")
    write: Any = pipeline("text-generation", model=str(tmp_path / "adapter"))
    text = write("w5 w6", max_new_tokens=4, do_sample=False)[0]["generated_text"]
    assert text.startswith("w5 w6") and text.count("w") == 6


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("mixing", [0, 1, 2])
def test_flops_are_near_pytorchs_counter(part: str, mixing: int) -> None:
    near_the_counter(trained(part, mixing=mixing).train(), part)


@pytest.mark.parametrize("part", PARTS)
def test_flops_of_an_mlp_in_the_channels_place_are_near_pytorchs_counter(part: str) -> None:
    model = student(plain("llama"), channel="mlp", num_concepts=64)
    model.freeze_rest(part, rank=3)
    near_the_counter(model.train(), part)


def near_the_counter(model: CoCoMixForCausalLM, part: str) -> None:
    ids = batch()[0]
    labels = torch.zeros(*ids.shape, 2, dtype=torch.int64) if model.config.channel == "concepts" else None
    with FlopCounterMode(display=False) as counter, torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        model(input_ids=ids, labels=ids, concept_labels=labels, use_cache=False).loss.backward()
    rows = 2 * 3 * model.config.concept_top_k * model.config.hidden_size if labels is not None else 0  # unseen
    measured = counter.get_total_flops() / ids.numel() + rows
    counted = partial_training_flops(model.config, ids.shape[1], TrainedPart(3 if part == "lora" else None))
    assert counted == pytest.approx(measured, rel=0.03)
