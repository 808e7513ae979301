"""Loading of causal language models from a folder or the hub, without running code from there.

Choices:
- Only safetensors weights are read. A configuration that names code or kernels on the hub is refused.
- No model is built that its weights cannot fill, because one line of a configuration can request any amount of memory.
  `limit_to_checkpoint_size` counts parameters and buffers while Transformers builds the model on the meta device.
- Missing weights are an error; Transformers would initialise them at random.
- What a checkpoint's files would decide is decided here: the dtype of the weights, the attention implementation and how
  text is generated. `as_run` says what it was, for records. Transformers would run a bfloat16 checkpoint in bfloat16,
  fetch a kernel for an attention implementation that is not installed, and generate with as many beams as a file says.
"""

import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn
from torch.nn.modules.module import (
    register_module_buffer_registration_hook,
    register_module_parameter_registration_hook,
)
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PreTrainedConfig, PreTrainedModel

from cocomix.model.documents import apply_rule
from cocomix.model.text_config import text_config, text_shape
from cocomix.utils.errors import CocomixError, ConfigError, reason
from cocomix.utils.files import check_readable, check_source, read_json
from cocomix.utils.gguf import local_source
from cocomix.utils.integrity import is_inside

TIMES = 4
"""Allowed numbers and tensors of a model, as a multiple of those in its weights: tied ones are created twice, and some
are fused in the file and not in the model, or the reverse."""
PACKED_TIMES = 64
"""The same for the numbers of a quantised model, of which several are stored in one."""
BUFFER_NUMBERS = 1 << 28
"""Allowed numbers in buffers, such as masks, which the weights do not hold."""


@contextmanager
def limit_to_checkpoint_size(folder: Path) -> Iterator[None]:
    """Context in which this thread cannot build a model that is much larger than the safetensors files in `folder`.

    Without such files, as for a hub id, there is no limit.

    Raises:
        ValueError: the model has many more numbers or tensors than those files.
        safetensors.SafetensorError: a file is damaged.
    """
    files = sorted(folder.glob("*.safetensors")) if folder.is_dir() else []
    if not files:
        yield
        return
    n_tensors, numbers, packed = 0, 0, False
    for path in files:
        with safe_open(path, framework="np") as stored:
            for name in stored.keys():  # noqa: SIM118
                n_tensors, part = n_tensors + 1, stored.get_slice(name)
                numbers += math.prod(part.get_shape())
                packed = packed or part.get_dtype() not in {"F64", "F32", "F16", "BF16"}
    limit, thread = (PACKED_TIMES if packed else TIMES) * numbers, threading.get_ident()
    built = {"numbers": 0, "tensors": 0, "buffer numbers": 0}

    def count_parameter(_module: nn.Module, _name: str, tensor: Any) -> None:
        if tensor is None or tensor.device.type != "meta" or threading.get_ident() != thread:
            return
        built["numbers"] += tensor.numel()
        built["tensors"] += 1
        if built["numbers"] > limit:
            raise ValueError(
                f"its config.json asks for over {built['numbers']:,} numbers, and its weights hold {numbers:,}"
            )
        if built["tensors"] > TIMES * n_tensors:
            raise ValueError(
                f"its config.json asks for over {built['tensors']:,} tensors, and its weights hold {n_tensors:,}"
            )

    def count_buffer(_module: nn.Module, _name: str, tensor: Any) -> None:
        if tensor is not None and tensor.device.type == "meta" and threading.get_ident() == thread:
            built["buffer numbers"] += tensor.numel()
            if built["buffer numbers"] > BUFFER_NUMBERS + limit:
                raise ValueError(f"its config.json asks for buffers of over {built['buffer numbers']:,} numbers")

    hooks = [
        register_module_parameter_registration_hook(count_parameter),
        register_module_buffer_registration_hook(count_buffer),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


INDEX = "model.safetensors.index.json"
GIVE_ANOTHER = "give a model folder or hub id with intact safetensors"


ATTENTION: dict[str, str | None] = {
    "sdpa": None,
    "eager": None,
    "flash_attention_2": "flash_attn",
    "flash_attention_3": "flash_attn_interface",
}
"""Attention implementations that can be asked for, and the package that has to be installed for each."""


def load_causal_lm(
    source: str | Path,
    role: str,
    hint: str = GIVE_ANOTHER,
    *,
    precision: str = "fp32",
    attention: str = "sdpa",
) -> PreTrainedModel:
    """Load any Transformers causal LM, `CoCoMixForCausalLM` included, in evaluation mode.

    Args:
        source: a model folder or hub id with safetensors weights, a GGUF file, or `package:NAME` of one.
        role: what the model is called in error messages, e.g. "the concept model".
        hint: how to fix it, the end of the error message.
        precision: "fp32": the weights are loaded as float32. "bf16", for passes under autocast: they stay bfloat16 if
            they were saved so, and are float32 otherwise. "saved": in the dtype of the files, to be copied.
        attention: a key of `ATTENTION`; families without `sdpa` run `eager` in its place.

    Raises:
        CocomixError: there is no loadable model, a file is damaged, the configuration asks for more than the weights
            hold or for code from the hub, or the attention implementation is unknown or not installed.
    """
    source = local_source(str(source), role)
    check_source(source, role)
    check_attention(attention)
    try:
        stated = _stated_config(source)
        _check_weight_index(Path(source) / INDEX)
        local = {"local_files_only": Path(source).is_dir()}
        config: Any = AutoConfig.from_pretrained(source, trust_remote_code=False, **local)
        # Set here and not by an argument, over which `_attn_implementation` in the file would win. None is sdpa, or
        # eager where a family has no sdpa; "sdpa" itself would then be an error.
        config._attn_implementation = None if attention == "sdpa" else attention
        config._experts_implementation = None
        # An adapter's base is much larger than it, and is loaded by this very function, with its own limit.
        whole = stated.get("adapter") is None
        with limit_to_checkpoint_size(Path(source)) if whole else nullcontext():
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                source,
                config=config,
                trust_remote_code=False,
                use_safetensors=True,
                output_loading_info=True,
                dtype=_weights_dtype(stated, precision),
                **local,
            )
        model, info = loaded
        if missing := sorted(info["missing_keys"]):  # Transformers has initialised them at random
            raise ValueError(f"the weights lack {missing[0]!r}")
    except Exception as error:  # a damaged file raises errors of many types
        raise CocomixError(f"{role} cannot be loaded from {source} ({reason(error)}); {hint}") from error
    _set_generation(model)
    apply_rule(model)
    return model.eval()


