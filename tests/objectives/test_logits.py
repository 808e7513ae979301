"""z-loss and soft-cap of the next-token logits in every objective, and the LM head's weights, tied or not."""

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from cocomix.model import (
    CoCoMixConfig,
    CoCoMixForCausalLM,
    MixConfig,
    ModelShape,
    Sizes,
    build_mixed,
    build_plain,
    load_causal_lm,
)
from cocomix.model.flops import model_flops
from cocomix.objectives import CoCoMixObjective, KdObjective, LiveTeacher, NtpObjective
from cocomix.objectives.mtp import MtpStudent
from cocomix.train.config import TrainConfig
from cocomix.utils.errors import ConfigError
from tests.helpers.every_objective import OBJECTIVES, C

V, T = 40, 12
SIZES = Sizes(vocab_size=V, seq_len=T, n_concepts=C, top_k=3, teacher_width=0, sae_layer=0)
IDS = torch.randint(0, V, (3, T), generator=torch.Generator().manual_seed(1))


def shape(backbone: str = "llama", **settings: Any) -> ModelShape:
    return ModelShape(backbone=backbone, width=16, layers=2, heads=2, init="width", **settings)


def plain(backbone: str = "llama", seed: int = 0, **settings: Any) -> Any:
    torch.manual_seed(seed)
    return build_plain(shape(backbone, **settings), vocab_size=V, seq_len=T).double()


def mixed(backbone: str = "llama", **settings: Any) -> CoCoMixForCausalLM:
    torch.manual_seed(0)
    mix = MixConfig(concept_layer=1)
    return build_mixed(shape(backbone, **settings), mix, SIZES, num_concepts=C, concept_top_k=3).double()


def log_z(logits: torch.Tensor) -> torch.Tensor:
    """Mean squared log of the normaliser over the positions that have a next token, one at a time."""
    rows = [logits[b, t].exp().sum().log() ** 2 for b in range(len(logits)) for t in range(logits.shape[1] - 1)]
    return torch.stack(rows).mean()


PLAIN_LOSS = {"ntp", "kd", "kd_stored", "pause", "hidden", "cocomix", "loss_only", "mtp", "top", "nextlat", "nitp"}


@pytest.mark.parametrize("name", sorted(PLAIN_LOSS | {"bootstrap", "hash", "ncp", "keys_values"}))
def test_every_objective_adds_the_z_loss_of_the_next_tokens_logits(name: str) -> None:
    objective = OBJECTIVES[name]().double().eval()
    source = getattr(objective, "source", None)
    for teacher in (*getattr(objective, "_teacher", ()), *([source.teacher] if hasattr(source, "teacher") else [])):
        teacher.double()
    ids = torch.randint(1, 50, (2, 8), generator=torch.Generator().manual_seed(1))
    batch = {"input_ids": ids, "progress": torch.tensor(0.1), "concept_labels": torch.stack((ids % C, ids % 5), -1)}
    batch |= {"teacher_ids": torch.stack((ids, (ids + 1) % 50), dim=-1)}
    batch |= {"teacher_log_probs": torch.tensor([0.6, 0.3]).log().expand(*ids.shape, 2)}
    without = objective(batch)
    objective.z_loss = 0.3
    added = objective(batch) - without
    expected = 0.3 * log_z(objective.evaluated()(ids).logits)
    assert added.item() == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize("backbone", ["gpt2", "llama", "qwen3"])
def test_a_capped_plain_student_is_the_plain_transformer_with_its_logits_bent(backbone: str, tmp_path: Path) -> None:
    capped = plain(backbone, logit_cap=0.8)
    model = plain(backbone, seed=0)
    assert isinstance(capped, CoCoMixForCausalLM) and capped.num_parameters() == model.num_parameters()
    free = build_mixed(shape(backbone), MixConfig(concept_layer=1, mixer="none"), SIZES, channel="mlp").double()
    free.load_state_dict(capped.state_dict())
    expected = 0.8 * torch.tanh(free(IDS).logits / 0.8)
    torch.testing.assert_close(capped(IDS).logits, expected)
    assert model_flops(capped.config, T).forward == model_flops(model.config, T).forward
    capped.float().save_pretrained(tmp_path)
    loaded = load_causal_lm(tmp_path, "the student").double()
    torch.testing.assert_close(loaded(IDS).logits, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("build", [plain, mixed], ids=["plain", "cocomix"])
def test_fused_and_whole_logits_train_alike_under_a_cap(build: Any) -> None:
    model = build(logit_cap=0.8).train()
    given = {"input_ids": IDS, "labels": IDS, "z_loss": 0.2}
    whole, fused = model(**given), model(**given, skip_logits=True)
    logits = whole.logits[:, :-1]
    slow = -logits.log_softmax(-1).gather(-1, IDS[:, 1:, None]).mean() + 0.2 * log_z(whole.logits)
    torch.testing.assert_close(whole.lm_loss, slow)
    torch.testing.assert_close(fused.lm_loss, slow)
    gradients = [
        torch.autograd.grad(one.lm_loss, list(model.parameters()), allow_unused=True) for one in (whole, fused)
    ]
    for a, b in zip(*gradients, strict=True):
        assert (a is None) == (b is None)
        if a is not None and b is not None:
            torch.testing.assert_close(a, b)


def test_distillation_reads_capped_logits() -> None:
    model, teacher = plain(logit_cap=0.8), plain("gpt2", seed=3).eval()
    loss = KdObjective(model, LiveTeacher(teacher), 0.5)({"input_ids": IDS})
    q, p = model(IDS).logits[:, :-1].log_softmax(-1), teacher(IDS).logits[:, :-1].log_softmax(-1)
    expected = -q.gather(-1, IDS[:, 1:, None]).mean() + 0.5 * (p.exp() * (p - q)).sum(-1).mean()
    torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize("build", [plain, mixed], ids=["plain", "cocomix"])
@pytest.mark.parametrize("backbone", ["gpt2", "llama", "qwen3"])
def test_an_untied_head_has_weights_of_its_own(build: Any, backbone: str, tmp_path: Path) -> None:
    tied, model = build(backbone), build(backbone, tie_head=False)
    assert model.num_parameters() == tied.num_parameters() + V * 16
    head, embedding = model.get_output_embeddings().weight, model.get_input_embeddings().weight
    assert (
        head.std().item() == pytest.approx(embedding.std().item(), rel=0.15) and head.data_ptr() != embedding.data_ptr()
    )
    objective = CoCoMixObjective(model) if build is mixed else NtpObjective(model)
    objective({"input_ids": IDS, "concept_labels": IDS[..., None] % C}).backward()
    assert head.grad is not None and embedding.grad is not None
    model.save_pretrained(tmp_path)
    loaded = load_causal_lm(tmp_path, "the student").double()
    torch.testing.assert_close(loaded(IDS).logits, model(IDS).logits, rtol=1e-5, atol=1e-5)


def test_what_cannot_be_capped_says_so() -> None:
    with pytest.raises(ValidationError, match="mtp reads the student's LM head, which a logit_cap bends"):
        MtpStudent(objective="mtp", model=shape(logit_cap=5.0))
    for cap in ("high", -1.0, float("inf"), [3.0]):
        with pytest.raises(ConfigError, match="is no cap; give a number above 0, or none"):
            CoCoMixConfig(final_logit_softcapping=cap)  # pyright: ignore[reportArgumentType]
    assert "z_loss" not in TrainConfig(steps=1).recipe()
    assert "final_logit_softcapping" not in mixed().config.to_dict()
