"""Replaced vectors: every pass mixes in what a loop over sequences and columns says, and nothing stays behind."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from cocomix import CoCoMixForCausalLM
from cocomix.data import write_shards
from cocomix.evaluation.perplexity import perplexity
from cocomix.model import (
    PREDICTORS,
    REPLACEMENTS,
    Amplify,
    MeanVector,
    ShuffledVector,
    VectorReplacement,
    ZeroVector,
    mean_vector,
    vector_replaced,
)
from cocomix.utils.errors import CocomixError
from tests.helpers.small_students import VOCAB, C, T, student
from tests.helpers.steered_models import close, padded, untouched

MIXERS = ("interleave", "add", "keys_values", "every")


def build(channel: str = "concepts", mixer: str = "interleave", **changes: Any) -> CoCoMixForCausalLM:
    return student(channel, mixer, **changes).double()


def tokens(batch: int = 4, length: int = T) -> torch.Tensor:
    return torch.randint(1, VOCAB, (batch, length), generator=torch.Generator().manual_seed(1))


def prepared(name: str, model: CoCoMixForCausalLM) -> VectorReplacement:
    other = torch.randint(1, VOCAB, (3, T), generator=torch.Generator().manual_seed(2))
    return REPLACEMENTS[name].prepare(model, [{"input_ids": other}], seed=5)


def by_hand(change: VectorReplacement, vector: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
    """New vectors, one sequence and column at a time."""
    new = torch.zeros_like(vector)
    batch, seq = real.shape
    for column in range(seq):
        for row in range(batch):
            if isinstance(change, MeanVector):
                new[row, column] = change.mean
            elif isinstance(change, ShuffledVector):
                order = torch.randperm(batch, generator=torch.Generator().manual_seed(change.seed)).tolist()
                place = order.index(row)
                others = [one for one in order[place + 1 :] + order[:place] if real[one, column]]
                if others:
                    new[row, column] = vector[others[0], column]
    return new


@contextmanager
def mixing(model: CoCoMixForCausalLM, change: VectorReplacement, real: torch.Tensor) -> Iterator[None]:
    """The mixer is handed the vectors made by hand; no hooks."""
    mix = model.mixer.forward
    model.mixer.forward = lambda hidden, vector, blocks: mix(hidden, by_hand(change, vector, real), blocks)
    try:
        yield
    finally:
        del model.mixer.forward


@pytest.mark.parametrize("side", [None, "left", "right"])
@pytest.mark.parametrize("name", REPLACEMENTS)
@pytest.mark.parametrize(("channel", "mixer"), [*zip(PREDICTORS, (*MIXERS, "drop_tokens"), strict=True)])
@torch.no_grad()
def test_the_output_is_that_of_vectors_replaced_by_hand(channel: str, mixer: str, name: str, side: str | None) -> None:
    model, ids = build(channel, mixer), tokens()
    mask = padded(ids, side)
    real = mask.bool()
    change = prepared(name, model)
    before = model(ids, attention_mask=mask).logits
    with mixing(model, change, real):
        expected = model(ids, attention_mask=mask).logits
    with model.replace_vector(change):
        found = model(ids, attention_mask=mask).logits
    close(found[real], expected[real])
    if channel != "pause" or name == "zero":  # the same vector everywhere is its own mean and shuffles to itself
        assert (found - before)[real].abs().max() > 1e-6
    assert torch.equal(model(ids, attention_mask=mask).logits, before) and untouched(model)


@pytest.mark.parametrize("slot", ["bare", "residual"])
@pytest.mark.parametrize("name", REPLACEMENTS)
def test_losses_and_gradients_see_it_and_labels_of_concepts_do_not(name: str, slot: str) -> None:
    model, ids = build(mixer_options={"slot": slot}).train(), tokens()
    labels = torch.randint(0, C, (4, T, 2), generator=torch.Generator().manual_seed(3))
    change, given = prepared(name, model), {"labels": ids, "concept_labels": labels}
    weights = list(model.backbone.parameters())
    before = model(ids, **given)
    with mixing(model, change, torch.ones_like(ids)):
        expected = model(ids, **given)
    for skip in (False, True):
        with vector_replaced(model, change):
            found = model(ids, **given, skip_logits=skip)
        close(found.lm_loss, expected.lm_loss)
        close(found.concept_loss, before.concept_loss)
        mine, theirs = (
            torch.autograd.grad(one.loss, weights, materialize_grads=True, retain_graph=True)
            for one in (found, expected)
        )
        for a, b in zip(mine, theirs, strict=True):
            close(a, b)


@pytest.mark.parametrize("name", REPLACEMENTS)
@pytest.mark.parametrize("mixer", ["interleave", "every"])
def test_generation_with_a_cache_is_that_without(mixer: str, name: str) -> None:
    model, ids = build(mixer=mixer), tokens(3, 5)
    mask = torch.ones_like(ids)
    mask[0, :2] = 0
    given = {"attention_mask": mask, "max_new_tokens": 6, "do_sample": False}
    plain = model.generate(ids, **given)
    with model.replace_vector(prepared(name, model)):
        cached, whole = (model.generate(ids, use_cache=use_cache, **given) for use_cache in (True, False))
    assert torch.equal(cached, whole)
    assert torch.equal(model.generate(ids, **given), plain)


@torch.no_grad()
def test_shuffling_follows_from_the_seed_and_needs_two() -> None:
    model, ids = build(), tokens(5)

    def logits(seed: int) -> torch.Tensor:
        with model.replace_vector(ShuffledVector(seed)):
            return model(ids).logits

    assert torch.equal(logits(0), logits(0)) and not torch.equal(logits(0), logits(1))
    vector = torch.arange(5.0)[:, None, None].expand(5, 3, 2)
    assert all((ShuffledVector(seed)(vector, None) != vector).all() for seed in range(20))
    with model.replace_vector(ShuffledVector()), pytest.raises(CocomixError, match="batches of two or more"):
        model(ids[:1])
    assert untouched(model)


@torch.no_grad()
def test_the_mean_is_over_real_positions() -> None:
    model, ids = build(), tokens()
    mask = padded(ids, "left")
    vectors = []
    for row, real in zip(ids, mask.bool(), strict=True):
        handle = model.channel.register_forward_hook(lambda _m, _i, out: vectors.extend(out.vector[0]))
        model(row[real][None])
        handle.remove()
    found = mean_vector(model, [{"input_ids": ids[:3], "attention_mask": mask[:3]}, {"input_ids": ids[3:, 1:]}])
    close(found, torch.stack(vectors).mean(0))
    with pytest.raises(CocomixError, match="no text to measure"):
        mean_vector(model, [])
    with model.replace_vector(MeanVector(found[:3])), pytest.raises(CocomixError, match="does not fit a student"):
        model(ids)


def test_perplexity_sees_it_and_steering_stays_underneath(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    shards = write_shards(tmp_path, [rng.integers(1, VOCAB, 60) for _ in range(4)], vocab_size=VOCAB, eos_id=0)
    model = build()
    given = {"shards": shards, "seq_len": T, "batch_size": 4}
    with model.replace_vector(ZeroVector()):
        found = perplexity(model, **given)
        with model.steer({3: Amplify(4.0)}):
            assert perplexity(model, **given) == found
            steered = model(tokens()).concept_logits
    with mixing(model, ZeroVector(), torch.ones(4, T)):
        assert found["loss"] == pytest.approx(perplexity(model, **given)["loss"], rel=1e-12)
    assert not torch.equal(steered, model(tokens()).concept_logits)
    assert found["loss"] != perplexity(model, **given)["loss"]


def test_models_without_a_mixed_in_vector_are_refused() -> None:
    plain = GPT2LMHeadModel(GPT2Config(vocab_size=8, n_positions=8, n_embd=8, n_layer=1, n_head=1))
    for model, words in ((plain, "mixes no predicted vector in"), (build(mixer="none"), "does not mix its vector in")):
        with pytest.raises(CocomixError, match=words), vector_replaced(model, ZeroVector()):
            pass
        assert untouched(model)
