"""From pre-activations to concepts: what an autoencoder does after its encoder, and the K that are kept.

Published autoencoders differ here. Each class gives the activations the autoencoder itself would give (`forward`, the
definition, all C of them), says which K of these are largest (`choose`) and what they are (`at`), so that nothing C
wide need be kept. An activation of 0 is no concept: where fewer than K are active the rest of the K have value 0.
"""

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import nn

from cocomix.kernels.topk import largest
from cocomix.utils.errors import CocomixError


class Activation(nn.Module, ABC):
    """One activation function; its tensors, if any, are saved with the autoencoder.

    Args:
        n_latents: number of concepts C.
    """

    kind: ClassVar[str]
    keeps_order: ClassVar[bool] = False
    """whether the K largest activations are those of the K largest pre-activations"""

    def __init__(self, n_latents: int) -> None:
        super().__init__()

    @abstractmethod
    def forward(self, pre: torch.Tensor) -> torch.Tensor:
        """Activations of pre-activations `[..., C]`, before K of them are kept, `[..., C]`."""

    def choose(self, pre: torch.Tensor, k: int) -> torch.Tensor:
        """The latents of the `k` largest activations, int64 `[..., k]`, of pre-activations `[..., C]`."""
        return largest(pre if self.keeps_order else self(pre), k)[1]

    @abstractmethod
    def at(self, pre: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        """Activations of chosen latents `ids` `[..., k]` with pre-activations `pre` `[..., k]`."""

    def select(self, pre: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The `k` largest activations and their latents: values and int64 ids, both `[..., k]`."""
        ids = self.choose(pre, k)
        return self.at(pre.gather(-1, ids), ids), ids

    def options(self) -> dict[str, Any]:
        """Arguments, beside `n_latents`, that make this activation again."""
        return {}


class ReLU(Activation):
    """max(pre, 0). With K kept this is TopK (Gao et al. 2024); ReLU autoencoders are read the same way."""

    kind = "relu"
    keeps_order = True

    def forward(self, pre: torch.Tensor) -> torch.Tensor:
        return F.relu(pre)

    def at(self, pre: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        return F.relu(pre)


class Identity(Activation):
    """pre as it is; the K kept may be negative."""

    kind = "identity"
    keeps_order = True

    def forward(self, pre: torch.Tensor) -> torch.Tensor:
        return pre

    def at(self, pre: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        return pre


class JumpReLU(Activation):
    """pre where it is above the latent's threshold and above 0, else 0 (Rajamanoharan et al. 2024; batch-TopK, too)."""

    kind = "jumprelu"
    threshold: torch.Tensor
    """of each latent, `[C]`"""

    def __init__(self, n_latents: int) -> None:
        super().__init__(n_latents)
        self.register_buffer("threshold", torch.zeros(n_latents))

    def forward(self, pre: torch.Tensor) -> torch.Tensor:
        return torch.where(pre > self.threshold.clamp_min(0), pre, 0.0)

    def at(self, pre: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        return torch.where(pre > self.threshold.clamp_min(0)[ids], pre, 0.0)


class GroupMax(Activation):
    """max(pre, 0) of the largest latent in each of `groups` equal runs of latents, 0 for the others (sparsify).

    Raises:
        CocomixError: the groups would not be equal.
    """

    kind = "groupmax"

    def __init__(self, n_latents: int, groups: int) -> None:
        super().__init__(n_latents)
        if groups < 1 or n_latents % groups:
            raise CocomixError(f"{n_latents} latents cannot be shared by {groups} equal groups; choose a divisor")
        self.groups = groups

    def forward(self, pre: torch.Tensor) -> torch.Tensor:
        values, ids = self.select(pre, self.groups)
        return torch.zeros_like(pre).scatter(-1, ids, values)

    def choose(self, pre: torch.Tensor, k: int) -> torch.Tensor:
        if k > self.groups:
            raise CocomixError(f"k {k} concepts cannot be kept of {self.groups} groups with one each; lower k")
        size = pre.shape[-1] // self.groups
        values, within = pre.unflatten(-1, (self.groups, size)).max(-1)
        chosen = values.topk(k, dim=-1).indices
        return within.gather(-1, chosen) + chosen * size

    def at(self, pre: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        return F.relu(pre)

    def options(self) -> dict[str, Any]:
        return {"groups": self.groups}


ACTIVATIONS: dict[str, type[Activation]] = {one.kind: one for one in (ReLU, Identity, JumpReLU, GroupMax)}
