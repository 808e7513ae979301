"""Every objective under the trainer: the same on two processes as on one, and the same bits after a stop."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.distributed.tensor import DTensor
from transformers import GPT2Config, GPT2LMHeadModel

from cocomix import CoCoMixConfig, CoCoMixForCausalLM
from cocomix.concepts import TopKSAE
from cocomix.objectives import (
    BootstrapObjective,
    CoCoMixObjective,
    HiddenObjective,
    KdObjective,
    LiveTeacher,
    NtpObjective,
    Objective,
    StoredTeacher,
)
from cocomix.tokens import write_shards
from cocomix.train.config import TrainConfig
from cocomix.train.data import BatchSource
from cocomix.train.distributed import Interrupted
from cocomix.train.trainer import Trainer

CONFIG = TrainConfig(batch_size=4, steps=6, learning_rate=1e-3, n_evals=0)
C = 12


def plain(seed: int) -> GPT2LMHeadModel:
    torch.manual_seed(seed)
    shape = {"vocab_size": 50, "n_positions": 8, "n_embd": 16, "n_layer": 2, "n_head": 2}
    return GPT2LMHeadModel(GPT2Config(**shape, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0))


def mixed(channel: str = "concepts", mixer: str = "interleave", **options: int) -> CoCoMixForCausalLM:
    torch.manual_seed(0)
    shape = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    settings = {"concept_layer": 1, "num_concepts": C, "concept_top_k": 3, "max_position_embeddings": 8}
    return CoCoMixForCausalLM(CoCoMixConfig(**shape, **settings, channel=channel, mixer=mixer, channel_options=options))


def bootstrap() -> BootstrapObjective:
    model = mixed()
    torch.manual_seed(1)
    sae = TopKSAE(16, C, 3)
    return BootstrapObjective(model, sae, top=True, decay=0.9, labels_per_position=2, warmup=0.3)


def hidden() -> HiddenObjective:
    return HiddenObjective(mixed("hidden", target_size=16), plain(5).eval(), layer=0, distance="l2", weight=0.1)


OBJECTIVES: dict[str, Callable[[], Objective]] = {
    "ntp": lambda: NtpObjective(plain(0)),
    "kd": lambda: KdObjective(plain(0), LiveTeacher(plain(5).eval()), 0.1),
    "kd_stored": lambda: KdObjective(plain(0), StoredTeacher(), 0.1),
    "pause": lambda: NtpObjective(mixed("pause")),
    "hidden": hidden,
    "cocomix": lambda: CoCoMixObjective(mixed(), until=0.8),
    "loss_only": lambda: CoCoMixObjective(mixed(mixer="none")),
    "mixing_only": lambda: NtpObjective(mixed(mixer="every")),
    "keys_values": lambda: CoCoMixObjective(mixed(mixer="keys_values")),
    "ncp": lambda: NtpObjective(mixed("ncp", "add", chunk=2, segments=2, codes=4)),
    "bootstrap": bootstrap,
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
    from cocomix.tokens import TokenShards

    return Data(TokenShards.open(folder), 8)


def train(name: str, home: Path, folder: str, **settings: object) -> dict[str, torch.Tensor]:
    made = OBJECTIVES[name]()
    Trainer(made, data(home / "shards"), CONFIG.model_copy(update=settings), home / folder / name).run()
    state = made.trainable().state_dict()
    return {
        key: (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor.clone()) for key, tensor in state.items()
    }


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_two_processes_equal_one(tmp_path: Path, parallel: str) -> None:
    data(tmp_path / "shards")
    program = tmp_path / "program.py"
    program.write_text(
        "import sys\n"
        f"sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from pathlib import Path\n"
        "import torch\n"
        "from test_every_objective import OBJECTIVES, train\n"
        "from cocomix.train.distributed import distributed_session, rank\n"
        "torch.set_num_threads(1)\n"
        "home = Path(sys.argv[1])\n"
        "with distributed_session():\n"
        f"    how = {{'parallel': {parallel!r}, 'gradient_checkpointing': {parallel == 'fsdp'}}}\n"
        "    made = {name: train(name, home, 'two', **how) for name in OBJECTIVES}\n"
        "    torch.save(made, home / f'rank{rank()}.pt')\n"
    )
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run([*launch, str(program), str(tmp_path)], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    first, second = (torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in (0, 1))
    for name in OBJECTIVES:
        one = train(name, tmp_path, "one")
        for key, tensor in one.items():
            assert torch.equal(first[name][key], second[name][key]), (name, key)
            # An autoencoder's variance is taken over each process's part, so bootstrapping differs a little.
            near = 0.02 if name == "bootstrap" else 1e-4
            if tensor.is_floating_point():
                assert (tensor - first[name][key]).abs().max() < near, (name, key)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_stopped_run_goes_on_to_the_same_bits(name: str, tmp_path: Path) -> None:
    expected = train(name, tmp_path, "whole")

    class Stop(Trainer):
        def train_step(self, loss_fn):
            import os
            import signal

            if self.step == 3:
                os.kill(os.getpid(), signal.SIGTERM)
            return super().train_step(loss_fn)

    with pytest.raises(Interrupted):
        Stop(OBJECTIVES[name](), data(tmp_path / "shards"), CONFIG, tmp_path / "cut" / name).run()
    found = train(name, tmp_path, "cut")
    assert set(found) == set(expected)
    for key, tensor in expected.items():
        assert torch.equal(found[key], tensor), key
