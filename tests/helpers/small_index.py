"""For the tests of concept statistics: a small student with random weights, text, and labels of half of it."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from cocomix import CoCoMixConfig, CoCoMixForCausalLM
from cocomix.analysis import ConceptName, ConceptStatistics, FoundNames, Names, StatisticsKey, gather_statistics
from cocomix.analysis.naming import TokenScore
from cocomix.data import TokenShards, write_shards
from cocomix.labels import LabelReader

VOCAB, C, K, SEQ, WINDOWS, K_ATTR = 37, 24, 5, 12, 40, 3
KEY = StatisticsKey(student="s", shards="t", labels="l", seq_len=SEQ, tokens=WINDOWS * SEQ)
TRUTH = "exact/absolute labels"


def decode(ids: Sequence[int]) -> str:
    return "".join(f" w{one}" for one in ids)


def student(mixer: str = "interleave", backbone: str = "gpt2") -> CoCoMixForCausalLM:
    torch.manual_seed(0)
    config = CoCoMixConfig(
        vocab_size=VOCAB, hidden_size=16, num_hidden_layers=3, num_attention_heads=2, max_position_embeddings=SEQ,
        backbone=backbone, mixer=mixer, concept_layer=1, num_concepts=C, concept_top_k=K, initializer_range=0.3,
    )  # fmt: skip
    model = CoCoMixForCausalLM(config).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():  # biases are zero and norms are one at the start
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def corpus(folder: Path) -> TokenShards:
    ids = np.random.default_rng(0).integers(1, VOCAB, WINDOWS * SEQ + 5)
    return write_shards(folder, [ids], vocab_size=VOCAB, eos_id=0)


class Labels(LabelReader):
    """Labels at random, at about every second position."""

    n_labels, where = K_ATTR, "made labels"

    def read(self, windows: np.ndarray, seq_len: int) -> np.ndarray:
        return np.stack([self._of(window, seq_len) for window in windows.tolist()])

    def labelled(self, windows: np.ndarray) -> np.ndarray:
        return (self.read(windows, SEQ)[..., 0] >= 0).sum(-1)

    def _of(self, window: int, seq_len: int) -> np.ndarray:
        rng = np.random.default_rng(window)
        labels = np.stack([rng.permutation(C)[:K_ATTR] for _ in range(seq_len)])
        labels[rng.random(seq_len) < 0.5] = -100
        return labels


def statistics(model: CoCoMixForCausalLM, shards: TokenShards, labels: LabelReader | None = None) -> ConceptStatistics:
    return gather_statistics(model, shards, KEY, labels=labels, truth=TRUTH)


def names() -> Names:
    """Every third concept has no name, every second no stability; concept 4 is edited."""
    found = [
        ConceptName(
            concept=one,
            name=None if one % 3 == 0 else f"{'abc'[one % 3]}Word {one}",
            stability=None if one % 2 else one / C,
            tokens=[TokenScore(token=f" Tok{one % 5}", score=1.0)],
            next_tokens=[TokenScore(token=f" after{one % 7}", score=1.0)],
        )
        for one in range(C)
    ]
    return Names(
        FoundNames(sae="a", tokens="t", split="train", windows=2, positions=8, concepts=found), {4: "Mine, by hand"}
    )
