"""Objectives: the loss is the formula's, and gradients reach what they should and nothing else."""

from pathlib import Path

import torch
import torch.nn.functional as F
from transformers import GPT2Config, GPT2LMHeadModel

from cocomix import CoCoMixConfig, CoCoMixForCausalLM
from cocomix.concepts import TopKSAE, hidden_at
from cocomix.objectives import CoCoMixObjective, NtpObjective, SaeObjective

IDS = torch.randint(0, 30, (2, 7), generator=torch.Generator().manual_seed(0))


def teacher() -> GPT2LMHeadModel:
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=30, n_positions=8, n_embd=8, n_layer=3, n_head=2, initializer_range=0.3)
    return GPT2LMHeadModel(config).double().eval()


def student() -> CoCoMixForCausalLM:
    torch.manual_seed(1)
    config = CoCoMixConfig(
        vocab_size=30,
        hidden_size=8,
        num_hidden_layers=3,
        num_attention_heads=2,
        max_position_embeddings=8,
        concept_layer=1,
        num_concepts=10,
        concept_top_k=2,
        concept_loss_weight=0.3,
        initializer_range=0.3,
    )
    return CoCoMixForCausalLM(config).double()


def test_ntp_loss() -> None:
    model = teacher()
    logits = model(IDS).logits
    slow = -sum(F.log_softmax(logits[b, t], -1)[IDS[b, t + 1]] for b in range(2) for t in range(6)) / 12
    assert abs(NtpObjective(model)({"input_ids": IDS}).item() - slow.item()) < 1e-6  # Transformers sums in float32


def test_cocomix_loss_and_where_its_parts_reach() -> None:
    model = student()
    labels = torch.randint(0, 10, (2, 7, 2), generator=torch.Generator().manual_seed(2))
    labels[0, 3] = -100
    loss = CoCoMixObjective(model)({"input_ids": IDS, "concept_labels": labels})
    output = model(IDS)
    named = [
        -F.log_softmax(output.concept_logits[b, t], -1)[labels[b, t, i]]
        for b in range(2)
        for t in range(7)
        for i in range(2)
        if labels[b, t, i] >= 0
    ]
    lm = -sum(F.log_softmax(output.logits[b, t], -1)[IDS[b, t + 1]] for b in range(2) for t in range(6)) / 12
    assert abs(loss.item() - (lm + 0.3 * sum(named) / len(named)).item()) < 1e-12
    loss.backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in model.parameters())
    model.zero_grad()
    model(IDS, concept_labels=labels).concept_loss.backward()
    for name, parameter in model.named_parameters():
        above = name.startswith(("backbone.blocks.1", "backbone.blocks.2", "backbone.final_norm", "mixer"))
        assert above == (parameter.grad is None or not parameter.grad.any()), name


def test_sae_objective_leaves_the_teacher_alone(tmp_path: Path) -> None:
    model, sae = teacher(), TopKSAE(8, 20, 3).double()
    objective = SaeObjective(sae, model, layer=1)
    objective.initialise(IDS)
    normed = sae.preprocess(hidden_at(model, IDS, 1).flatten(0, 1))[0]
    assert torch.allclose(sae.pre_bias, normed.mean(0))
    sae.float()
    objective({"input_ids": IDS}).backward()
    objective.before_step()
    assert (sae.decoder_weight.grad * sae.decoder_weight).sum(-1).abs().max() < 1e-5
    assert all(parameter.grad is None for parameter in model.parameters())
    assert {id(p) for p in objective.parameters()} == {id(p) for p in sae.parameters()}
    objective.save(tmp_path)
    assert torch.equal(TopKSAE.from_pretrained(tmp_path).encoder_weight, sae.encoder_weight)
