"""The sparse autoencoder that defines the concepts, read at its K strongest latents.

Ours follows Gao et al. 2024 ("Scaling and evaluating sparse autoencoders"), as OpenAI's GPT-2 autoencoders do:
inputs are normalised per position with the *unbiased* standard deviation, and latents are ReLU(TopK(pre)). What
published autoencoders do differently is in `activation` and `normalisation`; how they lie on disk, in `formats`.
The decoder is stored row by row, `[C, d_model]`, so that K active latents are K gathered rows; decoding never
does a dense product over C.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

from cocomix.kernels.sparse import row_products, weighted_rows
from cocomix.sae.activation import ACTIVATIONS, Activation, ReLU
from cocomix.sae.normalisation import NORMALISATIONS
from cocomix.sae.reading import agrees, read_json, read_tensors, sizes, whole
from cocomix.sae.sae_encode import encode_chosen
from cocomix.utils.errors import CocomixError

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
        """Read OpenAI's layout; see `cocomix.sae.formats.openai.from_openai`."""
        from cocomix.sae.formats.openai import from_openai

        return from_openai(state_dict)

    @classmethod
    def load_openai_file(cls, path: Path | str) -> "TopKSAE":
        """Read one of OpenAI's `.pt` files, with `weights_only=True`."""
        from cocomix.sae.formats.openai import load_openai_file

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
