"""Effects by hand: the direct path of every mixer, and log-probabilities of windows run alone."""

import numpy as np
import pytest
import torch

from cocomix.analysis import direct_effect, measured_effect
from cocomix.analysis.dashboards import concept_vectors, mixes
from cocomix.model import MIXERS, CoCoMixForCausalLM
from tests.helpers.small_index import SEQ, VOCAB, C, student

REACH_THE_HEAD = {"interleave", "add", "gated_add", "drop_tokens"}


@torch.no_grad()
def direct(model: CoCoMixForCausalLM, concept: int, backbone: str) -> list[float]:
    """The concept's row of weights through the norm's own formula and the head, less what an empty slot gives."""
    row = model.channel.vector.weight[concept]
    if model.config.mixer == "gated_add":
        row = row * torch.sigmoid(model.mixer.gate.bias)
    norm = model.backbone.final_norm
    if backbone == "gpt2":
        row = row - row.mean()
    unit = row / (row.square().mean() + (norm.eps or 0)).sqrt()
    logits = (unit * norm.weight) @ model.lm_head.weight.T
    return (logits - logits.mean()).tolist()


@pytest.mark.parametrize("backbone", ["gpt2", "llama"])
@pytest.mark.parametrize("mixer", MIXERS)
def test_the_direct_path_of_every_mixer(mixer: str, backbone: str) -> None:
    model = student(mixer, backbone)
    for concept in (0, 7, C - 1):
        found = direct_effect(model, concept)
        if mixer in REACH_THE_HEAD:
            assert found is not None and found.tolist() == pytest.approx(direct(model, concept, backbone), abs=1e-6)
            assert np.abs(found).max() > 0.1
        else:
            assert found is None


@pytest.mark.parametrize("mixer", [name for name in MIXERS if name != "none"])
def test_the_vectors_are_the_concepts_own_rows(mixer: str) -> None:
    model = student(mixer)
    found = concept_vectors(model, np.array([3, 0, 20]))
    assert torch.allclose(found, model.channel.vector.weight[[3, 0, 20]], atol=1e-12) and mixes(model)
    model.channel.scale = torch.nn.Parameter(torch.full((1,), 0.3, dtype=found.dtype))
    assert torch.allclose(concept_vectors(model, np.array([3, 0, 20])), 0.3 * found, atol=1e-12)


@torch.no_grad()
def alone(model: CoCoMixForCausalLM, concept: int, ids: list[int]) -> torch.Tensor:
    """Change of the log-probabilities after `ids`, from two passes over them alone."""

    def drop(_module, _inputs, logits):
        changed = logits.clone()
        changed[..., concept] = -1e9
        return changed

    tokens = torch.tensor([ids])
    there = model(tokens).logits[0, -1].log_softmax(-1)
    handle = model.channel.head.proj.register_forward_hook(drop)
    without = model(tokens).logits[0, -1].log_softmax(-1)
    handle.remove()
    return there - without


@pytest.mark.parametrize("logit_bytes", [1, 1 << 26])
@pytest.mark.parametrize("mixer", ["interleave", "add", "keys_values", "every"])
def test_measured_is_the_mean_over_windows_run_alone(
    mixer: str, logit_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cocomix.analysis.concept_index.LOGIT_BYTES", logit_bytes)
    model = student(mixer)
    rng = np.random.default_rng(0)
    ids, positions = rng.integers(0, VOCAB, (6, SEQ)), np.array([4, SEQ - 1, 0, 7, 7, 3])
    before = ids.copy()
    largest = 0.0
    for concept in range(C):
        found = measured_effect(model, concept, ids, positions)
        rows = [alone(model, concept, ids[row, : positions[row] + 1].tolist()) for row in range(6)]
        expected = torch.stack(rows).mean(0)
        assert found is not None and found.tolist() == pytest.approx(expected.tolist(), abs=1e-9)
        largest = max(largest, float(expected.abs().max()))
    assert largest > 1e-2
    assert (ids == before).all()
    assert not model.channel.head.proj._forward_hooks and not model.channel._forward_pre_hooks


def test_nothing_is_measured_without_places_or_a_mixed_in_concept() -> None:
    assert measured_effect(student(), 0, np.empty((0, SEQ), dtype=np.int64), np.empty(0, dtype=np.int64)) is None
    assert measured_effect(student("none"), 0, np.ones((1, SEQ), dtype=np.int64), np.array([2])) is None
    assert not mixes(student("none"))
