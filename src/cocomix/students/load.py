"""Load a causal language model from a folder or the hub, without running anything from it."""

from pathlib import Path

from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, PreTrainedModel

from cocomix.errors import CocomixError
from cocomix.files import check_source

GIVE_ANOTHER = "give a model folder or hub id with sound safetensors"


def load_causal_lm(source: str | Path, what: str, mend: str = GIVE_ANOTHER) -> PreTrainedModel:
    """Any Transformers causal LM, ours included, in evaluation mode.

    Args:
        source: a model folder or hub id with safetensors weights.
        what: what it is to the user, for the error, e.g. "the concept model".
        mend: what the user can do about an error.

    Raises:
        CocomixError: nothing loadable there, or a damaged file.
    """
    check_source(source, what)
    try:
        return AutoModelForCausalLM.from_pretrained(source, trust_remote_code=False, use_safetensors=True).eval()
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CocomixError(f"{what} cannot be loaded from {source} ({first}); {mend}") from error
