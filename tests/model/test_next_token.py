"""The next-token loss from the last hidden state alone is the one from the model's logits."""

import pytest
import torch
import transformers as hf
from torch import nn

from cocomix.model import hidden_at
from cocomix.model.teacher import NextTokenLoss, has_next_token, linear_head, next_token_losses, resumed_at
from tests.labels.test_families import CUSTOM_ATTENTION, FAMILIES, left_padding, made, tokens

MORE_THAN_LINEAR = {"gemma2"}
"""Families whose logits are capped."""


@pytest.mark.parametrize("masked", [False, True], ids=["whole", "left-padded"])
@pytest.mark.parametrize("family", [*FAMILIES, *CUSTOM_ATTENTION])
def test_the_loss_and_its_gradient_are_those_of_the_logits(family: str, masked: bool) -> None:
    model, ids = made((FAMILIES | CUSTOM_ATTENTION)[family]).requires_grad_(False), tokens()
    tolerance = 1e-4
    if family in FAMILIES and family not in MORE_THAN_LINEAR:  # the others' masks overflow in float64
        model, tolerance = model.double(), 1e-9
    mask = left_padding() if masked else None
    loss = NextTokenLoss(model, ids, mask)
    assert (linear_head(model) is None) == (family in MORE_THAN_LINEAR)
    hidden = hidden_at(model, ids, 0, mask).requires_grad_()
    with resumed_at(model, 0, hidden):
        fast = loss.total()
        slow = next_token_losses(model(**loss.inputs).logits, ids)[has_next_token(ids, mask)].sum()
    assert abs(fast - slow) <= tolerance * slow and loss.count == has_next_token(ids, mask).sum()
    ours, theirs = (torch.autograd.grad(one, hidden)[0] for one in (fast, slow))
    assert theirs.abs().max() > 1e-3 and (ours - theirs).abs().max() <= tolerance * theirs.abs().max()


def scaled() -> hf.PreTrainedModel:
    """A model that multiplies its logits."""
    return hf.CohereForCausalLM(
        hf.CohereConfig(
            vocab_size=61, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4,
            logit_scale=0.5, pad_token_id=0, bos_token_id=1, eos_token_id=2,
        )
    )  # fmt: skip


def test_a_model_that_does_more_to_its_logits_is_found_out() -> None:
    assert linear_head(made(scaled)) is None
    model = made(FAMILIES["gpt2"])
    head = model.get_output_embeddings()
    assert linear_head(model) is head
    handle = head.register_forward_hook(lambda *_: None)
    assert linear_head(model) is None
    handle.remove()
    assert linear_head(model) is head


def test_another_head_is_looked_at_again() -> None:
    model = made(FAMILIES["llama"])
    assert linear_head(model) is not None
    other = nn.Linear(16, 61, bias=True)
    model.set_output_embeddings(other)
    assert linear_head(model) is other

    class Twice(nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    model.set_output_embeddings(Twice(16, 61))
    assert linear_head(model) is None
