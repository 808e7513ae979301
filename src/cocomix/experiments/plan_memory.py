"""A simple model of what training one student takes: memory on a GPU, and bytes on the disk.

Memory, in bytes:

- weights: 16 a trained parameter (fp32 weight, gradient and AdamW's two moments; 12 where Muon keeps one), 4 a
  parameter that is only kept
  (a student's average, a live teacher), in bf16 2 more a trained one (autocast's copy). Under DDP
  every GPU holds all of them; under FSDP2 (`parallel: fsdp`), each its part of the 16.
- activations: what a block keeps for its backward pass, for each slot: the inputs of its two norms in fp32, and in
  the training's precision their outputs (2 d), queries, keys, values and attention's output (4 d where heads are not
  shared), and the MLP's inner values, twice (four times in a gated MLP). That is 36 d bytes in bf16 for GPT-2, 64 d
  in fp32, and what autograd keeps to within 3 %; Llama's blocks keep up to a third more, for norms in several steps.
  Attention scores are not kept (fused attention). With gradient checkpointing: one fp32 input a block, and one block
  whole.
- logits: training goes through them a chunk at a time (`kernels/losses.py`). Objectives that hold them whole do so in
  the training's precision, in fp32, and their gradient; distillation holds the teacher's beside them.

Left out: the heads' weight gradients, which wait for the backward pass, buffers in flight, the allocator's slack, a
channel's own activations. Leave a tenth of the GPU free.

Disk: token shards, label stores, checkpoints and models as their modules write them.
"""

from typing import Any, NamedTuple

from torch import nn
from transformers import PreTrainedModel

from cocomix.kernels.linear_cross_entropy import held_bytes
from cocomix.model.flops import has_gated_mlp
from cocomix.model.mixers import BlockCost
from cocomix.objectives.base import Objective
from cocomix.train.checkpoint import KEEP
from cocomix.train.config import TrainConfig
from cocomix.train.optimizer import OPTIMIZERS

TRAINED, KEPT = 8, 4
"""Bytes of a trained parameter with its gradient, and of one that is only kept, in memory."""

FLOAT_BYTES = {"fp32": 4, "bf16": 2}
COPY_BYTES = {"fp32": 0, "bf16": 2}
"""Bytes of an activation, and of what autocast keeps of a trained parameter, by precision."""


class Memory(NamedTuple):
    """Bytes on one GPU."""

    trained: float
    """weights, gradients and moments"""
    kept: float
    """parameters without gradient"""
    copies: float
    """trained parameters in the precision of the passes, if that is another"""
    activations: float
    logits: float

    def total(self, shards: int = 1) -> float:
        """All of it, with what is trained split over `shards` GPUs."""
        return self.trained / shards + self.kept + self.copies + self.activations + self.logits


def parameters(module: nn.Module) -> tuple[int, int]:
    """Trained parameters and others, tied ones once."""
    tensors = list(module.parameters())
    trained = sum(tensor.numel() for tensor in tensors if tensor.requires_grad)
    return trained, sum(tensor.numel() for tensor in tensors) - trained


def training_memory(
    objective: Objective, teacher: PreTrainedModel | None, train: TrainConfig, seq_len: int, gpus: int
) -> Memory:
    """Bytes on each of `gpus` GPUs, of an objective whose models may be on the meta device.

    Args:
        teacher: the concept model if it is run live in every step.
    """
    model: Any = objective.evaluated()
    trained, kept = parameters(objective.trainable())
    kept += 0 if teacher is None else sum(parameters(teacher))
    windows = min(train.micro_batch_size or train.batch_size, -(-train.batch_size // gpus))
    tokens = windows * seq_len
    width = FLOAT_BYTES[train.precision]
    return Memory(
        trained=TRAINED * trained + state_bytes(objective, train),
        kept=KEPT * kept,
        copies=COPY_BYTES[train.precision] * trained,
        activations=tokens * token_activations(model, width, train.gradient_checkpointing),
        logits=logits_bytes(objective, tokens, width),
    )


def logits_bytes(objective: Objective, tokens: int, width: int) -> float:
    """Bytes of the logits of `tokens` tokens that are there at a time; `width` is an activation's."""
    config: Any = objective.evaluated().config
    heads = [config.vocab_size, getattr(config, "num_concepts", 0)]
    if not objective.holds_logits:
        return max(held_bytes(tokens, columns, width) for columns in heads)
    teachers = config.vocab_size if objective.holds_teacher_logits else 0
    return tokens * (sum(heads) + teachers) * (width + 8)


def token_activations(model: Any, width: int, checkpointing: bool = False) -> float:
    """Bytes the blocks keep for one token's backward pass.

    Args:
        model: a plain causal LM or a CoCoMix model.
        width: bytes of an activation.
    """
    config = model.config
    blocks = config.num_hidden_layers
    slots, memories = block_slots(model)
    d, heads = config.hidden_size, config.num_attention_heads
    kv = (getattr(config, "num_key_value_heads", None) or heads) * (d // heads)
    gated = has_gated_mlp(config)
    inner = getattr(config, "intermediate_size", None) or 4 * d
    slot = 2 * 4 * d + width * (2 * d + 2 * d + 2 * kv + (4 if gated else 2) * inner)
    # A vector that gives a key and a value only: its norm, and copies of both slots' keys and values side by side.
    memory = 4 * d + width * (d + 4 * kv)
    if checkpointing:
        return 4 * d * (slots + memories) + (slots * slot + memories * memory) / blocks
    return slots * slot + memories * memory


def block_slots(model: Any) -> tuple[float, float]:
    """Slots a token has, summed over all blocks, and vectors it is given as keys and values alone.

    The mixer's own FLOPs say it: they are linear in what a block's slots cost.
    """
    config = model.config
    split = getattr(config, "concept_layer", None)
    if split is None:
        return config.num_hidden_layers, 0

    def upper(linear: float, keys_values: float) -> float:
        cost = BlockCost(linear, 0.0, keys_values)
        return model.mixer.upper_flops(config.num_hidden_layers - split, config.hidden_size, cost)

    return split + upper(1, 0) - upper(0, 0), upper(0, 1) - upper(0, 0)


def shard_bytes(tokens: int, vocab_size: int) -> int:
    """Token shards."""
    return tokens * (2 if vocab_size <= 1 << 16 else 4)


def store_bytes(tokens: int, seq_len: int, k: int, n_ids: int, *, scores: bool) -> int:
    """A store of `k` ids below `n_ids` a position, of concepts or of tokens, with a score each or without."""
    return tokens // seq_len * seq_len * k * ((2 if n_ids < 1 << 16 else 4) + (4 if scores else 0))


def state_bytes(objective: Objective, train: TrainConfig) -> int:
    """The optimiser's state."""
    return OPTIMIZERS[train.optimizer].state_bytes(objective.trainable())


def checkpoint_bytes(objective: Objective, train: TrainConfig) -> int:
    """The checkpoints kept of one training: weights and moments; one more lies there while it is being written."""
    return KEEP * (KEPT * sum(parameters(objective.trainable())) + state_bytes(objective, train))
