"""Autoencoders on disk: our own safetensors folder, and OpenAI's layout."""

import json
import pickle
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from cocomix.concepts.sae import TopKSAE
from cocomix.errors import CocomixError

WEIGHTS, ABOUT = "sae.safetensors", "sae.json"
IGNORED = {"stats_last_nonzero", "activation.k", "activation.postact_fn"}
"""Bookkeeping of the original code: dead-latent counters, and keys its own state_dict leaks."""


def from_openai(state_dict: dict[str, Any]) -> TopKSAE:
    """An autoencoder from OpenAI's layout, in the tensors' dtype.

    Keys: pre_bias `[d]`, encoder.weight `[C, d]`, latent_bias `[C]`, decoder.weight `[d, C]`, activation ("TopK"),
    activation_state_dict ({k, postact_fn}). As there, a TopK activation means normalised inputs.

    Raises:
        CocomixError: another activation, a missing or unknown key, or shapes that do not fit.
    """
    rest = {key: value for key, value in state_dict.items() if key not in IGNORED}
    activation = rest.pop("activation", None)
    details = rest.pop("activation_state_dict", None) or {}
    k = details.get("k", state_dict.get("activation.k"))
    postact = details.get("postact_fn", state_dict.get("activation.postact_fn", "ReLU"))
    if activation != "TopK" or k is None:
        raise CocomixError(
            f"this autoencoder's activation is {activation!r}, not TopK with a k; use a TopK autoencoder"
        )
    if postact not in ("ReLU", "Identity"):
        raise CocomixError(f"this autoencoder applies {postact!r} after TopK; only ReLU and Identity are known")
    expected = {"pre_bias", "encoder.weight", "latent_bias", "decoder.weight"}
    if set(rest) != expected:
        wrong = sorted(set(rest) ^ expected)[0]
        raise CocomixError(
            f"an OpenAI autoencoder has exactly {', '.join(sorted(expected))}; {wrong!r} is missing or unknown"
        )
    encoder = rest["encoder.weight"]
    n_latents, d_model = encoder.shape
    shapes = {"pre_bias": (d_model,), "latent_bias": (n_latents,), "decoder.weight": (d_model, n_latents)}
    for name, shape in shapes.items():
        if tuple(rest[name].shape) != shape:
            raise CocomixError(f"{name} has shape {tuple(rest[name].shape)} where encoder.weight asks for {shape}")
    sae = TopKSAE(d_model, n_latents, int(k), relu=postact == "ReLU").to(encoder.dtype)
    sae.load_state_dict(
        {
            "pre_bias": rest["pre_bias"],
            "encoder_weight": encoder,
            "latent_bias": rest["latent_bias"],
            "decoder_weight": rest["decoder.weight"].T,
        }
    )
    return sae


def load_openai_file(path: Path | str) -> TopKSAE:
    """Read one of OpenAI's `.pt` files; pickled code is refused.

    Raises:
        CocomixError: no such file, not a weights file, or another layout.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CocomixError(f"there is no SAE at {path}; give an SAE folder or one of OpenAI's .pt files") from None
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError) as error:
        raise CocomixError(f"{path} is not a plain weights file ({type(error).__name__}); it was not loaded") from error
    if not isinstance(state, dict):
        raise CocomixError(f"{path} holds a {type(state).__name__}, not an autoencoder's state_dict")
    return from_openai(state)


def save_pretrained(sae: TopKSAE, folder: Path | str, about: dict[str, Any]) -> None:
    """Write weights and settings of `sae`."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in sae.state_dict().items()}, folder / WEIGHTS)
    settings = {
        "d_model": sae.d_model,
        "n_latents": sae.n_latents,
        "k": sae.k,
        "normalize": sae.normalize,
        "relu": sae.relu,
    }
    (folder / ABOUT).write_text(json.dumps({"format": 1, **settings, "about": about}, indent=1), encoding="utf-8")


def from_pretrained(folder: Path | str) -> TopKSAE:
    """Read a folder written by `save_pretrained`.

    Raises:
        CocomixError: a file is missing or damaged.
    """
    folder = Path(folder)
    try:
        settings = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
        weights = load_file(folder / WEIGHTS)
        sae = TopKSAE(
            settings["d_model"],
            settings["n_latents"],
            settings["k"],
            normalize=settings["normalize"],
            relu=settings["relu"],
        ).to(weights["encoder_weight"].dtype)
        sae.load_state_dict(weights)
    except FileNotFoundError as error:
        raise CocomixError(f"{folder} holds no autoencoder ({Path(error.filename or ABOUT).name} is missing)") from None
    except (KeyError, TypeError, ValueError, RuntimeError, SafetensorError) as error:
        raise CocomixError(
            f"the autoencoder in {folder} is damaged ({type(error).__name__}); train or copy it again"
        ) from error
    return sae
