"""Heads that read a plain student's hidden states for a second target over its vocabulary.

Each ends in a hidden state, which the student's own LM head turns into logits.
"""

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from torch import nn
from transformers import PreTrainedModel

from cocomix.model.configuration_cocomix import CoCoMixConfig
from cocomix.model.documents import document_rule
from cocomix.model.flops import model_parts
from cocomix.model.transformer import BACKBONES, AttentionLayout, attention_layout

STD = 0.02
"""Standard deviation of initial weights, as of the plain students'."""


class Head(nn.Module, ABC):
    """Base class of heads.

    Args:
        model: the student.
        family: its backbone's name.
    """

    own: ClassVar[bool] = True
    """whether its logits are others than the student's own"""

    def __init__(self, model: PreTrainedModel, family: str) -> None:
        super().__init__()

    @abstractmethod
    def forward(self, states: tuple[torch.Tensor, ...], ids: torch.Tensor | None = None) -> torch.Tensor:
        """The hidden state for the LM head, `[batch, seq, d_model]`, from the student's hidden states of `ids`.

        Args:
            ids: int64 `[batch, seq]`; None: each row is one text.
        """

    @staticmethod
    @abstractmethod
    def flops(config: Any, seq_len: int) -> float:
        """Forward FLOPs per token, with the LM head."""


class SharedHead(Head):
    """The student's own logits: no parameters, and no second pass through the LM head."""

    own = False

    def forward(self, states: tuple[torch.Tensor, ...], ids: torch.Tensor | None = None) -> torch.Tensor:
        return states[-1]

    @staticmethod
    def flops(config: Any, seq_len: int) -> float:
        return 0.0


class LinearHead(Head):
    """h + A h of the last hidden state h."""

    def __init__(self, model: PreTrainedModel, family: str) -> None:
        super().__init__(model, family)
        width = model.config.hidden_size
        self.proj = nn.Linear(width, width, bias=False)
        initialise(self)

    def forward(self, states: tuple[torch.Tensor, ...], ids: torch.Tensor | None = None) -> torch.Tensor:
        return states[-1] + self.proj(states[-1])

    @staticmethod
    def flops(config: Any, seq_len: int) -> float:
        return 2 * config.hidden_size**2 + model_parts(config, seq_len).head


class BlockHead(Head):
    """A block of the student's family and a norm, beside the student's last block: both read the same hidden state."""

    def __init__(self, model: PreTrainedModel, family: str) -> None:
        super().__init__(model, family)
        self._config = config = model.config  # which may be told later to read documents
        sizes = (getattr(config, name, None) for name in ("intermediate_size", "n_inner"))
        shape = CoCoMixConfig(
            vocab_size=1,
            hidden_size=config.hidden_size,
            num_hidden_layers=max(2, config.num_hidden_layers),
            num_attention_heads=config.num_attention_heads,
            num_key_value_heads=getattr(config, "num_key_value_heads", None),
            intermediate_size=next((size for size in sizes if size), None),
            max_position_embeddings=1,
            backbone=family,
            concept_layer=1,
            num_concepts=1,
            concept_top_k=1,
        )
        with torch.device("meta"):
            backbone = BACKBONES[family](shape)  # for its way of making blocks; it has no weights
        self.block, self.norm = backbone.block(shape, 0), backbone.norm(shape)
        self._rotary = backbone.rotary
        initialise(self)

    def forward(self, states: tuple[torch.Tensor, ...], ids: torch.Tensor | None = None) -> torch.Tensor:
        hidden, rule = states[-2], document_rule(self._config)
        if rule is None or ids is None:
            positions, layout = torch.arange(hidden.shape[1], device=hidden.device)[None], AttentionLayout(None, True)
        else:
            positions, numbers = rule.positions(ids), rule.numbers(ids)
            layout = attention_layout(None, ids.shape[1], 0, slots=1, device=hidden.device, documents=numbers)
        return self.norm(self.block(hidden, layout=layout, rotary=self._rotary(positions, hidden.dtype)))

    @staticmethod
    def flops(config: Any, seq_len: int) -> float:
        parts = model_parts(config, seq_len)
        return parts.block + parts.head


HEADS: dict[str, type[Head]] = {"block": BlockHead, "linear": LinearHead, "shared": SharedHead}


def initialise(module: nn.Module) -> None:
    """Draw the weights of linear layers as a plain student's are; biases are zero."""
    for one in module.modules():
        if isinstance(one, nn.Linear):
            nn.init.normal_(one.weight, std=STD * getattr(one, "init_scale", 1.0))
            if one.bias is not None:
                nn.init.zeros_(one.bias)
