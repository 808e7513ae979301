"""Positions left out: the rule against a loop, and what a sink does to figures, training and labels without it."""

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from cocomix.labels.labeller import ConceptLabeller
from cocomix.model import hidden_at
from cocomix.objectives import SaeObjective
from cocomix.sae import TopKSAE, sae_quality, spliced_losses
from cocomix.sae.positions import LeftOut

RULES = [LeftOut(), LeftOut(1), LeftOut(3), LeftOut(0, 2.0), LeftOut(2, 1.5)]


@pytest.fixture(scope="module")
def teacher() -> GPT2LMHeadModel:
    """A model whose first position, and token 7 anywhere, have hidden states of a hundred times the others' norm."""
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=40, n_positions=12, n_embd=16, n_layer=3, n_head=2)).eval()
    sink = torch.zeros(16)
    sink[3] = 30.0
    with torch.no_grad():
        model.transformer.wpe.weight[0] += sink
        model.transformer.wte.weight[7] += 5 * sink
    return model.requires_grad_(False)


def tokens(*, massive: bool) -> torch.Tensor:
    ids = torch.randint(8, 40, (6, 12), generator=torch.Generator().manual_seed(1))
    if massive:
        ids[0, 5] = ids[3, 9] = 7
    return ids


@pytest.mark.parametrize("rule", RULES)
def test_the_rule_is_what_a_loop_finds(rule: LeftOut) -> None:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(5, 9, 4, generator=generator) * torch.rand(5, 9, 1, generator=generator) * 4
    expected = torch.zeros(5, 9, dtype=torch.bool)
    for row in range(5):
        norms = [float(hidden[row, place].norm()) for place in range(9)]
        rest = sorted(norms[rule.first :])
        median = rest[(len(rest) - 1) // 2]
        for place in range(rule.first, 9):
            expected[row, place] = rule.norm is None or norms[place] <= rule.norm * median + 1e-6
    assert torch.equal(rule.kept(hidden), expected)
    assert torch.equal(rule.select(hidden), hidden[expected])
    kept = rule.keep(hidden, torch.zeros_like(hidden))
    assert torch.equal(kept[~expected], hidden[~expected]) and not kept[expected].any()
    # A window's positions do not depend on the other windows of its batch.
    assert torch.equal(torch.cat([rule.kept(one) for one in hidden.split(1)]), expected)


@pytest.mark.parametrize("rule", RULES)
def test_padding_changes_nothing_of_what_is_kept(rule: LeftOut) -> None:
    generator = torch.Generator().manual_seed(0)
    hidden, lengths = torch.randn(4, 9, 4, generator=generator), [9, 5, 4, 8]
    padding = torch.arange(9) >= torch.tensor(lengths)[:, None]
    hidden[padding] *= 1000
    alone = [hidden[row : row + 1, :length] for row, length in enumerate(lengths)]
    kept = rule.kept(hidden, padding)
    assert all(torch.equal(kept[[row], : one.shape[1]], rule.kept(one)) for row, one in enumerate(alone))
    assert torch.equal(rule.select(hidden, padding), torch.cat([rule.select(one) for one in alone]))


def test_a_window_shorter_than_what_is_left_out_keeps_nothing() -> None:
    assert not LeftOut(9, 2.0).kept(torch.ones(2, 4, 3)).any()
    assert LeftOut(9, 2.0).select(torch.ones(2, 4, 3)).shape == (0, 3)


def test_an_autoencoder_that_knows_the_sink_alone_looks_perfect_with_it(teacher: GPT2LMHeadModel) -> None:
    sae, hidden = TopKSAE(16, 32, 2, normalisation="none"), hidden_at(teacher, tokens(massive=False), 1)
    norms = hidden.norm(dim=-1)
    assert norms[:, 0].min() > 100 * norms[:, 1:].max()
    for weight in (sae.encoder_weight, sae.decoder_weight):
        weight.data.zero_()
        weight.data[0] = torch.nn.functional.normalize(hidden[0, 0], dim=0)
    with_it, without = (sae_quality(sae, [LeftOut(first).select(hidden)]) for first in (0, 1))
    # The guard against another layer's autoencoder is at 0.3.
    assert with_it["explained_variance"] > 0.99 and without["explained_variance"] < 0.3


def test_positions_left_out_keep_their_hidden_states_when_spliced(teacher: GPT2LMHeadModel) -> None:
    sae, ids, rule = TopKSAE(16, 32, 2), tokens(massive=True), LeftOut(1, 10.0)
    hidden = hidden_at(teacher, ids, 1)
    assert (~rule.kept(hidden)).sum() == 6 + 2
    useless = {"layer": 1, "mean": torch.zeros(16), "left_out": LeftOut(12)}
    figures = spliced_losses(teacher, sae, [ids], **useless)
    assert figures["loss_sae"] == figures["loss_zero"] == figures["loss_plain"]
    some = spliced_losses(teacher, sae, [ids], layer=1, mean=torch.zeros(16), left_out=rule)
    everywhere = spliced_losses(teacher, sae, [ids], layer=1, mean=torch.zeros(16))
    assert len({some["loss_zero"], everywhere["loss_zero"], some["loss_plain"]}) == 3


@pytest.mark.parametrize("rule", [LeftOut(1), LeftOut(1, 10.0)])
def test_it_trains_on_what_is_kept_and_labels_nothing_else(teacher: GPT2LMHeadModel, rule: LeftOut) -> None:
    torch.manual_seed(0)
    sae, ids = TopKSAE(16, 32, 4), tokens(massive=True)
    objective = SaeObjective(sae, teacher, layer=1, left_out=rule)
    hidden = hidden_at(teacher, ids, 1)
    kept = torch.tensor(
        [[place >= rule.first and hidden[row, place].norm() < 30 for place in range(12)] for row in range(6)]
    )
    if rule.norm is None:
        kept[:, 1:] = True
    objective.initialise(ids)
    assert torch.allclose(sae.pre_bias, sae.preprocess(hidden[kept])[0].mean(0), atol=1e-6)
    assert torch.equal(objective({"input_ids": ids}), objective.training_module(hidden[kept]))
    labels = {
        left_out: ConceptLabeller(
            teacher, sae, layer=1, rule="activation", signs=("helpful",), k=1, batch_size=4, left_out=left_out
        )(ids)["helpful"]
        for left_out in (LeftOut(), rule)
    }
    assert torch.equal(labels[rule].valid, labels[LeftOut()].valid & kept)
    assert labels[LeftOut()].valid[:, 0].any() and torch.equal(labels[rule].ids, labels[LeftOut()].ids)
