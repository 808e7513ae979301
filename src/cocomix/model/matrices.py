"""The matrices of a model's transformer blocks: the weights that Muon orthogonalises.

They are the 2-D weights of linear layers inside blocks: the stack's, and those that a predictor or a head holds.
Embeddings, the LM head, the concept head and projection, gates and linear heads are none: each of their rows belongs to
one token or concept, or stands outside the stack.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from cocomix.model.transformer import Attention, Block


class BlockMatrix(NamedTuple):
    """A trainable weight of a block, and the matrices it holds side by side, such as query, key and value."""

    weight: nn.Parameter
    dim: int
    sizes: tuple[int, ...]
    """of the matrices, along `dim`"""

    def parts(self, tensor: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Views of each matrix in a tensor of the weight's shape."""
        return tensor.split(self.sizes, self.dim)

    def shapes(self) -> list[tuple[int, int]]:
        """Shape of each matrix."""
        other = self.weight.shape[1 - self.dim]
        return [(size, other) if self.dim == 0 else (other, size) for size in self.sizes]


def transformer_blocks(module: nn.Module) -> list[nn.Module]:
    """The transformer blocks in `module`, outermost ones: ours wherever they are, and the stack of each other model."""
    blocks: dict[int, nn.Module] = {}
    for part in module.modules():
        if isinstance(part, Block):
            blocks[id(part)] = part
        elif isinstance(part, PreTrainedModel):
            stack = next((inner for inner in part.modules() if isinstance(inner, nn.ModuleList)), ())
            blocks |= {id(block): block for block in stack}
    return list(blocks.values())


def block_matrices(module: nn.Module) -> list[BlockMatrix]:
    """The trainable matrices of the transformer blocks in `module`, each once."""
    found = (matrix for block in transformer_blocks(module) for matrix in _matrices(block))
    return list({id(matrix.weight): matrix for matrix in found}.values())


def _matrices(block: nn.Module) -> Iterator[BlockMatrix]:
    fused = {id(part.qkv): part for part in block.modules() if isinstance(part, Attention)}
    for name, layer in block.named_modules():
        weight = layer.weight if isinstance(layer, nn.Linear | Conv1D) else None
        if not isinstance(weight, nn.Parameter) or weight.ndim != 2 or not weight.requires_grad:
            continue
        attention = fused.get(id(layer))
        if attention is not None:
            heads = attention.heads, attention.kv_heads, attention.kv_heads
            yield BlockMatrix(weight, 0, tuple(count * attention.head_dim for count in heads))
        elif isinstance(layer, Conv1D) and name.endswith("c_attn"):  # GPT-2's, whose weights are [in, out]
            yield BlockMatrix(weight, 1, (weight.shape[1] // 3,) * 3)
        else:
            yield BlockMatrix(weight, 0, (weight.shape[0],))
