"""cocomix: pretrain language models with continuous concepts (CoCoMix).

`import cocomix.model` registers `CoCoMixConfig` and `CoCoMixForCausalLM` with Transformers' Auto classes; so does any
use of these two names from here. `import cocomix` alone loads neither torch nor Transformers, which keeps the command
line's help fast.
"""

import os
import sys
from typing import TYPE_CHECKING, Any

from cocomix.utils.errors import CocomixError

if TYPE_CHECKING:
    from cocomix.model.configuration_cocomix import CoCoMixConfig
    from cocomix.model.modeling_cocomix import CoCoMixForCausalLM

# Both are read once, when torch and Transformers are imported; someone who wants it otherwise has set them.
os.environ.setdefault("USE_HUB_KERNELS", "NO")  # Transformers fetches code for some families where `kernels` is there
if sys.platform == "darwin":
    os.environ.setdefault("PYTORCH_ENABLE_MPS_FALLBACK", "1")  # what an Apple GPU cannot compute, the processor does

__version__ = "0.1.0"
__all__ = ["CoCoMixConfig", "CoCoMixForCausalLM", "CocomixError", "__version__"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import cocomix.model

    return getattr(cocomix.model, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
