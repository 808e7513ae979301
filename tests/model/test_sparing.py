"""What the model leaves out where nobody asks for it changes no result: last slots and logits."""

import pytest
import torch

from cocomix import CoCoMixForCausalLM
from cocomix.model import Amplify, Clamp, steered
from tests.model.test_mixings import CASES, build, close, tokens


def gradients(model: CoCoMixForCausalLM, loss: torch.Tensor) -> list[torch.Tensor]:
    return list(torch.autograd.grad(loss, list(model.parameters()), allow_unused=True))


def labels(model: CoCoMixForCausalLM, ids: torch.Tensor) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    made = torch.randint(0, model.config.num_concepts, (*ids.shape, 3), generator=generator)
    made[torch.rand(made.shape, generator=generator) < 0.2] = -100
    return made


@pytest.mark.parametrize("backbone", ["gpt2", "llama"])
@pytest.mark.parametrize("side", [None, "left", "right"])
@pytest.mark.parametrize(("channel", "mixer"), CASES)
def test_losses_without_logits_are_the_same_with_every_gradient(channel, mixer, side, backbone) -> None:
    model = build(channel, mixer, backbone).train()
    ids = tokens()
    given = {"input_ids": ids, "labels": ids}
    if channel == "concepts":
        given["concept_labels"] = labels(model, ids)
    if side is not None:
        mask = torch.ones_like(ids)
        mask[0, :3] = 0
        given["attention_mask"] = mask if side == "left" else mask.flip(1)
    full, sparing = model(**given), model(**given, skip_logits=True)
    assert sparing.logits is None and sparing.concept_logits is None
    for name in ("loss", "lm_loss", "concept_loss", "channel_loss"):
        if getattr(full, name) is not None:
            close(getattr(sparing, name), getattr(full, name))
    for mine, theirs in zip(gradients(model, sparing.loss), gradients(model, full.loss), strict=True):
        assert (mine is None) == (theirs is None)
        if mine is not None and theirs is not None:
            close(mine, theirs)


def test_the_last_block_computes_only_the_slots_that_feed_the_head() -> None:
    model, widths = build(), []
    model.backbone.blocks[-1].mlp.register_forward_hook(lambda _m, given, _o: widths.append(given[0].shape[1]))
    ids = tokens()
    model(ids)
    model(ids, output_hidden_states=True)
    assert widths == [ids.shape[1], 2 * ids.shape[1]]


def test_steering_reaches_a_training_step_that_skips_its_logits() -> None:
    model = build()
    ids = tokens()
    given = {"input_ids": ids, "labels": ids, "concept_labels": labels(model, ids)}
    with steered(model, {3: Clamp(4.0), 5: Amplify(-1.0, start=2)}):
        full, sparing = model(**given), model(**given, skip_logits=True)
    close(sparing.loss, full.loss)
    for mine, theirs in zip(gradients(model, sparing.loss), gradients(model, full.loss), strict=True):
        assert (mine is None) == (theirs is None)
        if mine is not None and theirs is not None:
            close(mine, theirs)
    assert abs(float(sparing.lm_loss.detach() - model(**given).lm_loss.detach())) > 1e-9
