"""Objectives with a second target: each is its formula, costs what it says, and leaves a plain student behind."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, Gemma2Config, Gemma2ForCausalLM, GPT2Config, GPT2LMHeadModel

from cocomix.model.build import Sizes
from cocomix.objectives import OBJECTIVES, NtpObjective
from cocomix.objectives.heads import BlockHead
from cocomix.objectives.schedule import WeightSchedule
from cocomix.objectives.top import TopObjective, order_targets
from cocomix.utils.errors import CocomixError
from tests.helpers.rivals import PREFIXES, RIVALS, V, next_token, order, second, student

IDS = torch.randint(0, V, (2, 9), generator=torch.Generator().manual_seed(1))
IDS[0, 4:7] = IDS[0, 2]  # tokens that come again
SCHEDULE = WeightSchedule(0.5)


def batch(progress: float = 0.0) -> dict[str, torch.Tensor]:
    return {"input_ids": IDS, "progress": torch.tensor(progress, dtype=torch.float64)}


def gradients(loss: torch.Tensor, module: torch.nn.Module) -> dict[str, torch.Tensor]:
    named = [(name, weight) for name, weight in module.named_parameters() if weight.requires_grad]
    found = torch.autograd.grad(loss, [weight for _, weight in named], allow_unused=True)
    return {name: one for (name, _), one in zip(named, found, strict=True) if one is not None}


@pytest.mark.parametrize(("name", "family"), [*((name, "gpt2") for name in RIVALS), ("mtp_block", "llama")])
def test_the_loss_is_its_definition_with_every_gradient(name: str, family: str) -> None:
    objective = RIVALS[name](family).double().train()
    loss = objective(batch())
    slow = next_token(objective.evaluated(), IDS) + 0.7 * second(name, objective, IDS)
    torch.testing.assert_close(loss, slow, rtol=1e-9, atol=0)
    mine, theirs = (gradients(one, objective.trainable()) for one in (loss, slow))
    assert mine.keys() == theirs.keys() == dict(objective.trainable().named_parameters()).keys()
    close = (
        {"rtol": 1e-7, "atol": 1e-12} if family == "gpt2" else {"rtol": 1e-5, "atol": 1e-7}
    )  # Llama norms in float32
    for key, gradient in mine.items():
        torch.testing.assert_close(gradient, theirs[key], **close)


@pytest.mark.parametrize("name", RIVALS)
def test_the_second_loss_is_not_computed_once_it_has_no_weight(name: str) -> None:
    objective = RIVALS[name](schedule=SCHEDULE).double().train()
    base, half, over = objective(batch(0.0)), objective(batch(0.25)), objective(batch(0.5))
    alone = NtpObjective(objective.evaluated())({"input_ids": IDS})
    torch.testing.assert_close(over, alone, rtol=1e-12, atol=0)
    torch.testing.assert_close(2 * (half - over), base - over)
    over.backward()
    assert not any(weight.grad is None for weight in objective.trainable().parameters())  # DDP waits for each
    assert not any(weight.grad.any() for weight in objective.all.heads.parameters())


def added(_into: Any, left: Any, right: Any, *_: Any, **__: Any) -> int:
    """Operations of `addmm_`, which PyTorch's counter leaves out."""
    return 2 * left[0] * left[1] * right[1]


@pytest.mark.parametrize("name", RIVALS)
def test_flops_are_pytorchs_count(name: str) -> None:
    def counted(made: Any) -> int:
        made.train()
        counter = FlopCounterMode(display=False, custom_mapping={torch.ops.aten.addmm_: added})
        with counter, torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            made(batch()).backward()
        return counter.get_total_flops()

    objective = RIVALS[name](schedule=SCHEDULE)
    more = (counted(objective) - counted(NtpObjective(student()))) / IDS.numel()
    plain = NtpObjective(student()).flops_per_token(9)
    first = objective.flops_so_far(9, 0.25) - plain
    # Losses leave out a position or two of nine, and of attention to a first block's input one product is never made.
    assert more == pytest.approx(first, rel=0.25) and (more > 0.5 * plain) == (first > 0.5 * plain)
    assert objective.flops_per_token(9) - plain == pytest.approx(first / 2)  # half of the training has it
    assert objective.flops_so_far(9, 1.0) == objective.flops_per_token(9)


