"""How the weights of a new model are drawn, by name in `INITS`.

`classic` is GPT-2's: a standard deviation of 0.02 at every width. `width` follows the number of inputs, so that models
of different widths begin alike:

| weights | standard deviation |
|---|---|
| token and position embeddings, LM head (tied or not), pause and start vectors | EMBEDDING / sqrt(d_model) |
| linear layers, the concept head among them | BLOCK / sqrt(inputs) |
| those that write to the residual stream | BLOCK / sqrt(inputs) / sqrt(2 * blocks) |
| the concept projection, which writes there and sums K rows | BLOCK / sqrt(K) / sqrt(2 * blocks) |
| what makes a vector with a `vector_scale` | as `vector_scale` says |

After the final norm a hidden state has length sqrt(d_model), so EMBEDDING is the standard deviation of a new model's
logits at any width. Biases are zero and norms one in both. EMBEDDING is 0.08 at width 64, the best of three tried there
(0.02, 0.08, 0.2; perplexity 80.7, 73.7, 80.7); BLOCK is 0.02 at width 625. `python -m benchmarks.width` compares
other values at widths 64, 128 and 256.
"""

import math
from abc import ABC, abstractmethod
from typing import Any, ClassVar

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from cocomix.model.predictors import ConceptVector
from cocomix.model.text_config import text_shape
from cocomix.model.transformer import ParameterModule
from cocomix.utils.registry import Registry

EMBEDDING, BLOCK = 0.64, 0.5
WRITERS = frozenset({"c_proj", "o_proj", "down_proj", "out", "down", "back", "project"})
"""Names of the linear layers whose output is added to the residual stream, in plain models and in ours."""


class Initialisation(ABC):
    """Base class of ways to draw new weights."""

    name: ClassVar[str]

    @abstractmethod
    def apply(self, model: PreTrainedModel, module: nn.Module | None = None) -> None:
        """Draw the weights of a newly built model again, from torch's global generator.

        Args:
            module: draw those of this module only, which is trained beside the model.
        """


class ClassicInit(Initialisation):
    """GPT-2's: standard deviation 0.02 at every width, as the model's class draws them."""

    name = "classic"

    def apply(self, model: PreTrainedModel, module: nn.Module | None = None) -> None:
        return


class WidthInit(Initialisation):
    """Standard deviations that follow the number of inputs, so that models of different widths begin alike."""

    name = "width"

    def __init__(self, embedding: float = EMBEDDING, block: float = BLOCK) -> None:
        self.embedding, self.block = embedding, block

    def apply(self, model: PreTrainedModel, module: nn.Module | None = None) -> None:
        shape, config = text_shape(model.config), model.config
        head = model.get_output_embeddings()
        tied = config.tie_word_embeddings
        outer = self.embedding / math.sqrt(shape.hidden_size)
        writing = 1 / math.sqrt(2 * shape.layers)
        # Parts first: a predictor with a vector_scale reads the weights below its last projection.
        for name, layer in reversed(list((model if module is None else module).named_modules())):
            if layer is head:
                if not tied:
                    nn.init.normal_(layer.weight, std=outer)  # pyright: ignore[reportArgumentType]
            elif isinstance(layer, nn.Embedding):
                nn.init.normal_(layer.weight, std=outer)
            elif isinstance(layer, nn.Linear | Conv1D):
                inputs = layer.weight.shape[0 if isinstance(layer, Conv1D) else 1]
                scale = writing if name.rpartition(".")[2] in WRITERS else 1.0
                weight: Any = layer.weight
                nn.init.normal_(weight, std=scale * self.block / math.sqrt(inputs))
            elif isinstance(layer, ConceptVector):
                layer.reset_parameters(writing * self.block / math.sqrt(config.concept_top_k))
            elif isinstance(layer, ParameterModule):
                layer.reset_parameters(outer)


INITS: Registry[type[Initialisation]] = Registry("initialisation", [ClassicInit, WidthInit])


def register_init(cls: type[Initialisation]) -> type[Initialisation]:
    """Register an initialisation under its `name`; usable as a decorator."""
    return INITS.register(cls)
