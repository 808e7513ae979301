"""No token and no concept changes what came before it, in any slot; and a cache changes nothing at all."""

import itertools
from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers.steered_models import close
from tests.helpers.strategies import (
    LONGEST,
    PARTS,
    VOCAB,
    by_token,
    for_every_part,
    lengths,
    on_each_backbone,
    seeds,
    student,
    students,
    tokens,
)  # fmt: skip


@on_each_backbone
@for_every_part
@settings(max_examples=8)
@given(st.data(), seeds, st.integers(2, LONGEST))
@torch.no_grad()
def test_no_token_changes_the_past(part: str, backbone: str, data: Any, seed: int, length: int) -> None:
    """Nor does there being later ones: the first tokens alone give the same, in every slot of every block."""
    model = student(data.draw(students(**PARTS[part], backbone=backbone)), seed)
    first = data.draw(st.integers(1, length - 1), label="first token that differs")
    ids = tokens(2, length, seed)
    later = ids.clone()
    later[:, first:] = (later[:, first:] + data.draw(st.integers(1, VOCAB - 1), label="by")) % VOCAB
    one, other, alone = (model(given, output_hidden_states=True) for given in (ids, later, ids[:, :first]))
    for mine, theirs, early in zip(by_token(one), by_token(other), by_token(alone), strict=True):
        close(theirs[:, :first], mine[:, :first])
        close(early, mine[:, :first])
    for mine, theirs, early in zip(one.hidden_states, other.hidden_states, alone.hidden_states, strict=True):
        slots = early.shape[1]
        close(theirs[:, :slots], mine[:, :slots])
        close(early, mine[:, :slots])
    assert (one.logits != other.logits).any(-1)[:, first:].all()


@on_each_backbone
@for_every_part
@settings(max_examples=4)
@given(st.data(), seeds, st.integers(2, LONGEST))
@torch.no_grad()
def test_no_concept_changes_the_past(part: str, backbone: str, data: Any, seed: int, length: int) -> None:
    """Other vectors from a token on, whatever they are, reach no token before it."""
    model = student(data.draw(students(**PARTS[part], backbone=backbone)), seed)
    first = data.draw(st.integers(1, length - 1), label="first vector that differs")
    ids = tokens(2, length, seed)
    base = model(ids).logits

    def other(_module: Any, _inputs: Any, predicted: Any) -> Any:
        if predicted.vector is None:
            return predicted
        vector = predicted.vector.clone()
        vector[:, first:] = torch.randn_like(vector[:, first:]) * 9
        return predicted._replace(vector=vector)

    handle = model.channel.register_forward_hook(other)
    found = model(ids).logits
    handle.remove()
    close(found[:, :first], base[:, :first])
    if model.mixer.uses_vector and model.config.mixer != "every":  # there not every token has a slot before its logits
        assert (found != base).any(-1)[:, first:].all()


@on_each_backbone
@for_every_part
@settings(max_examples=8)
@given(st.data(), seeds, lengths, st.lists(st.tuples(st.integers(1, 4), st.integers(0, 3)), min_size=1, max_size=5))
@torch.no_grad()
def test_cached_in_pieces_equals_the_whole(
    part: str, backbone: str, data: Any, seed: int, length: int, pieces: list[tuple[int, int]]
) -> None:
    """Whatever the pieces, with padding in front or none, and with wrong drafts cropped away after each piece.

    Args:
        pieces: tokens of a piece, and how many wrong ones follow them; over and over until the row ends.
    """
    model = student(data.draw(students(**PARTS[part], backbone=backbone)), seed)
    ids, mask = tokens(2, length, seed), torch.ones(2, length, dtype=torch.long)
    mask[1, : data.draw(st.integers(0, length - 1), label="padding")] = 0
    whole = by_token(model(ids, attention_mask=mask, use_cache=False))
    if not model.channel.cacheable:
        assert model(ids, use_cache=True).past_key_values is None and model.generation_config.use_cache is False
        return
    cache, done, found = None, 0, []
    for size, wrong in itertools.cycle(pieces):
        given_ = torch.cat((ids[:, done : done + size], tokens(2, wrong, seed + done)), dim=1)
        size = min(size, length - done)
        seen = torch.cat((mask[:, : done + size], torch.ones(2, wrong, dtype=torch.long)), dim=1)
        output = model(given_, attention_mask=seen, past_key_values=cache, use_cache=True)
        found.append([one[:, :size] for one in by_token(output)])
        cache, done = output.past_key_values, done + size
        cache.crop(done)
        if done == length:
            break
    for pieces_found, expected in zip(zip(*found, strict=True), whole, strict=True):
        close(torch.cat(pieces_found, 1)[mask.bool()], expected[mask.bool()])
    split = model.config.concept_layer
    slots = [1] * split + model.mixer.cached_slots(model.config.num_hidden_layers - split)
    assert [layer.keys.shape[2] for layer in cache.layers] == [length * one for one in slots]
