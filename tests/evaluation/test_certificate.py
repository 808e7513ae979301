"""The certificate equals hand-built forward passes, window by window; forced concepts equal a loop over positions."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from cocomix import CoCoMixForCausalLM
from cocomix.data import TokenShards, write_shards
from cocomix.evaluation import channel_certificate, perplexity
from cocomix.labels.store import LabelReader
from cocomix.model import ConceptPrediction, concepts_forced, mixes_vector
from cocomix.model.forced_concepts import with_concepts
from cocomix.model.transformer import BlockRunner
from cocomix.utils.errors import CocomixError
from tests.helpers.small_students import VOCAB, C, student
from tests.helpers.steered_models import untouched

SEQ, K = 12, 5


class FixedLabels(LabelReader):
    """Two random labels a position; some positions have none."""

    n_labels, where = 2, "the test"

    def read(self, windows: np.ndarray, seq_len: int) -> np.ndarray:
        table = np.stack([np.random.default_rng(n).permutation(C)[:2] for n in range(100 * seq_len)])
        labels = table.reshape(100, seq_len, 2)[windows]
        labels[:, ::4] = -100
        return labels

    def labelled(self, windows: np.ndarray) -> np.ndarray:
        raise NotImplementedError


def shards(folder: Path, windows: int = 7) -> TokenShards:
    rng = np.random.default_rng(0)
    return write_shards(folder, [rng.integers(1, VOCAB, windows * SEQ)], vocab_size=VOCAB, eos_id=0)


def forced_by_hand(prediction: ConceptPrediction, labels: torch.Tensor) -> ConceptPrediction:
    """`with_concepts`, one position at a time."""
    assert prediction.logits is not None
    values, ids = prediction.values.clone(), prediction.ids.clone()
    for b, t in np.ndindex(*ids.shape[:-1]):
        z = prediction.logits[b, t]
        given = sorted((one for one in labels[b, t].tolist() if one >= 0), key=lambda one: -z[one])
        own = sorted(prediction.ids[b, t].tolist(), key=lambda one: -z[one])
        ids[b, t] = torch.tensor([*given, *(one for one in own if one not in given)][: len(own)])
        values[b, t] = prediction.values[b, t].sort(descending=True).values
    return prediction._replace(values=values, ids=ids)


def upper_losses(model: CoCoMixForCausalLM, ids: torch.Tensor, vector: torch.Tensor) -> torch.Tensor:
    """Losses `[batch]` with `vector` handed to the mixer; no hooks."""
    blocks = BlockRunner(model.backbone.blocks, model.backbone, torch.arange(SEQ)[None])
    hidden = model.model._lower_blocks(model.backbone.embed_tokens(ids), blocks)
    mixed = model.mixer(hidden, vector, blocks)  # runs the other blocks
    log_p = model.lm_head(model.backbone.final_norm(mixed)).log_softmax(-1)
    return -log_p[:, :-1].gather(-1, ids[:, 1:, None])[..., 0].mean(1)


@torch.no_grad()
def by_hand(model: CoCoMixForCausalLM, data: TokenShards, size: int, labels: LabelReader | None) -> dict[str, Any]:
    """Losses of each window by variant, from vectors that are made one window and place at a time."""
    n = data.n_windows(SEQ)
    everything = torch.from_numpy(data.windows(np.arange(n), SEQ))
    positions = torch.arange(SEQ)[None]
    hidden = model.model.hidden_state(everything, top=False)
    vectors = model.channel(hidden, positions, None).vector
    assert vectors is not None
    other = torch.zeros_like(vectors)
    batches = math.ceil(n / size)
    for first in range(batches):
        members = list(range(first, n, batches))
        order = torch.randperm(len(members), generator=torch.Generator().manual_seed(0)).tolist()
        for place, one in enumerate(order):
            other[members[one]] = vectors[members[order[(place + 1) % len(order)]]]
    made = {
        "as it is": vectors,
        "zero": torch.zeros_like(vectors),
        "shuffled": other,
        "mean": vectors.flatten(0, 1).mean(0).expand_as(vectors),
    }
    if labels is not None:
        channel: Any = model.channel
        prediction = forced_by_hand(channel.head(hidden), torch.from_numpy(labels.read(np.arange(n), SEQ)))
        rows = sum(prediction.values[..., k, None] * channel.vector.weight[prediction.ids[..., k]] for k in range(K))
        made["labels"] = (rows + channel.vector.bias + prediction.pre_bias) * prediction.std + prediction.mean
    return {name: upper_losses(model, everything, vector) for name, vector in made.items()}


@pytest.mark.parametrize(
    ("channel", "mixer"), [("concepts", "interleave"), ("concepts", "keys_values"), ("mlp", "add")]
)
def test_each_variant_is_a_forward_pass_by_hand(tmp_path: Path, channel: str, mixer: str) -> None:
    model, data = student(channel, mixer).double(), shards(tmp_path / "s")
    labels = FixedLabels() if channel == "concepts" else None
    expected = by_hand(model, data, 3, labels)
    found = channel_certificate(model, data, seq_len=SEQ, batch_size=3, labels=labels)
    base = expected.pop("as it is")
    assert (found["windows"], found["tokens"]) == (7, 7 * (SEQ - 1)) and untouched(model)
    assert found["loss"] == pytest.approx(float(base.mean()), rel=1e-6)
    assert found["loss"] == pytest.approx(perplexity(model, data, seq_len=SEQ, batch_size=3)["loss"], rel=1e-12)
    assert {name for name, variant in found["variants"].items() if variant} == expected.keys()
    for name, losses in expected.items():
        variant, differences = found["variants"][name], losses - base
        low, high = stats.ttest_1samp(differences.numpy(), 0).confidence_interval()
        assert variant["loss"] == pytest.approx(float(losses.mean()), rel=1e-6)
        assert variant["difference"] == pytest.approx(float(differences.mean()), abs=1e-6) != 0
        assert variant["ci95"] == pytest.approx([low, high], abs=1e-6)


def test_batches_of_one_are_made_two_and_too_little_text_is_refused(tmp_path: Path) -> None:
    model, data = student(), shards(tmp_path / "s")
    alone, pairs = (channel_certificate(model, data, seq_len=SEQ, batch_size=size) for size in (1, 2))
    assert alone == pairs and pairs["windows"] == 6  # one would have nobody to be shuffled with
    with pytest.raises(CocomixError, match="fewer than two windows of 70 tokens"):
        channel_certificate(model, data, seq_len=70, batch_size=4)
    with pytest.raises(CocomixError, match="does not mix its vector in"):
        channel_certificate(student(mixer="none"), data, seq_len=SEQ, batch_size=4)


@pytest.mark.parametrize("n", [1, 3, K, K + 2])
def test_forced_concepts_equal_a_loop(n: int) -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.rand(2, SEQ, C, generator=generator).argsort(-1)[..., :n]
    labels[:, ::3] = -100
    labels[:, 1::3, :1] = -100
    model: Any = student().double()
    prediction = model.channel.head(torch.randn(2, SEQ, 16, generator=generator).double())
    found, expected = with_concepts(prediction, labels), forced_by_hand(prediction, labels)
    assert torch.equal(found.ids, expected.ids) and torch.equal(found.values, expected.values)
    assert torch.equal(found.ids[:, ::3], prediction.ids[:, ::3])  # nothing given, nothing changed


@torch.no_grad()
def test_the_students_own_best_concepts_change_nothing_and_others_do() -> None:
    model = student().double()
    ids = torch.randint(1, VOCAB, (2, SEQ), generator=torch.Generator().manual_seed(1))
    before = model(input_ids=ids)
    assert before.concept_logits is not None
    own = before.concept_logits.topk(3).indices.flip(-1)
    with concepts_forced(model, own):
        assert torch.equal(model(input_ids=ids).logits, before.logits)
    with concepts_forced(model, before.concept_logits.topk(C).indices[..., -3:]):
        changed = model(input_ids=ids)
    assert not torch.allclose(changed.logits, before.logits)
    assert changed.concept_logits is not None and torch.equal(changed.concept_logits, before.concept_logits)
    assert untouched(model)
    with pytest.raises(CocomixError, match="do not fit"), concepts_forced(model, own[:, 1:]):
        model(input_ids=ids)
    best_first = before.concept_logits.topk(3).indices
    with concepts_forced(model, best_first):  # as in training, where the logits are not kept
        trained = model(input_ids=ids, labels=ids, concept_labels=best_first, skip_logits=True)
    alike = model(input_ids=ids, labels=ids, concept_labels=best_first, skip_logits=True)
    assert torch.equal(trained.lm_loss, alike.lm_loss) and torch.equal(trained.concept_loss, alike.concept_loss)
    with pytest.raises(CocomixError, match="predicts no concepts"), concepts_forced(student("mlp"), own):
        pass


def test_which_students_have_a_vector_to_replace() -> None:
    assert mixes_vector(student()) and mixes_vector(student("pause")) and not mixes_vector(student(mixer="none"))
