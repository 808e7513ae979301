"""cocomix: pretrain language models with continuous concepts (CoCoMix).

Importing it registers `CoCoMixConfig` and `CoCoMixForCausalLM` with Transformers' Auto classes.
"""

from cocomix.errors import CocomixError
from cocomix.model import CoCoMixConfig, CoCoMixForCausalLM

__version__ = "0.1.0"
__all__ = ["CoCoMixConfig", "CoCoMixForCausalLM", "CocomixError", "__version__"]
