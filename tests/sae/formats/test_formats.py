"""Finding an autoencoder: our own folders old and new, OpenAI's files, the hub, and what is refused."""

import json
import shutil
import sys
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from cocomix.sae import TopKSAE
from cocomix.sae.formats import FORMATS, load_sae
from cocomix.sae.formats.base import block_before, is_hub_id
from cocomix.sae.sae import ACTIVATIONS, NORMALISATIONS, Activation
from cocomix.utils.errors import CocomixError

D, C, K = 8, 20, 4


def activation(kind: str) -> Activation:
    made = ACTIVATIONS[kind](C, **({"groups": 5} if kind == "groupmax" else {}))
    for buffer in made.buffers():
        torch.nn.init.uniform_(buffer, 0.2, 1.0)
    return made


def sae(kind: str = "relu", **settings: Any) -> TopKSAE:
    torch.manual_seed(0)
    made = TopKSAE(D, C, K, activation=activation(kind), **settings)
    torch.nn.init.normal_(made.pre_bias)
    torch.nn.init.normal_(made.latent_bias)
    return made


def saelens(folder: Path, hook: str) -> TopKSAE:
    made = sae()
    FORMATS["saelens"]().write(made, folder, {})
    config = json.loads((folder / "cfg.json").read_text())
    config["metadata"]["hook_name"] = hook
    (folder / "cfg.json").write_text(json.dumps(config))
    return made


def load(source: Any, layer: int = 3, **other: Any) -> Any:
    return load_sae(source, **({"layer": layer, "d_model": D, "k": K} | other))


X = torch.randn(30, D, generator=torch.Generator().manual_seed(1)) * 2 + 0.3


@pytest.mark.parametrize("bias_input", [True, False])
@pytest.mark.parametrize("normalisation", NORMALISATIONS)
@pytest.mark.parametrize("kind", ACTIVATIONS)
def test_everything_survives_our_own_folder(kind: str, normalisation: str, bias_input: bool, tmp_path: Path) -> None:
    made = sae(kind, normalisation=normalisation, bias_input=bias_input)
    made.save_pretrained(tmp_path, layer=3, model="mine")
    loaded = load(tmp_path, k=1)
    assert (loaded.format, loaded.hook, loaded.model, loaded.k_from_files) == ("cocomix", "layers.3", "mine", True)
    latents, again = made.encode(X), loaded.sae.encode(X)
    assert torch.equal(latents.values, again.values) and torch.equal(latents.ids, again.ids)
    assert torch.equal(made(X), loaded.sae(X)) and loaded.sae.activation.options() == made.activation.options()


@pytest.mark.parametrize(("normalize", "relu"), [(True, True), (False, True), (True, False)])
def test_folders_of_the_first_format_are_read(normalize: bool, relu: bool, tmp_path: Path) -> None:
    made = sae("relu" if relu else "identity", normalisation="standard" if normalize else "none")
    made.save_pretrained(tmp_path)
    settings = {"format": 1, "d_model": D, "n_latents": C, "k": K, "normalize": normalize, "relu": relu, "about": {}}
    (tmp_path / "sae.json").write_text(json.dumps(settings))
    assert torch.equal(load(tmp_path).sae(X), made(X))


def test_half_precision_is_read_in_float32(tmp_path: Path) -> None:
    made = saelens(tmp_path, "blocks.3.hook_resid_post")
    weights = load_file(tmp_path / "sae_weights.safetensors")
    save_file({name: tensor.bfloat16() for name, tensor in weights.items()}, tmp_path / "sae_weights.safetensors")
    loaded = load(tmp_path).sae
    assert loaded.pre_bias.dtype == torch.float32
    assert torch.equal(loaded.encoder_weight, made.encoder_weight.bfloat16().float())


