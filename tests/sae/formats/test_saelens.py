"""SAELens' folders, written by SAELens: read with the same latents, and ours written so that SAELens agrees."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from cocomix.sae import TopKSAE
from cocomix.sae.formats import FORMATS, load_sae
from cocomix.sae.sae import JumpReLU
from cocomix.utils.errors import CocomixError

pytest.importorskip("sae_lens")
pytestmark = pytest.mark.filterwarnings("ignore")

D, C, K = 12, 40, 5
HOOK = {"hook_name": "blocks.3.hook_resid_post", "model_name": "gpt2"}


def theirs(architecture: str, *, training: bool = False, **settings: Any) -> Any:
    """A random SAELens autoencoder with every tensor filled."""
    from sae_lens.registry import get_sae_class, get_sae_training_class
    from sae_lens.saes.sae import SAEMetadata

    made, config = (get_sae_training_class if training else get_sae_class)(architecture)
    torch.manual_seed(0)
    sae = made(config(d_in=D, d_sae=C, metadata=SAEMetadata(**HOOK), **settings))
    for name, parameter in sae.named_parameters():
        torch.nn.init.normal_(parameter, std=0.5 if name.startswith("W") else 0.2)
        if name == "threshold":
            torch.nn.init.uniform_(parameter, 0.3, 1.5)
    return sae


def inputs() -> torch.Tensor:
    return torch.randn(30, D, generator=torch.Generator().manual_seed(1)) * 2 + 0.3


def strongest(acts: torch.Tensor, k: int) -> torch.Tensor:
    """All but the `k` largest set to 0."""
    top = acts.topk(k, dim=-1)
    return torch.zeros_like(acts).scatter(-1, top.indices, top.values)


def check(sae: TopKSAE, library: Any, scale: float = 1.0) -> None:
    """Our latents are the library's K largest, our reconstruction its decoding of them."""
    x = inputs()
    with torch.no_grad():
        wanted = strongest(library.encode(x * scale), sae.k)
        ours = sae.encode_dense(x)
        library.encode(x * scale)  # its layer norm remembers the last input's scale
        assert (ours - wanted).abs().max() < 1e-5 * wanted.abs().max()
        assert (sae(x) * scale - library.decode(wanted)).abs().max() < 2e-5
    assert (wanted != 0).any(0).sum() > K


