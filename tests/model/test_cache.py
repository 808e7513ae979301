"""The growing cache holds what a cache that concatenates holds, whatever is done to it in between."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.cache_utils import DynamicLayer

from cocomix.model.cache import GrowingLayer, SlotCache

OPERATIONS = {
    "reorder": lambda layer: layer.reorder_cache(torch.tensor([2, 0, 0])),
    "crop": lambda layer: layer.crop(-1),
    "reset": lambda layer: layer.reset(),
}


@settings(max_examples=60, deadline=None)
@given(
    steps=st.lists(st.one_of(st.integers(1, 200), st.sampled_from(sorted(OPERATIONS))), min_size=1, max_size=12),
    seed=st.integers(0, 99),
)
def test_it_equals_concatenation(steps, seed):
    generator = torch.Generator().manual_seed(seed)
    mine, theirs, handed_out = GrowingLayer(), DynamicLayer(), []
    for step in steps:
        if isinstance(step, str):
            if theirs.get_seq_length() > 1:
                OPERATIONS[step](mine)
                OPERATIONS[step](theirs)
            continue
        new = [torch.randn(3, 2, step, 4, generator=generator) for _ in range(2)]
        found, expected = mine.update(*new), theirs.update(*new)
        for a, b in zip(found, expected, strict=True):
            assert torch.equal(a, b)
        handed_out.append((found[0], found[0].clone()))
        assert mine.get_seq_length() == theirs.get_seq_length()
    assert all(torch.equal(view, copy) for view, copy in handed_out)  # nothing handed out was written over


@pytest.mark.parametrize(("asked", "left"), [(4, 4), (-2, 3), (5, 5), (9, 5), (0, 5), (-5, 0)])
def test_cropping_counts_in_tokens_kept_or_dropped(asked, left):
    cache = SlotCache([1, 2])
    for index, slots in enumerate(cache.slots):
        states = torch.arange(5.0).repeat_interleave(slots).expand(1, 1, 1, -1).transpose(2, 3)
        cache.update(states, states, index)
    cache.crop(asked)
    for index, slots in enumerate(cache.slots):
        kept = cache.layers[index].keys
        assert kept is not None and torch.equal(kept.flatten(), torch.arange(float(left)).repeat_interleave(slots))


def test_a_step_writes_only_its_own_slots():
    layer = GrowingLayer()
    layer.update(torch.zeros(1, 1, 10, 2), torch.zeros(1, 1, 10, 2))
    before = layer.keys.data_ptr()
    for _ in range(100):
        layer.update(torch.ones(1, 1, 1, 2), torch.ones(1, 1, 1, 2))
    assert layer.keys.data_ptr() == before and layer.get_seq_length() == 110


def test_gradients_flow_through_a_cache():
    layer = GrowingLayer()
    first, second = (torch.ones(1, 1, 2, 2, requires_grad=True) for _ in range(2))
    layer.update(first * 2, first * 2)
    keys, values = layer.update(second * 3, second * 3)
    (keys * values).sum().backward()
    assert first.grad is not None and second.grad is not None
    assert (first.grad == 8).all() and (second.grad == 18).all()
