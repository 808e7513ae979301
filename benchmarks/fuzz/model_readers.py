"""Readers of tensors: models, autoencoders, checkpoints, concept statistics, labels."""

import contextlib
import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open

from benchmarks.fuzz.pickle_payloads import PICKLE, PICKLES
from benchmarks.fuzz.reader import Reader, edit_json, replace_file, reseal
from benchmarks.fuzz.text_readers import HOSTILE_MODULE
from cocomix.analysis.concept_index import ConceptStatistics, StatisticsKey, read_statistics, write_statistics
from cocomix.labels.store import LabelStore, LabelWriter
from cocomix.model import CoCoMixConfig, CoCoMixForCausalLM
from cocomix.model.build import ModelShape, build_plain
from cocomix.model.loading import load_causal_lm
from cocomix.sae.formats import FORMATS, load_sae
from cocomix.sae.sae import TopKSAE
from cocomix.train.checkpoint import load_checkpoint, save_checkpoint
from cocomix.train.config import TrainConfig
from cocomix.train.optimizer import AdamW
from cocomix.train.trainer import training_tensors
from cocomix.utils.files import check_weights

with contextlib.suppress(ImportError):  # what loading a quantised model imports prepares folders of its own
    import bitsandbytes  # noqa: F401  # pyright: ignore[reportMissingImports]
    import peft  # noqa: F401  # pyright: ignore[reportMissingImports]

SHAPE = {"width": 16, "layers": 2, "heads": 2}
KEY = StatisticsKey(student="s", shards="t", labels=None, seq_len=8, tokens=100)


def _sae() -> TopKSAE:
    torch.manual_seed(0)
    return TopKSAE(8, 24, 4)


def _make_sae(name: str, normalisation: str, folder: Path) -> None:
    torch.manual_seed(0)
    FORMATS[name]().write(TopKSAE(8, 24, 4, normalisation=normalisation), folder, {"layer": 1, "model": "m"})


def _make_openai(folder: Path, encoder: torch.Tensor | None = None) -> None:
    sae = _sae()
    state = {
        "pre_bias": sae.pre_bias.detach(),
        "encoder.weight": sae.encoder_weight.detach() if encoder is None else encoder,
        "latent_bias": sae.latent_bias.detach(),
        "decoder.weight": sae.decoder_weight.detach().T.contiguous(),
        "activation": "TopK",
        "activation_state_dict": {"k": 4, "postact_fn": "ReLU"},
    }
    torch.save(state, folder / "sae.pt")


def _encoded(source: Path) -> None:
    loaded = load_sae(source, layer=1, d_model=8, k=4)
    with torch.no_grad():
        loaded.sae.encode(torch.zeros(1, 2, 8))


def _make_model(backbone: str, folder: Path) -> None:
    torch.manual_seed(0)
    build_plain(ModelShape.model_validate({"backbone": backbone} | SHAPE), vocab_size=64, seq_len=16).save_pretrained(
        folder
    )


def _make_student(folder: Path) -> None:
    torch.manual_seed(0)
    config = CoCoMixConfig(
        vocab_size=64,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=16,
        concept_layer=1,
        num_concepts=24,
        concept_top_k=4,
    )
    CoCoMixForCausalLM(config).save_pretrained(folder)


def _read_model(folder: Path) -> None:
    check_weights(folder, "train it again")
    load_causal_lm(folder, "the concept model")


def _with_code(folder: Path) -> None:
    code = {"model_type": "evil", "auto_map": {"AutoConfig": "evil.Evil", "AutoModelForCausalLM": "evil.Evil"}}
    edit_json("config.json", lambda content: content.update(code))(folder)
    (folder / "evil.py").write_text(HOSTILE_MODULE)


def _pickled(content: bytes, folder: Path) -> None:
    """Replace the weights by a pickle, as old Transformers versions wrote them."""
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(content)


def _indexed(file: str, folder: Path) -> None:
    """Write a weight index that names a file outside the folder, although the weights are in the folder."""
    (folder / "model.safetensors").rename(folder / "other.safetensors")
    with safe_open(folder / "other.safetensors", framework="np") as stored:
        index = {"metadata": {}, "weight_map": dict.fromkeys(stored.keys(), file)}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def _sized(**sizes: Any) -> Callable[[Path], object]:
    return edit_json("config.json", lambda content: content.update(sizes))


HUGE = 1 << 40
MODELS: dict[str, Callable[[Path], object]] = {
    **{f"weights: {what}": lambda folder, make=make: _pickled(make(), folder) for what, make in PICKLES.items()},
    "code beside it": _with_code,
    "weights outside": partial(_indexed, "../outside/model.safetensors"),
    "weights in /etc": partial(_indexed, "/etc/passwd"),
    "a million layers": _sized(n_layer=10**6, num_hidden_layers=10**6, layer_types=None),
    "a huge vocabulary": _sized(vocab_size=HUGE),
    "huge positions": _sized(n_positions=HUGE, n_ctx=HUGE, max_position_embeddings=HUGE),
    "a huge width": _sized(n_embd=HUGE, hidden_size=HUGE, intermediate_size=HUGE),
    "an inner width no weights have": _sized(n_inner=1 << 22, intermediate_size=1 << 22),
    "a head for each of a billion": _sized(n_head=1 << 30, num_attention_heads=1 << 30, head_dim=1 << 30),
    "a billion concepts": _sized(num_concepts=1 << 30),
    "untied and huge": _sized(tie_word_embeddings=False, vocab_size=1 << 26),
    "another architecture": _sized(model_type="bloom", architectures=["BloomForCausalLM"]),
    "a vision model": _sized(model_type="vit", architectures=["ViTModel"]),
    "quantised": _sized(quantization_config={"quant_method": "bitsandbytes", "load_in_8bit": True}),
    "quantised oddly": _sized(quantization_config={"quant_method": "x"}),
    "an adapter's": replace_file(
        "adapter_config.json", '{"base_model_name_or_path": "someone/else", "peft_type": "LORA"}'
    ),
    "its own attention": _sized(attn_implementation="kernels-community/x", _attn_implementation="someone/else"),
    "a generation config with code": replace_file(
        "generation_config.json", '{"auto_map": {"x": "evil.Evil"}, "custom": []}'
    ),
}


