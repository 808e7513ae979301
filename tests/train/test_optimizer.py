"""The optimiser against the formula, one number at a time in float64."""

import os
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedModel

from cocomix.model import CoCoMixForCausalLM, MixConfig, ModelShape, Sizes, build_mixed, build_plain
from cocomix.train.config import TrainConfig
from cocomix.train.optimizer import OPTIMIZERS, BatchedMuon, adamw, orthogonalised
from cocomix.train.trainer import Trainer
from cocomix.utils.errors import CocomixError, Interrupted
from tests.helpers.distributed_programs import launch, program
from tests.helpers.every_objective import CONFIG, OBJECTIVES, data, train


def test_steps_equal_adamw_written_out() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 5), nn.LayerNorm(5), nn.Linear(5, 2)).double()
    config = TrainConfig(steps=1, learning_rate=0.01, weight_decay=0.2, betas=(0.8, 0.9), eps=1e-3)
    start = [parameter.detach().clone() for parameter in model.parameters()]
    gradients = [[torch.randn_like(one) for one in start] for _ in range(4)]
    optimizer = adamw(model, config)
    for step in gradients:
        for parameter, gradient in zip(model.parameters(), step, strict=True):
            parameter.grad = gradient.clone()
        optimizer.step()
    for place, parameter in enumerate(model.parameters()):
        decay = 0.2 if parameter.ndim >= 2 else 0.0
        for at in range(parameter.numel()):
            numbers = [step[place].flatten()[at].item() for step in gradients]
            expected = _adamw(start[place].flatten()[at].item(), numbers, decay)
            assert abs(parameter.flatten()[at].item() - expected) < 1e-12


def _adamw(value: float, gradients: list[float], decay: float) -> float:
    first = second = 0.0
    for step, gradient in enumerate(gradients, 1):
        value -= 0.01 * decay * value
        first, second = 0.8 * first + 0.2 * gradient, 0.9 * second + 0.1 * gradient**2
        value -= 0.01 * first / (1 - 0.8**step) / ((second / (1 - 0.9**step)) ** 0.5 + 1e-3)
    return value


