"""Load a causal language model from a folder or the hub, without running anything from it."""

from pathlib import Path

from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, PreTrainedModel

from cocomix.errors import CocomixError


def load_causal_lm(source: str | Path, what: str) -> PreTrainedModel:
    """Any Transformers causal LM, ours included, in evaluation mode.

    Args:
        source: a model folder or hub id with safetensors weights.
        what: what it is to the user, for the error, e.g. "the concept model".

    Raises:
        CocomixError: nothing loadable there, or a damaged file.
    """
    try:
        return AutoModelForCausalLM.from_pretrained(source, trust_remote_code=False, use_safetensors=True).eval()
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CocomixError(
            f"{what} cannot be loaded from {source} ({first}); give a model folder or hub id with sound safetensors"
        ) from error