@pytest.mark.parametrize("name", RIVALS)
def test_heads_are_saved_beside_a_plain_student(name: str, tmp_path: Path) -> None:
    objective = RIVALS[name]()
    objective.save(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert model.state_dict().keys() == objective.evaluated().state_dict().keys()
    assert torch.equal(model(IDS).logits, objective.evaluated().eval()(IDS).logits)
    held = dict(objective.all.heads.named_parameters())
    assert (tmp_path / "heads").exists() == bool(held) == ("shared" not in name)
    if held:
        assert load_file(tmp_path / "heads/model.safetensors").keys() == held.keys()


def test_a_block_head_is_the_students_own_last_block_and_norm() -> None:
    for family in ("gpt2", "llama"):
        model = student(family).double().eval()
        head: Any = BlockHead(model, family).double().eval()
        if family == "gpt2":
            theirs, final = model.transformer.h[-1], model.transformer.ln_f
            for mine, one in (
                (head.block.attention.qkv, theirs.attn.c_attn), (head.block.attention.out, theirs.attn.c_proj),
                (head.block.mlp.up, theirs.mlp.c_fc), (head.block.mlp.down, theirs.mlp.c_proj),
            ):  # fmt: skip
                mine.weight.data, mine.bias.data = one.weight.data.T.clone(), one.bias.data.clone()
            norms = ((head.block.norm_1, theirs.ln_1), (head.block.norm_2, theirs.ln_2), (head.norm, final))
        else:
            theirs, final = model.model.layers[-1], model.model.norm
            kept = theirs.self_attn
            joined = torch.cat([one.weight.data for one in (kept.q_proj, kept.k_proj, kept.v_proj)])
            head.block.attention.qkv.weight.data = joined
            head.block.attention.out.weight.data = kept.o_proj.weight.data
            for mine, one in (("gate", "gate_proj"), ("up", "up_proj"), ("down", "down_proj")):
                getattr(head.block.mlp, mine).weight.data = getattr(theirs.mlp, one).weight.data
            norms = (
                (head.block.norm_1, theirs.input_layernorm), (head.block.norm_2, theirs.post_attention_layernorm),
                (head.norm, final),
            )  # fmt: skip
        for mine, one in norms:
            mine.load_state_dict(one.state_dict())
            mine.eps = getattr(one, "eps", None) or one.variance_epsilon
        states = model(IDS, output_hidden_states=True).hidden_states
        torch.testing.assert_close(head(states), states[-1])


def test_multi_token_prediction_is_the_sum_of_the_papers_losses() -> None:
    """Uniform logits: every token costs log V, so n tokens cost n log V with the paper's weights of 1."""
    objective: Any = RIVALS["mtp_block"]().double()
    objective.weight = objective.decay = 1.0
    objective.evaluated().lm_head.weight.data.zero_()
    assert objective(batch()).item() == pytest.approx(3 * torch.tensor(V).double().log().item())


def test_order_by_hand() -> None:
    """a b a c: after the first a come b, a, c at 3, 2, 1 of a window of 3; after b come a and c at 3 and 2."""
    a, b, c = 4, 7, 9
    tokens, weights = order_targets(torch.tensor([[a, b, a, c]]), 3, torch.float64)
    assert tokens[0].tolist() == [[b, a, c], [a, c, -100], [c, -100, -100]]
    e = torch.e
    for row, scores in enumerate([[e**3, e**2, e], [e**3, e**2, 0], [e**3, 0, 0]]):
        assert weights[0, row].tolist() == pytest.approx([score / sum(scores) for score in scores])
    tokens, weights = order_targets(torch.tensor([[a, b, b, b, c]]), 4, torch.float64)  # b counts where it comes first
    assert tokens[0, 0].tolist() == [b, -100, -100, c]
    assert weights[0, 0].tolist() == pytest.approx([e**4 / (e**4 + e), 0, 0, e / (e**4 + e)])


@pytest.mark.parametrize("window", [1, 2, 5, 40, 1000])
def test_order_targets_equal_a_loop(window: int) -> None:
    ids = torch.randint(0, 6, (3, 60), generator=torch.Generator().manual_seed(window))
    tokens, weights = order_targets(ids, window, torch.float64)
    for b in range(3):
        for t in range(59):
            pairs = zip(tokens[b, t].tolist(), weights[b, t].tolist(), strict=True)
            found = {token: weight for token, weight in pairs if token >= 0}
            assert found == pytest.approx(order(ids[b, t + 1 :].tolist(), window), abs=1e-15)


def test_the_ranking_loss_is_listnets() -> None:
    """As the authors' code has it: a dense target softmax times the log softmax of the scores, over all tokens."""
    objective: Any = RIVALS["top"]().double()
    hidden = objective.evaluated()(IDS, output_hidden_states=True).hidden_states[-1]
    dense = torch.full((2, 8, V), -torch.inf, dtype=torch.float64)
    for t in range(7, -1, -1):
        for distance in range(min(4, 8 - t) - 1, -1, -1):
            dense[torch.arange(2), t, IDS[:, t + 1 + distance]] = 4.0 - distance
    scores = objective.all.heads(hidden[:, :-1])
    listnet = -(dense.softmax(-1) * scores.log_softmax(-1)).sum(-1).mean()
    torch.testing.assert_close(objective.second(IDS, (hidden,)), listnet)


def test_a_perfect_dynamics_model_and_a_perfect_projection_lose_nothing() -> None:
    nextlat: Any = RIVALS["nextlat"]().double()
    nextlat.all.heads.mlp[4].weight.data.zero_()  # g stays h[t], and h is the same everywhere
    same = torch.ones(1, 9, 16, dtype=torch.float64)
    assert nextlat.second(IDS[:1], (same,)).item() == pytest.approx(0, abs=1e-12)
    nitp: Any = RIVALS["nitp"]().double()
    opposite = torch.nn.Linear(16, 16, bias=False).double()
    opposite.weight.data = -torch.eye(16, dtype=torch.float64)
    nitp.all.heads = opposite
    assert nitp.second(IDS[:1], (same, same, same)).item() == pytest.approx(2)  # 1 - cos of opposites


def test_a_student_whose_logits_are_more_than_a_layer_is_refused() -> None:
    shape = {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 16, "head_dim": 8}
    model = Gemma2ForCausalLM(Gemma2Config(**shape, vocab_size=V, num_key_value_heads=1, intermediate_size=32))
    with pytest.raises(CocomixError, match="the logits of Gemma2ForCausalLM are not one linear layer"):
        TopObjective(model, 1.0, 4)


SIZES = Sizes(V, 9, 0, 0, 0, 0, prefixes=torch.tensor(PREFIXES).numpy())
SETTINGS: dict[str, dict[str, Any]] = {
    "mtp": {"tokens": 3, "head": "block"}, "top": {"window": 5}, "nextlat": {"horizon": 2}, "nitp": {}, "prefix": {},
}  # fmt: skip


@pytest.mark.parametrize("name", SETTINGS)
def test_settings_make_it_and_describe_it(name: str) -> None:
    given = {"objective": name, "model": {"width": 16, "layers": 3, "heads": 2}, **SETTINGS[name]}
    settings = OBJECTIVES[name].model_validate(given | {"loss_until": 0.5, "loss_shape": "cosine"})
    assert "weight" in settings.describe() and "falling to 0 by 50% (cosine)" in settings.describe()
    made = settings.make_objective(settings.build(SIZES), SIZES, lambda: pytest.fail("there is no teacher"))
    assert made.uses_progress and made(batch()).isfinite()
    with torch.device("meta"):  # as a plan counts it, which knows no tokenizer
        planned = settings.make_objective(settings.build(SIZES), SIZES._replace(prefixes=None), lambda: pytest.fail(""))
    assert planned.flops_per_token(9) == made.flops_per_token(9)
    count = [sum(one.numel() for one in each.trainable().parameters()) for each in (planned, made)]
    assert count[0] == count[1]


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("mtp", {"tokens": 9}, "tokens 9 must be fewer than the window's seq_len 9"),
        ("nextlat", {"horizon": 9}, "horizon 9 must be fewer tokens than seq_len 9"),
        ("nitp", {"target_layer": 2}, "target_layer 2 is not below the last of 3 blocks; choose 0 to 1"),
        ("top", {"loss_until": None, "loss_shape": "cosine"}, "say by when with loss_until"),
    ],
)
def test_settings_that_do_not_fit_are_one_sentence(name: str, changes: dict[str, Any], words: str) -> None:
    raw = {"objective": name, "model": {"width": 16, "layers": 3, "heads": 2}} | changes
    with pytest.raises((ValueError, CocomixError), match=words):
        settings = OBJECTIVES[name].model_validate(raw)
        settings.make_objective(settings.build(SIZES), SIZES, lambda: pytest.fail(""))


def test_a_vocabulary_without_prefixes_is_refused() -> None:
    settings = OBJECTIVES["prefix"].model_validate({"objective": "prefix"})
    model = GPT2LMHeadModel(GPT2Config(vocab_size=3, n_positions=8, n_embd=8, n_layer=1, n_head=1))
    with pytest.raises(CocomixError, match="no token of this vocabulary begins with another one"):
        settings.make_objective(model, SIZES._replace(prefixes=torch.full((3,), -100).numpy()), lambda: pytest.fail(""))
