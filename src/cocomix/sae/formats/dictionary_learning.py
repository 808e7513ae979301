"""dictionary_learning's autoencoders: `ae.pt` beside `config.json`; the pickle is read with `weights_only=True`.

- `config.json` names the class under `trainer.dict_class`. Without it the class is told from the names of the tensors,
  where they differ; AutoEncoderTopK and BatchTopKSAE have the same since both keep a threshold, so one is asked for.
- AutoEncoderTopK keeps its own K. BatchTopKSAE and its Matryoshka form keep, on average, K at a position: they are read
  with the threshold they were given for that, and the caller's K largest of what is above it.
- `trainer.layer` and `trainer.submodule_name` say what it reads: `resid_post_layer_3` is the output of block 3.
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

from cocomix.sae.formats.base import LoadedSae, SaeFormat, with_weights
from cocomix.sae.formats.gemma_scope import jump_relu
from cocomix.sae.formats.openai import read_state_dict
from cocomix.sae.reading import check_size, check_tensors, matrix_shape, optional_text, peek_json, positive_int
from cocomix.sae.sae import TopKSAE
from cocomix.utils.errors import CocomixError

WEIGHTS, CONFIG = "ae.pt", "config.json"
FILE = re.compile(r"ae(_\d+)?\.pt")
"""Names of weights: the finished one, and checkpoints with their steps."""
RESIDUAL = re.compile(r"resid_post_layer_(\d+)")
SIZES = ("k", "threshold")


class _Names(NamedTuple):
    """Where a class keeps its parts."""

    bias: str
    encoder: str
    """weight matrix, `[C, d]` if its name ends in `.weight`, else `[d, C]`"""
    encoder_bias: str
    decoder: str
    """weight matrix, `[d, C]` if its name ends in `.weight`, else `[C, d]`"""
    numbers: tuple[str, ...] = ()
    """names of single numbers"""


LINEAR = _Names("b_dec", "encoder.weight", "encoder.bias", "decoder.weight", SIZES)
MATRICES = _Names("b_dec", "W_enc", "b_enc", "W_dec")
Reader = Callable[[dict[str, torch.Tensor], int, int | None], tuple[TopKSAE, bool]]


def _relu(bias_input: bool) -> Reader:
    def read(weights: dict[str, torch.Tensor], k: int, own_k: int | None) -> tuple[TopKSAE, bool]:
        return _plain(weights, k, bias_input), False

    return read


def _plain(weights: dict[str, torch.Tensor], k: int, bias_input: bool) -> TopKSAE:
    d_model, n_latents = weights["W_enc"].shape
    return with_weights(
        TopKSAE(d_model, n_latents, k, normalisation="none", bias_input=bias_input),
        {
            "pre_bias": weights["b_dec"],
            "encoder_weight": weights["W_enc"].T,
            "latent_bias": weights["b_enc"],
            "decoder_weight": weights["W_dec"],
        },
    )


def _top_k(weights: dict[str, torch.Tensor], k: int, own_k: int | None) -> tuple[TopKSAE, bool]:
    return _plain(weights, positive_int(own_k, "k", WEIGHTS), True), True


def _threshold(bias_input: bool) -> Reader:
    def read(weights: dict[str, torch.Tensor], k: int, own_k: int | None) -> tuple[TopKSAE, bool]:
        return jump_relu(weights, k, bias_input=bias_input), False

    return read


CLASSES: dict[str, tuple[_Names, Reader]] = {
    "AutoEncoder": (_Names("bias", "encoder.weight", "encoder.bias", "decoder.weight"), _relu(True)),
    "AutoEncoderNew": (_Names("decoder.bias", "encoder.weight", "encoder.bias", "decoder.weight"), _relu(False)),
    "AutoEncoderTopK": (LINEAR, _top_k),
    "BatchTopKSAE": (LINEAR, _threshold(True)),
    "MatryoshkaBatchTopKSAE": (MATRICES._replace(numbers=SIZES), _threshold(True)),
    "JumpReluAutoEncoder": (MATRICES, _threshold(False)),
}
"""Classes of dictionary_learning that are read: their names for the parts, and how they are built."""
LEARNS_THRESHOLD = {"BatchTopKSAE", "MatryoshkaBatchTopKSAE"}
IGNORED = {"group_sizes", "active_groups"}
"""Tensors without weights: the nested sizes of a Matryoshka autoencoder, all of which are used."""


class DictionaryLearningFormat(SaeFormat):
    """dictionary_learning's folders with an `ae.pt`, or such a file."""

    name, title = "dictionary_learning", "dictionary_learning's format (ae.pt)"
    weights_file = WEIGHTS

    def detect(self, path: Path) -> bool:
        if path.is_file():
            return FILE.fullmatch(path.name) is not None
        return (path / WEIGHTS).is_file() or "dict_class" in _trainer(path)

    def hook(self, path: Path) -> str | None:
        trainer = _trainer(path)
        module = optional_text(trainer.get("submodule_name"), "submodule_name", path)
        match = RESIDUAL.fullmatch(module or "")
        return f"layers.{match[1]}" if match else module

    def load(self, path: Path, k: int) -> LoadedSae:
        file, trainer = path if path.is_file() else path / WEIGHTS, _trainer(path)
        state = {name: value for name, value in read_state_dict(file).items() if name not in IGNORED}
        kind = optional_text(trainer.get("dict_class"), "dict_class", path) or _kind(state, file)
        if kind not in CLASSES:
            raise CocomixError(
                f"{file} is an autoencoder of the class {kind!r} of dictionary_learning; cocomix reads"
                f" {', '.join(CLASSES)}"
            )
        names, read = CLASSES[kind]
        weights, own_k = _weights(state, names, file)
        check_size(trainer.get("activation_dim"), weights["W_enc"].shape[0], "activation_dim", path)
        check_size(trainer.get("dict_size"), weights["W_enc"].shape[1], "dict_size", path)
        if kind in LEARNS_THRESHOLD and float(weights["threshold"]) < 0:
            raise CocomixError(f"{file} has no threshold yet (it was saved early in training); use a later checkpoint")
        sae, k_from_files = read(weights, k, own_k if own_k is not None else trainer.get("k"))
        model = optional_text(trainer.get("lm_name"), "lm_name", path)
        return LoadedSae(sae, self.name, self.hook(path), model, k_from_files)


