"""A small objective of every kind, and data that suits them all."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch.distributed.tensor import DTensor
from transformers import GPT2Config, GPT2LMHeadModel

from cocomix import CoCoMixConfig, CoCoMixForCausalLM
from cocomix.data import write_shards
from cocomix.objectives import (
    BootstrapObjective,
    CoCoMixObjective,
    HiddenObjective,
    KdObjective,
    LiveTeacher,
    NtpObjective,
    Objective,
    SaeObjective,
    StoredTeacher,
)
from cocomix.objectives.dropped import DroppedObjective
from cocomix.objectives.hash import HashObjective, hash_labels
from cocomix.objectives.retrofit import RetrofitObjective, RetrofitStudent
from cocomix.objectives.sae import SaeLayersObjective
from cocomix.objectives.schedule import WeightSchedule
from cocomix.sae import TopKSAE
from cocomix.train.batches import BatchSource
from cocomix.train.config import TrainConfig
from cocomix.train.trainer import Trainer
from tests.helpers.rivals import RIVALS

CONFIG = TrainConfig(batch_size=4, steps=6, learning_rate=1e-3, n_evals=0)
C = 12
RETROFIT = {"objective": "retrofit", "labels": "any", "concept": {"concept_layer": 1}}


def plain(seed: int) -> GPT2LMHeadModel:
    torch.manual_seed(seed)
    shape = {"vocab_size": 50, "n_positions": 8, "n_embd": 16, "n_layer": 2, "n_head": 2}
    return GPT2LMHeadModel(GPT2Config(**shape, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0))


def mixed(
    channel: str = "concepts", mixer: str = "interleave", scale: float | None = None, **options: int
) -> CoCoMixForCausalLM:
    torch.manual_seed(0)
    shape = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    settings = {"concept_layer": 1, "num_concepts": C, "concept_top_k": 3, "max_position_embeddings": 8}
    parts = {"channel": channel, "mixer": mixer, "channel_options": options, "vector_scale": scale}
    return CoCoMixForCausalLM(CoCoMixConfig(**shape, **settings, **parts))


def bootstrap() -> BootstrapObjective:
    model = mixed()
    torch.manual_seed(1)
    sae = TopKSAE(16, C, 3)
    return BootstrapObjective(model, sae, top=True, decay=0.9, labels_per_position=2, warmup=0.3)


def hidden() -> HiddenObjective:
    return HiddenObjective(mixed("hidden", target_size=16), plain(5).eval(), layer=0, distance="l2", weight=0.1)


def retrofitted(trains: str) -> RetrofitObjective:
    torch.manual_seed(1)
    model = CoCoMixForCausalLM.from_plain(plain(0), concept_layer=1, num_concepts=C, concept_top_k=3)
    model.freeze_rest(trains, rank=2)
    return RetrofitObjective(model, RetrofitStudent.model_validate({**RETROFIT, "trains": trains}))


def sae(layer: int = 0) -> SaeObjective:
    torch.manual_seed(1)
    return SaeObjective(TopKSAE(16, C, 3), plain(5).eval(), layer=layer, aux_k=4, dead_after_tokens=40)


def sae_layers() -> SaeLayersObjective:
    return SaeLayersObjective([sae(1), sae(0)])


OBJECTIVES: dict[str, Callable[[], Objective]] = {
    "ntp": lambda: NtpObjective(plain(0)),
    "kd": lambda: KdObjective(plain(0), LiveTeacher(plain(5).eval()), 0.1),
    "kd_stored": lambda: KdObjective(plain(0), StoredTeacher(), 0.1),
    "pause": lambda: NtpObjective(mixed("pause")),
    "hidden": hidden,
    "cocomix": lambda: CoCoMixObjective(mixed(), until=0.8),
    "dropped": lambda: DroppedObjective(mixed(), 0.5),
    "loss_only": lambda: CoCoMixObjective(mixed(mixer="none")),
    "mixing_only": lambda: NtpObjective(mixed(mixer="every", scale=0.3)),
    "keys_values": lambda: CoCoMixObjective(mixed(mixer="keys_values")),
    "ncp": lambda: NtpObjective(mixed("ncp", "add", chunk=2, segments=2, codes=4)),
    "bootstrap": bootstrap,
    "mtp": lambda: RIVALS["mtp_block"](schedule=WeightSchedule(0.5)),
    "top": lambda: RIVALS["top"](),
    "nextlat": lambda: RIVALS["nextlat"](),
    "nitp": lambda: RIVALS["nitp"](schedule=WeightSchedule(0.9, "cosine")),
    "prefix": lambda: RIVALS["prefix_shared"](),
    "hash": lambda: HashObjective(mixed(), hash_labels(50, 2, C), ahead=True, until=0.8, shape="cosine"),
    "retrofit": lambda: retrofitted("channel"),
    "retrofit_lora": lambda: retrofitted("lora"),
    "sae": sae,
    "sae_layers": sae_layers,
}


class Data(BatchSource):
    """Random tokens; labels and the teacher's logits follow from them."""

    def __call__(self, indices, device, label_density=None):
        batch = super().__call__(indices, device, label_density)
        ids = batch["input_ids"]
        batch["concept_labels"] = torch.stack((ids % C, (ids + 5) % C), dim=-1)
        batch["teacher_ids"] = torch.stack((ids, (ids + 1) % 50), dim=-1)
        batch["teacher_log_probs"] = torch.tensor([0.6, 0.3]).log().expand(*ids.shape, 2)
        return batch


def data(folder: Path) -> Data:
    rng = np.random.default_rng(0)
    if not folder.exists():
        write_shards(folder, [rng.integers(1, 50, 60) for _ in range(5)], vocab_size=50, eos_id=0)
    from cocomix.data import TokenShards

    return Data(TokenShards.open(folder), 8)


def train(name: str, home: Path, folder: str, **settings: object) -> dict[str, torch.Tensor]:
    made = OBJECTIVES[name]()
    Trainer(made, data(home / "shards"), CONFIG.model_copy(update=settings), home / folder / name).run()
    state = made.trainable().state_dict()
    return {
        key: (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor.clone()) for key, tensor in state.items()
    }
