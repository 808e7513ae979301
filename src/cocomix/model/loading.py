"""Load a causal language model from a folder or the hub, without running anything from it."""

from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from cocomix.model.promised import within_weights
from cocomix.utils.errors import CocomixError, reason
from cocomix.utils.files import check_readable, check_source, read_json
from cocomix.utils.integrity import is_inside

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