@pytest.mark.parametrize(
    ("hook", "block"),
    [
        ("blocks.5.hook_resid_post", 5),
        ("blocks.5.hook_resid_pre", 4),
        ("transformer.h.11", 11),
        ("model.layers.0", 0),
        ("gpt_neox.layers.2", 2),
        ("layers.7", 7),
        ("h.7", 7),
        ("blocks.0.hook_resid_pre", None),
        ("blocks.5.hook_resid_mid", None),
        ("blocks.5.attn.hook_z", None),
        ("layers.5.mlp", None),
        ("hook_embed", None),
    ],
)
def test_hook_points(hook: str, block: int | None) -> None:
    assert block_before(hook) == block


def test_openai_s_file_states_no_hook_and_keeps_its_k(tmp_path: Path) -> None:
    made = sae()
    state = {
        "pre_bias": made.pre_bias.data,
        "encoder.weight": made.encoder_weight.data,
        "latent_bias": made.latent_bias.data,
        "decoder.weight": made.decoder_weight.data.T.contiguous(),
        "stats_last_nonzero": torch.zeros(C, dtype=torch.long),
        "activation": "TopK",
        "activation_state_dict": {"k": K, "postact_fn": "ReLU"},
    }
    path = tmp_path / "v5_32k_layer_6.pt"
    torch.save(state, path)
    loaded = load(path, k=1)
    assert (loaded.format, loaded.hook, loaded.k_from_files) == ("openai", None, True)
    assert torch.equal(loaded.sae(X), made(X))
    with pytest.raises(CocomixError, match="8 wide and the concept model's are 9"):
        load(path, d_model=9)
    path.write_bytes(b"PK nothing")
    with pytest.raises(CocomixError, match="is not a plain weights file"):
        load(path)


def test_what_is_no_autoencoder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CocomixError, match=r"no SAE at \./nowhere"):
        load("./nowhere")
    with pytest.raises(CocomixError, match="not an autoencoder of a known format"):
        load(tmp_path)
    sae().save_pretrained(tmp_path, layer=2)
    with pytest.raises(CocomixError, match=r"reads 'layers.2', the output of block 2 \(0-based\), and sae.layer is 3"):
        load(tmp_path)
    (tmp_path / "sae.json").write_text("[]")
    with pytest.raises(CocomixError, match=r"sae\.json is damaged"):
        load(tmp_path)
    settings = {"format": 2, "d_model": D, "n_latents": C, "k": K, "normalisation": "odd", "activation": {"kind": "x"}}
    (tmp_path / "sae.json").write_text(json.dumps(settings))
    with pytest.raises(CocomixError, match="is damaged"):
        load(tmp_path)


def test_two_of_the_same_layer_must_be_told_apart(tmp_path: Path) -> None:
    for name in ("wide", "narrow"):
        saelens(tmp_path / name, "blocks.3.hook_resid_post")
    with pytest.raises(CocomixError, match=r"several SAEs of block 3 \(narrow, wide\); name one"):
        load(tmp_path)


class Hub:
    """huggingface_hub's `snapshot_download`, serving a local folder and noting what was asked for."""

    def __init__(self, source: Path, cache: Path) -> None:
        self.source, self.cache, self.asked = source, cache, []

    def __call__(self, repo_id: str, allow_patterns: list[str]) -> str:
        assert repo_id == "somebody/saes"
        self.asked += allow_patterns
        for path in self.source.rglob("*"):
            inside = path.relative_to(self.source)
            if path.is_file() and any(fnmatch(inside.as_posix(), pattern) for pattern in allow_patterns):
                (self.cache / inside).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, self.cache / inside)
        return str(self.cache)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    source = tmp_path / "source"
    for layer in (2, 3):
        saelens(source / f"v5_32k_layer_{layer}.pt", f"blocks.{layer}.hook_resid_post")
    sae().save_pretrained(source / "own" / "deep", layer=3)
    (source / "v5_32k_layer_3.pt" / "code.py").write_text("raise SystemExit")
    served = Hub(source, tmp_path / "cache")
    monkeypatch.setattr("huggingface_hub.snapshot_download", served)
    monkeypatch.chdir(tmp_path)
    return served


