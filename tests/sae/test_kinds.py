"""Every kind of autoencoder: loss and gradients against the papers' formulas over all C latents, thresholds, resume."""

import copy
from pathlib import Path

import pytest
import torch

from cocomix.sae import SAE_KINDS, SaeTraining, TopKSAE, sae_quality
from cocomix.sae.formats import FORMATS
from cocomix.sae.kinds import BatchTopKTraining, JumpReLUTraining, MatryoshkaTraining
from cocomix.utils.errors import CocomixError
from tests.helpers.gradients import check_gradients

D, C, K, MOST = 16, 48, 4, 20
OPTIONS = {"matryoshka": {"prefixes": [0.125, 0.5, 1]}, "jumprelu": {"bandwidth": 0.1, "sparsity": 0.7}}


def made(kind: str, *, dead: int = 0, most: int = MOST) -> SaeTraining:
    torch.manual_seed(0)
    extra = {} if kind == "topk" else {"most_active": most}
    options = OPTIONS.get(kind, {})
    training = SAE_KINDS[kind].make(D, C, K, aux_k=5, aux_coefficient=0.5, dead_after_tokens=1000, **extra, **options)
    training.double()
    for bias in (training.sae.pre_bias, training.sae.latent_bias):
        torch.nn.init.normal_(bias, std=0.3)
    training.sae.latent_bias.data[:dead] -= 1.5
    training.tokens_since_fired[:dead] = 1000
    if isinstance(training, JumpReLUTraining):
        torch.nn.init.normal_(training.log_threshold, mean=0.5, std=0.2)
        training.after_step()
    return training.train()


def step(x: torch.Tensor, threshold: torch.Tensor, width: float) -> torch.Tensor:
    """1 above the threshold, with the estimated gradient in the threshold alone, as a loop over its definition."""
    hard, near = (x > threshold).to(x.dtype), ((x - threshold).abs() < width / 2).to(x.dtype)
    return hard - (near / width).detach() * (threshold - threshold.detach())


def dense_loss(training: SaeTraining, x: torch.Tensor) -> torch.Tensor:
    """The loss by the papers: all latents of all positions, autograd."""
    sae = training.sae
    normed, _, _ = sae.preprocess(x)
    pre = sae.pre_activations(normed)
    penalty = torch.zeros((), dtype=x.dtype)
    if isinstance(training, JumpReLUTraining):
        threshold, width = training.log_threshold.exp(), 0.1 * D**0.5
        near = ((pre - threshold).abs() < width / 2).to(x.dtype)
        acts = pre * (pre > threshold) - (near * threshold / width).detach() * (threshold - threshold.detach())
        penalty = 0.7 * (step(pre.detach(), threshold, width).sum(-1).mean() / K - 1).square()
    elif isinstance(training, BatchTopKTraining):
        positive = pre.relu()
        smallest = positive.flatten().sort(descending=True).values[len(x) * K - 1]
        acts = torch.where(positive >= smallest, positive, 0.0)
    else:
        top = pre.topk(K, dim=-1)
        acts = torch.zeros_like(pre).scatter(-1, top.indices, top.values.relu())
    ends = [6, 24, 48] if isinstance(training, MatryoshkaTraining) else [C]
    residuals = [normed - acts[:, :end] @ sae.decoder_weight[:end] - sae.pre_bias for end in ends]
    scale = (normed - normed.mean(0)).square().mean().detach()
    loss = torch.stack([residual.square().mean() for residual in residuals]).mean() / scale + penalty
    silent = (training.tokens_since_fired + len(x)).masked_fill((acts > 0).any(0), 0) > training.dead_after_tokens
    if silent.any():
        top = pre.masked_fill(~silent, -torch.inf).topk(min(5, int(silent.sum())), dim=-1)
        second = torch.zeros_like(pre).scatter(-1, top.indices, top.values.relu()) @ sae.decoder_weight
        left = residuals[-1].detach()
        loss = loss + 0.5 * (second - left).square().mean() / left.square().mean()
    return loss


