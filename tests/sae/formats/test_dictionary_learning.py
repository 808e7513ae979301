"""dictionary_learning's `ae.pt`: each class against its formula, the class by its config.json, and what is refused."""

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from cocomix.sae.formats import load_sae
from cocomix.utils.errors import CocomixError

D, C, K = 8, 20, 4
LINEAR = {"encoder.weight": (C, D), "encoder.bias": (C,), "decoder.weight": (D, C)}
MATRICES = {"W_enc": (D, C), "b_enc": (C,), "W_dec": (C, D), "b_dec": (D,)}
CLASSES: dict[str, dict[str, tuple[int, ...]]] = {
    "AutoEncoder": LINEAR | {"bias": (D,)},
    "AutoEncoderNew": LINEAR | {"decoder.bias": (D,)},
    "AutoEncoderTopK": LINEAR | {"b_dec": (D,)},
    "BatchTopKSAE": LINEAR | {"b_dec": (D,)},
    "MatryoshkaBatchTopKSAE": MATRICES,
    "JumpReluAutoEncoder": MATRICES | {"threshold": (C,)},
}
WITH_K = {"AutoEncoderTopK", "BatchTopKSAE", "MatryoshkaBatchTopKSAE"}


def state(kind: str) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    tensors = {name: torch.randn(shape) for name, shape in CLASSES[kind].items()}
    if kind in WITH_K:
        tensors |= {"k": torch.tensor(K, dtype=torch.int), "threshold": torch.tensor(0.7)}
    if kind == "MatryoshkaBatchTopKSAE":
        tensors |= {"group_sizes": torch.tensor([12, 8]), "active_groups": torch.tensor(2)}
    return tensors


