"""What of a retrofitted model is trained, and how only that is saved: an adapter beside the name of its base.

An adapter is a folder with `config.json` and `model.safetensors`, as any model's. The configuration's `adapter` says
which plain model it belongs to and the sha256 of that model's weights; the weights are those of the concept head, the
vector, the mixer and the LoRA matrices. `AutoModelForCausalLM.from_pretrained` loads it: base first, then these.

Choices:
- LoRA is PEFT's, put into the blocks in place (`inject_adapter_in_model`), so that the model keeps its class.
- LoRA is on blocks from concept_layer on. Nothing below is trained, so autograd records nothing there: the lower blocks
  run once, forward only, and keep no activations. `pre_bias` is frozen with them: its gradient is one through the
  whole encoder, and the head's bias can be any value that `pre_bias` could give.
- The checksum is over the weights in float32 and not over files: sharding, format and dtype do not matter.
"""

import copy
import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedModel
from transformers.utils.hub import cached_file

from cocomix.model.documents import KEY
from cocomix.model.loading import load_causal_lm
from cocomix.utils.errors import CocomixError, ConfigError, reason

WEIGHTS = "model.safetensors"
TRAINED = ("channel", "lora", "all")
"""What can be trained: predictor and mixer; these and LoRA on the blocks from concept_layer on; everything."""
LORA_MARK = ".lora_"
DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16, "float16": torch.float16}
HUB_OPTIONS = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token")
"""Arguments of `from_pretrained` that say which files are meant."""


def freeze_rest(model: Any, trains: str, *, rank: int = 8, alpha: float = 16.0) -> None:
    """Let only a part of a model have gradients.

    Args:
        trains: of `TRAINED`.
        rank, alpha: of the LoRA matrices, whose product is multiplied by alpha / rank.

    Raises:
        CocomixError: there is no such part; PEFT is not installed.
    """
    if trains not in TRAINED:
        raise ConfigError(f"there is no part {trains!r} to train; choose one of {', '.join(TRAINED)}")
    model.requires_grad_(True)
    if trains == "all":
        return
    if trains == "lora":
        add_lora(model, {"rank": rank, "alpha": alpha})
    _freeze(model)


def _freeze(model: Any) -> None:
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(is_adapter(name) and not name.endswith(".pre_bias"))


def is_adapter(name: str) -> bool:
    """Whether a weight of this name is the predictor's, the mixer's or LoRA's, and not the base's."""
    return name.startswith(("channel.", "mixer.")) or LORA_MARK in name


def add_lora(model: Any, lora: Mapping[str, Any]) -> None:
    """Put LoRA matrices on the linear layers of the blocks from the concept layer on.

    Args:
        lora: `rank` and `alpha`.

    Raises:
        CocomixError: peft is not installed.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise CocomixError("LoRA needs the extra: pip install 'cocomix[lora]'") from error
    first = model.config.concept_layer
    targets = [
        f"backbone.blocks.{index}.{name}"
        for index, block in enumerate(model.backbone.blocks)
        for name, layer in block.named_modules()
        if index >= first and isinstance(layer, nn.Linear)
    ]
    settings = LoraConfig(r=lora["rank"], lora_alpha=lora["alpha"], target_modules=targets, lora_dropout=0.0)
    inject_adapter_in_model(settings, model)
    model.lora = dict(lora)


def has_lora(model: Any) -> bool:
    """Whether LoRA matrices are on the model's layers."""
    return getattr(model, "lora", None) is not None


def merge_lora(model: Any) -> None:
    """Add each LoRA product to the weight it is on, in place; the model computes the same with fewer products."""
    for layer in model.modules():
        if hasattr(layer, "get_delta_weight"):
            layer.merge()


def merged_state_dict(model: Any) -> dict[str, torch.Tensor]:
    """The model's weights with each LoRA product added to the weight it is on, by the names of a model without."""
    merged = {}
    layers = {name: layer for name, layer in model.named_modules() if hasattr(layer, "get_delta_weight")}
    for name, tensor in model.state_dict().items():
        if LORA_MARK in name:
            continue
        owner = name.partition(".base_layer.")[0]
        if owner in layers and name.endswith(".weight"):
            tensor = tensor + layers[owner].get_delta_weight("default").to(tensor.dtype)
        merged[name.replace(".base_layer.", ".")] = tensor
    return merged


def base_digest(model: Any) -> str:
    """sha256 over the weights that a student has from its base, by name, in float32."""
    digest, seen = hashlib.sha256(), set()
    for name, tensor in sorted(model.state_dict().items()):
        if is_adapter(name) or tensor.data_ptr() in seen:
            continue
        seen.add(tensor.data_ptr())  # tied ones once
        digest.update(f"{name.replace('.base_layer.', '.')}{list(tensor.shape)}".encode())
        digest.update(tensor.detach().to("cpu", torch.float32).contiguous().numpy().data)
    return digest.hexdigest()


