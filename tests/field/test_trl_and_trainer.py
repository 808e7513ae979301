"""Transformers' Trainer, TRL's SFTTrainer, pipelines and PEFT with our students (transformers #33193, trl #6685)."""

import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainingArguments,
    default_data_collator,
    pipeline,
)

from cocomix import CoCoMixConfig, CoCoMixForCausalLM
from cocomix.data import train_tokenizer
from cocomix.model import CoCoMixModel, ModelShape, build_plain

VOCAB, SEQ = 300, 12
OLD = Path(__file__).parents[1] / "fixtures" / "old_run" / "run" / "students"


def student(**changes: Any) -> CoCoMixForCausalLM:
    torch.manual_seed(0)
    shape: dict[str, Any] = {"vocab_size": VOCAB, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    concepts = {"concept_layer": 1, "num_concepts": 24, "concept_top_k": 4, "max_position_embeddings": 32}
    special = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    return CoCoMixForCausalLM(CoCoMixConfig(**shape | concepts | special | changes))


def plain() -> PreTrainedModel:
    torch.manual_seed(0)
    return build_plain(ModelShape(width=16, layers=2, heads=2), vocab_size=VOCAB, seq_len=32)


STUDENTS: dict[str, Callable[[], PreTrainedModel]] = {
    "interleave": student,
    "every": lambda: student(mixer="every", mixer_options={"every": 2}, backbone="llama"),
    "pause": lambda: student(channel="pause", num_concepts=1, concept_top_k=1),
    "ncp": lambda: student(channel="ncp", channel_options={"chunk": 3}, num_concepts=1, concept_top_k=1),
    "ntp": plain,
}


@pytest.fixture(params=["interleave", "ncp", "ntp"])
def built(request: pytest.FixtureRequest) -> PreTrainedModel:
    return STUDENTS[request.param]()


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerBase:
    text = ["the road, the ship and the bill are counted. "] * 20
    return train_tokenizer(text, VOCAB, tmp_path_factory.mktemp("tokenizer"))


def rows(count: int = 8, concepts: bool = False) -> Dataset:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(1, 64, (count, SEQ), generator=generator).tolist()
    columns: dict[str, Any] = {"input_ids": ids, "labels": ids}
    if concepts:
        columns["concept_labels"] = torch.randint(0, 24, (count, SEQ, 2), generator=generator).tolist()
    return Dataset.from_dict(columns)


def trainer(model: PreTrainedModel, folder: Path, compute_metrics: Any = None, **settings: Any) -> Trainer:
    data = settings.pop("data", rows())
    quiet = {"report_to": [], "use_cpu": True, "disable_tqdm": True, "seed": 3, "save_strategy": "no", "max_steps": 4}
    return Trainer(
        model,
        TrainingArguments(str(folder), **{**quiet, "per_device_train_batch_size": 4, **settings}),
        train_dataset=data,
        eval_dataset=data,
        data_collator=default_data_collator,
        compute_metrics=compute_metrics,
    )


def test_trainer_evaluates_and_ends_with_the_best_model(built: PreTrainedModel, tmp_path: Path) -> None:
    seen: list[Any] = []

    def right(prediction: Any) -> dict[str, float]:
        seen.append(prediction)
        return {"right": 0.5}

    every = {"eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps", "save_steps": 2}
    run = trainer(built, tmp_path, right, load_best_model_at_end=True, learning_rate=0.05, **every)
    run.train()
    losses = [entry["eval_loss"] for entry in run.state.log_history if "eval_loss" in entry]
    assert len(losses) == 2 and run.state.best_metric == min(losses)
    assert run.evaluate()["eval_loss"] == pytest.approx(min(losses), rel=1e-4)
    assert seen[0].predictions.shape == (8, SEQ, VOCAB) and seen[0].label_ids.shape == (8, SEQ)


def test_resuming_equals_a_run_that_was_not_stopped(tmp_path: Path) -> None:
    whole, stopped = student(), student()
    trainer(whole, tmp_path / "whole").train()
    run = trainer(stopped, tmp_path / "stopped", save_strategy="steps", save_steps=2)
    run.train()
    resumed = student()
    trainer(resumed, tmp_path / "resumed").train(resume_from_checkpoint=str(tmp_path / "stopped" / "checkpoint-2"))
    for model in (stopped, resumed):
        for name, tensor in model.state_dict().items():
            assert torch.equal(tensor, whole.state_dict()[name]), name


def test_concept_labels_are_a_column_that_trainer_keeps_and_does_not_wait_for(tmp_path: Path) -> None:
    assert "concept_labels" not in inspect.signature(CoCoMixForCausalLM.forward).parameters
    assert "concept_labels" in inspect.signature(student().forward).parameters
    with_labels, without = student(), student()
    both = trainer(with_labels, tmp_path, data=rows(concepts=True)).evaluate()["eval_loss"]
    batch = default_data_collator(list(rows(concepts=True)))
    assert both == pytest.approx(float(without(**batch).loss), rel=1e-5)
    assert both > trainer(without, tmp_path).evaluate()["eval_loss"] + 0.1


def test_losses_of_micro_batches_add_up_to_the_loss_of_the_whole_batch(tmp_path: Path) -> None:
    model = student().double().train()
    batch = default_data_collator(list(rows(6, concepts=True)))
    batch["labels"][:3, 4:] = -100  # the halves have different numbers of targets, and labels where there are some
    batch["concept_labels"][:3, 3:], batch["concept_labels"][:, -1] = -100, -100
    whole = model(**batch).loss
    targets = int((batch["labels"][:, 1:] != -100).sum())
    halves = [{name: value[part] for name, value in batch.items()} for part in (slice(0, 3), slice(3, 6))]
    parts = [model(**half, num_items_in_batch=targets).loss for half in halves]
    assert torch.allclose(torch.stack(parts).sum(), whole, rtol=1e-9)
    data = Dataset.from_dict({name: value.tolist() for name, value in batch.items()})
    first, second = student(), student()
    trainer(first, tmp_path, data=data, max_steps=1, per_device_train_batch_size=6).train()
    small = {"per_device_train_batch_size": 3, "gradient_accumulation_steps": 2}
    trainer(second, tmp_path, data=data, max_steps=1, **small).train()
    for name, tensor in second.named_parameters():
        assert torch.allclose(tensor, first.get_parameter(name), atol=2e-6), name


def test_shifted_labels_are_the_labels() -> None:
    model, ids = student(), torch.randint(1, 64, (2, SEQ))
    shifted = torch.cat([ids[:, 1:], torch.full((2, 1), -100)], dim=1)
    for settings in ({}, {"skip_logits": True}):
        expected = model(ids, labels=ids, **settings).loss
        assert torch.allclose(model(ids, shift_labels=shifted, **settings).loss, expected)


def test_sft_trainer_trains(built: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    from trl.trainer.sft_config import SFTConfig
    from trl.trainer.sft_trainer import SFTTrainer

    before = {name: tensor.clone() for name, tensor in built.state_dict().items()}
    quiet = {"report_to": [], "use_cpu": True, "bf16": False, "disable_tqdm": True, "save_strategy": "no"}
    settings = SFTConfig(str(tmp_path), max_steps=1, max_length=32, learning_rate=0.1, **quiet)
    texts = Dataset.from_dict({"text": ["the road and the ship"] * 8})
    run = SFTTrainer(built, settings, train_dataset=texts, processing_class=tokenizer)
    run.train()
    assert run.state.log_history[-1]["train_loss"] > 0
    assert any(not torch.equal(tensor, before[name]) for name, tensor in built.state_dict().items())


@pytest.mark.parametrize("name", [name for name in STUDENTS if name != "ntp"])
def test_the_base_model_is_everything_below_the_head(name: str, tmp_path: Path) -> None:
    model: Any = STUDENTS[name]().eval()
    ids = torch.randint(1, 64, (2, SEQ))
    base: Any = model.base_model
    assert isinstance(base, CoCoMixModel) and model.get_decoder() is base is getattr(model, model.base_model_prefix)
    assert torch.equal(model.lm_head(base(ids).last_hidden_state), model(ids).logits)
    calls: list[int] = []
    base.register_forward_hook(lambda *_: calls.append(1))
    model(ids)
    model.train()
    assert calls and base.training and len(list(model.parameters())) == len({id(p) for p in model.parameters()})
    model.eval().save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path)
    assert torch.equal(loaded(ids).last_hidden_state, base(ids).last_hidden_state)


def test_a_replaced_module_is_replaced_in_the_base_model_too() -> None:
    model, other = student(), student()
    model.channel = other.channel
    model.set_input_embeddings(other.get_input_embeddings())
    assert model.model.channel is other.channel
    assert model.base_model.get_input_embeddings() is other.get_input_embeddings()
    model.resize_token_embeddings(VOCAB + 3)
    assert model(torch.tensor([[VOCAB + 2]])).logits.shape[-1] == VOCAB + 3


def test_pipeline_generates(built: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    built.eval()
    build: Any = pipeline  # its overloads do not know every tokenizer's class
    generate = build("text-generation", model=built, tokenizer=tokenizer, device="cpu")
    prompts = ["the road", "the ship and the bill"]
    settings = {"max_new_tokens": 4, "do_sample": False, "return_full_text": False}
    alone = [generate(prompt, **settings)[0]["generated_text"] for prompt in prompts]
    assert [answer[0]["generated_text"] for answer in generate(prompts, batch_size=2, **settings)] == alone


def test_an_adapter_is_trained_saved_loaded_and_generates(tmp_path: Path) -> None:
    from peft import LoraConfig, PeftModel, get_peft_model

    settings = LoraConfig(r=2, target_modules=["qkv", "up"], modules_to_save=["channel"], task_type="CAUSAL_LM")
    model: Any = get_peft_model(student(), settings)
    trainer(model, tmp_path / "run", learning_rate=0.1, data=rows(concepts=True)).train()
    model.save_pretrained(str(tmp_path / "adapter"))
    loaded: Any = PeftModel.from_pretrained(student(), tmp_path / "adapter")
    ids = torch.randint(1, 64, (2, 6))
    for each in (model, loaded):
        each.eval()
    assert torch.equal(loaded(input_ids=ids).logits, model(input_ids=ids).logits)
    assert not torch.equal(loaded(input_ids=ids).logits, student().eval()(ids).logits)
    continued = [each.generate(input_ids=ids, max_new_tokens=4, do_sample=False) for each in (model, loaded)]
    assert torch.equal(*continued)


@pytest.mark.parametrize("name", ["cocomix", "keys_values"])
def test_an_old_checkpoint_is_loaded_and_saved_under_the_same_names(name: str, tmp_path: Path) -> None:
    folder = OLD / name / "seed0" / "model"
    loaded: Any = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    model, info = loaded
    assert isinstance(model, CoCoMixForCausalLM)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    model.save_pretrained(tmp_path)
    old, new = (load_file(place / "model.safetensors") for place in (folder, tmp_path))
    assert old.keys() == new.keys() and all(torch.equal(old[key], new[key]) for key in old)
    assert (
        json.loads((folder / "config.json").read_text()).keys()
        <= json.loads((tmp_path / "config.json").read_text()).keys()
    )
