"""TopK sparse autoencoder, whose latents are the concepts.

It follows Gao et al. 2024 ("Scaling and evaluating sparse autoencoders"), as OpenAI's GPT-2 autoencoders do: inputs are
normalised per position with the *unbiased* standard deviation, and latents are ReLU(TopK(pre)). Published autoencoders
differ in their `Activation` and their normalisation (`NORMALISATIONS`), and all of them are read at their K largest
latents. File formats are in `sae/formats`.

Choices:
- Nothing C wide is kept. `encode_chosen` computes the encoder a chunk of positions at a time through one buffer and
  chooses K latents from each chunk. In the backward pass only the K chosen pre-activations of a position have a
  gradient, so the encoder's gradient is a sum over K rows per position and not a product over C.
- Under autocast the product over C is taken in bfloat16 and only screens: the pre-activations of its 2 K largest
  latents are computed again in full precision, and the K largest of these are kept. The error of bfloat16 is about
  0.003 of the spread of the pre-activations of a unit row; ranks K and 2 K are much further apart.
- The decoder is stored row by row, `[C, d_model]`, so that K active latents are K gathered rows.
- An activation of 0 is no concept: where fewer than K latents are active, the rest of the K have value 0.
- Normalisations return (y, mean, std) per position, so that the reconstruction of x is y_hat * std + mean, and dD/dc is
  `std` times the decoder's row under each of them.
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
from cocomix.sae.reading import check_size, matrix_shape, positive_int, read_json, read_tensors
from cocomix.utils.errors import CocomixError


class Activation(nn.Module, ABC):
    """Base class of activation functions; buffers and parameters are saved with the autoencoder.

    `forward` is the definition, over all C latents. `choose` and `at` give the same K largest activations without
    keeping a tensor C wide.

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
        """Activations of all C latents, `[..., C]`, from pre-activations `[..., C]`."""

    def choose(self, pre: torch.Tensor, k: int) -> torch.Tensor:
        """Latents with the `k` largest activations, int64 `[..., k]`, from pre-activations `[..., C]`."""
        return largest(pre if self.keeps_order else self(pre), k)[1]

    @abstractmethod
    def at(self, pre: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        """Activations of the latents `ids` `[..., k]`, from their pre-activations `pre` `[..., k]`."""

    def select(self, pre: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The `k` largest activations and their latents: values and int64 ids, both `[..., k]`."""
        ids = self.choose(pre, k)
        return self.at(pre.gather(-1, ids), ids), ids

    def options(self) -> dict[str, Any]:
        """Constructor arguments besides `n_latents`, as saved in `sae.json`."""
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
    """The pre-activations unchanged; those kept may be negative."""

    kind = "identity"
    keeps_order = True

    def forward(self, pre: torch.Tensor) -> torch.Tensor:
        return pre

    def at(self, pre: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        return pre


class JumpReLU(Activation):
    """pre where it is above the latent's threshold and above 0, else 0 (Rajamanoharan et al. 2024; also batch-TopK)."""

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
    """max(pre, 0) of the largest latent in each of `groups` equal groups of neighbours, 0 for the others (sparsify).

    Raises:
        CocomixError: `n_latents` is not a multiple of `groups`.
    """

    kind = "groupmax"

    def __init__(self, n_latents: int, groups: int) -> None:
        super().__init__(n_latents)
        if groups < 1 or n_latents % groups:
            raise CocomixError(f"{n_latents} latents cannot be divided into {groups} equal groups; choose a divisor")
        self.groups = groups

    def forward(self, pre: torch.Tensor) -> torch.Tensor:
        values, ids = self.select(pre, self.groups)
        return torch.zeros_like(pre).scatter(-1, ids, values)

    def choose(self, pre: torch.Tensor, k: int) -> torch.Tensor:
        if k > self.groups:
            raise CocomixError(f"k {k} exceeds the {self.groups} groups, of which each gives one concept; lower k")
        size = pre.shape[-1] // self.groups
        values, within = pre.unflatten(-1, (self.groups, size)).max(-1)
        chosen = values.topk(k, dim=-1).indices
        return within.gather(-1, chosen) + chosen * size

    def at(self, pre: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        return F.relu(pre)

    def options(self) -> dict[str, Any]:
        return {"groups": self.groups}


ACTIVATIONS: dict[str, type[Activation]] = {cls.kind: cls for cls in (ReLU, Identity, JumpReLU, GroupMax)}


Normalised = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""(y, mean, std) of x `[..., d_model]`: y `[..., d_model]`, mean and std `[..., 1]`, all per position"""


def plain(x: torch.Tensor) -> Normalised:
    """x unchanged, with mean 0 and std 1."""
    return x, torch.zeros_like(x[..., :1]), torch.ones_like(x[..., :1])


def rescaled(x: torch.Tensor) -> Normalised:
    """x scaled to the norm sqrt(d_model): SAELens' `constant_norm_rescale`."""
    std = x.norm(dim=-1, keepdim=True) / x.shape[-1] ** 0.5
    # Multiplied by the inverse, as SAELens does. A vector of zeros has no direction and stays as it is.
    scale = torch.where(std > 0, 1 / std, 1.0)
    return x * scale, torch.zeros_like(std), std


NORMALISATIONS: dict[str, Callable[[torch.Tensor], Normalised]] = {
    "none": plain,
    "standard": normalise,
    "rescale": rescaled,
}
"""`standard` is (x - mean) / (std + 1e-5) with the unbiased std: ours, OpenAI's, and SAELens' `layer_norm`."""


CHUNK_BYTES = 1 << 25
"""Bytes of pre-activations held at a time."""
_CANDIDATES = 2
"""Latents computed in full precision after screening, as a multiple of K."""


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
    """Encode, and keep the K pre-activations of weight (x - pre_bias) + bias that `choose` selects for each position.

    Args:
        x: `[n, d]`; computed in the weight's dtype.
        pre_bias: `[d]`, or None for zeros.
        weight: `[C, d]`.
        bias: `[C]`.
        k: K.
        choose: selects K latents, int64 `[rows, K]`, from the pre-activations `[rows, C]` of some positions.
        screen: dtype of the product over C if it only screens, which needs a `choose` that selects the largest.

    Returns:
        pre-activations `[n, K]`, differentiable once, and their latents, int64 `[n, K]`.
    """
    x = x.to(weight.dtype)
    return _EncodeChosen.apply(x, pre_bias, weight, bias, k, choose, screen)  # pyright: ignore[reportReturnType]


def equal_chunks(n: int, most: int) -> Iterator[slice]:
    """Slices of equal length, at most `most`, that cover 0 to n; the last one may overlap the one before.

    Libraries choose the kernel of a product by its shape, so a shorter last chunk would differ in its last bits.
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
        screened = [tensor if screen is None else tensor.to(screen) for tensor in (centred, weight, bias)]
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
        needs_x, needs_pre_bias, needs_weight, needs_bias = ctx.needs_input_grad[:4]
        grad_x = weighted_rows(gradient, ids, weight) if needs_x else None
        grad_bias = grad_pre_bias = None
        if needs_bias or needs_pre_bias:
            grad_bias = torch.zeros_like(bias).index_add_(0, ids.flatten(), gradient.flatten())
        if needs_pre_bias:
            # One product with the sum over positions instead of one product per position.
            grad_pre_bias = -(grad_x.sum(0) if grad_x is not None else grad_bias @ weight)
        grad_weight = rows_gradient(gradient, ids, centred, len(weight)) if needs_weight else None
        return grad_x, grad_pre_bias, grad_weight, grad_bias if needs_bias else None, None, None, None


WEIGHTS, SETTINGS = "sae.safetensors", "sae.json"


class SparseLatents(NamedTuple):
    """Output of `TopKSAE.encode`: the K active latents of each position."""

    values: torch.Tensor
    """activations, `[..., K]`; one that is not positive stands for no concept"""
    ids: torch.Tensor
    """latent indices, int64 `[..., K]`"""
    mean: torch.Tensor
    """mean of the input over d_model, `[..., 1]`; 0 where the SAE does not normalise"""
    std: torch.Tensor
    """scale of the input (unbiased standard deviation), `[..., 1]`; 1 where the SAE does not normalise"""


class TopKSAE(nn.Module):
    """Sparse autoencoder that keeps the K largest latents of each position.

    c = the K largest of act(W_enc (norm(x) - pre_bias) + latent_bias); D(c) = (W_dec c + pre_bias) * std + mean.

    The defaults are the reference's TopK: norm(x) = (x - mean) / (std + 1e-5), the decoded vector is scaled by std
    alone, and act is ReLU. Other autoencoders (JumpReLU, batch-TopK, standard) are also read at K concepts.

    Args:
        d_model: width of the hidden states.
        n_latents: number of concepts C.
        k: active latents per position; at most `n_latents`.
        normalisation: norm, a key of `NORMALISATIONS`.
        activation: act; None: ReLU.
        bias_input: whether pre_bias is subtracted before encoding; after decoding it is always added.
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
        """The K largest activations: values and int64 ids, `[..., K]`, from pre-activations `[..., C]`."""
        return self.activation.select(pre, self.k)

    def chosen(self, normed: torch.Tensor, screen: torch.dtype | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """The K largest activations and their int64 ids, `[..., K]`, from normalised inputs `[..., d_model]`.

        With `screen` the product over C has that dtype and only selects candidates; see the module docstring.
        """
        flat = normed.reshape(-1, self.d_model)
        pre_bias = self.pre_bias if self.bias_input else None
        weights = self.encoder_weight, self.latent_bias
        pre, ids = encode_chosen(flat, pre_bias, *weights, self.k, self.activation.choose, screen)
        shape = (*normed.shape[:-1], self.k)
        return self.activation.at(pre, ids).view(shape), ids.view(shape)

    def encode(self, x: torch.Tensor) -> SparseLatents:
        """Active latents of hidden states `x` `[..., d_model]`, in the precision of the SAE's weights.

        Under autocast the product over C has autocast's dtype and only selects candidates.
        """
        device_type = x.device.type
        screens = torch.is_autocast_enabled(device_type) and self.activation.keeps_order
        screen = torch.get_autocast_dtype(device_type) if screens else None
        with torch.autocast(device_type, enabled=False):
            normed, mean, std = self.preprocess(x.to(self.encoder_weight.dtype))
            return SparseLatents(*self.chosen(normed, screen), mean, std)

    def encode_dense(self, x: torch.Tensor) -> torch.Tensor:
        """Latents of `x` as a dense tensor, `[..., C]`."""
        latents = self.encode(x)
        dense = latents.values.new_zeros(*latents.values.shape[:-1], self.n_latents)
        return dense.scatter(-1, latents.ids, latents.values)

    def combine(self, values: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        """W_dec c, `[..., d_model]`: the sum of decoder rows `ids` `[..., K]` weighted by `values` `[..., K]`."""
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
    def rows_from_data_(self, x: torch.Tensor) -> None:
        """Point every latent at a hidden state of `x` `[n, d_model]`, as seen from pre_bias, drawn without repetition.

        So latents begin where data is, and few of them die. Decoder rows get unit norm. Encoder rows get the norm with
        which the reconstruction of the first 1024 of `x` has the least squared error: hidden states of a language model
        have much in common, and K rows that each give all of it back overshoot K times.
        """
        normed = self.preprocess(x.to(self.pre_bias.dtype))[0]
        seen = normed - self.pre_bias
        rounds = -(-self.n_latents // len(seen))
        order = torch.cat([torch.randperm(len(seen)) for _ in range(rounds)])[: self.n_latents]
        rows = F.normalize(seen[order.to(seen.device)], dim=-1)
        self.encoder_weight.copy_(rows)
        self.decoder_weight.copy_(rows)
        built = self.combine(*self.chosen(normed[:1024]))
        self.encoder_weight.mul_((seen[:1024] * built).sum() / built.square().sum().clamp_min(1e-8))

    @torch.no_grad()
    def normalize_decoder_(self) -> None:
        """Scale every decoder row to unit norm, in place."""
        self.decoder_weight.div_(self.decoder_weight.norm(dim=-1, keepdim=True).clamp_min(1e-8))

    @torch.no_grad()
    def remove_parallel_gradient_(self) -> None:
        """Remove the part of the decoder's gradient along each row, which `normalize_decoder_` would undo."""
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
        """Load a folder written by `save_pretrained`, in its dtype; also reads format 1, which knows TopK only.

        Raises:
            CocomixError: a file is missing or damaged.
        """
        folder = Path(folder)
        settings, weights = read_json(folder / SETTINGS), read_tensors(folder / WEIGHTS)
        try:
            n_latents, d_model = matrix_shape(weights, "encoder_weight", folder)
            check_size(settings["d_model"], d_model, "d_model", folder)
            check_size(settings["n_latents"], n_latents, "n_latents", folder)
            sae = cls(
                d_model,
                n_latents,
                positive_int(settings["k"], "k", folder),
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

    def save_pretrained(self, folder: Path | str, **metadata: Any) -> None:
        """Write `sae.safetensors` and `sae.json`; `metadata` (layer, lineage) goes into the latter under `about`."""
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
        content = {"format": 2, **settings, "about": metadata}
        (folder / SETTINGS).write_text(json.dumps(content, indent=1), encoding="utf-8")


def _normalisation(settings: dict[str, Any]) -> str:
    if settings["format"] == 1:
        return "standard" if settings["normalize"] else "none"
    return settings["normalisation"]


def _activation(settings: dict[str, Any], n_latents: int, folder: Path) -> Activation:
    if settings["format"] == 1:
        return ACTIVATIONS["relu" if settings["relu"] else "identity"](n_latents)
    options = dict(settings["activation"])
    kind = ACTIVATIONS[options.pop("kind")]
    return kind(n_latents, **{name: positive_int(value, name, folder) for name, value in options.items()})
