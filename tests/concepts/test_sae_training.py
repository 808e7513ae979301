"""Training an autoencoder: dead latents come back, several processes take one process's step, bf16 stays outside."""

from pathlib import Path

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from cocomix.concepts import SaeTraining, TopKSAE, hidden_at
from cocomix.objectives import SaeObjective
from processes import program, torchrun

PROGRAM = """
import torch.distributed as dist
from cocomix.concepts import SaeTraining, TopKSAE
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
    torchrun(2, program(tmp_path, Path(__file__).parent, PROGRAM))
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
    linear = torch.nn.functional.linear

    def watched(*arguments):
        seen.append(linear(*arguments).dtype)
        return linear(*arguments)

    with torch.autocast("cpu", dtype=torch.bfloat16):
        hidden = hidden_at(model, ids, 0)
        monkeypatch.setattr("torch.nn.functional.linear", watched)
        loss = objective({"input_ids": ids})
    assert seen == [torch.float32] and loss.dtype == torch.float32
    monkeypatch.undo()
    assert loss == objective.training_module(hidden.flatten(0, 1).float())
    assert not torch.equal(hidden, hidden_at(model, ids, 0))  # and its pass was in bf16
