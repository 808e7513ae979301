"""Every mixer and channel computes, by whatever path, what its definition says slot by slot; its gradients too."""

from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cocomix.model import MIXERS, PREDICTORS
from tests.helpers.slow_twins import MIXED, PREDICTED, Row, row_by_row
from tests.helpers.steered_models import close
from tests.helpers.strategies import PARTS, for_every_part, on_each_backbone, seeds, student, students, tokens


def test_every_mixer_and_channel_has_a_twin() -> None:
    assert set(MIXED) == set(MIXERS) and set(PREDICTED) == set(PREDICTORS)


WAYS = {
    "plain": lambda ids: ({"input_ids": ids}, slice(None)),
    "every slot watched": lambda ids: ({"input_ids": ids, "output_hidden_states": True}, slice(None)),
    "padded": lambda ids: (padded(ids), slice(2, -1)),
    "padded and watched": lambda ids: (padded(ids) | {"output_hidden_states": True}, slice(2, -1)),
}
"""Arguments of the pass and where the tokens stand in them; each takes another path through the mixers."""


def padded(ids: torch.Tensor) -> dict[str, torch.Tensor]:
    before, after = ids[:, -1:].expand(-1, 2), ids[:, :1]
    mask = torch.cat((torch.zeros_like(before), torch.ones_like(ids), torch.zeros_like(after)), dim=1)
    return {"input_ids": torch.cat((before, ids, after), dim=1), "attention_mask": mask}


@on_each_backbone
@for_every_part
@settings(max_examples=4)
@given(st.data(), seeds, st.integers(1, 2), st.integers(1, 6), st.sampled_from(sorted(WAYS)))
def test_the_fast_path_is_the_slow_one(
    part: str, backbone: str, data: Any, seed: int, batch: int, length: int, way: str
) -> None:
    model = student(data.draw(students(**PARTS[part], backbone=backbone)), seed).train()
    ids = tokens(batch, length, seed)
    given_, places = WAYS[way](ids)
    fast, slow = model(**given_), [row_by_row(model, row) for row in ids.tolist()]
    close(fast.logits[:, places], torch.stack([row.logits for row in slow]))
    for name, mine in (("logits", fast.concept_logits), ("hidden", fast.predicted_hidden)):
        theirs = [getattr(row.found, name) for row in slow]
        assert (mine is None) == (theirs[0] is None)
        if mine is not None:
            close(mine[:, places], torch.stack([torch.stack(one) for one in theirs]))
    if way == "every slot watched":
        for layer, mine in enumerate(fast.hidden_states):
            close(mine, torch.stack([row.seen[layer] for row in slow]))
    own = channel_loss(model.config.channel_options, slow)
    close(torch.zeros(()) if fast.channel_loss is None else fast.channel_loss, own)
    weight = torch.randn(fast.logits[:, places].shape, dtype=torch.double)
    mine = (fast.logits[:, places] * weight).sum() + (0 if fast.channel_loss is None else fast.channel_loss)
    theirs = (torch.stack([row.logits for row in slow]) * weight).sum() + own
    weights = list(model.parameters())
    found, expected = (torch.autograd.grad(one, weights, materialize_grads=True) for one in (mine, theirs))
    for one, two in zip(found, expected, strict=True):
        close(one, two)
    assert model.eval()(**given_).channel_loss is None


def channel_loss(options: dict[str, Any], rows: list[Row]) -> torch.Tensor:
    """The channel's own loss over a batch: means over all its parts; 0 where it has none."""
    named, gaps = ([one for row in rows for one in row.found.parts[which]] for which in (0, 1))
    total = torch.zeros((), dtype=torch.double)
    for name, parts in (("ncp_weight", named), ("vq_weight", gaps)):
        if parts:
            total = total + options[name] * torch.stack(parts).mean()
    return total
