"""GELU in one operation where a concept model spells it out.

GPT-2's activation in Transformers is eight operations over `[batch, seq, 4 d_model]`, each with a result to be kept:
a tenth of a labelling pass. PyTorch has the same function as one.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch.nn.functional as F
from torch import nn
from transformers.activations import AccurateGELUActivation, FastGELUActivation, NewGELUActivation

SPELT_OUT = (NewGELUActivation, FastGELUActivation, AccurateGELUActivation)
"""Classes that compute x / 2 (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) step by step."""


@contextmanager
def fused_gelu(model: nn.Module) -> Iterator[None]:
    """Within: the model's activations of a class in `SPELT_OUT` run as one operation, unless somebody wrapped them."""
    found = [one for one in model.modules() if type(one) in SPELT_OUT and "forward" not in one.__dict__]
    try:
        for one in found:
            one.forward = partial(F.gelu, approximate="tanh")
        yield
    finally:
        for one in found:
            del one.forward
