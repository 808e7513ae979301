"""What Transformers, TRL and PEFT expect of a causal LM besides its forward pass.

- `CoCoMixPreTrainedModel`: flags, initialisation and embeddings, of the model with and without the LM head.
- `CoCoMixGenerationMixin`: `generate` with padding on either side and with caches that have room for every slot.
- `hidden_from_trainer`: `Trainer` needs `labels` to evaluate, and keeps a column of `concept_labels`.
"""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers import GenerationMixin, PreTrainedModel

from cocomix.model.cache import refuse_cache
from cocomix.model.configuration_cocomix import CoCoMixConfig
from cocomix.model.transformer import ParameterModule
from cocomix.utils.errors import ConfigError


class CoCoMixPreTrainedModel(PreTrainedModel):
    """Base class of the models: what they tell Transformers, and how their weights are initialised."""

    config_class = CoCoMixConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["Block"]
    _supports_sdpa = True
    _skip_keys_device_placement = ["past_key_values", "cache"]

    def _init_weights(self, module: nn.Module) -> None:
        std = self.config.initializer_range
        if isinstance(module, nn.Linear):
            scale = getattr(module, "init_scale", 1.0)  # set on what writes to the residual stream
            nn.init.normal_(module.weight, std=std * scale)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=std)
        elif isinstance(module, nn.LayerNorm | nn.RMSNorm):
            nn.init.ones_(module.weight)
            if isinstance(module, nn.LayerNorm):
                nn.init.zeros_(module.bias)
        elif isinstance(module, ParameterModule):
            module.reset_parameters(std)

    def get_input_embeddings(self) -> nn.Module:
        return self.backbone.embed_tokens  # pyright: ignore

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.backbone.embed_tokens = value  # pyright: ignore


NEEDS_CACHE = {
    "assistant_early_exit",
    "assistant_model",
    "cache",
    "inputs_embeds",
    "past_key_values",
    "prefill_chunk_size",
    "prompt_lookup_num_tokens",
}
"""Arguments of `generate` with which Transformers reads a cache, whatever `use_cache` says."""


class CoCoMixGenerationMixin(GenerationMixin):
    """Transformers' `generate`, for a model whose upper blocks may have more than one slot a token."""

    def generate(self, inputs: torch.Tensor | None = None, *args: Any, **kwargs: Any) -> Any:
        """Transformers' `generate`; prompts padded on the right are moved to the right end of their row first.

        Where a vector depends on more than its own position (`Predictor.cacheable`), no cache is used.
        """
        prompts = {name: kwargs.get(name) for name in ("input_ids", "inputs_embeds")} | {"inputs": inputs}
        mask = kwargs.get("attention_mask")
        if mask is not None and mask.dim() == 2 and not bool(mask[:, -1].all()):
            order = mask.long().argsort(dim=1, stable=True)
            fits = {name: ids for name, ids in prompts.items() if ids is not None and ids.shape[:2] == mask.shape}
            prompts |= {name: _reordered(ids, order) for name, ids in fits.items()}
            kwargs["attention_mask"] = mask.gather(1, order) if fits else mask
        inputs = prompts.pop("inputs")
        kwargs |= {name: ids for name, ids in prompts.items() if ids is not None}
        if not self.channel.cacheable:  # pyright: ignore[reportAttributeAccessIssue]
            for name in NEEDS_CACHE & {name for name, value in kwargs.items() if value is not None}:
                raise ConfigError(f"{name} needs a cache, and a model with this channel has none; leave {name} out")
            kwargs["use_cache"] = False
        return super().generate(inputs, *args, **kwargs)  # pyright: ignore[reportAttributeAccessIssue]

    def _prepare_cache_for_generation(self, generation_config: Any, *args: Any, **kwargs: Any) -> Any:
        kind = generation_config.cache_implementation
        if generation_config.use_cache is not False and kind not in (None, "dynamic", "offloaded"):
            refuse_cache({"quantized": "QuantizedCache"}.get(kind, "StaticCache"))
        if kind == "offloaded" and self.device.type == "cpu":  # pyright: ignore[reportAttributeAccessIssue]
            raise ConfigError(
                "cache_implementation offloaded moves a cache from a GPU to main memory, where this model's is already;"
                " leave cache_implementation unset"
            )
        prepare: Any = super()._prepare_cache_for_generation  # pyright: ignore[reportAttributeAccessIssue]
        return prepare(generation_config, *args, **kwargs)

    def _update_model_kwargs_for_generation(
        self, outputs: Any, model_kwargs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> dict[str, Any]:
        """The next step reads the cache this one returned, under whichever name this Transformers version gives it."""
        updated = super()._update_model_kwargs_for_generation(outputs, model_kwargs, *args, **kwargs)
        return updated | {name: outputs.cache for name in ("cache", "past_key_values") if name in updated}


def _reordered(prompt: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
    """Each row of `[batch, seq]` or `[batch, seq, d_model]` in the order of `order` `[batch, seq]`."""
    index = order if prompt.dim() == 2 else order[..., None].expand_as(prompt)
    return prompt.gather(1, index)


def check_attention_mask(mask: torch.Tensor | None, batch: int, tokens: int) -> None:
    """Refuse a mask that is not `[batch, tokens]`.

    Raises:
        ConfigError: with the shape that fits.
    """
    if mask is not None and tuple(mask.shape) != (batch, tokens):
        raise ConfigError(
            f"attention_mask has the shape {list(mask.shape)} where {[batch, tokens]} fits: 1 for a token, 0 for"
            " padding, over cached and new tokens; attention between tokens cannot be set one by one"
        )


class hidden_from_trainer:
    """Decorator of a `forward` some of whose parameters `Trainer` must not take for columns that evaluation needs.

    `Trainer` reads from the class's signature which columns hold labels: all of them, or it computes no `eval_loss`.
    It reads from the model's own signature which columns to keep. So the class shows `forward` without the parameters
    and an instance shows it with them. The function itself is as it was, which torch.compile needs.

    Args:
        names: the parameters.
    """

    def __init__(self, *names: str) -> None:
        self.names = names

    def __call__(self, forward: Callable[..., Any]) -> Any:
        forward.__dict__["__signature__"] = _ClassSignature(inspect.signature(forward), self.names)
        return forward


class _ClassSignature(inspect.Signature):
    """A function's signature without some parameters; that of the method bound to an instance has all of them."""

    __slots__ = ("_whole",)

    def __init__(self, whole: inspect.Signature, without: tuple[str, ...]) -> None:
        shown = [value for name, value in whole.parameters.items() if name not in without]
        super().__init__(shown, return_annotation=whole.return_annotation)
        self._whole = whole

    def replace(self, **_: Any) -> inspect.Signature:
        """What `inspect` calls to take `self` away when the function is bound."""
        return self._whole.replace(parameters=list(self._whole.parameters.values())[1:])
