"""The initialisation by width: the table of its docstring, weight by weight, in plain models and in ours."""

import math
import re
from collections.abc import Callable

import pytest
import torch
from pydantic import ValidationError
from transformers import PreTrainedModel

from cocomix.model import MixConfig, ModelShape, Sizes, build_mixed, build_plain
from cocomix.model.initialisation import BLOCK, EMBEDDING
from cocomix.objectives.mtp import MtpStudent
from cocomix.utils.settings import identity

D, LAYERS, K, C, V = 64, 2, 4, 200, 300
SIZES = Sizes(vocab_size=V, seq_len=100, n_concepts=C, top_k=K, teacher_width=0, sae_layer=0)


def plain(backbone: str, init: str = "width", **settings: bool) -> PreTrainedModel:
    shape = ModelShape(backbone=backbone, width=D, layers=LAYERS, heads=2, init=init, **settings)
    return build_plain(shape, vocab_size=V, seq_len=100)


def mixed(backbone: str, init: str = "width", channel: str = "concepts") -> PreTrainedModel:
    shape = ModelShape(backbone=backbone, width=D, layers=LAYERS, heads=2, init=init)
    mix = MixConfig(concept_layer=1)
    return build_mixed(shape, mix, SIZES, num_concepts=C, concept_top_k=K, channel=channel)


def expected(name: str, tensor: torch.Tensor) -> float | None:
    """The standard deviation that the table gives a weight, by its name; None: it is drawn no more than before."""
    writes = 1 / math.sqrt(2 * LAYERS)
    if tensor.ndim < 2 and name != "channel.vector":
        return None
    if re.search(r"wte|wpe|embed_tokens|embed_positions|lm_head|^channel\.vector$", name):
        return EMBEDDING / math.sqrt(D)
    if name == "channel.vector.weight":
        return writes * BLOCK / math.sqrt(K)
    inputs = len(tensor) if re.search(r"\.h\.\d+\.", name) else tensor.shape[1]  # GPT-2's own are [in, out]
    writer = re.search(r"(c_proj|o_proj|down_proj|attention\.out|mlp\.down|channel\.down)\.weight$", name)
    return (writes if writer else 1.0) * BLOCK / math.sqrt(inputs)


BUILDS: dict[str, Callable[[], PreTrainedModel]] = {
    "gpt2": lambda: plain("gpt2"),
    "llama": lambda: plain("llama"),
    "cocomix gpt2": lambda: mixed("gpt2"),
    "cocomix llama": lambda: mixed("llama"),
    "pause": lambda: mixed("llama", channel="pause"),
    "mlp": lambda: mixed("gpt2", channel="mlp"),
}


@pytest.mark.parametrize("build", BUILDS.values(), ids=BUILDS)
def test_every_weight_has_the_tables_deviation(build: Callable[[], PreTrainedModel]) -> None:
    torch.manual_seed(0)
    for name, tensor in build().named_parameters():
        std = expected(name, tensor)
        if std is not None:
            assert tensor.std().item() == pytest.approx(std, rel=0.05 if tensor.ndim > 1 else 0.3), name
        else:
            assert tensor.unique().numel() == 1, name  # a norm's ones, a bias's zeros


def test_new_logits_have_the_embeddings_deviation_at_every_width() -> None:
    ids = torch.arange(100)[None]
    for width in (32, 256):
        torch.manual_seed(0)
        shape = ModelShape(backbone="llama", width=width, layers=2, heads=2, init="width")
        with torch.no_grad():
            logits = build_plain(shape, vocab_size=V, seq_len=100)(input_ids=ids).logits
        other = logits[0][torch.arange(V)[None] != ids.T]  # a token's own logit is larger, since the head is tied
        assert other.std().item() == pytest.approx(EMBEDDING, rel=0.15)


@pytest.mark.parametrize("channel", ["concepts", "mlp", "pause"])
def test_a_vector_scale_keeps_its_meaning(channel: str) -> None:
    torch.manual_seed(0)
    shape = ModelShape(backbone="llama", width=D, layers=LAYERS, heads=2, init="width")
    mix = MixConfig(concept_layer=1, vector_scale=0.3)
    model = build_mixed(shape, mix, SIZES, num_concepts=C, concept_top_k=K, channel=channel)
    with torch.no_grad():
        hidden = torch.randn(4, 100, D)
        vector = model.channel(hidden, torch.arange(100)[None], None).vector
    assert (vector.square().mean() / hidden.square().mean()).sqrt().item() == pytest.approx(0.3, rel=0.25)


def test_heads_of_rivals_are_drawn_alike() -> None:
    student = MtpStudent(
        objective="mtp", tokens=2, model=ModelShape(backbone="llama", width=D, layers=LAYERS, heads=2, init="width")
    )
    torch.manual_seed(0)
    model = student.build(SIZES)
    objective = student.make_objective(model, SIZES, lambda: model)
    before = model.model.layers[0].mlp.up_proj.weight.clone()
    objective.initialise_heads(student.model)
    block = objective.all.heads[0].block
    assert block.mlp.up.weight.std().item() == pytest.approx(BLOCK / 8, rel=0.05)
    assert block.attention.out.weight.std().item() == pytest.approx(BLOCK / 8 / 2, rel=0.05)
    assert torch.equal(model.model.layers[0].mlp.up_proj.weight, before)


def test_classic_is_what_it_was_and_leaves_no_trace_in_a_fingerprint() -> None:
    torch.manual_seed(0)
    built = plain("gpt2", "classic")
    torch.manual_seed(0)
    shape = ModelShape(width=D, layers=LAYERS, heads=2)
    again = build_plain(shape, vocab_size=V, seq_len=100)
    assert all(torch.equal(a, b) for a, b in zip(built.parameters(), again.parameters(), strict=True))
    assert set(identity(shape)) == {"backbone", "width", "layers", "heads", "kv_heads"}
    with pytest.raises(ValidationError, match="no initialisation 'xavier'; choose one of classic, width"):
        ModelShape(init="xavier")