def _plain(backbone: str, **settings: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    return build_plain(ModelShape(backbone=backbone, width=16, layers=2, heads=4, **settings), vocab_size=30, seq_len=8)


def _mixed(backbone: str) -> CoCoMixForCausalLM:
    torch.manual_seed(0)
    sizes = Sizes(vocab_size=30, seq_len=8, n_concepts=12, top_k=3, teacher_width=0, sae_layer=0)
    shape = ModelShape(backbone=backbone, width=16, layers=2, heads=4)
    return build_mixed(shape, MixConfig(concept_layer=1), sizes, num_concepts=12, concept_top_k=3)


def _queries_keys_values(name: str, weight: torch.Tensor) -> list[torch.Tensor]:
    """Matrices side by side in a fused weight of 4 heads of width 4, as the two families name and lay them out."""
    if name.endswith("qkv.weight"):
        return [weight[:16], weight[16:32], weight[32:]]
    if name.endswith("c_attn.weight"):
        return [weight[:, :16].T, weight[:, 16:32].T, weight[:, 32:].T]
    return [weight]


def _muon(weight: torch.Tensor, gradients: list[torch.Tensor]) -> torch.Tensor:
    """Momentum, Nesterov, five quintic Newton-Schulz iterations, on one matrix in float64."""
    weight, gradients = weight.double(), [gradient.double() for gradient in gradients]
    momentum = torch.zeros_like(weight)
    for gradient in gradients:
        momentum = 0.9 * momentum + 0.1 * gradient
        x = 0.1 * gradient + 0.9 * momentum
        x = x.T if len(x) > x.shape[1] else x
        x = x / x.norm()
        for _ in range(5):
            square = x @ x.T
            x = 3.4445 * x + (-4.775 * square + 2.0315 * square @ square) @ x
        x = x.T if len(gradient) > gradient.shape[1] else x
        weight = weight * (1 - 0.01 * 0.2) - 0.01 * 0.2 * max(weight.shape) ** 0.5 * x
    return weight


@pytest.mark.parametrize(
    "build",
    [lambda: _plain("gpt2"), lambda: _plain("llama"), lambda: _mixed("gpt2"), lambda: _mixed("llama")],
    ids=["gpt2", "llama", "cocomix gpt2", "cocomix llama"],
)
def test_muon_steps_blocks_by_its_formula_and_all_else_by_adamw(build: Callable[[], PreTrainedModel]) -> None:
    model, other = build(), build()
    config = TrainConfig(steps=1, learning_rate=0.01, weight_decay=0.2, muon_momentum=0.9, optimizer="muon")
    optimizer, reference = OPTIMIZERS["muon"](model, config), adamw(other, config)
    start = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    gradients = {name: [torch.randn_like(value) for _ in range(3)] for name, value in start.items()}
    for number in range(3):
        for each in (model, other):
            for name, parameter in each.named_parameters():
                parameter.grad = gradients[name][number].clone()
        optimizer.step()
        reference.step()
        optimizer.zero_grad()
        assert all(parameter.grad is None for parameter in model.parameters())
    expected = dict(other.named_parameters())
    of_blocks = [name for name in start if re.search(r"(\.h|layers|blocks)\.\d+\.", name) and start[name].ndim == 2]
    assert len(of_blocks) in (8, 14, 10)
    for name, parameter in model.named_parameters():
        if name not in of_blocks:
            assert torch.equal(parameter, expected[name])
            continue
        parts = [_queries_keys_values(name, tensor) for tensor in (start[name], *gradients[name])]
        for place, part in enumerate(_queries_keys_values(name, parameter)):
            twin = _muon(parts[0][place], [step[place] for step in parts[1:]])
            whole = (twin - parts[0][place]).norm()
            assert (part - twin).norm() < 0.03 * whole  # bfloat16 rounds each product to 0.4 %


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_batched_step_is_torchs(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cocomix.train.optimizer.BATCH", 3 * 6 * 10)  # so that a shape takes two batches
    torch.manual_seed(0)
    start = [torch.randn(shape) for shape in [(6, 10)] * 5 + [(10, 6)] * 2 + [(6, 6), (4, 6)]]
    options: dict[str, Any] = {"lr": 0.01, "weight_decay": 0.2, "momentum": 0.9}
    ours, theirs = ([nn.Parameter(value.clone()) for value in start] for _ in range(2))
    batched = BatchedMuon(ours, dtype, **options)
    for leaf in ours:
        batched.state[leaf]["momentum_buffer"] = torch.zeros_like(leaf)
    plain = torch.optim.Muon(theirs, adjust_lr_fn="match_rms_adamw", **options)
    for _ in range(3):
        for leaf, other in zip(ours[:-1], theirs[:-1], strict=True):  # the last one has no gradient
            leaf.grad = torch.randn_like(leaf)
            other.grad = leaf.grad.clone()
        batched.step()
        plain.step()
    for leaf, other, before in zip(ours, theirs, start, strict=True):
        if dtype is torch.bfloat16:
            assert torch.equal(leaf, other)
        else:
            assert (leaf - other).norm() <= 0.03 * (other - before).norm()


@pytest.mark.parametrize("shape", [(3, 5, 8), (2, 8, 5), (1, 4, 4)])
def test_orthogonalised_in_float32_is_the_loop_in_float64(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    matrices = torch.randn(shape)
    made = orthogonalised(list(matrices), torch.float32, (3.4445, -4.775, 2.0315))
    for found, matrix in zip(made, matrices, strict=True):
        twin = _muon(torch.zeros_like(matrix), [matrix]) / (-0.01 * 0.2 * max(matrix.shape) ** 0.5)
        torch.testing.assert_close(found.double(), twin, rtol=1e-4, atol=1e-4)


def test_muon_updates_are_as_large_as_adamws() -> None:
    model = _plain("llama")
    before = model.model.layers[0].mlp.up_proj.weight.detach().clone()
    optimizer = OPTIMIZERS["muon"](model, TrainConfig(steps=1, learning_rate=1.0, weight_decay=0.0, optimizer="muon"))
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    update = model.model.layers[0].mlp.up_proj.weight.detach() - before
    assert 0.1 < update.square().mean().sqrt() < 0.3  # AdamW's is 0.2 to 0.4 in training


def test_muon_counts_its_products_and_its_state() -> None:
    model = _plain("llama", kv_heads=2)
    shapes = [(16, 16), (8, 16), (8, 16), (16, 16), *[model.model.layers[0].mlp.up_proj.weight.shape] * 3]
    torch.manual_seed(0)
    flops, one = 0, OPTIMIZERS["muon"]
    for shape in shapes * 2:
        leaf = nn.Parameter(torch.zeros(tuple(shape)))
        leaf.grad = torch.randn_like(leaf)
        with FlopCounterMode(display=False) as counter:
            torch.optim.Muon([leaf]).step()
        flops += counter.get_total_flops()
    assert one.step_flops(model) == flops and OPTIMIZERS["adamw"].step_flops(model) == 0
    optimizer = one(model, TrainConfig(steps=1, optimizer="muon"))
    kept = [moment for p in model.parameters() for key, moment in optimizer.moments(p).items() if key != "step"]
    assert one.state_bytes(model) == sum(moment.numel() * 4 for moment in kept)
    assert OPTIMIZERS["adamw"].state_bytes(model) == 8 * model.num_parameters()


@pytest.mark.parametrize("name", ["ntp", "cocomix"])
def test_muon_resumes_bit_for_bit(name: str, tmp_path: Path) -> None:
    whole = train(name, tmp_path, "whole", optimizer="muon")

    def stop(step: int, _total: int, _metrics: dict[str, float]) -> None:
        if step == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    config = CONFIG.model_copy(update={"optimizer": "muon"})
    with pytest.raises(Interrupted):
        Trainer(OBJECTIVES[name](), data(tmp_path / "shards"), config, tmp_path / "cut" / name, progress=stop).run()
    resumed = train(name, tmp_path, "cut", optimizer="muon")
    assert all(torch.equal(resumed[key], tensor) for key, tensor in whole.items())
    adamws = train(name, tmp_path, "adamw")
    assert any(not torch.equal(adamws[key], tensor) for key, tensor in whole.items())


TWO_PROCESSES = """
from cocomix.train.trainer import CHECKPOINTS, Trainer
from tests.helpers.every_objective import CONFIG, OBJECTIVES, data
config = CONFIG.model_copy(update={"optimizer": "muon", "steps": 8, "checkpoint_seconds": 1e-9})
class Cut(Exception): pass
def cut(step, total, metrics):
    if step == 7:
        raise Cut
for name in ("ntp", "cocomix"):
    whole = OBJECTIVES[name]()
    Trainer(whole, data(home / "shards"), config, home / "two" / name).run()
    try:
        Trainer(OBJECTIVES[name](), data(home / "shards"), config, home / "cut" / name, progress=cut).run()
    except Cut:
        pass
    assert [path.name for path in (home / "cut" / name / CHECKPOINTS).iterdir()] == ["step-00000005"]
    resumed = OBJECTIVES[name]()
    Trainer(resumed, data(home / "shards"), config, home / "cut" / name).run()
    pairs = zip(whole.trainable().parameters(), resumed.trainable().parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)
    torch.save(whole.trainable().state_dict(), home / f"{name}-{rank()}.pt")
"""


@pytest.mark.long
def test_muon_on_two_processes_is_muon_on_one_and_resumes(tmp_path: Path, no_waiting_for_the_disk: None) -> None:
    shards = data(tmp_path / "shards")
    launch(2, program(tmp_path, TWO_PROCESSES))
    # Halves of a batch one after the other add up to the bits that two processes exchange.
    config = CONFIG.model_copy(update={"optimizer": "muon", "steps": 8, "micro_batch_size": 2})
    for name in ("ntp", "cocomix"):
        made = OBJECTIVES[name]()
        Trainer(made, shards, config, tmp_path / "one" / name).run()
        one = made.trainable().state_dict()
        for rank in (0, 1):
            two = torch.load(tmp_path / f"{name}-{rank}.pt", weights_only=True)
            assert one.keys() == two.keys() and all(torch.equal(two[key], one[key]) for key in one), (name, rank)


def test_muon_is_refused_where_it_cannot_be_used() -> None:
    with pytest.raises(ValidationError, match="optimizer muon needs whole matrices, which fsdp divides"):
        TrainConfig(steps=1, optimizer="muon", parallel="fsdp")
    with pytest.raises(ValidationError, match="no optimizer 'sgd'; choose one of adamw, muon"):
        TrainConfig(steps=1, optimizer="sgd")
    with pytest.raises(CocomixError, match="there are none here"):
        OPTIMIZERS["muon"](nn.Linear(3, 3), TrainConfig(steps=1, optimizer="muon"))
