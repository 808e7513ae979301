"""sparsify's folders, written by sparsify: read with the same latents, and ours written so that sparsify agrees."""

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from cocomix.sae import TopKSAE
from cocomix.sae.formats import FORMATS, load_sae
from cocomix.sae.sae import GroupMax, JumpReLU
from cocomix.utils.errors import CocomixError

pytest.importorskip("sparsify")

D, C, K = 12, 48, 6


def coder(folder: Path, **settings: Any) -> Any:
    """A random sparsify coder, saved to `folder`."""
    with contextlib.redirect_stdout(io.StringIO()):  # it prints when imported
        from sparsify import SparseCoder, SparseCoderConfig

    torch.manual_seed(0)
    made = SparseCoder(D, SparseCoderConfig(**({"num_latents": C, "k": K} | settings)))
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    made.save_to_disk(folder)
    return made


def check(sae: TopKSAE, library: Any) -> None:
    x = torch.randn(30, D, generator=torch.Generator().manual_seed(1)) * 2 + 0.3
    with torch.no_grad():
        acts, ids, _ = library.encode(x)
        wanted = torch.zeros(30, C).scatter(-1, ids, acts)
        assert (sae.encode_dense(x) - wanted).abs().max() < 1e-5
        assert (sae(x) - library.decode(acts, ids)).abs().max() < 1e-5
    assert (wanted > 0).sum(-1).min() >= 2


@pytest.mark.parametrize("activation", ["topk", "groupmax"])
def test_each_activation_agrees_and_is_exported_again(activation: str, tmp_path: Path) -> None:
    library = coder(tmp_path / "layers.3", activation=activation)
    (tmp_path / "config.json").write_text(json.dumps({"model": "EleutherAI/pythia-70m"}))
    loaded = load_sae(tmp_path / "layers.3", layer=3, d_model=D, k=1)
    assert (loaded.format, loaded.hook, loaded.sae.k) == ("sparsify", "layers.3", K)
    assert loaded.model == "EleutherAI/pythia-70m" and loaded.k_from_files
    check(loaded.sae, library)
    loaded.sae.save_pretrained(tmp_path / "ours")
    check(TopKSAE.from_pretrained(tmp_path / "ours"), library)
    FORMATS["sparsify"]().write(loaded.sae, tmp_path / "again", {"layer": 3})
    from sparsify import SparseCoder

    check(loaded.sae, SparseCoder.load_from_disk(tmp_path / "again"))


def test_the_width_may_be_given_as_an_expansion_factor(tmp_path: Path) -> None:
    library = coder(tmp_path, num_latents=0, expansion_factor=4)
    check(load_sae(tmp_path, layer=3, d_model=D, k=1).sae, library)


def test_the_hookpoint_is_chosen_by_the_layer(tmp_path: Path) -> None:
    for name in ("layers.3", "layers.5", "layers.5.mlp", "embed_tokens"):
        coder(tmp_path / name)
    assert load_sae(tmp_path, layer=5, d_model=D, k=1).hook == "layers.5"
    with pytest.raises(CocomixError, match=r"no SAE of block 4's output, but others \(embed_tokens, layers.3"):
        load_sae(tmp_path, layer=4, d_model=D, k=1)
    with pytest.raises(CocomixError, match=r"reads 'layers.5', the output of block 5"):
        load_sae(tmp_path / "layers.5", layer=3, d_model=D, k=1)
    for name in ("layers.5.mlp", "embed_tokens"):
        with pytest.raises(CocomixError, match=f"reads '{name}', not a residual stream"):
            load_sae(tmp_path / name, layer=5, d_model=D, k=1)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"signed": True}, r"\(signed\), which cocomix cannot represent"),
        ({"transcode": True}, r"is a transcoder.*\(transcode\)"),
        ({"skip_connection": True}, r"\(skip_connection\)"),
        ({"activation": "batchtopk"}, "activation 'batchtopk'"),
        ({"k": 0}, "k is 0, not a positive whole number"),
        ({"num_latents": 40}, "num_latents is 40 in its JSON and 48 in its weights"),
        ({"activation": "groupmax", "k": 5}, "48 latents cannot be divided into 5 equal groups"),
    ],
)
def test_what_cannot_be_read_is_refused_by_name(change: dict[str, Any], words: str, tmp_path: Path) -> None:
    coder(tmp_path)
    config = json.loads((tmp_path / "cfg.json").read_text())
    (tmp_path / "cfg.json").write_text(json.dumps(config | change))
    with pytest.raises(CocomixError, match=words):
        load_sae(tmp_path, layer=3, d_model=D, k=1)


def test_another_width_and_damaged_weights_are_refused(tmp_path: Path) -> None:
    coder(tmp_path)
    with pytest.raises(CocomixError, match="12 wide and the concept model's are 16"):
        load_sae(tmp_path, layer=3, d_model=16, k=1)
    weights = load_file(tmp_path / "sae.safetensors")
    save_file(weights | {"W_dec": torch.zeros(D, C)}, tmp_path / "sae.safetensors")
    with pytest.raises(CocomixError, match=r"W_dec has shape \(12, 48\) where \(48, 12\) is needed"):
        load_sae(tmp_path, layer=3, d_model=D, k=1)
    (tmp_path / "sae.safetensors").write_bytes(b"no")
    with pytest.raises(CocomixError, match="is damaged"):
        load_sae(tmp_path, layer=3, d_model=D, k=1)


@pytest.mark.parametrize(
    ("sae", "words"),
    [
        (TopKSAE(D, C, K), r"does not normalise its inputs and this autoencoder does \(standard\)"),
        (TopKSAE(D, C, K, normalisation="none", bias_input=False), "subtracts b_dec from its input"),
        (TopKSAE(D, C, K, normalisation="none", activation=JumpReLU(C)), "no jumprelu activation"),
        (TopKSAE(D, C, 3, normalisation="none", activation=GroupMax(C, 6)), "no groupmax activation of which 3"),
    ],
)
def test_what_sparsify_cannot_represent_is_not_exported(sae: TopKSAE, words: str, tmp_path: Path) -> None:
    with pytest.raises(CocomixError, match=words):
        FORMATS["sparsify"]().write(sae, tmp_path / "out", {})
    assert not (tmp_path / "out").exists()
