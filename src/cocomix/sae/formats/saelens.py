"""SAELens' folders: `cfg.json` beside `sae_weights.safetensors`.

- Since version 6 `cfg.json` names the architecture and holds facts about the model under `metadata`. Before, it was one
  flat object in which a topk activation function turned a "standard" autoencoder into a TopK one. Both are read.
- SAELens saves a batch-TopK autoencoder as JumpReLU; an unfinished checkpoint holds its threshold as one number.
- `expected_average_only_in` is a constant factor. It is folded into the weights if the folder has it
  (`activation_scaler.json`), as SAELens does at the end of training.
- SAELens' `layer_norm` is exactly our `standard`: unbiased std, 1e-5 added to it, the output scaled back by std alone.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from cocomix.sae.formats.base import LoadedSae, SaeFormat, with_weights
from cocomix.sae.reading import (
    check_size,
    check_tensors,
    matrix_shape,
    optional_text,
    peek_json,
    positive_int,
    read_json,
    read_tensors,
    window_metadata,
)
from cocomix.sae.sae import Activation, JumpReLU, ReLU, TopKSAE
from cocomix.utils.errors import CocomixError
from cocomix.utils.files import write_json

CONFIG, WEIGHTS, SCALER = "cfg.json", "sae_weights.safetensors", "activation_scaler.json"
NORMALISATION = {
    "none": "none",
    "layer_norm": "standard",
    "constant_norm_rescale": "rescale",
    "expected_average_only_in": "none",
}
"""SAELens' name -> ours; the last one after its factor has been folded into the weights."""
LAYOUT = "6.0.0"
"""The SAELens version whose layout is written; readers assume an older layout if it is missing."""