def check_attention(attention: str) -> None:
    """Refuse an attention implementation that is unknown, or whose package is not installed.

    Transformers would fetch a kernel from the hub in place of a missing package.

    Raises:
        ConfigError: it is such a one.
    """
    if attention not in ATTENTION:
        raise ConfigError(f"there is no attention implementation {attention!r}; choose one of {', '.join(ATTENTION)}")
    package = ATTENTION[attention]
    if package is not None and find_spec(package) is None:
        raise ConfigError(
            f"the attention implementation {attention} needs the package {package}, which is not installed; install it,"
            " or use sdpa"
        )


def _weights_dtype(stated: dict[str, Any], precision: str) -> torch.dtype | str:
    if precision == "saved":
        return "auto"
    texts = [stated, *(stated[name] for name in ("text_config", "decoder") if isinstance(stated.get(name), dict))]
    saved = next((text[name] for text in texts for name in ("dtype", "torch_dtype") if text.get(name)), None)
    return torch.bfloat16 if precision == "bf16" and saved == "bfloat16" else torch.float32


def _set_generation(model: PreTrainedModel) -> None:
    """Keep only the token ids of the generation settings that came with the weights.

    Others (numbers of beams and of sequences, lengths, assistants) can cost any amount of time and memory; whoever
    generates sets them.
    """
    given, rows = getattr(model, "generation_config", None), text_shape(model.config).vocab_size
    if given is None:
        return

    def token(name: str) -> Any:
        value = getattr(given, name, None)
        ids = value if isinstance(value, list) else [value]
        fits = len(ids) <= MOST_END_TOKENS and all(type(number) is int and 0 <= number < rows for number in ids)
        return value if fits else None

    names = ("bos_token_id", "eos_token_id", "pad_token_id")
    cache = getattr(given, "use_cache", True)
    model.generation_config = GenerationConfig(use_cache=cache is not False, **{name: token(name) for name in names})


MOST_END_TOKENS = 64
"""Most tokens that may end a text."""


def as_run(model: PreTrainedModel) -> dict[str, Any]:
    """What a loaded model is run with, for records."""
    text: Any = text_config(model.config)
    generation = getattr(model, "generation_config", None)
    return {
        "dtype": str(model.dtype).removeprefix("torch."),
        "attention": text._attn_implementation,
        "positions": text_shape(model.config).positions,
        "eos_token_id": getattr(generation, "eos_token_id", None),
    }


def model_config(folder: Path, hint: str) -> PreTrainedConfig:
    """Load the configuration of the model in `folder`; `hint`, how to fix it, ends an error message.

    Raises:
        CocomixError: it is damaged.
    """
    check_readable(folder / "config.json")
    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # as above
        raise CocomixError(f"{folder / 'config.json'} is damaged ({type(error).__name__}); {hint}") from error


def _check_weight_index(index: Path) -> None:
    """Refuse a weight index that names a file outside its folder; there need not be an index.

    Raises:
        ValueError: it names such a file, or is damaged.
    """
    if not index.exists():
        return
    for name in set(read_json(index)["weight_map"].values()):
        if not is_inside(name):
            raise ValueError(f"{index.name} names {name!r}, which is outside the folder")


def _stated_config(source: str | Path) -> dict[str, Any]:
    """The content of a model's config.json, which must not name kernels on the hub.

    None of them would be used, because the implementations are asked for by us: whoever names one expects code to run.

    Raises:
        ValueError: it names some.
    """
    stated = PreTrainedConfig.get_config_dict(source)[0]
    pending: list[Any] = [stated]
    while pending:
        value = pending.pop()
        if isinstance(value, list):
            pending += value
        elif isinstance(value, dict):
            pending += value.values()
            for name, setting in value.items():
                if str(name).endswith("_implementation") and "/" in str(setting):
                    raise ValueError(f"its config.json asks for code from the hub, {name} {setting!r}")
    return stated