@pytest.mark.parametrize("dead", [0, 9])
@pytest.mark.parametrize("kind", SAE_KINDS)
def test_loss_and_every_gradient_equal_the_papers(kind: str, dead: int) -> None:
    training = made(kind, dead=dead)
    x = torch.randn(30, D, dtype=torch.double, requires_grad=True)
    wanted = [x, *training.parameters()]
    check_gradients(training, dense_loss(training, x), x, wanted, least=1e-5)
    assert (training.tokens_since_fired > 1000).any() == (dead > 0)


@pytest.mark.parametrize("kind", ["batch_topk", "matryoshka"])
def test_the_threshold_is_the_running_mean_of_the_smallest_activation_kept(kind: str) -> None:
    training = made(kind)
    assert isinstance(training, BatchTopKTraining)
    expected = 0.0
    for seed in range(4):
        x = torch.randn(25, D, dtype=torch.double, generator=torch.Generator().manual_seed(seed))
        pre = training.sae.pre_activations(training.sae.preprocess(x)[0])
        smallest = float(pre.detach().flatten().sort(descending=True).values[25 * K - 1])
        expected = smallest if not seed else 0.99 * expected + 0.01 * smallest
        training(x)
        assert training.threshold.unique().tolist() == pytest.approx([expected])
    # Alone, exactly the latents above it are active.
    training.eval()
    x = torch.randn(40, D, dtype=torch.double)
    pre = training.sae.pre_activations(training.sae.preprocess(x)[0])
    assert pre.gt(expected).sum(-1).max() <= MOST
    assert torch.equal(training.sae.encode_dense(x), torch.where(pre > expected, pre, 0.0).detach())
    before = training.threshold.clone()
    training(x)
    assert torch.equal(training.threshold, before)


def test_a_batch_without_an_active_latent_moves_no_threshold() -> None:
    training = made("batch_topk")
    assert isinstance(training, BatchTopKTraining)
    x = torch.randn(5, D, dtype=torch.double)
    training(x)
    before = training.threshold.clone()
    training.sae.latent_bias.data.fill_(-1e3)
    assert training(x).isfinite() and torch.equal(training.threshold, before)


@pytest.mark.parametrize("kind", SAE_KINDS)
def test_a_resumed_training_ends_with_the_same_bits(kind: str) -> None:
    def train(training: SaeTraining, optimizer: torch.optim.Optimizer, seeds: range) -> None:
        for seed in seeds:
            optimizer.zero_grad()
            x = torch.randn(32, D, generator=torch.Generator().manual_seed(seed))
            training(x).backward()
            training.before_step()
            optimizer.step()
            training.after_step()

    def fresh() -> tuple[SaeTraining, torch.optim.Optimizer]:
        training = made(kind).float()
        training.initialise(torch.randn(64, D, generator=torch.Generator().manual_seed(99)))
        return training, torch.optim.Adam(training.parameters(), lr=1e-2)

    whole, part, again = fresh(), fresh(), fresh()
    start = [copy.deepcopy(one.state_dict()) for one in part]
    train(*whole, range(6))
    train(*part, range(3))
    with torch.no_grad():
        for parameter in again[0].parameters():
            parameter.zero_()
    for one, state in zip(again, [item.state_dict() for item in part], strict=True):
        one.load_state_dict(copy.deepcopy(state))
    train(*again, range(3, 6))
    for name, tensor in whole[0].state_dict().items():
        assert torch.equal(tensor, again[0].state_dict()[name]), name
    assert not torch.equal(whole[0].sae.encoder_weight, start[0]["sae.encoder_weight"])


