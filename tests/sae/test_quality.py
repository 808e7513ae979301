"""Quality of an autoencoder: every figure against its definition, and the page that shows them."""

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from transformers import GPT2Config, GPT2LMHeadModel

from cocomix.model import hidden_at
from cocomix.model.teacher import blocks
from cocomix.report.page import write_sae_page
from cocomix.sae import TopKSAE, sae_quality, spliced_losses
from cocomix.sae.metrics import density
from cocomix.utils.errors import CocomixError


def autoencoder(width: int = 8) -> TopKSAE:
    torch.manual_seed(0)
    made = TopKSAE(width, 20, 3).double()
    torch.nn.init.normal_(made.pre_bias)
    torch.nn.init.normal_(made.latent_bias)
    return made


def test_quality_equals_its_definition() -> None:
    made, x = autoencoder(), torch.randn(60, 8, dtype=torch.double) * 3 + 1
    figures = sae_quality(made, x.split(25))
    error = (made(x) - x).square().sum()
    assert abs(figures["explained_variance"] - (1 - error / (x - x.mean(0)).square().sum()).item()) < 1e-9
    assert abs(figures["mse"] - (made(x) - x).square().mean().item()) < 1e-12
    dense = made.encode_dense(x)
    assert figures["l0"] == (dense > 0).sum().item() / 60
    assert abs(figures["dead_share"] - (~(dense > 0).any(0)).double().mean().item()) < 1e-12
    edges, heights = figures["density"]["edges"], figures["density"]["latents"]
    slow = [0] * len(heights)
    for latent in range(20):
        share = sum(dense[row, latent] > 0 for row in range(60)) / 60
        if share > 0:
            slow[max(i for i in range(len(heights)) if edges[i] <= math.log10(share) or i == 0)] += 1
    assert heights == slow and sum(heights) == round(20 * (1 - figures["dead_share"]))
    with pytest.raises(CocomixError, match="no hidden states"):
        sae_quality(made, [])


def test_the_ends_of_the_histogram() -> None:
    found = density(torch.tensor([10**9, 10**9 // 10, 1, 0]), 10**9)
    assert len(found["edges"]) == len(found["latents"]) + 1
    assert found["latents"][-1] == 1 and found["latents"][0] == 1 and sum(found["latents"]) == 3
    assert found["edges"][-1] == 0.0


def test_spliced_losses_equal_hooks_on_the_layer(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=30, n_positions=8, n_embd=8, n_layer=3, n_head=2)).double().eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    sae, ids = autoencoder(), torch.randint(0, 30, (5, 7))
    mean = hidden_at(model, ids, 1).flatten(0, 1).mean(0)

    def loss(change) -> float:
        handle = blocks(model)[1].register_forward_hook(lambda _m, _i, output: change(output))
        logits = model(ids).logits
        handle.remove()
        return F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()).item()

    slow = {
        "plain": loss(lambda x: x),
        "sae": loss(sae),
        "zero": loss(torch.zeros_like),
        "mean": loss(lambda x: mean.expand_as(x)),
    }
    figures = spliced_losses(model, sae, ids.split(2), layer=1, mean=mean)
    assert figures["spliced_tokens"] == 5 * 6
    for name, value in slow.items():
        assert abs(figures[f"loss_{name}"] - value) < 1e-12
    for name, worst in (("loss_recovered", "zero"), ("loss_recovered_of_mean", "mean")):
        assert abs(figures[name] - (slow[worst] - slow["sae"]) / (slow[worst] - slow["plain"])) < 1e-9
    with pytest.raises(CocomixError, match="no tokens"):
        spliced_losses(model, sae, [], layer=1, mean=mean)

    quality = sae_quality(sae, [hidden_at(model, ids, 1).flatten(0, 1)])
    write_sae_page(quality | figures | {"n_latents": 20, "k": 3, "layer": 1}, tmp_path / "quality.html")
    page = (tmp_path / "quality.html").read_text()
    assert f"{figures['loss_recovered']:.4f}" in page and "<svg" in page
    assert "http" not in page.replace("http://www.w3.org", "").replace("http://purl.org", "")


def test_a_perfect_autoencoder_recovers_everything_and_a_useless_ablation_nothing_to_divide_by() -> None:
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=30, n_positions=8, n_embd=8, n_layer=2, n_head=2)).double().eval()
    sae = TopKSAE(8, 16, 16, normalisation="none").double()
    both = torch.cat([torch.eye(8), -torch.eye(8)]).double()
    sae.encoder_weight.data, sae.decoder_weight.data = both, both
    ids = torch.randint(0, 30, (2, 8))
    figures = spliced_losses(model, sae, [ids], layer=0, mean=torch.zeros(8))
    assert abs(figures["loss_recovered"] - 1) < 1e-9
    model.lm_head.weight.data.zero_()
    assert spliced_losses(model, sae, [ids], layer=0, mean=torch.zeros(8))["loss_recovered"] is None