@pytest.mark.parametrize("normalisation", ["none", "layer_norm", "constant_norm_rescale"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("architecture", ["topk", "topk rescaled", "jumprelu", "standard"])
def test_each_architecture_agrees(architecture: str, bias: bool, normalisation: str, tmp_path: Path) -> None:
    name, *rescaled = architecture.split()
    settings = {"apply_b_dec_to_input": bias, "normalize_activations": normalisation}
    if name == "topk":
        settings |= {"k": K, "rescale_acts_by_decoder_norm": bool(rescaled)}
    library = theirs(name, **settings)
    library.save_model(tmp_path)
    loaded = load_sae(tmp_path, layer=3, d_model=D, k=7)
    assert (loaded.format, loaded.hook, loaded.model) == ("saelens", HOOK["hook_name"], "gpt2")
    assert loaded.k_from_files == (name == "topk") and loaded.sae.k == (K if name == "topk" else 7)
    check(loaded.sae, library)
    loaded.sae.save_pretrained(tmp_path / "ours")
    assert torch.equal(TopKSAE.from_pretrained(tmp_path / "ours")(inputs()), loaded.sae(inputs()))


@pytest.mark.parametrize("architecture", ["batchtopk", "matryoshka_batchtopk"])
@pytest.mark.parametrize("rescale", [True, False])
def test_batch_topk_finished_and_as_a_checkpoint(architecture: str, rescale: bool, tmp_path: Path) -> None:
    widths = {"matryoshka_widths": [10, C]} if architecture.startswith("matry") else {}
    library = theirs(architecture, training=True, k=4.5, rescale_acts_by_decoder_norm=rescale, **widths)
    library.topk_threshold.fill_(1.7)
    library.save_model(tmp_path / "checkpoint")
    checkpoint = load_sae(tmp_path / "checkpoint", layer=3, d_model=D, k=6)
    library.save_inference_model(tmp_path / "finished")
    finished = load_sae(tmp_path / "finished", layer=3, d_model=D, k=6)
    assert isinstance(finished.sae.activation, JumpReLU) and finished.sae.k == 6
    from sae_lens import SAE

    for loaded in (checkpoint, finished):
        check(loaded.sae, SAE.load_from_disk(tmp_path / "finished"))


@pytest.mark.parametrize("architecture", ["topk", "batchtopk"])
def test_the_average_norm_is_folded_as_saelens_folds_it(architecture: str, tmp_path: Path) -> None:
    settings = {"normalize_activations": "expected_average_only_in", "rescale_acts_by_decoder_norm": True, "k": K}
    library = theirs(architecture, training=True, **settings)
    if architecture == "batchtopk":
        library.topk_threshold.fill_(1.7)
    library.save_model(tmp_path / "raw")
    with pytest.raises(CocomixError, match="does not hold the factor"):
        load_sae(tmp_path / "raw", layer=3, d_model=D, k=6)
    (tmp_path / "raw" / "activation_scaler.json").write_text(json.dumps({"scaling_factor": 0.37}))
    library.fold_activation_norm_scaling_factor(0.37)
    library.save_inference_model(tmp_path / "folded")
    from sae_lens import SAE

    folded = SAE.load_from_disk(tmp_path / "folded")
    for folder in ("raw", "folded"):
        check(load_sae(tmp_path / folder, layer=3, d_model=D, k=6).sae, folded)


def older(tmp_path: Path, **changes: Any) -> tuple[Path, Any]:
    """The flat layout of versions before 6, and SAELens' own reading of it."""
    library = theirs("topk", k=K, normalize_activations="layer_norm")
    library.save_model(tmp_path)
    flat = {
        "architecture": "standard",
        "d_in": D,
        "d_sae": C,
        "dtype": "float32",
        "device": "cpu",
        "model_name": "gpt2-small",
        "hook_name": "blocks.4.hook_resid_pre",
        "hook_layer": 4,
        "hook_head_index": None,
        "activation_fn_str": "topk",
        "activation_fn_kwargs": {"k": K},
        "apply_b_dec_to_input": True,
        "finetuning_scaling_factor": False,
        "sae_lens_training_version": None,
        "prepend_bos": False,
        "normalize_activations": "layer_norm",
        "context_size": 128,
    } | changes
    (tmp_path / "cfg.json").write_text(json.dumps(flat))
    weights = load_file(tmp_path / "sae_weights.safetensors")
    save_file(weights | {"scaling_factor": torch.ones(C)}, tmp_path / "sae_weights.safetensors")
    return tmp_path, library


def test_the_layout_before_version_6_and_a_hook_before_a_block(tmp_path: Path) -> None:
    folder, library = older(tmp_path)
    from sae_lens import SAE

    read_by_saelens = SAE.load_from_disk(folder)
    for one in (library, read_by_saelens):
        check(load_sae(folder, layer=3, d_model=D, k=9).sae, one)
    with pytest.raises(CocomixError, match=r"output of block 3 \(0-based\), and sae.layer is 4; set sae.layer=3"):
        load_sae(folder, layer=4, d_model=D, k=9)


def test_even_older_names_and_a_relu(tmp_path: Path) -> None:
    folder, library = older(
        tmp_path, hook_point="blocks.3.hook_resid_post", normalize_activations=False, activation_fn_str="relu"
    )
    config = json.loads((folder / "cfg.json").read_text())
    del config["hook_name"], config["architecture"]
    (folder / "cfg.json").write_text(json.dumps(config))
    loaded = load_sae(folder, layer=3, d_model=D, k=9)
    assert loaded.sae.k == 9 and loaded.sae.normalisation == "none"
    x = inputs()
    dense = strongest(torch.relu((x - library.b_dec) @ library.W_enc + library.b_enc), 9)
    assert (loaded.sae.encode_dense(x) - dense).abs().max() < 1e-5


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"normalize_activations": "covariance_whitening"}, "'covariance_whitening', which cocomix does not know"),
        ({"activation_fn_str": "tanh-relu"}, "architecture 'standard with tanh-relu'"),
        ({"architecture": "gated", "activation_fn_str": "relu"}, "architecture 'gated'"),
        ({"reshape_activations": "hook_z"}, "'hook_z'"),
        ({"hook_name": "blocks.3.hook_mlp_out"}, "'blocks.3.hook_mlp_out', not a residual stream"),
        ({"hook_name": "blocks.0.hook_resid_pre"}, "not a residual stream after a block"),
        ({"d_in": 13}, "d_in is 13 in its JSON and 12 in its weights"),
        ({"activation_fn_kwargs": {"k": "many"}}, "k is 'many'"),
        ({"activation_fn_kwargs": {"k": 41}}, "41 active latents do not fit into 40"),
    ],
)
def test_what_cannot_be_read_is_refused_by_name(change: dict[str, Any], words: str, tmp_path: Path) -> None:
    folder, _ = older(tmp_path, **change)
    with pytest.raises(CocomixError, match=words):
        load_sae(folder, layer=3, d_model=D, k=5)


