"""cocomix: pretrain language models with continuous concepts (CoCoMix).

Importing it registers `CoCoMixConfig` and `CoCoMixForCausalLM` with Transformers' Auto classes: at once where
Transformers is loaded already, else as soon as it is. Until then neither Transformers nor torch is loaded, so that a
command's help, and what needs no model, is quick.
"""

from typing import TYPE_CHECKING, Any

from cocomix.registered import register_with_transformers
from cocomix.utils.errors import CocomixError

if TYPE_CHECKING:
    from cocomix.model.configuration_cocomix import CoCoMixConfig
    from cocomix.model.modeling_cocomix import CoCoMixForCausalLM

__version__ = "0.1.0"
__all__ = ["CoCoMixConfig", "CoCoMixForCausalLM", "CocomixError", "__version__"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import cocomix.model

    return getattr(cocomix.model, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


register_with_transformers()
