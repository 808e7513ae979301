"""Loading of causal language models from a folder or the hub, without running code from there.

Choices:
- Only safetensors weights are read. A configuration that names code or kernels on the hub is refused.
- No model is built that its weights cannot fill, because one line of a configuration can request any amount of memory.
  `limit_to_checkpoint_size` counts parameters and buffers while Transformers builds the model on the meta device.
- Missing weights are an error; Transformers would initialise them at random.
"""

import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import nn
from torch.nn.modules.module import (
    register_module_buffer_registration_hook,
    register_module_parameter_registration_hook,
)
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from cocomix.utils.errors import CocomixError, reason
from cocomix.utils.files import check_readable, check_source, read_json
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


def load_causal_lm(source: str | Path, role: str, hint: str = GIVE_ANOTHER) -> PreTrainedModel:
    """Load any Transformers causal LM, `CoCoMixForCausalLM` included, in evaluation mode.

    Args:
        source: a model folder or hub id with safetensors weights.
        role: what the model is called in error messages, e.g. "the concept model".
        hint: how to fix it, the end of the error message.

    Raises:
        CocomixError: there is no loadable model, a file is damaged, or the configuration asks for more than the weights
            hold or for code from the hub.
    """
    check_source(source, role)
    try:
        _refuse_code(source)
        _check_weight_index(Path(source) / INDEX)
        with limit_to_checkpoint_size(Path(source)):
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                source, trust_remote_code=False, use_safetensors=True, output_loading_info=True
            )
        model, info = loaded
        if missing := sorted(info["missing_keys"]):  # Transformers has initialised them at random
            raise ValueError(f"the weights lack {missing[0]!r}")
    except Exception as error:  # a damaged file raises errors of many types
        raise CocomixError(f"{role} cannot be loaded from {source} ({reason(error)}); {hint}") from error
    return model.eval()


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


def _refuse_code(source: str | Path) -> None:
    """Refuse a configuration that names kernels on the hub: Transformers downloads and runs them without asking.

    Raises:
        ValueError: it names some.
    """
    pending: list[Any] = [PreTrainedConfig.get_config_dict(source)[0]]
    while pending:
        value = pending.pop()
        if isinstance(value, list):
            pending += value
        elif isinstance(value, dict):
            pending += value.values()
            for name, setting in value.items():
                if str(name).endswith("_implementation") and "/" in str(setting):
                    raise ValueError(f"its config.json asks for code from the hub, {name} {setting!r}")
