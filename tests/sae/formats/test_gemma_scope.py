"""Gemma Scope's `params.npz`: the formula, the layer by its folder, and archives that are not what they say."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cocomix.sae.formats import load_sae
from cocomix.sae.formats.gemma_scope import GemmaScopeFormat
from cocomix.utils.errors import CocomixError

D, C, K = 8, 20, 6
FOLDER = Path("google/gemma-scope-2b-pt-res/layer_3/width_16k/average_l0_7")


def arrays() -> dict[str, np.ndarray]:
    draw = np.random.default_rng(0)
    return {
        "W_enc": draw.normal(size=(D, C)).astype(np.float32),
        "W_dec": draw.normal(size=(C, D)).astype(np.float32),
        "b_enc": draw.normal(size=C).astype(np.float32),
        "b_dec": draw.normal(size=D).astype(np.float32),
        "threshold": draw.uniform(0.1, 3.0, size=C).astype(np.float32),
    }


def written(root: Path, folder: Path = FOLDER, **other: np.ndarray) -> Path:
    (root / folder).mkdir(parents=True)
    np.savez(root / folder / "params.npz", **(arrays() | other))
    return root / folder


def slow(x: np.ndarray, k: int) -> np.ndarray:
    """The reconstruction of one hidden state, latent by latent, of the `k` largest."""
    p = {name: array.astype(np.float64) for name, array in arrays().items()}
    active = []
    for latent in range(C):
        pre = sum(x[i] * p["W_enc"][i, latent] for i in range(D)) + p["b_enc"][latent]
        if pre > p["threshold"][latent]:
            active.append((pre, latent))
    out = p["b_dec"].copy()
    for value, latent in sorted(active, reverse=True)[:k]:
        out += value * p["W_dec"][latent]
    return out


@pytest.mark.parametrize("as_file", [False, True])
@pytest.mark.parametrize("k", [K, 1, C])
def test_it_computes_the_published_formula_at_k_latents(k: int, as_file: bool, tmp_path: Path) -> None:
    folder = written(tmp_path)
    source = folder / "params.npz" if as_file else folder
    loaded = load_sae(source, layer=3, d_model=D, k=k)
    assert (loaded.format, loaded.hook, loaded.sae.k, loaded.k_from_files) == ("gemma_scope", "layers.3", k, False)
    x = np.random.default_rng(1).normal(size=(5, D)) * 2
    expected = np.stack([slow(row, k) for row in x])
    actual = loaded.sae(torch.from_numpy(x).float()).detach().numpy()
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)
    loaded.sae.save_pretrained(tmp_path / "own")
    assert torch.equal(load_sae(tmp_path / "own", layer=3, d_model=D, k=1).sae.activation.threshold,
                       torch.from_numpy(arrays()["threshold"]))  # fmt: skip


def test_the_folder_names_what_it_reads(tmp_path: Path) -> None:
    folder = written(tmp_path)
    with pytest.raises(CocomixError, match=r"the output of block 3 .*set sae\.layer=3"):
        load_sae(folder, layer=2, d_model=D, k=K)
    written(tmp_path, FOLDER.parent.parent.parent / "layer_4/width_16k/average_l0_9")
    root = tmp_path / FOLDER.parent.parent.parent
    assert load_sae(root, layer=4, d_model=D, k=K).hook == "layers.4"  # the only one of its layer below the folder
    elsewhere = written(tmp_path, Path("gemma-scope-2b-pt-mlp/layer_3"))
    with pytest.raises(CocomixError, match="not a residual stream after a block"):
        load_sae(elsewhere, layer=3, d_model=D, k=K)


@pytest.mark.parametrize(
    ("other", "match"),
    [
        ({"W_dec": np.zeros((C, D + 1), np.float32)}, "W_dec has shape"),
        ({"extra": np.zeros(1, np.float32)}, "'extra' is unknown"),
        ({"threshold": np.array([{"a": 1}] * C)}, "not a Gemma Scope autoencoder"),  # would have to be unpickled
        ({"threshold": np.zeros(C, np.int64)}, "threshold holds int64"),
    ],
)
def test_other_archives_are_refused_in_one_sentence(other: dict[str, Any], match: str, tmp_path: Path) -> None:
    folder = written(tmp_path, **other)
    with pytest.raises(CocomixError, match=match):
        load_sae(folder, layer=3, d_model=D, k=K)


def test_an_archive_that_unpacks_to_much_more_is_not_unpacked(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "params.npz", **(arrays() | {"W_enc": np.zeros((D, 1 << 20), np.float32)}))
    with pytest.raises(CocomixError, match="over 8 times its size"):
        load_sae(tmp_path, layer=3, d_model=D, k=K)


def test_a_cut_archive_is_refused(tmp_path: Path) -> None:
    file = written(tmp_path) / "params.npz"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(CocomixError, match=r"use an intact params\.npz"):
        load_sae(file, layer=3, d_model=D, k=K)


def test_an_archive_with_another_name_is_known_by_its_arrays(tmp_path: Path) -> None:
    file, other = written(tmp_path) / "params.npz", tmp_path / "other.npz"
    file.rename(tmp_path / "mine.npz")
    assert load_sae(tmp_path / "mine.npz", layer=3, d_model=D, k=K).format == "gemma_scope"
    np.savez(other, weights=np.zeros(1, np.float32))
    assert not GemmaScopeFormat().detect(other)  # it may be of a format that a user registers
