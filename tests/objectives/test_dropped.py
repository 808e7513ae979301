"""The channel dropped before the training ends: both losses, what is saved, and what it costs."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM

from cocomix import CoCoMixForCausalLM
from cocomix.model.flops import model_flops
from cocomix.objectives import CoCoMixObjective
from cocomix.objectives.dropped import DroppedObjective
from cocomix.train.parallel import save_model
from cocomix.train.trainer import Trainer
from tests.helpers.every_objective import CONFIG, C, data, mixed, plain

IDS = torch.arange(1, 17).view(2, 8)
BATCH = {"input_ids": IDS, "concept_labels": torch.stack((IDS % C, (IDS + 5) % C), dim=-1)}


def at(progress: float) -> dict[str, torch.Tensor]:
    return BATCH | {"progress": torch.tensor(progress)}


def test_without_its_channel_a_model_is_the_plain_one() -> None:
    base = plain(0).eval()
    student = CoCoMixForCausalLM.from_plain(base, concept_layer=1, num_concepts=C, concept_top_k=3)
    for part in (student.channel, student.mixer):
        for parameter in part.parameters():
            torch.nn.init.normal_(parameter)
    with torch.no_grad():
        expected = base(IDS).logits
        assert (student(IDS).logits - expected).abs().max() > 0.1
        torch.testing.assert_close(student.without_channel()(IDS).logits, expected)
        student.model.mixes = False
        torch.testing.assert_close(student(IDS).logits, expected)
        top = student.hidden_state(IDS, top=True)
        torch.testing.assert_close(student.lm_head(student.backbone.final_norm(top)), expected)


def test_the_loss_is_cocomix_then_that_of_the_next_token_alone() -> None:
    model = mixed()
    objective, expected = DroppedObjective(model, 0.5), CoCoMixObjective(mixed())
    torch.testing.assert_close(objective(at(0.0)), expected(at(0.0)))
    torch.testing.assert_close(objective(at(0.49)), expected(at(0.49)))
    loss = objective(at(0.5))
    logits = model.without_channel()(IDS).logits
    torch.testing.assert_close(loss, F.cross_entropy(logits[:, :-1].flatten(0, 1), IDS[:, 1:].flatten()))
    loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert all(not parameter.grad.any() for parameter in model.channel.parameters())  # pyright: ignore
    torch.testing.assert_close(objective(at(0.2)), expected(at(0.2)))  # a resumed training


def test_what_is_saved_has_no_channel(tmp_path: Path) -> None:
    objective = DroppedObjective(mixed(), 0.5)
    seen: list[bool] = []

    def evaluate(model: torch.nn.Module) -> dict[str, float]:
        seen.append(objective.model.model.mixes)
        return {}

    config = CONFIG.model_copy(update={"n_evals": 6, "keep_snapshots": 2})
    Trainer(objective, data(tmp_path / "shards"), config, tmp_path / "made", evaluate=evaluate).run()
    assert seen == [True, True, False, False, False, False]
    save_model(objective, tmp_path / "model")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "model").eval()
    assert (loaded.config.mixer, loaded.config.channel) == ("none", "mlp")
    assert not any(name.startswith(("channel", "mixer")) for name in loaded.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(loaded(IDS).logits, objective.evaluated().eval()(IDS).logits)


@pytest.mark.parametrize(("progress", "share"), [(0.25, 1.0), (0.5, 1.0), (0.8, 0.625), (1.0, 0.5)])
def test_flops_are_the_mean_of_both_parts(progress: float, share: float) -> None:
    objective = DroppedObjective(mixed(), 0.5)
    both = CoCoMixObjective(mixed()).flops_per_token(8)
    alone = model_flops(plain(0).config, 8).training
    assert objective.flops_so_far(8, progress) == pytest.approx(share * both + (1 - share) * alone)
    assert objective.flops_per_token(8) == pytest.approx((both + alone) / 2)
