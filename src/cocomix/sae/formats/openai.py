"""OpenAI's GPT-2 autoencoders, v5: one `.pt` file each, read with `weights_only=True`.

A file does not state its hook point. The public mirror once shipped one layer's file under another's name, so the
pipeline measures explained variance before it uses an autoencoder.
"""

import zipfile
from pathlib import Path
from typing import Any

import torch

from cocomix.sae.formats.base import LoadedSae, SaeFormat, with_weights
from cocomix.sae.sae import ACTIVATIONS, TopKSAE
from cocomix.utils.errors import CocomixError
from cocomix.utils.files import check_readable

IGNORED = {"stats_last_nonzero", "activation.k", "activation.postact_fn"}
"""Keys without weights: dead-latent counters, and attributes that the original code saves in its state_dict."""
MOST_PICKLED = 1 << 20
"""Largest accepted size in bytes of the pickle that describes the tensors."""
POSTACT = {"ReLU": "relu", "Identity": "identity"}


class OpenAiFormat(SaeFormat):
    """OpenAI's `.pt` files, with any name."""

    name, title = "openai", "OpenAI's SAE format (a pickle)"
    detects_any_file = True

    def detect(self, path: Path) -> bool:
        return path.is_file()

    def load(self, path: Path, k: int) -> LoadedSae:
        sae = load_openai_file(path)
        return LoadedSae(
            sae.float() if sae.pre_bias.dtype.itemsize < 4 else sae, self.name, None, None, k_from_files=True
        )


def from_openai(state_dict: dict[str, Any]) -> TopKSAE:
    """Build an autoencoder from a state_dict in OpenAI's layout, in the tensors' dtype.

    Keys: pre_bias `[d]`, encoder.weight `[C, d]`, latent_bias `[C]`, decoder.weight `[d, C]`, activation ("TopK"),
    activation_state_dict ({k, postact_fn}). As in the original code, a TopK activation implies normalised inputs.

    Raises:
        CocomixError: the activation is another one, a key is missing or unknown, or shapes do not match.
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
        raise CocomixError("an OpenAI autoencoder's weights are tensors, encoder.weight a matrix; use an intact file")
    encoder = rest["encoder.weight"]
    n_latents, d_model = encoder.shape
    shapes = {"pre_bias": (d_model,), "latent_bias": (n_latents,), "decoder.weight": (d_model, n_latents)}
    for name, shape in shapes.items():
        if tuple(rest[name].shape) != shape:
            raise CocomixError(f"{name} has shape {tuple(rest[name].shape)} where encoder.weight needs {shape}")
    return with_weights(
        TopKSAE(d_model, n_latents, int(k), activation=ACTIVATIONS[POSTACT[postact]](n_latents)),
        {
            "pre_bias": rest["pre_bias"],
            "encoder_weight": encoder,
            "latent_bias": rest["latent_bias"],
            "decoder_weight": rest["decoder.weight"].T,
        },
    )


def _check_archive(path: Path) -> None:
    """Check that `path` is a ZIP of uncompressed members, which is what torch.save writes.

    A compressed member can unpack to a thousand times its size. For a file that is not a ZIP torch.load tries older
    formats, one of which it unpacks into a temporary folder first.

    Raises:
        ValueError, zipfile.BadZipFile: it is something else.
    """
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
    total = sum(member.file_size for member in members)
    if any(member.compress_type != zipfile.ZIP_STORED for member in members) or total > path.stat().st_size:
        raise ValueError("a member of it is compressed")
    if sum(member.file_size for member in members if member.filename.endswith(".pkl")) > MOST_PICKLED:
        raise ValueError("the pickle that describes the tensors is too long")


def load_openai_file(path: Path | str) -> TopKSAE:
    """Load one of OpenAI's `.pt` files; pickled code is refused.

    Raises:
        CocomixError: the file does not exist, is not a weights file, or has another layout.
    """
    return from_openai(read_state_dict(Path(path)))


def read_state_dict(path: Path) -> dict[str, Any]:
    """The state_dict in a `.pt` file; pickled code is refused.

    Raises:
        CocomixError: the file does not exist, or is no plain file of weights.
    """
    check_readable(path)
    try:
        _check_archive(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CocomixError(f"there is no SAE at {path}; give an SAE folder or a .pt file") from None
    except Exception as error:  # a damaged file raises errors of many types
        raise CocomixError(
            f"{path} is not a plain weights file ({type(error).__name__}) and was not loaded; use an intact file"
        ) from error
    if not isinstance(state, dict):
        raise CocomixError(f"{path} holds a {type(state).__name__}, not an autoencoder's state_dict")
    for name, value in state.items():
        if isinstance(value, torch.Tensor) and value.numel() * value.element_size() > path.stat().st_size:
            raise CocomixError(f"{path}: {name} is larger than the file, a view of fewer numbers; use an intact file")
    return state