def _trainer(path: Path) -> dict[str, Any]:
    folder = path.parent if path.suffix == ".pt" else path
    places = [folder / CONFIG, folder.parent / CONFIG] if folder.name == "checkpoints" else [folder / CONFIG]
    trainer = next((config["trainer"] for config in map(peek_json, places) if "trainer" in config), None)
    return trainer if isinstance(trainer, dict) else {}


def _kind(state: dict[str, Any], file: Path) -> str:
    """The class whose tensors are in a file without a `config.json`.

    Raises:
        CocomixError: it is none that is known, or could be two.
    """
    kinds = [kind for kind, (names, _) in CLASSES.items() if set(state) == _expected(names)]
    if set(state) == _expected(LINEAR) - {"threshold"}:
        kinds = ["AutoEncoderTopK"]  # of a version without thresholds
    if len(kinds) == 1:
        return kinds[0]
    what = f"may be of the class {' or '.join(kinds)}" if kinds else f"has the tensors {', '.join(sorted(state))}"
    raise CocomixError(f"{file} {what}; put its config.json of dictionary_learning beside it, which names its class")


def _expected(names: _Names) -> set[str]:
    own = {"threshold"} if names is MATRICES else set()
    return {names.bias, names.encoder, names.encoder_bias, names.decoder, *names.numbers} | own


def _weights(state: dict[str, Any], names: _Names, file: Path) -> tuple[dict[str, torch.Tensor], int | None]:
    """The weights by their names in `jump_relu`, and K, if the file states it.

    Raises:
        CocomixError: one is missing, unknown, or has a wrong shape.
    """
    encoder = matrix_shape(state, names.encoder, file)
    n_latents, d_model = encoder if names.encoder.endswith(".weight") else encoder[::-1]
    shapes: dict[str, tuple[int, ...]] = {
        names.bias: (d_model,),
        names.encoder: encoder,
        names.encoder_bias: (n_latents,),
        names.decoder: (d_model, n_latents) if names.decoder.endswith(".weight") else (n_latents, d_model),
    }
    shapes |= {name: () for name in names.numbers if name in state}
    if names is MATRICES:
        shapes["threshold"] = (n_latents,)
    own_k = state.get("k")
    weights = check_tensors(state, shapes, file)
    named = {
        "b_dec": weights[names.bias],
        "b_enc": weights[names.encoder_bias],
        "W_enc": weights[names.encoder].T if names.encoder.endswith(".weight") else weights[names.encoder],
        "W_dec": weights[names.decoder].T if names.decoder.endswith(".weight") else weights[names.decoder],
    }
    if "threshold" in weights:
        named["threshold"] = weights["threshold"]
    return named, int(own_k) if isinstance(own_k, torch.Tensor) else None
