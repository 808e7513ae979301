"""Load a causal language model from a folder or the hub, without running anything from it."""

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

# No model is built that its weights cannot fill: a line of its configuration could ask for any amount of memory.

TIMES = 4
"""Numbers and tensors that may be asked for, of those the weights hold: tied ones are made twice, and some are fused in
the file and not in the model, or the other way round."""
PACKED_TIMES = 64
"""The same for numbers of a quantised model, which are stored several in one."""
TABLES = 1 << 28
"""Numbers in tables, such as masks, that no weights hold."""


@contextmanager
def within_weights(folder: Path) -> Iterator[None]:
    """Within: a model that this thread builds is refused as soon as it outgrows the safetensors files in `folder`.

    Where there are none, as for a hub id, nothing is refused.

    Raises:
        ValueError: it has more numbers or tensors than those files can hold, by far.
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
    most, here, asked = (PACKED_TIMES if packed else TIMES) * numbers, threading.get_ident(), [0, 0, 0]

    def parameter(_module: nn.Module, _name: str, made: Any) -> None:
        if made is None or made.device.type != "meta" or threading.get_ident() != here:
            return
        asked[0], asked[1] = asked[0] + made.numel(), asked[1] + 1
        if asked[0] > most:
            raise ValueError(f"its config.json asks for over {asked[0]:,} numbers, and its weights are {numbers:,}")
        if asked[1] > TIMES * n_tensors:
            raise ValueError(f"its config.json asks for over {asked[1]:,} tensors, and its weights are {n_tensors:,}")

    def table(_module: nn.Module, _name: str, made: Any) -> None:
        if made is not None and made.device.type == "meta" and threading.get_ident() == here:
            asked[2] += made.numel()
            if asked[2] > TABLES + most:
                raise ValueError(f"its config.json asks for tables of over {asked[2]:,} numbers")

    hooks = [register_module_parameter_registration_hook(parameter), register_module_buffer_registration_hook(table)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


INDEX = "model.safetensors.index.json"
GIVE_ANOTHER = "give a model folder or hub id with sound safetensors"


def load_causal_lm(source: str | Path, what: str, mend: str = GIVE_ANOTHER) -> PreTrainedModel:
    """Any Transformers causal LM, ours included, in evaluation mode.

    Args:
        source: a model folder or hub id with safetensors weights.
        what: what it is to the user, for the error, e.g. "the concept model".
        mend: what the user can do about an error.

    Raises:
        CocomixError: nothing loadable there, a damaged file, a configuration that asks for more than the weights hold,
            or for code from elsewhere.
    """
    check_source(source, what)
    try:
        _refuse_code(source)
        _refuse_elsewhere(Path(source) / INDEX)
        with within_weights(Path(source)):
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                source, trust_remote_code=False, use_safetensors=True, output_loading_info=True
            )
        model, info = loaded
        if lacking := sorted(info["missing_keys"]):  # Transformers would draw them at random
            raise ValueError(f"the weights lack {lacking[0]!r}")
    except Exception as error:  # a damaged file ends in one of many types
        raise CocomixError(f"{what} cannot be loaded from {source} ({reason(error)}); {mend}") from error
    return model.eval()


def model_config(folder: Path, mend: str) -> PreTrainedConfig:
    """The configuration of the model in `folder`; `mend` is what the user can do about an error.

    Raises:
        CocomixError: it is damaged.
    """
    check_readable(folder / "config.json")
    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # as above
        raise CocomixError(f"{folder / 'config.json'} is damaged ({type(error).__name__}); {mend}") from error


def _refuse_elsewhere(index: Path) -> None:
    """Refuse a list of weight files, if there is one, that names a file outside its folder.

    Raises:
        ValueError: it does, or is damaged.
    """
    if not index.exists():
        return
    for name in set(read_json(index)["weight_map"].values()):
        if not is_inside(name):
            raise ValueError(f"{index.name} names {name!r}, which is outside the folder")


def _refuse_code(source: str | Path) -> None:
    """Refuse a configuration that names kernels on the hub: Transformers downloads and runs them unasked.

    Raises:
        ValueError: it does.
    """
    pending: list[Any] = [PreTrainedConfig.get_config_dict(source)[0]]
    while pending:
        one = pending.pop()
        if isinstance(one, list):
            pending += one
        elif isinstance(one, dict):
            pending += one.values()
            for name, value in one.items():
                if str(name).endswith("_implementation") and "/" in str(value):
                    raise ValueError(f"its config.json asks for code from the hub, {name} {value!r}")