class SaeLensFormat(SaeFormat):
    """SAELens' folders, of the architectures topk, jumprelu, batchtopk, matryoshka_batchtopk and standard."""

    name, title = "saelens", "SAELens' format"
    metadata_file = CONFIG

    def detect(self, path: Path) -> bool:
        config = peek_json(path / CONFIG)
        return "d_sae" in config or (path / WEIGHTS).is_file()

    def hook(self, path: Path) -> str | None:
        return optional_text(_metadata(peek_json(path / CONFIG)).get("hook_name"), "hook_name", path)

    def load(self, path: Path, k: int) -> LoadedSae:
        config, tensors = read_json(path / CONFIG), read_tensors(path / WEIGHTS)
        _check_supported(config, path)
        scaling = tensors.pop("scaling_factor", torch.ones(1))
        if not torch.allclose(scaling, torch.ones_like(scaling)):
            raise CocomixError(f"{path} has a fine-tuned scaling_factor, which cocomix does not apply; use another SAE")
        architecture = _architecture(config)
        if architecture not in READERS:
            raise CocomixError(
                f"{path} is a SAELens autoencoder of the architecture {architecture!r};"
                f" cocomix reads {', '.join(READERS)}"
            )
        extra, k_from_files = READERS[architecture]
        d_model, n_latents = matrix_shape(tensors, "W_enc", path)
        check_size(config.get("d_in"), d_model, "d_in", path)
        check_size(config.get("d_sae"), n_latents, "d_sae", path)
        vectors = {name: (n_latents,) if name == "threshold" else () for name in extra}
        shapes = {"W_enc": (d_model, n_latents), "b_enc": (n_latents,), "W_dec": (n_latents, d_model)}
        weights = check_tensors(tensors, shapes | {"b_dec": (d_model,)} | vectors, path)
        threshold = weights.get("threshold", weights.get("topk_threshold"))
        rescale = bool(config.get("rescale_acts_by_decoder_norm"))
        _fold(weights, _factor(config, path), rescale)
        if "topk_threshold" in extra and rescale and threshold is not None:
            threshold = threshold / _factor(config, path)
        if k_from_files:
            k = positive_int(config.get("k", _kwargs(config).get("k")), "k", path)
        activation: Activation = ReLU(n_latents) if threshold is None else JumpReLU(n_latents)
        sae = TopKSAE(
            d_model,
            n_latents,
            k,
            normalisation=NORMALISATION[_normalisation(config)],
            activation=activation,
            bias_input=config.get("apply_b_dec_to_input", True),
        )
        named = {
            "pre_bias": weights["b_dec"],
            "encoder_weight": weights["W_enc"].T,
            "latent_bias": weights["b_enc"],
            "decoder_weight": weights["W_dec"],
        }
        if threshold is not None:
            named["activation.threshold"] = threshold.to(named["latent_bias"].dtype).expand(n_latents)
        model = optional_text(_metadata(config).get("model_name"), "model_name", path)
        windows = window_metadata(_model_facts(config), path)
        return LoadedSae(with_weights(sae, named), self.name, self.hook(path), model, k_from_files, *windows)

    def write(self, sae: TopKSAE, folder: Path, metadata: Mapping[str, Any]) -> None:
        saelens_names = {ours: name for name, ours in NORMALISATION.items() if name != "expected_average_only_in"}
        threshold = _thresholds(sae, metadata)
        if sae.activation.kind != "relu" and threshold is None:
            raise CocomixError(
                f"SAELens has no {sae.activation.kind} activation of which {sae.k} are kept;"
                " only TopK with ReLU can be exported to it, and an autoencoder with thresholds that cut nothing off"
            )
        layer = metadata.get("layer")
        model_metadata = {
            "sae_lens_version": LAYOUT,
            "sae_lens_training_version": None,
            "model_name": metadata.get("model"),
            "hook_name": None if layer is None else f"blocks.{layer}.hook_resid_post",
            "hook_head_index": None,
            "prepend_bos": bool(metadata.get("prepend_bos")),
        }
        if metadata.get("context_size") is not None:
            model_metadata["context_size"] = metadata["context_size"]
        config = {
            "architecture": "topk" if threshold is None else "jumprelu",
            "d_in": sae.d_model,
            "d_sae": sae.n_latents,
            "dtype": str(sae.encoder_weight.dtype).removeprefix("torch."),
            "device": "cpu",
            "apply_b_dec_to_input": sae.bias_input,
            "normalize_activations": saelens_names[sae.normalisation],
            "reshape_activations": "none",
            "metadata": model_metadata,
        } | ({"k": sae.k, "rescale_acts_by_decoder_norm": False} if threshold is None else {})
        tensors = {
            "W_enc": sae.encoder_weight.detach().T,
            "b_enc": sae.latent_bias.detach(),
            "W_dec": sae.decoder_weight.detach(),
            "b_dec": sae.pre_bias.detach(),
        } | ({} if threshold is None else {"threshold": threshold})
        folder.mkdir(parents=True, exist_ok=True)
        save_file({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, folder / WEIGHTS)
        write_json(folder / CONFIG, config)


MOST_FULL = 1e-3
"""An autoencoder with thresholds is exported if at most this share of positions may have lost an active latent."""


def _thresholds(sae: TopKSAE, metadata: Mapping[str, Any]) -> torch.Tensor | None:
    """Thresholds, `[C]`, of an autoencoder that means the same without its limit on active latents; else None."""
    if not isinstance(sae.activation, JumpReLU) or metadata.get("full_share", 1.0) > MOST_FULL:
        return None
    return sae.activation.threshold.detach().clamp_min(0)


READERS: dict[str, tuple[tuple[str, ...], bool]] = {
    "topk": ((), True),
    "standard": ((), False),
    "jumprelu": (("threshold",), False),
    "batchtopk": (("topk_threshold",), False),
    "matryoshka_batchtopk": (("topk_threshold",), False),
}
"""Tensors of an architecture besides the four that all have, and whether it states K."""


def _kwargs(config: dict[str, Any]) -> dict[str, Any]:
    kwargs = config.get("activation_fn_kwargs")
    return kwargs if isinstance(kwargs, dict) else {}


def _architecture(config: dict[str, Any]) -> str:
    stated = str(config.get("architecture", "standard"))
    function = config.get("activation_fn", config.get("activation_fn_str", "relu"))
    if function == "topk":
        return "topk"
    return stated if function == "relu" else f"{stated} with {function}"


def _normalisation(config: dict[str, Any]) -> str:
    stated = config.get("normalize_activations")
    if isinstance(stated, bool):  # versions before 3
        return "expected_average_only_in" if stated else "none"
    return "none" if stated is None else str(stated)


def _model_facts(config: dict[str, Any]) -> dict[str, Any]:
    nested = config.get("metadata")
    return nested if isinstance(nested, dict) else config


def _metadata(config: dict[str, Any]) -> dict[str, Any]:
    source = _model_facts(config)
    return {"hook_name": source.get("hook_name", source.get("hook_point")), "model_name": source.get("model_name")}


def _check_supported(config: dict[str, Any], path: Path) -> None:
    normalisation = _normalisation(config)
    if normalisation not in NORMALISATION:
        raise CocomixError(
            f"{path} normalises activations by {normalisation!r}, which cocomix does not know;"
            f" it knows {', '.join(NORMALISATION)}"
        )
    if config.get("reshape_activations", "none") != "none":
        raise CocomixError(
            f"{path} reads reshaped activations ({config['reshape_activations']!r}), not a residual stream;"
            " use an autoencoder of a block's output"
        )


def _factor(config: dict[str, Any], path: Path) -> float:
    """Factor on the inputs under average-norm scaling; 1 without it."""
    if _normalisation(config) != "expected_average_only_in":
        return 1.0
    factor = peek_json(path / SCALER).get("scaling_factor")
    if not isinstance(factor, int | float) or factor <= 0:
        raise CocomixError(
            f"{path} needs expected_average_only_in and does not hold the factor ({SCALER}); fold it into the"
            " weights with SAELens' fold_activation_norm_scaling_factor and save the SAE again"
        )
    return float(factor)


def _fold(weights: dict[str, torch.Tensor], factor: float, rescale: bool) -> None:
    """Fold the input factor, then the decoder norms that scale the activations, into the weights, in place."""
    weights["W_enc"] = weights["W_enc"] * factor
    weights["W_dec"] = weights["W_dec"] / factor
    weights["b_dec"] = weights["b_dec"] / factor
    if rescale:
        norms = weights["W_dec"].norm(dim=-1)
        weights["W_enc"], weights["b_enc"] = weights["W_enc"] * norms, weights["b_enc"] * norms
        weights["W_dec"] = weights["W_dec"] / norms.clamp_min(1e-8).unsqueeze(-1)
