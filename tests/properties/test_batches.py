"""A row is what it is alone: other rows, padding on either side and whatever stands in it change nothing."""

from typing import Any

import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers.steered_models import close
from tests.helpers.strategies import (
    LONGEST,
    PARTS,
    VOCAB,
    by_token,
    for_every_part,
    on_each_backbone,
    seeds,
    student,
    students,
    tokens,
)

margins = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=3)
"""Padding before and after each row."""


def mask_of(padding: list[tuple[int, int]]) -> torch.Tensor:
    """1 for tokens, 0 for padding, int64 `[batch, LONGEST]`."""
    return torch.tensor([[0] * before + [1] * (LONGEST - before - after) + [0] * after for before, after in padding])


@on_each_backbone
@for_every_part
@settings(max_examples=6)
@given(st.data(), seeds, margins)
@torch.no_grad()
def test_a_row_is_what_it_is_alone(
    part: str, backbone: str, data: Any, seed: int, padding: list[tuple[int, int]]
) -> None:
    """Losses too are those of the rows alone, weighted by their targets."""
    model = student(data.draw(students(**PARTS[part], backbone=backbone)), seed)
    ids, mask = tokens(len(padding), LONGEST, seed), mask_of(padding)
    labels = concept_labels(model, ids, seed)
    output = model(ids, attention_mask=mask, labels=ids, concept_labels=labels)
    assert torch.isfinite(output.logits).all()
    losses, named = [], []
    for row, real in enumerate(mask.bool()):
        alone = model(ids[row : row + 1, real])
        for together, one in zip(by_token(output), by_token(alone), strict=True):
            close(together[row, real], one[0])
        losses.append(F.cross_entropy(alone.logits[0, :-1], ids[row, real][1:], reduction="none"))
        if labels is not None:
            spread = alone.concept_logits[0].repeat_interleave(labels.shape[-1], 0)
            named.append(F.cross_entropy(spread, labels[row, real].flatten(), reduction="none"))
    close(output.lm_loss, torch.cat(losses).mean())
    if labels is not None:
        close(output.concept_loss, torch.cat(named).mean())


@on_each_backbone
@for_every_part
@settings(max_examples=3)
@given(st.data(), seeds, margins)
@torch.no_grad()
def test_other_rows_and_what_stands_in_padding_change_no_bit(
    part: str, backbone: str, data: Any, seed: int, padding: list[tuple[int, int]]
) -> None:
    model = student(data.draw(students(**PARTS[part], backbone=backbone)), seed)
    ids, mask = tokens(len(padding), LONGEST, seed), mask_of(padding)
    other = (ids + 1 + tokens(1, LONGEST, seed + 1) % (VOCAB - 1)) % VOCAB
    row = data.draw(st.integers(0, len(padding) - 1), label="row that stays")
    other[row] = torch.where(mask[row].bool(), ids[row], other[row])
    before, after = (by_token(model(given_, attention_mask=mask)) for given_ in (ids, other))
    for one, two in zip(before, after, strict=True):
        assert torch.equal(one[row, mask[row].bool()], two[row, mask[row].bool()])


@on_each_backbone
@for_every_part
@settings(max_examples=3)
@given(st.data(), seeds, st.integers(1, 6), st.integers(0, 3), st.integers(0, 3), st.booleans())
def test_columns_of_padding_change_no_loss_and_no_gradient(
    part: str, backbone: str, data: Any, seed: int, length: int, before: int, after: int, sparing: bool
) -> None:
    """While training, a channel's own loss included; what is written in padding, labels too, is not read."""
    model = student(data.draw(students(**PARTS[part], backbone=backbone)), seed).train()
    wide = tokens(2, before + length + after, seed)
    columns = slice(before, before + length)
    mask = torch.zeros_like(wide)
    mask[:, columns] = 1
    labels = concept_labels(model, wide, seed)
    padded = model(wide, attention_mask=mask, labels=wide, concept_labels=labels, skip_logits=sparing)
    ids = wide[:, columns]
    plain = model(ids, labels=ids, concept_labels=None if labels is None else labels[:, columns])
    weights = list(model.parameters())
    found, expected = (torch.autograd.grad(one.loss, weights, materialize_grads=True) for one in (padded, plain))
    close(padded.loss, plain.loss)
    for mine, theirs in zip(found, expected, strict=True):
        close(mine, theirs)


def concept_labels(model: Any, ids: torch.Tensor, seed: int) -> torch.Tensor | None:
    """Random ones, `[batch, seq, 2]`, or None for a model that predicts no concepts."""
    if model.config.channel != "concepts":
        return None
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(model.config.num_concepts, (*ids.shape, 2), generator=generator)