def written(folder: Path, kind: str, config: bool = True, **trainer: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(state(kind), folder / "ae.pt")
    about = {"dict_class": kind, "layer": 3, "submodule_name": "resid_post_layer_3", "lm_name": "a/b"} | trainer
    if config:
        (folder / "config.json").write_text(json.dumps({"trainer": about, "buffer": {"ctx_len": 128}}))
    return folder


def slow(kind: str, x: torch.Tensor, kept: int) -> torch.Tensor:
    """The reconstruction of one hidden state as the class of dictionary_learning defines it, of the `kept` largest."""
    t = {name: tensor.double() for name, tensor in state(kind).items()}
    encoder = t["encoder.weight"] if "encoder.weight" in t else t["W_enc"].T
    decoder = t["decoder.weight"] if "decoder.weight" in t else t["W_dec"].T
    bias_in, bias_out = t.get("encoder.bias", t.get("b_enc")), t.get("b_dec", t.get("bias", t.get("decoder.bias")))
    assert bias_in is not None and bias_out is not None
    subtracted = kind not in {"AutoEncoderNew", "JumpReluAutoEncoder"}
    out, active = bias_out.clone(), []
    for latent in range(C):
        pre = torch.dot(encoder[latent], x - bias_out if subtracted else x) + bias_in[latent]
        threshold = 0.0
        if kind == "JumpReluAutoEncoder":
            threshold = max(0.0, float(t["threshold"][latent]))
        elif kind in WITH_K - {"AutoEncoderTopK"}:
            threshold = float(t["threshold"])
        if pre > threshold:
            active.append((float(pre), latent))
    for value, latent in sorted(active, reverse=True)[:kept]:
        out += value * decoder[:, latent]
    return out


@pytest.mark.parametrize("kind", CLASSES)
def test_each_class_computes_its_formula(kind: str, tmp_path: Path) -> None:
    folder = written(tmp_path, kind)
    loaded = load_sae(folder, layer=3, d_model=D, k=7)
    kept = K if kind == "AutoEncoderTopK" else 7
    assert (loaded.format, loaded.hook, loaded.model) == ("dictionary_learning", "layers.3", "a/b")
    assert (loaded.sae.k, loaded.k_from_files) == (kept, kind == "AutoEncoderTopK")
    x = torch.randn(6, D, generator=torch.Generator().manual_seed(1)).double() * 2
    expected = torch.stack([slow(kind, row, kept) for row in x])
    assert (loaded.sae(x.float()).double() - expected).abs().max() < 1e-4
    again = load_sae(folder / "ae.pt", layer=3, d_model=D, k=7)
    assert all(torch.equal(a, b) for a, b in zip(loaded.sae.parameters(), again.sae.parameters(), strict=True))


def test_without_a_config_the_names_of_the_tensors_tell_the_class(tmp_path: Path) -> None:
    for kind in ("AutoEncoder", "AutoEncoderNew", "JumpReluAutoEncoder", "MatryoshkaBatchTopKSAE"):
        loaded = load_sae(written(tmp_path / kind, kind, config=False), layer=3, d_model=D, k=7)
        x = torch.randn(D, generator=torch.Generator().manual_seed(1))
        assert (loaded.sae(x[None])[0].double() - slow(kind, x.double(), 7)).abs().max() < 1e-4
    old = state("AutoEncoderTopK")
    old.pop("threshold")
    torch.save(old, tmp_path / "ae.pt")
    assert load_sae(tmp_path / "ae.pt", layer=3, d_model=D, k=7).sae.k == K
    with pytest.raises(CocomixError, match=r"AutoEncoderTopK or BatchTopKSAE; put its config\.json"):
        load_sae(written(tmp_path / "both", "BatchTopKSAE", config=False), layer=3, d_model=D, k=7)


@pytest.mark.parametrize(
    ("trainer", "match"),
    [
        ({"dict_class": "GatedAutoEncoder"}, "class 'GatedAutoEncoder' .* cocomix reads AutoEncoder"),
        ({"submodule_name": "mlp_out_layer_3"}, "not a residual stream after a block"),
        ({"submodule_name": "resid_post_layer_5"}, r"set sae\.layer=5"),
        ({"activation_dim": 9}, "activation_dim is 9"),
        ({"dict_class": 3}, "dict_class is 3, not a string"),
    ],
)
def test_what_cannot_be_represented_is_refused_by_name(trainer: dict[str, Any], match: str, tmp_path: Path) -> None:
    with pytest.raises(CocomixError, match=match):
        load_sae(written(tmp_path, "AutoEncoderTopK", **trainer), layer=3, d_model=D, k=K)


def test_a_threshold_that_was_never_set_is_refused(tmp_path: Path) -> None:
    folder = written(tmp_path, "BatchTopKSAE")
    torch.save(state("BatchTopKSAE") | {"threshold": torch.tensor(-1.0)}, folder / "ae.pt")
    with pytest.raises(CocomixError, match="has no threshold yet"):
        load_sae(folder, layer=3, d_model=D, k=K)


class Planted:
    def __reduce__(self) -> Any:
        return pytest.fail, ("a pickle was run",)


def test_pickled_code_is_not_run(tmp_path: Path) -> None:
    folder = written(tmp_path, "AutoEncoder")
    torch.save(state("AutoEncoder") | {"bias": Planted()}, folder / "ae.pt")
    with pytest.raises(CocomixError, match="not a plain weights file"):
        load_sae(folder, layer=3, d_model=D, k=K)
    (folder / "ae.pt").write_bytes(pickle.dumps(Planted()))
    with pytest.raises(CocomixError, match="not a plain weights file"):
        load_sae(folder, layer=3, d_model=D, k=K)


def test_one_of_several_below_a_folder_is_found_by_its_layer(tmp_path: Path) -> None:
    written(tmp_path / "resid_post_layer_3/trainer_0", "AutoEncoderTopK")
    written(tmp_path / "resid_post_layer_4/trainer_0", "AutoEncoderTopK", submodule_name="resid_post_layer_4")
    assert load_sae(tmp_path, layer=4, d_model=D, k=K).hook == "layers.4"
    with pytest.raises(CocomixError, match="holds no SAE of block 2's output"):
        load_sae(tmp_path, layer=2, d_model=D, k=K)
