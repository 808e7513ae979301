"""Small students as hypothesis draws them: plain settings and seeds, so that a failing example prints what it was."""

from typing import Any

import pytest
import torch
from hypothesis import strategies as st

from cocomix import CoCoMixConfig, CoCoMixForCausalLM
from cocomix.model import BACKBONES, MIXERS, PREDICTORS
from cocomix.model.modeling_cocomix import CoCoMixOutput
from tests.helpers.randomised import randomised

VOCAB, LONGEST = 23, 9
"""Tokens in the vocabulary, and in a row that is drawn."""
PARTS = {name: {"mixer": name} for name in MIXERS} | {
    name: {"channel": name} for name in PREDICTORS if name != "concepts"
}
"""Every registered mixer, of predicted concepts, and every other channel, with whatever mixer is drawn."""
WITH_CONCEPTS = [name for name, mixer in MIXERS.items() if mixer.uses_vector]
"""Mixers whose concepts can be steered."""

on_each_backbone = pytest.mark.parametrize(
    "backbone",
    [name if name in ("gpt2", "llama") else pytest.param(name, marks=pytest.mark.long) for name in BACKBONES],
)
for_every_part = pytest.mark.parametrize("part", PARTS)
seeds = st.integers(0, 2**16)
lengths = st.integers(1, LONGEST)


@st.composite
def students(
    draw: st.DrawFn, mixer: str | None = None, channel: str = "concepts", backbone: str = "gpt2"
) -> dict[str, Any]:
    """Settings of a `CoCoMixConfig` that a test builds with `student`."""
    heads = draw(st.sampled_from([1, 2, 4]))
    width = heads * draw(st.sampled_from([size for size in (2, 4, 8, 16) if 8 <= heads * size <= 32]))
    layers, concepts = draw(st.integers(2, 4)), draw(st.integers(1, 160))
    mixer = mixer or draw(st.sampled_from(WITH_CONCEPTS))
    return {
        "backbone": backbone,
        "vocab_size": VOCAB,
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": draw(st.sampled_from([size for size in (1, 2, 4) if heads % size == 0])),
        "max_position_embeddings": 2 * LONGEST,
        "concept_layer": draw(st.integers(1, layers - 1)),
        "num_concepts": concepts,
        "concept_top_k": draw(st.integers(1, min(concepts, 8))),
        "mixer": mixer,
        "mixer_options": {name: draw(drawn) for name, drawn in _MIXER_OPTIONS.get(mixer, {}).items()},
        "vector_scale": draw(st.sampled_from([None, 0.3])) if MIXERS[mixer].uses_vector else None,
        "channel": channel,
        "channel_options": {name: draw(drawn) for name, drawn in _CHANNEL_OPTIONS.get(channel, {}).items()},
        "tie_word_embeddings": draw(st.booleans()),
    }


_SLOTS = st.sampled_from(["bare", "residual"])
_MIXER_OPTIONS: dict[str, dict[str, st.SearchStrategy[Any]]] = {
    "interleave": {"slot": _SLOTS},
    "keys_values": {"slot": _SLOTS},
    "every": {"every": st.integers(1, 4), "slot": _SLOTS},
    "drop_tokens": {"blocks": st.integers(1, 3), "slot": _SLOTS},
}
_CHANNEL_OPTIONS: dict[str, dict[str, st.SearchStrategy[Any]]] = {
    "hidden": {"target_size": st.integers(1, 12)},
    "ncp": {
        "chunk": st.integers(1, 4),
        "segments": st.sampled_from([1, 2, 4]),
        "codes": st.integers(2, 5),
        "layers": st.integers(1, 2),
        "ncp_weight": st.just(0.7),
        "vq_weight": st.just(0.3),
    },
}


def student(settings: dict[str, Any], seed: int) -> CoCoMixForCausalLM:
    """In float64 and evaluation mode, every weight random."""
    torch.manual_seed(seed)
    return randomised(CoCoMixForCausalLM(CoCoMixConfig(**settings))).eval()


def tokens(batch: int, length: int, seed: int) -> torch.Tensor:
    """Random ids, int64 `[batch, length]`."""
    return torch.randint(VOCAB, (batch, length), generator=torch.Generator().manual_seed(seed))


def by_token(output: CoCoMixOutput) -> list[torch.Tensor]:
    """Whatever there is of a pass that has one row a token."""
    found = (output.logits, output.concept_logits, output.predicted_hidden)
    return [one for one in found if one is not None]
