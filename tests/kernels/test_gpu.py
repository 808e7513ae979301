"""What the fast paths give on a GPU is what they give on the CPU, within float32's rounding."""

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from cocomix import CoCoMixConfig, CoCoMixForCausalLM
from cocomix.kernels import largest, linear_losses, weighted_rows
from cocomix.labels.attribution import attribute
from cocomix.sae import TopKSAE

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
CLOSE = {"rtol": 1e-3, "atol": 1e-4}


def test_linear_losses() -> None:
    torch.manual_seed(0)
    x, weight, bias = torch.randn(300, 64), torch.randn(5000, 64) / 8, torch.randn(5000)
    targets, into = torch.randint(0, 5000, (300, 4)), torch.randn(300, 32)
    found = []
    for device in ("cpu", "cuda"):
        given = [one.detach().to(device).requires_grad_() for one in (x, weight, bias)]
        losses = linear_losses(*given, targets.to(device), top_k=32)
        assert losses.values is not None
        out = losses.total / losses.count + (losses.values * into.to(device)).mean()
        found.append([losses.total, losses.values, *torch.autograd.grad(out, given)])
    for mine, theirs in zip(*found, strict=True):
        torch.testing.assert_close(theirs.cpu(), mine, **CLOSE)


def test_rows_and_top_k() -> None:
    torch.manual_seed(0)
    values, ids, weight = torch.randn(50, 32), torch.randint(0, 4000, (50, 32)), torch.randn(4000, 64)
    torch.testing.assert_close(
        weighted_rows(values.cuda(), ids.cuda(), weight.cuda()).cpu(), weighted_rows(values, ids, weight), **CLOSE
    )
    scores = torch.randn(50, 4000)
    assert torch.equal(largest(scores.cuda(), 32)[0].cpu(), largest(scores, 32)[0])


def test_a_training_step_and_generation() -> None:
    torch.manual_seed(0)
    config = CoCoMixConfig(
        vocab_size=300, hidden_size=64, num_hidden_layers=4, num_attention_heads=4, max_position_embeddings=64,
        concept_layer=2, num_concepts=500, concept_top_k=16, eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    model = CoCoMixForCausalLM(config)
    ids, labels = torch.randint(1, 300, (2, 40)), torch.randint(0, 500, (2, 40, 4))
    found, texts = [], []
    for device in ("cpu", "cuda"):
        model.to(device).train()
        given = {"input_ids": ids.to(device), "labels": ids.to(device), "concept_labels": labels.to(device)}
        loss = model(**given, skip_logits=True).loss
        found.append([loss, *torch.autograd.grad(loss, list(model.parameters()))])
        texts.append(model.eval().generate(ids[:, :5].to(device), max_new_tokens=8, do_sample=False).cpu())
    for mine, theirs in zip(*found, strict=True):
        torch.testing.assert_close(theirs.cpu(), mine.cpu(), **CLOSE)
    assert texts[0].shape == texts[1].shape


@pytest.mark.parametrize("rule", ["reference", "exact"])
def test_attribution(rule: str) -> None:
    torch.manual_seed(0)
    teacher = GPT2LMHeadModel(GPT2Config(vocab_size=300, n_embd=64, n_layer=4, n_head=4, n_positions=64)).eval()
    sae, ids = TopKSAE(64, 500, 16), torch.randint(0, 300, (2, 40))
    on_cpu = attribute(teacher, sae, ids, layer=1, rule=rule)
    on_gpu = attribute(teacher.cuda(), sae.cuda(), ids.cuda(), layer=1, rule=rule)
    # A latent at the edge of the K largest may differ; nearly all must not.
    assert ((on_gpu.cpu() - on_cpu).abs() < 1e-4 + 1e-3 * on_cpu.abs().max()).float().mean() > 0.999
