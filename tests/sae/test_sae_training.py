"""Training an autoencoder: dead latents come back, several processes take one process's step, bf16 stays outside."""

from pathlib import Path

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from cocomix.model import hidden_at
from cocomix.objectives import SaeObjective
from cocomix.sae import SaeTraining, TopKSAE
from cocomix.sae.sae import ACTIVATIONS
from tests.helpers.distributed_programs import launch, program
from tests.helpers.gradients import check_gradients

PROGRAM = """
import torch.distributed as dist
from cocomix.sae import SaeTraining, TopKSAE
torch.manual_seed(0)
training = SaeTraining(TopKSAE(8, 20, 3).double(), aux_k=2, aux_coefficient=0.5, dead_after_tokens=9)
data = torch.randn(3, 2, 6, 8, dtype=torch.double)
found = []
for step in range(3):
    training.zero_grad()
    training(data[step, rank()]).backward()
    gradient = torch.cat([p.grad.flatten() for p in training.parameters()])
    dist.all_reduce(gradient)
    found.append([training.tokens_since_fired.clone(), gradient / 2])
if is_main():
    torch.save(found, home / "found.pt")
"""


def test_two_processes_count_and_step_as_one_does(tmp_path: Path) -> None:
    launch(2, program(tmp_path, PROGRAM))
    found = torch.load(tmp_path / "found.pt", weights_only=True)
    torch.manual_seed(0)
    training = SaeTraining(TopKSAE(8, 20, 3).double(), aux_k=2, aux_coefficient=0.5, dead_after_tokens=9)
    data = torch.randn(3, 2, 6, 8, dtype=torch.double)
    for step, (counts, gradient) in enumerate(found):
        training.zero_grad()
        training(data[step].flatten(0, 1)).backward()
        assert torch.equal(training.tokens_since_fired, counts)
        mine = torch.cat([parameter.grad.flatten() for parameter in training.parameters()])
        assert (mine - gradient).abs().max() < 1e-12
    assert (counts > 9).any() and (counts == 0).any()  # the auxiliary loss had something to do


def dense_loss(training: SaeTraining, x: torch.Tensor) -> torch.Tensor:
    """The training loss by its formula: all C pre-activations, dense products, autograd."""
    sae, act = training.sae, training.sae.activation
    normed, _, _ = sae.preprocess(x)
    pre = sae.pre_activations(normed)
    values, ids = act(pre).topk(sae.k, dim=-1)
    guess = torch.zeros_like(pre).scatter(-1, ids, values) @ sae.decoder_weight + sae.pre_bias
    residual = normed - guess
    loss = residual.square().mean() / (normed - normed.mean(0)).square().mean().detach()
    fired = torch.zeros_like(pre, dtype=torch.bool).scatter(-1, ids, values > 0).any(0)
    silent = (training.tokens_since_fired + len(x)).masked_fill(fired, 0) > training.dead_after_tokens
    if silent.any() and training.aux_coefficient:
        top = pre.masked_fill(~silent, -torch.inf).topk(min(training.aux_k, int(silent.sum())), dim=-1)
        second = torch.zeros_like(pre).scatter(-1, top.indices, top.values.clamp_min(0)) @ sae.decoder_weight
        left = residual.detach()
        loss = loss + training.aux_coefficient * (second - left).square().mean() / left.square().mean()
    return loss


@pytest.mark.parametrize("dead", [0, 3, 12])
@pytest.mark.parametrize("bias_input", [True, False])
@pytest.mark.parametrize("kind", ACTIVATIONS)
def test_loss_and_every_gradient_equal_the_dense_ones(kind: str, bias_input: bool, dead: int) -> None:
    torch.manual_seed(0)
    activation = ACTIVATIONS[kind](48, **({"groups": 12} if kind == "groupmax" else {}))
    for buffer in activation.buffers():
        torch.nn.init.uniform_(buffer, 0.5, 3.0)
    sae = TopKSAE(16, 48, 6, activation=activation, bias_input=bias_input).double()
    for bias in (sae.pre_bias, sae.latent_bias):
        torch.nn.init.normal_(bias, std=0.3)
    sae.latent_bias.data[:dead] -= 1.0  # seldom chosen, yet positive now and then
    training = SaeTraining(sae, aux_k=5, aux_coefficient=0.5, dead_after_tokens=1000).train()
    training.tokens_since_fired[:dead] = 1000
    x = torch.randn(30, 16, dtype=torch.double, requires_grad=True)
    wanted = [x, *sae.parameters()]
    theirs = check_gradients(training, dense_loss(training, x), x, wanted, least=1e-4)
    still = training.tokens_since_fired > 1000
    assert still.any() == (dead > 0)
    encoder = next(g for g, one in zip(theirs, wanted, strict=True) if one is sae.encoder_weight)
    assert encoder[still].any() == (dead > 0)


@pytest.mark.parametrize("auxiliary", [True, False])
def test_dead_latents_come_back_with_the_auxiliary_loss(auxiliary: bool) -> None:
    torch.manual_seed(0)
    directions = torch.nn.functional.normalize(torch.randn(24, 16), dim=-1)
    sae = TopKSAE(16, 32, 3)
    dead = torch.arange(12, 32)
    sae.latent_bias.data[dead] = -2.2  # a place among the top k is rarely won, a positive value sometimes had
    training = SaeTraining(sae, aux_k=6, aux_coefficient=1 / 32 if auxiliary else 0.0, dead_after_tokens=500).train()
    optimizer = torch.optim.Adam(training.parameters(), lr=5e-3)
    for _ in range(400):
        mix = torch.zeros(128, 24).scatter(-1, torch.rand(128, 24).topk(3, dim=-1).indices, 1.0) * torch.rand(128, 1)
        optimizer.zero_grad()
        training(mix @ directions).backward()
        sae.remove_parallel_gradient_()
        optimizer.step()
        sae.normalize_decoder_()
    alive = int((training.tokens_since_fired[dead] <= 500).sum())
    assert alive >= 15 if auxiliary else alive <= 9  # 17 and 6 of the 20 here


def test_bf16_is_for_the_concept_model_not_for_the_autoencoder(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=30, n_positions=8, n_embd=16, n_layer=2, n_head=2)).eval()
    objective = SaeObjective(TopKSAE(16, 40, 4), model, layer=0)
    ids = torch.randint(0, 30, (2, 8))
    seen = []
    addmm = torch.addmm

    def watched(*arguments, **options):
        seen.append(addmm(*arguments, **options).dtype)
        return addmm(*arguments, **options)

    with torch.autocast("cpu", dtype=torch.bfloat16):
        hidden = hidden_at(model, ids, 0)
        monkeypatch.setattr("torch.addmm", watched)
        loss = objective({"input_ids": ids})
    assert set(seen[:-1]) == {torch.bfloat16} and seen[-1] == loss.dtype == torch.float32
    monkeypatch.undo()
    assert loss == objective.training_module(hidden.flatten(0, 1).float())
    assert not torch.equal(hidden, hidden_at(model, ids, 0))  # and its pass was in bf16