def test_another_width_and_strange_or_damaged_weights_are_refused(tmp_path: Path) -> None:
    folder, _ = older(tmp_path)
    with pytest.raises(CocomixError, match=r"states 12 wide and the concept model's are 16\s+wide"):
        load_sae(folder, layer=3, d_model=16, k=5)
    path = folder / "sae_weights.safetensors"
    weights = load_file(path)
    save_file(weights | {"scaling_factor": torch.full((C,), 1.1)}, path)
    with pytest.raises(CocomixError, match="fine-tuned scaling_factor"):
        load_sae(folder, layer=3, d_model=D, k=5)
    save_file({name: tensor for name, tensor in weights.items() if name != "b_enc"}, path)
    with pytest.raises(CocomixError, match="the tensor 'b_enc' is missing"):
        load_sae(folder, layer=3, d_model=D, k=5)
    save_file(weights | {"W_skip": torch.zeros(D, D)}, path)
    with pytest.raises(CocomixError, match="the tensor 'W_skip' is unknown"):
        load_sae(folder, layer=3, d_model=D, k=5)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(CocomixError, match="is damaged"):
        load_sae(folder, layer=3, d_model=D, k=5)
    path.unlink()
    with pytest.raises(CocomixError, match=r"sae_weights.safetensors is missing"):
        load_sae(folder, layer=3, d_model=D, k=5)
    (folder / "cfg.json").write_text("{")
    with pytest.raises(CocomixError, match=r"cfg\.json is damaged"):
        load_sae(folder, layer=3, d_model=D, k=5)
    (folder / "cfg.json").write_text('{"about": "something else"}')
    with pytest.raises(CocomixError, match="not an autoencoder of a known format"):
        load_sae(folder, layer=3, d_model=D, k=5)


def test_a_transcoder_and_a_gated_sae_of_saelens_are_refused(tmp_path: Path) -> None:
    for name, settings in (
        ("gated", {}),
        ("transcoder", {"d_out": D, "apply_b_dec_to_input": False}),
        ("abstopk", {"k": K}),
    ):
        theirs(name, **settings).save_model(tmp_path / name)
        with pytest.raises(CocomixError, match=f"architecture '{name}'"):
            load_sae(tmp_path / name, layer=3, d_model=D, k=5)


@pytest.mark.parametrize("normalisation", ["standard", "none", "rescale"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_saelens_loads_our_export_and_agrees(normalisation: str, dtype: torch.dtype, tmp_path: Path) -> None:
    from sae_lens import SAE

    torch.manual_seed(3)
    ours = TopKSAE(D, C, K, normalisation=normalisation).to(dtype)
    for parameter in ours.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    FORMATS["saelens"]().write(ours, tmp_path, {"layer": 3, "model": "mine"})
    library = SAE.load_from_disk(tmp_path)
    assert library.cfg.metadata.hook_name == "blocks.3.hook_resid_post" and library.cfg.k == K
    x = inputs().to(dtype)
    with torch.no_grad():
        tolerance = 1e-5 if dtype is torch.float32 else 1e-13
        assert (library.encode(x) - ours.encode_dense(x)).abs().max() < tolerance
        assert (library(x) - ours(x)).abs().max() < tolerance
    again = load_sae(tmp_path, layer=3, d_model=D, k=1)
    assert again.sae.k == K and torch.equal(again.sae(x), ours(x)) and again.model == "mine"


def test_what_saelens_has_no_words_for_is_not_exported(tmp_path: Path) -> None:
    with pytest.raises(CocomixError, match="no jumprelu activation of which 5 are kept"):
        FORMATS["saelens"]().write(TopKSAE(D, C, K, activation=JumpReLU(C)), tmp_path, {})