def test_a_folder_on_the_hub_even_if_it_is_called_pt(hub: Hub) -> None:
    loaded = load("somebody/saes/v5_32k_layer_3.pt")
    assert torch.equal(loaded.sae(X), sae()(X))
    fetched = {path.relative_to(hub.cache).as_posix() for path in hub.cache.rglob("*") if path.is_file()}
    assert fetched == {"v5_32k_layer_3.pt/cfg.json", "v5_32k_layer_3.pt/sae_weights.safetensors"}


def test_a_whole_repository_is_asked_for_one_layer_s_weights(hub: Hub) -> None:
    assert load("somebody/saes", layer=2).hook == "blocks.2.hook_resid_post"
    assert [path.parent.name for path in hub.cache.rglob("*.safetensors")] == ["v5_32k_layer_2.pt"]
    assert load("somebody/saes/own").hook == "layers.3"
    with pytest.raises(CocomixError, match="holds several SAEs of block 3"):
        load("somebody/saes")
    with pytest.raises(CocomixError, match="holds no autoencoder in 'absent'"):
        load("somebody/saes/absent")


def test_a_pickle_on_the_hub_is_fetched_by_name_alone(hub: Hub) -> None:
    torch.save({"pre_bias": torch.zeros(1)}, hub.source / "layer_3.pt")
    with pytest.raises(CocomixError, match="activation is None"):
        load("somebody/saes/layer_3.pt")
    assert "layer_3.pt" in hub.asked and not any(pattern.endswith("*.pt") for pattern in hub.asked)


def test_without_the_hub_the_sentence_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: Any, **__: Any) -> str:
        raise ConnectionError("no route to huggingface.co\nand more")

    monkeypatch.setattr("huggingface_hub.snapshot_download", offline)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CocomixError, match=r"cannot be downloaded from the hub \(no route to huggingface.co\)"):
        load("somebody/saes")


def test_paths_are_not_taken_for_hub_ids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    assert is_hub_id("jbloom/saes") and is_hub_id("EleutherAI/sae-pythia-70m-32k/layers.5")
    for path in ("runs/sae", "/abs/sae", "./a/b", "../a/b", "a/../b", "one", "~/sae", ""):
        assert not is_hub_id(path), path


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"n_latents": 1 << 50}, "in its weights"),
        ({"d_model": "8"}, "in its weights"),
        ({"k": 4.0}, "whole number"),
        ({"k": True}, "whole number"),
        ({"activation": {"kind": "groupmax", "groups": 5.0}}, "whole number"),
        ({"activation": {"kind": ["relu"]}}, "damaged"),
        ({"about": {"hook": {"x": 1}}}, "not a string"),
        ({"about": {"model": 3}}, "not a string"),
    ],
)
def test_our_own_folder_with_odd_settings_is_refused(settings: dict[str, Any], match: str, tmp_path: Path) -> None:
    sae().save_pretrained(tmp_path, layer=3)
    path = tmp_path / "sae.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    with pytest.raises(CocomixError, match=match):
        load(tmp_path)


@pytest.mark.parametrize("name", ["saelens", "sparsify"])
def test_others_folders_with_odd_words_are_refused(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "layers.3"
    FORMATS[name]().write(sae(normalisation="none"), folder, {})
    path, kept = folder / "cfg.json", (folder / "cfg.json").read_text()
    for odd in ({"metadata": {"hook_name": {}}}, {"metadata": {"model_name": [1]}}, {"activation": []}):
        path.write_text(json.dumps(json.loads(kept) | odd))
        if name == ("sparsify" if "activation" in odd else "saelens"):
            with pytest.raises(CocomixError, match="not a string"):
                load(folder)


def test_a_hub_that_cannot_be_reached_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "httpx", None)  # newer versions of huggingface_hub bring another library
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(
        CocomixError, match=r"someone/some-sae is not a local path and cannot be downloaded from the hub"
    ):
        load_sae("someone/some-sae", layer=1, d_model=32, k=8)
