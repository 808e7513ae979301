"""Every mixing and every channel: what it generates, its gradients, its masks, and what it refuses."""

from typing import Any

import pytest
import torch

from cocomix import CoCoMixConfig, CoCoMixForCausalLM
from cocomix.model import MIXERS, PREDICTORS, model_flops
from cocomix.model.transformer import attention_layout
from cocomix.utils.errors import CocomixError

VOCAB, T = 37, 10
OPTIONS = {"every": {"every": 3}, "drop_tokens": {"blocks": 1}}
CHANNEL = {"hidden": {"target_size": 12}, "ncp": {"chunk": 3, "segments": 2, "codes": 5, "layers": 1}}
CASES = [("concepts", mixer) for mixer in MIXERS] + [
    (channel, mixer) for channel in PREDICTORS if channel != "concepts" for mixer in ("interleave", "add", "every")
]

RESIDUAL = [("concepts", f"{mixer}+residual") for mixer in ("interleave", "keys_values", "every", "drop_tokens")]
BACKBONES = ("gpt2", "llama")
MODELS = [(*case, backbone) for case in CASES for backbone in BACKBONES] + [
    (*case, BACKBONES[number % 2]) for number, case in enumerate(RESIDUAL)
]


def build(channel: str = "concepts", mixer: str = "interleave", backbone: str = "gpt2", **changes: Any):
    torch.manual_seed(0)
    mixer, _, slot = mixer.partition("+")
    settings = {
        "vocab_size": VOCAB,
        "hidden_size": 16,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2 if backbone == "llama" else None,
        "max_position_embeddings": 20,
        "concept_layer": 1,
        "num_concepts": 24,
        "concept_top_k": 5,
        "initializer_range": 0.2,
        "channel": channel,
        "channel_options": CHANNEL.get(channel),
        "mixer": mixer,
        "mixer_options": OPTIONS.get(mixer, {}) | ({"slot": slot} if slot else {}),
        "bos_token_id": 0,
        "eos_token_id": None,
        "pad_token_id": 0,
    }
    return CoCoMixForCausalLM(CoCoMixConfig(backbone=backbone, **{**settings, **changes})).double().eval()


@pytest.fixture(params=[*MODELS, ("concepts", "keys_values", "qwen3")], ids="-".join)
def model(request: pytest.FixtureRequest) -> CoCoMixForCausalLM:
    return build(*request.param)


def tokens(batch: int = 3, length: int = T, seed: int = 1) -> torch.Tensor:
    return torch.randint(1, VOCAB, (batch, length), generator=torch.Generator().manual_seed(seed))


def close(a: torch.Tensor, b: torch.Tensor) -> None:
    assert a.shape == b.shape
    assert (a - b).abs().max() <= 1e-9 * b.abs().max().clamp_min(1)


def test_generate_with_left_padding(model: CoCoMixForCausalLM) -> None:
    ids = tokens(3, 6)
    mask = torch.ones_like(ids)
    mask[1, :2], mask[2, :4] = 0, 0
    ids = ids.masked_fill(mask == 0, 0)
    given = {"attention_mask": mask, "max_new_tokens": 7, "do_sample": False}
    found = model.generate(ids, **given)
    for use_cache in (True, False):
        assert torch.equal(found, model.generate(ids, use_cache=use_cache, **given))
    alone = model.generate(ids[2:, 4:], max_new_tokens=7, do_sample=False)
    assert torch.equal(alone[0, 2:], found[2, 6:])


def test_every_weight_gets_a_gradient_and_checkpointing_gives_the_same(model: CoCoMixForCausalLM) -> None:
    ids = tokens()
    model.train()
    concepts = torch.randint(0, 24, (3, T, 4)) if model.config.channel == "concepts" else None
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            model.gradient_checkpointing_enable()
        model.zero_grad()
        output = model(ids, labels=ids, concept_labels=concepts)
        output.loss.backward()
        assert all(parameter.grad is not None for parameter in model.parameters())
        gradients.append([parameter.grad.clone() for parameter in model.parameters()])
    for a, b in zip(*gradients, strict=True):
        close(a, b)


@pytest.mark.parametrize("mixer", ["interleave", "keys_values", "every", "drop_tokens"])
@torch.no_grad()
def test_a_slot_changes_what_it_starts_from_and_nothing_else(mixer: str) -> None:
    bare, residual = (build(mixer=f"{mixer}+{slot}") for slot in ("bare", "residual"))
    assert bare.state_dict().keys() == residual.state_dict().keys()
    assert model_flops(bare.config, T) == model_flops(residual.config, T)
    assert torch.equal(bare(tokens()).logits, build(mixer=mixer)(tokens()).logits)

    def with_hidden(_channel: Any, inputs: tuple[Any, ...], prediction: Any) -> Any:
        return prediction._replace(vector=inputs[0] + prediction.vector)

    handle = bare.channel.register_forward_hook(with_hidden)  # h + vector as the vector of a bare slot
    close(residual(tokens()).logits, bare(tokens()).logits)
    handle.remove()
    assert (residual(tokens()).logits - bare(tokens()).logits).abs().max() > 1e-3


@pytest.mark.parametrize(("new", "past"), [(4, 0), (3, 2), (1, 5)])
def test_layout_with_more_keys_than_queries_and_absent_slots(new: int, past: int) -> None:
    present = torch.rand(2, 2 * (past + new), generator=torch.Generator().manual_seed(3)) > 0.3
    wide = attention_layout(None, new, past, slots=1, key_slots=2, device=torch.device("cpu")).mask
    sparse = attention_layout(None, new, past, slots=2, visible=present, device=torch.device("cpu")).mask
    for q in range(new):
        for k in range(2 * (past + new)):
            assert bool(wide[0, 0, q, k]) == (k // 2 <= past + q)
    for b in range(2):
        for q in range(2 * new):
            for k in range(2 * (past + new)):
                own = 2 * past + q
                assert bool(sparse[b, 0, q, k]) == ((k <= own and bool(present[b, k])) or k == own)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"mixer": "every", "mixer_options": {"often": 2}}, "the mixer every has no option 'often'"),
        ({"mixer": "add", "mixer_options": {"every": 2}}, "it takes none"),
        ({"mixer": "add", "mixer_options": {"slot": "residual"}}, "it takes none"),
        ({"mixer_options": {"slot": "empty"}}, "slot of the mixer interleave must be one of bare, residual"),
        ({"mixer": "blend"}, "there is no mixer 'blend'"),
        ({"channel": "words", "channel_options": {}}, "there is no channel 'words'"),
        ({"channel": "ncp", "channel_options": {"segments": 3}}, "not a multiple of segments 3"),
        ({"channel": "ncp", "channel_options": {"vq_weight": -1.0}}, "vq_weight of the channel ncp must be a number"),
        ({"channel": "hidden", "channel_options": {}}, "the channel hidden needs the option target_size"),
        ({"channel": "pause", "channel_options": {"size": 2}}, "the channel pause has no option 'size'; it takes none"),
    ],
)
def test_what_does_not_fit_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(CocomixError, match=words):
        build(**changes)


def test_labels_of_a_channel_without_concepts_are_refused() -> None:
    with pytest.raises(CocomixError, match="the channel pause predicts no concepts"):
        build("pause")(tokens(), concept_labels=torch.zeros(3, T, 2, dtype=torch.long))
