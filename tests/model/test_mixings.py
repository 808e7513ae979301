"""Every mixing and every channel: causal, the same cached and padded, and equal to its slow definition."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from cocomix import CoCoMixConfig, CoCoMixForCausalLM
from cocomix.errors import CocomixError
from cocomix.model import CHANNELS, MIXERS
from cocomix.model.masks import attend

VOCAB, T = 37, 10
PLACES = torch.arange(T)[None]
OPTIONS = {"every": {"every": 3}, "drop_tokens": {"blocks": 1}}
CHANNEL = {"hidden": {"target_size": 12}, "ncp": {"chunk": 3, "segments": 2, "codes": 5, "layers": 1}}
CASES = [("concepts", mixer) for mixer in MIXERS] + [
    (channel, mixer) for channel in CHANNELS if channel != "concepts" for mixer in ("interleave", "add", "every")
]


def build(channel: str = "concepts", mixer: str = "interleave", backbone: str = "gpt2", **changes: Any):
    torch.manual_seed(0)
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
        "mixer_options": OPTIONS.get(mixer),
        "bos_token_id": 0,
        "eos_token_id": None,
        "pad_token_id": 0,
    }
    return CoCoMixForCausalLM(CoCoMixConfig(backbone=backbone, **{**settings, **changes})).double().eval()


@pytest.fixture(params=[(*case, backbone) for case in CASES for backbone in ("gpt2", "llama")], ids="-".join)
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


def test_a_slot_after_every_token_is_interleaving_read_at_the_tokens() -> None:
    every, both = build(mixer="every", mixer_options={"every": 1}), build(mixer="interleave")
    both.load_state_dict(every.state_dict())
    both.mixer.forward = lambda hidden, vector, upper: upper.run(
        torch.stack((hidden, vector), dim=2).flatten(1, 2), slots=2
    )[:, ::2]
    close(every(tokens()).logits, both(tokens()).logits)


def test_a_slot_that_is_never_due_is_no_slot() -> None:
    every, none = build(mixer="every", mixer_options={"every": T + 1}), build(mixer="none")
    none.load_state_dict(every.state_dict(), strict=False)
    close(every(tokens()).logits, none(tokens()).logits)


def test_tokens_dropped_after_the_last_block_is_interleaving() -> None:
    drop, both = build(mixer="drop_tokens", mixer_options={"blocks": 3}), build(mixer="interleave")
    both.load_state_dict(drop.state_dict())
    close(drop(tokens()).logits, both(tokens()).logits)


def test_an_open_gate_adds() -> None:
    gated, add = build(mixer="gated_add"), build(mixer="add")
    torch.nn.init.zeros_(gated.mixer.gate.weight)
    torch.nn.init.constant_(gated.mixer.gate.bias, 50.0)
    add.load_state_dict(gated.state_dict(), strict=False)
    close(gated(tokens()).logits, add(tokens()).logits)


def test_extra_keys_and_values_equal_a_loop_over_positions() -> None:
    model = build(mixer="keys_values", num_hidden_layers=2)
    hidden, vector = torch.randn(1, T, 16).double(), torch.randn(1, T, 16).double()
    block = model.backbone.blocks[1]
    layout = attend(None, T, 0, slots=1, key_slots=2, device=torch.device("cpu"))
    fast = block(hidden, layout=layout, rotary=None, memory=vector)
    weight, bias = block.attention.qkv.weight, block.attention.qkv.bias
    queries, keys, values = (F.linear(block.norm_1(hidden), weight, bias)[0]).chunk(3, -1)
    _, more_keys, more_values = (F.linear(block.norm_1(vector), weight, bias)[0]).chunk(3, -1)
    for t in range(T):
        heads = []
        for h in range(4):
            part = slice(4 * h, 4 * h + 4)
            k = torch.cat((keys[: t + 1, part], more_keys[: t + 1, part]))
            v = torch.cat((values[: t + 1, part], more_values[: t + 1, part]))
            heads.append(torch.softmax(k @ queries[t, part] / 2, 0) @ v)
        after = hidden[0, t] + block.attention.out(torch.cat(heads))
        close(fast[0, t], after + block.mlp(block.norm_2(after)))


def test_next_concepts_by_their_definition() -> None:
    """Vectors and loss of the ncp channel, written out chunk by chunk."""
    model = build("ncp", "add", channel_options={**CHANNEL["ncp"], "ncp_weight": 0.7, "vq_weight": 0.3}).train()
    channel, hidden = model.channel, torch.randn(2, T, 16).double()
    found = channel(hidden, PLACES, None)
    pooled = torch.stack([hidden[:, 3 * j : 3 * j + 3].mean(1) for j in range(3)], 1)
    book, losses, gaps = channel.codebook, [], []
    state = channel.blocks[0](pooled, layout=attend(None, 3, 0, slots=1, device=torch.device("cpu")), rotary=None)
    for b in range(2):
        codes = []
        for j in range(3):
            parts = F.layer_norm(pooled[b, j], (16,)).view(2, 8)
            codes.append([int((book[s] - parts[s]).square().sum(-1).argmin()) for s in range(2)])
            gaps += [1.25 * (book[s, codes[j][s]] - parts[s]).square().mean() for s in range(2)]
        for j in range(3):
            logits = channel.predict(channel.norm(state[b, j])).view(2, 5)
            expected = torch.cat([logits[s].softmax(-1) @ book[s] for s in range(2)])
            for t in range(3 * j + 3, min(3 * j + 6, T)):
                close(found.vector[b, t], channel.project(expected))
            if j < 2:
                losses += [-F.log_softmax(logits[s], -1)[codes[j + 1][s]] for s in range(2)]
        close(found.vector[b, :3], channel.start.expand(3, -1))
    slow = 0.7 * sum(losses) / len(losses) + 0.3 * sum(gaps) / len(gaps)
    assert abs(found.loss.item() - slow.item()) < 1e-9
    assert channel.eval()(hidden, PLACES, None).loss is None


@pytest.mark.parametrize("backbone", ["gpt2", "llama"])
def test_pause_vectors_depend_on_the_place_alone(backbone: str) -> None:
    model = build("pause", backbone=backbone)
    found = model.channel(torch.randn(2, T, 16).double(), PLACES, None).vector
    learned = model.backbone.embed_positions.weight[:T] if backbone == "gpt2" else 0
    close(found, (model.channel.vector + learned).expand(2, T, -1))


@pytest.mark.parametrize(("new", "past"), [(4, 0), (3, 2), (1, 5)])
def test_layout_with_more_keys_than_queries_and_absent_slots(new: int, past: int) -> None:
    present = torch.rand(2, 2 * (past + new), generator=torch.Generator().manual_seed(3)) > 0.3
    wide = attend(None, new, past, slots=1, key_slots=2, device=torch.device("cpu")).mask
    sparse = attend(None, new, past, slots=2, present=present, device=torch.device("cpu")).mask
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
