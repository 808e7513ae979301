"""Small random models, text and concepts to measure steering on."""

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from cocomix import CoCoMixConfig, CoCoMixForCausalLM
from cocomix.data import write_shards
from cocomix.sae import TopKSAE
from cocomix.steering.study.concepts import Concept
from cocomix.steering.study.context import StudyContext

VOCAB, C, T, LAYER, NEW = 40, 30, 24, 1, 6
WIDE = 12
"""Width of the model without concepts."""


def plain(width: int, layers: int, seed: int) -> GPT2LMHeadModel:
    torch.manual_seed(seed)
    shape: dict[str, Any] = {"vocab_size": VOCAB, "n_positions": T, "n_embd": width, "n_layer": layers, "n_head": 2}
    ids = {"bos_token_id": 0, "eos_token_id": 0}
    return GPT2LMHeadModel(GPT2Config(initializer_range=0.4, **shape, **ids)).double().eval()


@cache
def models() -> dict[str, Any]:
    """student, teacher, baseline, reader and sae, all in float64."""
    torch.manual_seed(0)
    config = CoCoMixConfig(
        vocab_size=VOCAB,
        hidden_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        max_position_embeddings=T,
        concept_layer=1,
        num_concepts=C,
        concept_top_k=3,
        initializer_range=0.4,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
    )
    student = CoCoMixForCausalLM(config).double().eval()
    sae = TopKSAE(16, C, 4).double()
    torch.nn.init.constant_(sae.latent_bias, -1.2)  # some of the four are cut to 0
    others = {"teacher": plain(16, 3, 1), "baseline": plain(WIDE, 4, 2), "reader": plain(8, 2, 3)}
    return {"student": student, "sae": sae, **others}


def study_context(folder: Path) -> StudyContext:
    """Three concepts, two prompts."""
    rng = np.random.default_rng(0)
    shards = write_shards(folder / "s", [rng.integers(1, VOCAB, 41) for _ in range(8)], vocab_size=VOCAB, eos_id=0)
    made = models()
    return StudyContext(
        models=lambda name: made["teacher" if name in ("plain", "base") else name],
        sae=made["sae"],
        layer=LAYER,
        reader=made["reader"],
        concepts=[
            Concept(3, "three", [5, 9], [1], 0.1, 0.7),
            Concept(17, "seventeen", [11], [], 0.05, 1.3),
            Concept(8, "eight", [2, 30, 31], [11, 4], 0.02, 0.4),
        ],
        prompts=torch.from_numpy(rng.integers(1, VOCAB, (2, 5))),
        new_tokens=NEW,
        key=(4, 1),
        train=shards,
        seq_len=T,
        decode=lambda ids: " ".join(map(str, ids)),
    )


@torch.no_grad()
def active_at(text: list[int]) -> list[set[int]]:
    """Concepts that the SAE has active at each token of one text, by its dense form."""
    made = models()
    hidden = made["teacher"](torch.tensor([text]), output_hidden_states=True).hidden_states[LAYER + 1][0]
    return [{i for i, x in enumerate(made["sae"].encode_dense(h).tolist()) if x > 0} for h in hidden]
