"""The sparse autoencoder that defines the concepts, read at its K strongest latents.

Ours follows Gao et al. 2024 ("Scaling and evaluating sparse autoencoders"), as OpenAI's GPT-2 autoencoders do:
inputs are normalised per position with the *unbiased* standard deviation, and latents are ReLU(TopK(pre)). What
published autoencoders do differently is in `activation` and `normalisation`; how they lie on disk, in `formats`.
The decoder is stored row by row, `[C, d_model]`, so that K active latents are K gathered rows; decoding never
does a dense product over C.
"""

import json
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn
from torch.autograd.function import once_differentiable

from cocomix.kernels.matmul import outside_graphs, scores_into
from cocomix.kernels.normalise import normalise
from cocomix.kernels.sparse import largest, row_products, rows_gradient, weighted_rows
from cocomix.sae.reading import agrees, read_json, read_tensors, sizes, whole
from cocomix.utils.errors import CocomixError

# From pre-activations to concepts: what an autoencoder does after its encoder, and the K that are kept.
#
# Published autoencoders differ here. Each class gives the activations the autoencoder itself would give (`forward`, the
# definition, all C of them), says which K of these are largest (`choose`) and what they are (`at`), so that nothing C
# wide need be kept. An activation of 0 is no concept: where fewer than K are active the rest of the K have value 0.


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


# How an autoencoder scales hidden states before it reads them, and back afterwards.
#
# Each function maps x `[..., d_model]` to (y, mean, std), all per position, so that the reconstruction of y becomes one
# of x as y_hat * std + mean; mean and std are `[..., 1]`. Nothing else is needed downstream: dD/dc is `std` times the
# decoder's row under every one of them.

Normalised = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def plain(x: torch.Tensor) -> Normalised:
    """x as it is."""
    return x, torch.zeros_like(x[..., :1]), torch.ones_like(x[..., :1])


def rescaled(x: torch.Tensor) -> Normalised:
    """x brought to the norm sqrt(d_model): SAELens' `constant_norm_rescale`."""
    std = x.norm(dim=-1, keepdim=True) / x.shape[-1] ** 0.5
    # As SAELens, multiply by the inverse. A vector of zeros has no direction to keep; it stays as it is.
    scale = torch.where(std > 0, 1 / std, 1.0)
    return x * scale, torch.zeros_like(std), std


NORMALISATIONS: dict[str, Callable[[torch.Tensor], Normalised]] = {
    "none": plain,
    "standard": normalise,
    "rescale": rescaled,
}
"""`standard`: per position, with the unbiased std and 1e-5 added to it; OpenAI's, SAELens' `layer_norm`, and ours."""


# The encoder and the choice of its K latents in one: pre-activations of all C never exist at once.
#
# Positions are taken a chunk at a time through one buffer. Backward only the K chosen pre-activations of a position
# have a gradient, so the encoder's is a sum over K rows a position and not a product over C.
#
# The product over C need only say which latents are worth a closer look. It may be taken in bfloat16 (`screen`): of the
# 2 K largest found there the pre-activations are then computed in full precision, and the K largest of these are kept.
# bfloat16 is off by about 0.003 of a unit row's pre-activation's spread, and ranks K and 2 K are much further apart.

CHUNK_BYTES = 1 << 25
"""Pre-activations held at a time."""
_CANDIDATES = 2
"""Latents looked at closely after screening, as a multiple of K."""