@pytest.mark.parametrize("kind", SAE_KINDS)
def test_it_learns_directions_and_keeps_about_k(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(1)
    directions = torch.nn.functional.normalize(torch.randn(24, D), dim=-1)

    def data(seed: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        on = torch.rand(256, 24, generator=generator) < 3 / 24
        return (on * (0.5 + torch.rand(256, 24, generator=generator))) @ directions + 0.01 * torch.randn(
            256, D, generator=generator
        )

    training = SAE_KINDS[kind].make(D, C, K, aux_k=8, dead_after_tokens=5000)
    training.initialise(data(0))
    optimizer = torch.optim.Adam(training.train().parameters(), lr=1e-2)
    for seed in range(150):
        optimizer.zero_grad()
        training(data(seed)).backward()
        training.before_step()
        optimizer.step()
        training.after_step()
    training.eval()
    quality = sae_quality(training.sae, [data(1000)])
    assert quality["explained_variance"] > 0.7, quality
    assert 0.6 * K <= quality["l0"] <= 1.4 * K and quality["full_share"] < (1.01 if kind == "topk" else 0.05), quality
    training.sae.save_pretrained(tmp_path)
    again = TopKSAE.from_pretrained(tmp_path)
    assert torch.equal(again(data(1000)), training.sae(data(1000))) and again.k == (K if kind == "topk" else 2 * K)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["batch_topk", "matryoshka", "jumprelu"])
def test_saelens_agrees_with_what_was_trained_here(kind: str, tmp_path: Path) -> None:
    sae_lens = pytest.importorskip("sae_lens")
    training = made(kind)
    training(torch.randn(60, D, dtype=torch.double))
    sae, x = training.sae, torch.randn(50, D, dtype=torch.double)
    with pytest.raises(CocomixError, match=f"of which {MOST} are kept"):
        FORMATS["saelens"]().write(sae, tmp_path / "cut", {"full_share": 0.2})
    FORMATS["saelens"]().write(sae, tmp_path / "all", {"full_share": 0.0, "layer": 2})
    library = sae_lens.SAE.load_from_disk(tmp_path / "all")
    with torch.no_grad():
        assert (library.encode(x) - sae.encode_dense(x)).abs().max() < 1e-12
        assert (library(x) - sae(x)).abs().max() < 1e-12
    assert library.cfg.architecture() == "jumprelu"


@pytest.mark.parametrize("kind", ["batch_topk", "matryoshka"])
def test_saelens_training_has_the_same_active_latents_and_errors(kind: str) -> None:
    saes = pytest.importorskip("sae_lens.saes.matryoshka_batchtopk_sae")
    from sae_lens.saes.sae import TrainStepInput

    training = made(kind)
    theirs = saes.MatryoshkaBatchTopKTrainingSAE(
        saes.MatryoshkaBatchTopKTrainingSAEConfig(
            d_in=D,
            d_sae=C,
            k=K,
            dtype="float64",
            matryoshka_widths=[6, 24, 48] if kind == "matryoshka" else [48],
            rescale_acts_by_decoder_norm=False,
            aux_loss_coefficient=0.0,
        )
    )
    sae, x = training.sae, torch.randn(30, D, dtype=torch.double)
    normed = sae.preprocess(x)[0].detach()
    with torch.no_grad():
        for ours, name in ((sae.encoder_weight.T, "W_enc"), (sae.latent_bias, "b_enc"), (sae.decoder_weight, "W_dec")):
            getattr(theirs, name).copy_(ours)
        theirs.b_dec.copy_(sae.pre_bias)
    output = theirs.training_forward_pass(
        TrainStepInput(sae_in=normed, coefficients={}, dead_neuron_mask=None, n_training_steps=0, is_logging_step=False)
    )
    errors = [float(value.detach()) for name, value in output.losses.items() if "mse" in name]
    scale = (normed - normed.mean(0)).square().mean()
    assert float(training(x).detach()) == pytest.approx(sum(errors) / len(errors) / D / float(scale), rel=1e-9)


def test_options_that_do_not_fit_are_refused() -> None:
    with pytest.raises(CocomixError, match="most_active 3 must be from k"):
        SAE_KINDS["batch_topk"].make(D, C, K, most_active=3)
    for prefixes in ([], [0.5], [0.5, 0.5, 1], ["a", 1], 3):
        with pytest.raises(CocomixError, match="must be ascending shares of the 48 latents"):
            SAE_KINDS["matryoshka"].make(D, C, K, prefixes=prefixes)
    with pytest.raises(CocomixError, match="bandwidth must be above 0"):
        SAE_KINDS["jumprelu"].make(D, C, K, bandwidth=0.0)
