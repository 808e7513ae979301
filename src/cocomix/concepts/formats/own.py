"""Our own folder: `sae.safetensors`, and `sae.json` with everything else."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from cocomix.concepts.activation import ACTIVATIONS, Activation
from cocomix.concepts.formats.base import (
    LoadedSae,
    SaeFormat,
    agrees,
    peek_json,
    read_json,
    read_tensors,
    sizes,
    whole,
    words,
)
from cocomix.concepts.sae import TopKSAE
from cocomix.errors import CocomixError

WEIGHTS, ABOUT = "sae.safetensors", "sae.json"


class OwnFormat(SaeFormat):
    """Represents every autoencoder we can load."""

    name, title = "cocomix", "cocomix's own SAE format"

    def detect(self, path: Path) -> bool:
        return (path / ABOUT).is_file()

    def load(self, path: Path, k: int) -> LoadedSae:
        about = self._about(path)
        model = words(about.get("model"), "model", path)
        return LoadedSae(from_pretrained(path), self.name, self.hook(path), model, own_k=True)

    def hook(self, path: Path) -> str | None:
        about = self._about(path)
        layer = about.get("layer")
        return words(about.get("hook"), "hook", path) or (None if layer is None else f"layers.{layer}")

    def write(self, sae: TopKSAE, folder: Path, about: Mapping[str, Any]) -> None:
        save_pretrained(sae, folder, dict(about))

    @staticmethod
    def _about(path: Path) -> dict[str, Any]:
        found = peek_json(path / ABOUT).get("about")
        return found if isinstance(found, dict) else {}


def save_pretrained(sae: TopKSAE, folder: Path | str, about: dict[str, Any]) -> None:
    """Write weights and settings of `sae`."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in sae.state_dict().items()}, folder / WEIGHTS)
    settings = {
        "d_model": sae.d_model,
        "n_latents": sae.n_latents,
        "k": sae.k,
        "normalisation": sae.normalisation,
        "activation": {"kind": sae.activation.kind, **sae.activation.options()},
        "bias_input": sae.bias_input,
    }
    (folder / ABOUT).write_text(json.dumps({"format": 2, **settings, "about": about}, indent=1), encoding="utf-8")


def from_pretrained(folder: Path | str) -> TopKSAE:
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
        sae = TopKSAE(
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