def save_adapter(model: Any, folder: str | Path, *, base: str | None = None) -> None:
    """Save only what was trained beside a frozen base: predictor, mixer and LoRA.

    Args:
        base: what to call the base: a hub id, or a folder, relative to `folder` or absolute; None: as it was loaded.

    Raises:
        CocomixError: the base was trained, too, or is not known.
    """
    base = base or getattr(model, "base_name", None)
    if any(parameter.requires_grad and not is_adapter(name) for name, parameter in model.named_parameters()):
        raise CocomixError("the base was trained, too, so an adapter cannot hold what was learned; use save_pretrained")
    if not base:
        raise CocomixError("an adapter needs the name of its base; give base=, a hub id or folder")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.contiguous().cpu() for name, tensor in model.state_dict().items() if is_adapter(name)}
    config = copy.deepcopy(model.config)
    config.architectures = [type(model).__name__]
    dtype = str(model.dtype).removeprefix("torch.")
    config.adapter = {"base": base, "sha256": base_digest(model), "dtype": dtype, "lora": getattr(model, "lora", None)}
    config.save_pretrained(folder)
    save_file(tensors, folder / WEIGHTS, {"format": "pt"})


CONCEPT_SETTINGS = (
    "concept_layer",
    "num_concepts",
    "concept_top_k",
    "mixer",
    "mixer_options",
    "channel",
    "channel_options",
    "concept_loss_weight",
)
"""Fields of the configuration that `from_plain` is given."""


def load_adapter(
    from_plain: Callable[..., Any],
    source: str | Path,
    config: Any,
    base: str | Path | PreTrainedModel | None = None,
    hub: Mapping[str, Any] | None = None,
) -> Any:
    """The student that an adapter and its base make, frozen but for the adapter, in evaluation mode.

    Args:
        from_plain: makes a student of a plain model.
        source: folder or hub id of the adapter.
        base: in place of the base it names.
        hub: of `HUB_OPTIONS`, for the adapter's files.

    Raises:
        CocomixError: the adapter is damaged; the base is not there, or another than it was trained on.
    """
    record = config.adapter
    if not isinstance(record, dict) or not isinstance(record.get("base"), str):
        raise CocomixError(f"the adapter {source} does not name its base; use an intact one")
    tensors = _read(source, hub or {})
    plain = _base(source, record["base"], base)
    rows = tensors.get("channel.head.proj.weight")
    if config.num_concepts > 1 and (rows is None or rows.shape[0] != config.num_concepts):
        raise CocomixError(f"the adapter {source} has not the weights of {config.num_concepts} concepts; copy it again")
    model = from_plain(plain, **{name: getattr(config, name) for name in CONCEPT_SETTINGS})
    model.base_name = record["base"]
    if record.get("dtype") in DTYPES:  # the checksum is of weights rounded to it
        model.to(DTYPES[record["dtype"]])
    if hasattr(config, KEY):
        setattr(model.config, KEY, getattr(config, KEY))
    if base_digest(model) != record.get("sha256"):
        named = base if isinstance(base, str | Path) else record["base"]
        raise CocomixError(
            f"the adapter {source} was trained on other weights than those of {named} (their sha256 differs); give the"
            f" model it was trained on, {record['base']}, as base_model"
        )
    if record.get("lora") is not None:
        largest = max((min(t.shape) for name, t in tensors.items() if LORA_MARK in name), default=0)
        if record["lora"].get("rank") != largest:
            raise CocomixError(f"the adapter {source} has not the LoRA weights of its config.json; copy it again")
        add_lora(model, record["lora"])
    missing, unknown = model.load_state_dict(tensors, strict=False)
    wrong = [name for name in missing if is_adapter(name)] + list(unknown)
    if wrong:
        raise CocomixError(f"the adapter {source} does not fit its config.json ({sorted(wrong)[0]}); copy it again")
    _freeze(model)
    return model.eval()


def _read(source: str | Path, hub: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    try:
        path = str(cached_file(str(source), WEIGHTS, **hub))
        with safe_open(path, framework="pt"):
            return load_file(path)
    except (OSError, SafetensorError) as error:
        raise CocomixError(f"the adapter {source} cannot be read ({reason(error)}); copy it again") from error


def _base(source: str | Path, named: str, given: str | Path | PreTrainedModel | None) -> PreTrainedModel:
    if isinstance(given, PreTrainedModel):
        return given
    beside = Path(source) / named
    place = str(given) if given is not None else str(beside) if beside.is_dir() else named
    return load_causal_lm(place, f"the base of the adapter {source}", "give it as base_model", precision="saved")
