"""Gemma Scope's autoencoders: one NumPy archive each, `params.npz`, in a folder that names its layer.

    layer_20/width_16k/average_l0_71/params.npz

- f(x) = JumpReLU(x W_enc + b_enc) with a threshold for each latent, and D(f) = f W_dec + b_dec; b_dec is not subtracted
  from the input. No K is stated: the caller's largest activations are kept, of those above their thresholds.
- There is no JSON. The layer comes from the folder `layer_N`, and what the autoencoder reads from the name of the
  repository: `-res` is the residual stream after a block, `-mlp` and `-att` are not.
- The archive is read without unpickling. Weights hardly compress, so an archive that unpacks to many times its size is
  refused before it is unpacked.
"""

import re
import zipfile
from pathlib import Path

import numpy as np
import torch

from cocomix.sae.formats.base import LoadedSae, SaeFormat, with_weights
from cocomix.sae.reading import check_tensors, matrix_shape
from cocomix.sae.sae import JumpReLU, TopKSAE
from cocomix.utils.errors import CocomixError
from cocomix.utils.files import check_readable

PARAMS = "params.npz"
NAMES = {"W_enc", "W_dec", "b_enc", "b_dec", "threshold"}
MOST_EXPANSION = 8
"""Largest accepted ratio of the unpacked to the packed size."""
LAYER = re.compile(r"layer_(\d+)")
OTHER_SITES = re.compile(r"gemma-scope-[\w.]+-pt-(mlp|att)\b|gemma-scope-[\w.]+-(transcoders)\b")


class GemmaScopeFormat(SaeFormat):
    """Gemma Scope's `params.npz`, by its folder, its file, or a file with another name and the same arrays."""

    name, title = "gemma_scope", "Gemma Scope's format (params.npz)"
    weights_file = PARAMS

    def detect(self, path: Path) -> bool:
        file = path / PARAMS if path.is_dir() else path
        if file.name == PARAMS:
            return file.is_file()
        return file.suffix == ".npz" and file.is_file() and _array_names(file) == NAMES

    def hook(self, path: Path) -> str | None:
        parts = path.absolute().parts
        if site := next(filter(None, map(OTHER_SITES.search, parts)), None):
            return site[0]
        layer = next(filter(None, map(LAYER.fullmatch, reversed(parts))), None)
        return None if layer is None else f"layers.{layer[1]}"

    def load(self, path: Path, k: int) -> LoadedSae:
        file = path if path.is_file() else path / PARAMS
        tensors = {name: torch.from_numpy(array) for name, array in _arrays(file).items()}
        d_model, n_latents = matrix_shape(tensors, "W_enc", file)
        shapes = {"W_enc": (d_model, n_latents), "W_dec": (n_latents, d_model), "b_dec": (d_model,)}
        weights = check_tensors(tensors, shapes | dict.fromkeys(("b_enc", "threshold"), (n_latents,)), file)
        sae = jump_relu(weights, k, bias_input=False)
        return LoadedSae(sae, self.name, self.hook(path), None, k_from_files=False)


def jump_relu(weights: dict[str, torch.Tensor], k: int, *, bias_input: bool) -> TopKSAE:
    """An autoencoder with thresholds.

    Args:
        weights: `W_enc` `[d, C]`, `b_enc` `[C]`, `W_dec` `[C, d]`, `b_dec` `[d]`, `threshold` `[C]` or one number.
        k: concepts kept at a position.
        bias_input: whether b_dec is subtracted from the input.
    """
    d_model, n_latents = weights["W_enc"].shape
    sae = TopKSAE(d_model, n_latents, k, normalisation="none", activation=JumpReLU(n_latents), bias_input=bias_input)
    named = {
        "pre_bias": weights["b_dec"],
        "encoder_weight": weights["W_enc"].T,
        "latent_bias": weights["b_enc"],
        "decoder_weight": weights["W_dec"],
        "activation.threshold": weights["threshold"].to(weights["b_enc"].dtype).expand(n_latents),
    }
    return with_weights(sae, named)


def _array_names(file: Path) -> set[str]:
    """Names of the arrays in an archive; none of a damaged one."""
    try:
        with zipfile.ZipFile(file) as archive:
            return {Path(name).stem for name in archive.namelist()}
    except Exception:  # a damaged file raises errors of many types
        return set()


def _arrays(file: Path) -> dict[str, np.ndarray]:
    """The arrays of an archive.

    Raises:
        CocomixError: it is missing, damaged, has other arrays, or unpacks to much more than its size.
    """
    check_readable(file)
    try:
        with zipfile.ZipFile(file) as archive:
            members = {Path(member.filename).stem: member.file_size for member in archive.infolist()}
        if set(members) != NAMES:
            wrong = sorted(set(members) ^ NAMES)[0]
            raise ValueError(f"the array {wrong!r} is {'missing' if wrong in NAMES else 'unknown'}")
        if sum(members.values()) > MOST_EXPANSION * file.stat().st_size:
            raise ValueError(f"it unpacks to over {MOST_EXPANSION} times its size")
        with np.load(file, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in sorted(NAMES)}
        if other := next((name for name, array in arrays.items() if array.dtype.kind != "f"), None):
            raise ValueError(f"{other} holds {arrays[other].dtype}, not floating-point numbers")
    except FileNotFoundError:
        raise CocomixError(f"there is no SAE at {file}; give the folder of a params.npz") from None
    except Exception as error:  # a damaged file raises errors of many types
        raise CocomixError(
            f"{file} is not a Gemma Scope autoencoder ({type(error).__name__}: {error}); use an intact params.npz"
        ) from error
    return arrays