def _make_checkpoints(folder: Path) -> None:
    module, optimizer = _trained()
    for step in (1, 2):
        save_checkpoint(folder, step, training_tensors(module, optimizer), {"curve": [step]}, "key")


def _trained() -> tuple[torch.nn.Module, AdamW]:
    torch.manual_seed(0)
    module = torch.nn.Linear(6, 5)
    return module, AdamW(module, TrainConfig(steps=1))


def _read_checkpoints(folder: Path) -> None:
    load_checkpoint(folder, "key", training_tensors(*_trained()))


def _checkpoint_entries(meta: Any) -> Iterator[tuple[dict[str, Any], str]]:
    for name, entry in meta["files"].items():
        yield entry, name


def _seal_checkpoints(folder: Path) -> None:
    for step in folder.glob("step-*"):
        reseal(step / "meta.json", _checkpoint_entries)


def _make_statistics(folder: Path) -> None:
    rng, counts = np.random.default_rng(0), np.arange(5)
    write_statistics(
        folder / "atlas.safetensors",
        ConceptStatistics(
            key=KEY,
            truth=None,
            windows=3,
            positions=24,
            labelled=0,
            predicted=counts,
            predicted_labelled=counts,
            true=counts,
            both=counts,
            histogram=rng.integers(0, 9, (5, 40)),
            starts=np.arange(6),
            places=rng.integers(0, 3, (5, 3)),
            strengths=rng.random(5),
        ),
    )


def _read_statistics(folder: Path) -> None:
    found = read_statistics(folder / "atlas.safetensors", KEY)
    if found is not None:
        _ = found.precision(), found.recall(), [found.places_of(one, 3) for one in range(found.n_concepts)]


LABELS: dict[str, Any] = {"n_tokens": 100, "seq_len": 8, "n_labels": 2, "n_latents": 50, "lineage": {"sae": "x"}}


def _begin_labels(folder: Path) -> LabelWriter:
    writer = LabelStore.create(folder, **LABELS, shard_tokens=40, scores=True)
    rng = np.random.default_rng(0)
    ids = rng.integers(0, 50, (12, 8, 2))
    for start in (0, 6):
        part = ids[start : start + 6]
        writer.write(start, part, part.astype(float), np.ones((6, 8), dtype=bool))
    return writer


def _read_labels(folder: Path) -> None:
    store = LabelStore.open(folder, expect={"sae": "x"})
    windows = np.arange(store.layout.n_windows)
    store.read(windows, 8)
    store.labelled(windows)
    store.valid_share()
    if store.layout.scores:
        store.read_scores(windows, 8)


def _label_entries(manifest: Any) -> Iterator[tuple[dict[str, Any], str]]:
    for entry in manifest["files"]:
        yield entry, entry["file"]


def _resume_labels(folder: Path) -> None:
    writer = _continue_labels(folder)
    writer.done()
    writer.finish()
    _read_labels(folder)


def _continue_labels(folder: Path) -> LabelWriter:
    return LabelStore.create(folder, **LABELS, shard_tokens=40, scores=True)


READERS = (
    Reader("sae-own", partial(_make_sae, "cocomix", "standard"), _encoded),
    Reader("sae-saelens", partial(_make_sae, "saelens", "none"), _encoded),
    Reader(
        "sae-sparsify",
        lambda folder: _make_sae("sparsify", "none", folder / "layers.1"),
        lambda folder: _encoded(folder / "layers.1"),
    ),
    Reader(
        "sae-openai",
        _make_openai,
        lambda folder: _encoded(folder / "sae.pt"),
        hostile={
            description: lambda folder, make=make: replace_file("sae.pt", make())(folder)
            for description, make in PICKLES.items()
        }
        | {"one number for a matrix": lambda folder: _make_openai(folder, torch.zeros(1, 1).expand(1 << 30, 8))},
    ),
    *(
        Reader(f"model-{backbone}", partial(_make_model, backbone), _read_model, hostile=MODELS, share=0.5)
        for backbone in ("gpt2", "llama")
    ),
    Reader("student", _make_student, _read_model, hostile=MODELS, share=0.5),
    Reader(
        "checkpoint",
        _make_checkpoints,
        _read_checkpoints,
        seal=_seal_checkpoints,
        hostile={
            "a file outside": edit_json(
                "step-00000002/meta.json", lambda meta: meta["files"].update({"../../outside/meta.json": {"bytes": 1}})
            ),
            "a pickle": lambda folder: next(folder.glob("*2/*.safetensors")).write_bytes(PICKLE),
        },
    ),
    Reader("atlas", _make_statistics, _read_statistics),
    Reader(
        "labels",
        lambda folder: _begin_labels(folder).finish(),
        _read_labels,
        seal=lambda folder: reseal(folder / "manifest.json", _label_entries),
    ),
    Reader("labels-unfinished", lambda folder: _begin_labels(folder).close(), _resume_labels),
)
