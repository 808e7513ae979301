"""Training with live labels ends in the bits of training with stored ones, cut up or shared by processes or not."""

from pathlib import Path

import pytest
import torch

from cocomix import CoCoMixConfig, CoCoMixForCausalLM
from cocomix.labels import LabelStore, LiveLabels
from cocomix.labels.store import LabelReader
from cocomix.objectives import CoCoMixObjective
from cocomix.train.batches import BatchSource
from cocomix.train.config import TrainConfig
from cocomix.train.trainer import Trainer
from tests.helpers.labeled_tokens import SEQ, corpus, in_two_processes, label, labeller

CONFIG = TrainConfig(batch_size=8, steps=6, learning_rate=0.01, n_evals=0, checkpoint_seconds=1e9, seed=5)
WINDOWS = 20  # 48 of them are read: some more than once


def reader(home: Path, kind: str) -> LabelReader:
    if kind == "stored":
        return LabelStore.open(home / "l" / "absolute")
    return LiveLabels(corpus(home / "s"), labeller(signs=("absolute",)), seq_len=SEQ)


def trained(home: Path, kind: str, name: str, micro: int | None) -> dict[str, torch.Tensor]:
    """Weights of a small student; `l` holds the stored labels."""
    data = BatchSource(corpus(home / "s"), SEQ, reader(home, kind))
    torch.manual_seed(0)
    config = CoCoMixConfig(
        vocab_size=40, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, max_position_embeddings=SEQ,
        concept_layer=1, num_concepts=30, concept_top_k=3, concept_loss_weight=1.0,
    )  # fmt: skip
    made = CoCoMixObjective(CoCoMixForCausalLM(config))
    Trainer(made, data, CONFIG.model_copy(update={"micro_batch_size": micro}), home / f"{kind}-{name}").run()
    return {key: tensor.clone() for key, tensor in made.trainable().state_dict().items()}


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name


@pytest.mark.parametrize("micro", [None, 3])
def test_live_equals_stored(tmp_path: Path, micro: int | None) -> None:
    label(tmp_path, "l", windows=WINDOWS)
    assert_same(trained(tmp_path, "stored", "one", micro), trained(tmp_path, "live", "one", micro))


def test_live_equals_stored_in_two_processes(tmp_path: Path) -> None:
    label(tmp_path, "l", windows=WINDOWS)
    done = in_two_processes(
        tmp_path,
        "from tests.train.test_live_labels import trained",
        "for kind in ('stored', 'live'):",
        "    weights = trained(home, kind, 'two', 3)",
        "    if is_main(): torch.save(weights, home / f'{kind}.pt')",
    )
    assert done.returncode == 0, done.stderr
    stored, live = (torch.load(tmp_path / f"{kind}.pt", weights_only=True) for kind in ("stored", "live"))
    assert_same(stored, live)
    for name, tensor in trained(tmp_path, "live", "one", None).items():
        assert (tensor - live[name]).abs().max() < 1e-4, name  # float32 sums in another order