@outside_graphs
def encode_chosen(
    x: torch.Tensor,
    pre_bias: torch.Tensor | None,
    weight: torch.Tensor,
    bias: torch.Tensor,
    k: int,
    choose: Callable[[torch.Tensor, int], torch.Tensor],
    screen: torch.dtype | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The K pre-activations weight (x - pre_bias) + bias of each position that `choose` names.

    Args:
        x: `[n, d]`; computed in the weight's dtype.
        pre_bias: `[d]`, or None for zeros.
        weight: `[C, d]`.
        bias: `[C]`.
        k: K.
        choose: from some positions' pre-activations `[rows, C]` and K to latents, int64 `[rows, K]`.
        screen: dtype of the product over C, where `choose` names the largest; None: that of `x`.

    Returns:
        pre-activations `[n, K]`, differentiable once, and their latents, int64 `[n, K]`.
    """
    x = x.to(weight.dtype)
    return _EncodeChosen.apply(x, pre_bias, weight, bias, k, choose, screen)  # pyright: ignore[reportReturnType]


def equal_chunks(n: int, most: int) -> Iterator[slice]:
    """Slices of equal length, at most `most`, that cover 0 to n; the last one may begin inside the one before.

    Libraries choose a product's kernel by its shape: a shorter last chunk would have other last bits.
    """
    number = -(-n // max(1, most))
    size = -(-n // max(1, number))
    for place in range(number):
        first = min(place * size, n - size)
        yield slice(first, first + size)


class _EncodeChosen(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        pre_bias: torch.Tensor | None,
        weight: torch.Tensor,
        bias: torch.Tensor,
        k: int,
        choose: Callable[[torch.Tensor, int], torch.Tensor],
        screen: torch.dtype | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        centred = x if pre_bias is None else x - pre_bias
        values = centred.new_empty(len(x), k)  # a double pre_bias makes float hidden states double
        ids = torch.empty(len(x), k, dtype=torch.int64, device=x.device)
        screened = [one if screen is None else one.to(screen) for one in (centred, weight, bias)]
        buffer = screened[0].new_empty(0, len(weight))
        for rows in equal_chunks(len(x), CHUNK_BYTES // (buffer.element_size() * len(weight))):
            if not len(buffer):
                buffer = buffer.new_empty(rows.stop - rows.start, len(weight))
            pre = scores_into(buffer, screened[0][rows], screened[1], screened[2])
            if screen is None:
                ids[rows] = choose(pre, k)
                values[rows] = pre.gather(-1, ids[rows])
            else:
                candidates = choose(pre, min(_CANDIDATES * k, len(weight)))
                exact = row_products(centred[rows], candidates, weight) + bias[candidates]
                values[rows], places = exact.topk(k, dim=-1)
                ids[rows] = candidates.gather(-1, places)
        ctx.save_for_backward(centred, weight, bias, ids)
        ctx.mark_non_differentiable(ids)
        return values, ids

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor, _: None) -> tuple[torch.Tensor | None, ...]:
        centred, weight, bias, ids = ctx.saved_tensors
        for_x, for_pre_bias, for_weight, for_bias = ctx.needs_input_grad[:4]
        into_x = weighted_rows(gradient, ids, weight) if for_x else None
        into_bias = into_pre_bias = None
        if for_bias or for_pre_bias:
            into_bias = torch.zeros_like(bias).index_add_(0, ids.flatten(), gradient.flatten())
        if for_pre_bias:
            # One product with the sums over positions, not one a position.
            into_pre_bias = -(into_x.sum(0) if into_x is not None else into_bias @ weight)
        into_weight = rows_gradient(gradient, ids, centred, len(weight)) if for_weight else None
        return into_x, into_pre_bias, into_weight, into_bias if for_bias else None, None, None, None


WEIGHTS, ABOUT = "sae.safetensors", "sae.json"


class SparseLatents(NamedTuple):
    """The K active latents of each position."""

    values: torch.Tensor
    """activations, `[..., K]`; those that are not positive carry no concept"""
    ids: torch.Tensor
    """latent indices, int64 `[..., K]`"""
    mean: torch.Tensor
    """mean of the input over d_model, `[..., 1]`; 0 where the SAE does not normalise"""
    std: torch.Tensor
    """scale of the input (unbiased standard deviation), `[..., 1]`; 1 where the SAE does not normalise"""


class TopKSAE(nn.Module):
    """c = the K largest of act(W_enc (norm(x) - pre_bias) + latent_bias); D(c) = (W_dec c + pre_bias) * std + mean.

    With the defaults, TopK as the reference has it: norm(x) = (x - mean) / (std + 1e-5), the decoded vector is scaled
    by std alone, act is ReLU. Other autoencoders (JumpReLU, batch-TopK, standard) are read at K concepts, too.

    Args:
        d_model: width of the hidden states.
        n_latents: number of concepts C.
        k: active latents a position; at most `n_latents`.
        normalisation: norm, a key of `NORMALISATIONS`.
        activation: act; ReLU if not given.
        bias_input: whether pre_bias is subtracted before encoding; it is added after decoding either way.
    """

    def __init__(
        self,
        d_model: int,
        n_latents: int,
        k: int,
        *,
        normalisation: str = "standard",
        activation: Activation | None = None,
        bias_input: bool = True,
    ) -> None:
        super().__init__()
        if not 1 <= k <= n_latents:
            raise CocomixError(
                f"k {k} active latents do not fit into {n_latents} latents; choose k from 1 to {n_latents}"
            )
        if normalisation not in NORMALISATIONS:
            raise CocomixError(
                f"there is no normalisation {normalisation!r}; choose one of {', '.join(NORMALISATIONS)}"
            )
        self.d_model, self.n_latents, self.k = d_model, n_latents, k
        self.normalisation, self.bias_input = normalisation, bias_input
        self.activation = ReLU(n_latents) if activation is None else activation
        rows = F.normalize(torch.randn(n_latents, d_model), dim=-1)
        self.pre_bias = nn.Parameter(torch.zeros(d_model))
        self.encoder_weight = nn.Parameter(rows.clone())
        self.latent_bias = nn.Parameter(torch.zeros(n_latents))
        self.decoder_weight = nn.Parameter(rows)

    def preprocess(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(norm(x), mean, std) of `x` `[..., d_model]`; mean and std are `[..., 1]`."""
        return NORMALISATIONS[self.normalisation](x)

    def pre_activations(self, normed: torch.Tensor) -> torch.Tensor:
        """W_enc (normed - pre_bias) + latent_bias, `[..., C]`."""
        centred = normed - self.pre_bias if self.bias_input else normed
        return F.linear(centred, self.encoder_weight, self.latent_bias)

    def select(self, pre: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The K largest activations of pre-activations `[..., C]`: values and int64 ids, `[..., K]`."""
        return self.activation.select(pre, self.k)

    def chosen(self, normed: torch.Tensor, screen: torch.dtype | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """The K largest activations of normalised inputs `[..., d_model]`, and their int64 ids, `[..., K]`.

        With `screen` the product over C is in that dtype and only says where to look; see `sae_encode`.
        """
        flat = normed.reshape(-1, self.d_model)
        pre_bias = self.pre_bias if self.bias_input else None
        weights = self.encoder_weight, self.latent_bias
        pre, ids = encode_chosen(flat, pre_bias, *weights, self.k, self.activation.choose, screen)
        shape = (*normed.shape[:-1], self.k)
        return self.activation.at(pre, ids).view(shape), ids.view(shape)

    def encode(self, x: torch.Tensor) -> SparseLatents:
        """Active latents of hidden states `x` `[..., d_model]`, in the SAE's own precision.

        Under autocast the product over C is in its dtype and only says where to look.
        """
        kind = x.device.type
        lower = torch.is_autocast_enabled(kind) and self.activation.keeps_order
        screen = torch.get_autocast_dtype(kind) if lower else None
        with torch.autocast(x.device.type, enabled=False):
            normed, mean, std = self.preprocess(x.to(self.encoder_weight.dtype))
            return SparseLatents(*self.chosen(normed, screen), mean, std)

    def encode_dense(self, x: torch.Tensor) -> torch.Tensor:
        """Latents of `x` with all C columns, `[..., C]`."""
        latents = self.encode(x)
        dense = latents.values.new_zeros(*latents.values.shape[:-1], self.n_latents)
        return dense.scatter(-1, latents.ids, latents.values)

    def combine(self, values: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        """Sum of decoder rows `ids` `[..., K]` weighted by `values` `[..., K]`: W_dec c, `[..., d_model]`."""
        return weighted_rows(values, ids, self.decoder_weight)

    def decode(self, latents: SparseLatents) -> torch.Tensor:
        """Reconstruction D(c), `[..., d_model]`."""
        return (self.combine(latents.values, latents.ids) + self.pre_bias) * latents.std + latents.mean

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Reconstruction of `x` `[..., d_model]`."""
        return self.decode(self.encode(x))

    def active_directional_derivative(self, gradient: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        """<gradient, decoder row> for the latents `ids`: `[..., d_model]`, `[..., K]` -> `[..., K]`."""
        return row_products(gradient, ids, self.decoder_weight)

    @torch.no_grad()
    def init_from_data(self, x: torch.Tensor) -> None:
        """Set pre_bias to the mean of the normalised hidden states `x` `[n, d_model]`."""
        self.pre_bias.copy_(self.preprocess(x.to(self.pre_bias.dtype))[0].mean(0))

    @torch.no_grad()
    def normalize_decoder_(self) -> None:
        """Bring every decoder row back to unit norm."""
        self.decoder_weight.div_(self.decoder_weight.norm(dim=-1, keepdim=True).clamp_min(1e-8))

    @torch.no_grad()
    def remove_parallel_gradient_(self) -> None:
        """Drop the part of the decoder's gradient along each row, which unit norm would undo anyway."""
        gradient = self.decoder_weight.grad
        if gradient is not None:
            along = (gradient * self.decoder_weight).sum(-1, keepdim=True)
            gradient.sub_(along * self.decoder_weight)

    @classmethod
    def from_openai(cls, state_dict: dict[str, Any]) -> "TopKSAE":
        """Deprecated: use `cocomix.sae.from_openai`."""
        from cocomix.sae.formats.openai import from_openai

        warnings.warn("TopKSAE.from_openai is now cocomix.sae.from_openai", FutureWarning, stacklevel=2)
        return from_openai(state_dict)

    @classmethod
    def load_openai_file(cls, path: Path | str) -> "TopKSAE":
        """Deprecated: use `cocomix.sae.load_openai_file`."""
        from cocomix.sae.formats.openai import load_openai_file

        warnings.warn("TopKSAE.load_openai_file is now cocomix.sae.load_openai_file", FutureWarning, stacklevel=2)
        return load_openai_file(path)

    @classmethod
    def from_pretrained(cls, folder: Path | str) -> "TopKSAE":
        """Read a folder written by `save_pretrained`, in its dtype; format 1 (TopK alone) is read, too.

        Raises:
            CocomixError: a file is missing or damaged.
        """
        folder = Path(folder)
        settings, weights = read_json(folder / ABOUT), read_tensors(folder / WEIGHTS)
        try:
            n_latents, d_model = sizes(weights, "encoder_weight", folder)
            agrees(settings["d_model"], d_model, "d_model", folder)
            agrees(settings["n_latents"], n_latents, "n_latents", folder)
            sae = cls(
                d_model,
                n_latents,
                whole(settings["k"], "k", folder),
                normalisation=_normalisation(settings),
                activation=_activation(settings, n_latents, folder),
                bias_input=settings.get("bias_input", True),
            ).to(weights["encoder_weight"].dtype)
            sae.load_state_dict(weights)
        except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
            raise CocomixError(
                f"the autoencoder in {folder} is damaged ({type(error).__name__}); train or copy it again"
            ) from error
        return sae

    def save_pretrained(self, folder: Path | str, **about: Any) -> None:
        """Write `sae.safetensors` and `sae.json`; `about` (layer, lineage) is kept in the latter."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        save_file({name: tensor.contiguous() for name, tensor in self.state_dict().items()}, folder / WEIGHTS)
        settings = {
            "d_model": self.d_model,
            "n_latents": self.n_latents,
            "k": self.k,
            "normalisation": self.normalisation,
            "activation": {"kind": self.activation.kind, **self.activation.options()},
            "bias_input": self.bias_input,
        }
        (folder / ABOUT).write_text(json.dumps({"format": 2, **settings, "about": about}, indent=1), encoding="utf-8")


def _normalisation(settings: dict[str, Any]) -> str:
    if settings["format"] == 1:
        return "standard" if settings["normalize"] else "none"
    return settings["normalisation"]


def _activation(settings: dict[str, Any], n_latents: int, folder: Path) -> Activation:
    if settings["format"] == 1:
        return ACTIVATIONS["relu" if settings["relu"] else "identity"](n_latents)
    options = dict(settings["activation"])
    kind = ACTIVATIONS[options.pop("kind")]
    return kind(n_latents, **{name: whole(value, name, folder) for name, value in options.items()})
