"""OpenAI's GPT-2 autoencoders, v5: one `.pt` file each, read with `weights_only=True`.

The file does not say where in the model it reads. (The public mirror once shipped one layer's file under another's
name: the pipeline therefore measures explained variance before it uses one.)
"""

import zipfile
from pathlib import Path
from typing import Any

import torch

from cocomix.sae.formats.base import LoadedSae, SaeFormat, filled
from cocomix.sae.sae import ACTIVATIONS, TopKSAE
from cocomix.utils.errors import CocomixError
from cocomix.utils.files import check_readable

IGNORED = {"stats_last_nonzero", "activation.k", "activation.postact_fn"}
"""Bookkeeping of the original code: dead-latent counters, and keys its own state_dict leaks."""
MOST_PICKLED = 1 << 20
"""Bytes of the pickle that names an autoencoder's few tensors."""
POSTACT = {"ReLU": "relu", "Identity": "identity"}


class OpenAiFormat(SaeFormat):
    """A file, whatever it is called."""

    name, title = "openai", "OpenAI's SAE format (a pickle)"
    detects_any_file = True

    def detect(self, path: Path) -> bool:
        return path.is_file()

    def load(self, path: Path, k: int) -> LoadedSae:
        sae = load_openai_file(path)
        return LoadedSae(sae.float() if sae.pre_bias.dtype.itemsize < 4 else sae, self.name, None, None, own_k=True)


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
    if postact not in POSTACT:
        raise CocomixError(f"this autoencoder applies {postact!r} after TopK; only ReLU and Identity are known")
    expected = {"pre_bias", "encoder.weight", "latent_bias", "decoder.weight"}
    if set(rest) != expected:
        wrong = sorted(set(rest) ^ expected)[0]
        raise CocomixError(
            f"an OpenAI autoencoder has exactly {', '.join(sorted(expected))}; {wrong!r} is missing or unknown"
        )
    if not all(isinstance(tensor, torch.Tensor) for tensor in rest.values()) or rest["encoder.weight"].ndim != 2:
        raise CocomixError("an OpenAI autoencoder's weights are tensors, encoder.weight a matrix; use a sound file")
    encoder = rest["encoder.weight"]
    n_latents, d_model = encoder.shape
    shapes = {"pre_bias": (d_model,), "latent_bias": (n_latents,), "decoder.weight": (d_model, n_latents)}
    for name, shape in shapes.items():
        if tuple(rest[name].shape) != shape:
            raise CocomixError(f"{name} has shape {tuple(rest[name].shape)} where encoder.weight asks for {shape}")
    return filled(
        TopKSAE(d_model, n_latents, int(k), activation=ACTIVATIONS[POSTACT[postact]](n_latents)),
        {
            "pre_bias": rest["pre_bias"],
            "encoder_weight": encoder,
            "latent_bias": rest["latent_bias"],
            "decoder_weight": rest["decoder.weight"].T,
        },
    )


def _check_archive(path: Path) -> None:
    """See that `path` is what torch.save writes, a ZIP of plain parts.

    A packed part unpacks to a thousand times its size, and for what is no ZIP torch.load tries older formats, one of
    which it unpacks into a temporary folder first.

    Raises:
        ValueError, zipfile.BadZipFile: it is not.
    """
    with zipfile.ZipFile(path) as archive:
        parts = archive.infolist()
    whole = path.stat().st_size
    if any(one.compress_type != zipfile.ZIP_STORED for one in parts) or sum(one.file_size for one in parts) > whole:
        raise ValueError("a part of it is packed")
    if sum(one.file_size for one in parts if one.filename.endswith(".pkl")) > MOST_PICKLED:
        raise ValueError("what describes the tensors is too long")


def load_openai_file(path: Path | str) -> TopKSAE:
    """Read one of OpenAI's `.pt` files; pickled code is refused.

    Raises:
        CocomixError: no such file, not a weights file, or another layout.
    """
    path = Path(path)
    check_readable(path)
    try:
        _check_archive(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CocomixError(f"there is no SAE at {path}; give an SAE folder or one of OpenAI's .pt files") from None
    except Exception as error:  # PyTorch's unpickler meets damage with whatever error comes of it
        raise CocomixError(
            f"{path} is not a plain weights file ({type(error).__name__}) and was not loaded; use a sound file"
        ) from error
    if not isinstance(state, dict):
        raise CocomixError(f"{path} holds a {type(state).__name__}, not an autoencoder's state_dict")
    for name, value in state.items():
        if isinstance(value, torch.Tensor) and value.numel() * value.element_size() > path.stat().st_size:
            raise CocomixError(f"{path}: {name} is larger than the file, one number spread out; use a sound file")
    return from_openai(state)
