"""EleutherAI sparsify's folders: `cfg.json` beside `sae.safetensors`, one folder per hook point, named after it."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

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
)
from cocomix.sae.sae import Activation, GroupMax, ReLU, TopKSAE
from cocomix.utils.errors import CocomixError
from cocomix.utils.files import write_json

CONFIG, WEIGHTS = "cfg.json", "sae.safetensors"
UNSUPPORTED = {
    "signed": "keeps latents by magnitude, with their signs",
    "transcode": "is a transcoder: it predicts a different hook point from the one it reads",
    "skip_connection": "has a linear skip connection besides its latents",
}
HOOKPOINT = re.compile(r"(^|\.)(layers|h|blocks|embed_tokens|wte)(\.|$)")


class SparsifyFormat(SaeFormat):
    """sparsify's TopK and groupmax autoencoders, which do not normalise and subtract b_dec from their input."""

    name, title = "sparsify", "sparsify's format"
    metadata_file = CONFIG

    def detect(self, path: Path) -> bool:
        config = peek_json(path / CONFIG)
        return "d_in" in config and bool({"expansion_factor", "num_latents"} & set(config))

    def hook(self, path: Path) -> str | None:
        name = path.resolve().name
        return name if HOOKPOINT.search(name) else None

    def load(self, path: Path, k: int) -> LoadedSae:
        config, tensors = read_json(path / CONFIG), read_tensors(path / WEIGHTS)
        for name, feature in UNSUPPORTED.items():
            if config.get(name):
                raise CocomixError(
                    f"the sparsify autoencoder {path} {feature} ({name}), which cocomix cannot represent"
                )
        n_latents, d_model = matrix_shape(tensors, "encoder.weight", path)
        check_size(config.get("d_in"), d_model, "d_in", path)
        check_size(config.get("num_latents") or None, n_latents, "num_latents", path)
        shapes = {
            "encoder.weight": (n_latents, d_model),
            "encoder.bias": (n_latents,),
            "W_dec": (n_latents, d_model),
            "b_dec": (d_model,),
        }
        weights = check_tensors(tensors, shapes, path)
        k = positive_int(config.get("k"), "k", path)
        sae = TopKSAE(d_model, n_latents, k, normalisation="none", activation=_activation(config, n_latents, k, path))
        named = {
            "pre_bias": weights["b_dec"],
            "encoder_weight": weights["encoder.weight"],
            "latent_bias": weights["encoder.bias"],
            "decoder_weight": weights["W_dec"],
        }
        model = optional_text(peek_json(path.parent / "config.json").get("model"), "model", path.parent)
        return LoadedSae(with_weights(sae, named), self.name, self.hook(path), model, k_from_files=True)

    def write(self, sae: TopKSAE, folder: Path, metadata: Mapping[str, Any]) -> None:
        if sae.normalisation != "none":
            raise CocomixError(
                f"sparsify does not normalise its inputs and this autoencoder does ({sae.normalisation});"
                " export it as saelens"
            )
        if not sae.bias_input:
            raise CocomixError("sparsify subtracts b_dec from its input and this autoencoder does not; use saelens")
        activations = {"relu": "topk", "groupmax": "groupmax"}
        if sae.activation.kind not in activations or sae.activation.options().get("groups", sae.k) != sae.k:
            raise CocomixError(f"sparsify has no {sae.activation.kind} activation of which {sae.k} are kept")
        config = {
            "activation": activations[sae.activation.kind],
            "expansion_factor": max(1, sae.n_latents // sae.d_model),
            "normalize_decoder": True,
            "num_latents": sae.n_latents,
            "k": sae.k,
            "multi_topk": False,
            "skip_connection": False,
            "transcode": False,
            "d_in": sae.d_model,
        }
        tensors = {
            "encoder.weight": sae.encoder_weight,
            "encoder.bias": sae.latent_bias,
            "W_dec": sae.decoder_weight,
            "b_dec": sae.pre_bias,
        }
        folder.mkdir(parents=True, exist_ok=True)
        save_file({name: t.detach().cpu().contiguous() for name, t in tensors.items()}, folder / WEIGHTS)
        write_json(folder / CONFIG, config)


def _activation(config: dict[str, Any], n_latents: int, k: int, path: Path) -> Activation:
    known = {"topk": lambda: ReLU(n_latents), "groupmax": lambda: GroupMax(n_latents, k)}
    stated = optional_text(config.get("activation", "topk"), "activation", path)
    if stated not in known:
        raise CocomixError(f"{path} has the activation {stated!r}; cocomix reads {', '.join(known)} of sparsify")
    return known[stated]()
