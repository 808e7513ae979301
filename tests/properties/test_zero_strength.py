"""Steering of no strength, of either kind, changes no bit: of any model, in any precision, for any concepts."""

from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedModel

from cocomix.model import Ablate, Amplify, Clamp, Dampen
from cocomix.model.build import ModelShape, build_plain
from cocomix.sae import TopKSAE
from cocomix.steering import steer_residual
from tests.helpers.randomised import randomised
from tests.helpers.steered_models import untouched
from tests.helpers.strategies import LONGEST, VOCAB, WITH_CONCEPTS, on_each_backbone, seeds, student, students, tokens

WIDTH, LATENTS = 16, 20
dtypes = st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16])
of_no_strength = st.one_of(
    st.builds(Amplify, st.sampled_from([0, 0.0, -0.0]), start=st.integers(0, LONGEST + 1)),
    st.builds(Dampen, st.sampled_from([0, 0.0, -0.0]), start=st.integers(0, LONGEST + 1)),
)
later = {"start": st.integers(LONGEST, 2**63 - 1)}
"""A start that no row lives to see."""
never_due = st.one_of(
    st.builds(Amplify, st.floats(-5, 5), **later),
    st.builds(Dampen, st.floats(0, 1), **later),
    st.builds(Clamp, st.floats(-5, 5), **later),
    st.builds(Ablate, **later),
)
strong = st.builds(Amplify, st.floats(1, 5), start=st.integers(0, 2))


def settings_of(concepts: int, done: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[int, Any]]:
    return st.dictionaries(st.integers(0, concepts - 1), done, max_size=4)


@on_each_backbone
@pytest.mark.parametrize("mixer", WITH_CONCEPTS)
@settings(max_examples=6)
@given(st.data(), seeds, dtypes)
@torch.no_grad()
def test_concepts_of_no_strength(mixer: str, backbone: str, data: Any, seed: int, dtype: torch.dtype) -> None:
    drawn = data.draw(students(mixer, backbone=backbone))
    model = student(drawn, seed).to(dtype)
    ids, labels = tokens(2, LONGEST, seed), torch.zeros(2, LONGEST, 1, dtype=torch.long)
    kinds = data.draw(st.sampled_from([of_no_strength, of_no_strength | never_due]), label="what is drawn from")
    one = settings_of(drawn["num_concepts"], kinds)
    steering = data.draw(one | st.lists(one, min_size=2, max_size=2), label="steering")
    given_ = {"input_ids": ids, "labels": ids, "concept_labels": labels}
    base = model(**given_), model(**given_, skip_logits=True)
    with model.steer(steering):
        found = model(**given_), model(**given_, skip_logits=True)
    assert torch.equal(found[0].logits, base[0].logits)
    assert torch.equal(found[0].concept_logits, base[0].concept_logits)
    assert torch.equal(found[0].loss, base[0].loss)
    if kinds is of_no_strength:  # a start beyond the end is known in the pass only, which then makes its loss otherwise
        assert found[1].concept_logits is None and torch.equal(found[1].loss, base[1].loss)
    assert untouched(model)


@on_each_backbone
@settings(max_examples=6)
@given(st.data(), seeds, dtypes)
@torch.no_grad()
def test_beside_a_strong_one_too(backbone: str, data: Any, seed: int, dtype: torch.dtype) -> None:
    """In its row, around it, and in the row next to it: what is steered and what is not keeps its bits."""
    drawn = data.draw(students(backbone=backbone))
    model, ids = student(drawn, seed).to(dtype), tokens(2, LONGEST, seed)
    concepts = drawn["num_concepts"]
    real = data.draw(settings_of(concepts, strong), label="strong")
    idle = data.draw(settings_of(concepts, of_no_strength | never_due), label="idle")

    def logits(*steering: Any) -> torch.Tensor:
        if not steering:
            return model(ids).logits
        with model.steer(steering[0]):
            return logits(*steering[1:])

    plain, steered = logits(), logits(real)
    assert torch.equal(logits(idle, real), steered) and torch.equal(logits(real, idle), steered)
    assert torch.equal(logits(idle | real), steered)
    assert torch.equal(logits([real, idle])[1], plain[1]) and torch.equal(logits([idle, real])[0], plain[0])


@cache
def plain_model(backbone: str, dtype: torch.dtype) -> PreTrainedModel:
    torch.manual_seed(0)
    shape = ModelShape(width=WIDTH, layers=2, heads=2, backbone=backbone)
    return randomised(build_plain(shape, vocab_size=VOCAB, seq_len=LONGEST)).to(dtype).eval()


@on_each_backbone
@settings(max_examples=15)
@given(
    settings_of(LATENTS, of_no_strength | never_due)
    | st.lists(settings_of(LATENTS, of_no_strength | never_due), min_size=2, max_size=2),
    settings_of(LATENTS, strong),
    seeds,
    st.integers(0, 1),
    dtypes,
    st.sampled_from(["standard", "none", "rescale"]),
)
@torch.no_grad()
def test_residuals_of_no_strength(
    backbone: str, steering: Any, real: Any, seed: int, layer: int, dtype: torch.dtype, normalisation: str
) -> None:
    lm, ids = plain_model(backbone, dtype), tokens(2, LONGEST, seed)
    torch.manual_seed(seed)
    sae = TopKSAE(WIDTH, LATENTS, 6, normalisation=normalisation)
    base = lm(ids).logits
    with steer_residual(lm, sae, layer, steering):
        assert torch.equal(lm(ids).logits, base)
    with steer_residual(lm, sae, layer, real):
        strongly = lm(ids).logits
        with steer_residual(lm, sae, layer, steering):
            assert torch.equal(lm(ids).logits, strongly)
    with steer_residual(lm, sae, layer, [real, {}]):
        assert torch.equal(lm(ids).logits[1], base[1])
    assert untouched(lm)
