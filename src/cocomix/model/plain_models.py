"""Plain Transformers models read as CoCoMix models: settings and weights of the same transformer without a channel.

A family is one class in `PLAIN_FAMILIES`, by its `model_type`. What a family's configuration can ask for and these
backbones do not compute is refused by name; whatever else might differ shows in `check_same`, which compares logits.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from itertools import accumulate
from typing import Any, ClassVar

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from cocomix.model.text_config import text_shape
from cocomix.model.transformer import rotary_frequencies
from cocomix.utils.errors import CocomixError
from cocomix.utils.registry import Registry

_STATIC_ROTARY = ("default", "linear", "llama3")
"""Kinds of rotary positions whose frequencies depend on no text's length and which scale nothing else."""
_TRIAL = 12
"""Tokens of a comparison."""


class PlainFamily(ABC):
    """Base class of families; `name` is Transformers' `model_type`."""

    name: ClassVar[str]
    backbone: ClassVar[str]
    """key of `BACKBONES`"""
    requires: ClassVar[Mapping[str, tuple[Any, ...]]] = {}
    """values that fields of its configuration may have"""

    @abstractmethod
    def settings(self, model: Any) -> dict[str, Any]:
        """Fields of `CoCoMixConfig` for the transformer of `model`, besides those every model has."""

    @abstractmethod
    def weights(self, tensors: Mapping[str, torch.Tensor], config: Any) -> dict[str, torch.Tensor]:
        """Weights by their names in `CoCoMixForCausalLM`, from those of the plain model, without the LM head's."""


class Gpt2Family(PlainFamily):
    """GPT-2."""

    name, backbone = "gpt2", "gpt2"
    requires: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "activation_function": ("gelu_new", "gelu_pytorch_tanh"),
        "scale_attn_weights": (True,),
        "scale_attn_by_inverse_layer_idx": (False,),
        "add_cross_attention": (False,),
    }

    def settings(self, model: Any) -> dict[str, Any]:
        config = model.config
        return {
            "num_attention_heads": config.n_head,
            "intermediate_size": config.n_inner,
            "norm_eps": config.layer_norm_epsilon,
        }

    def weights(self, tensors: Mapping[str, torch.Tensor], config: Any) -> dict[str, torch.Tensor]:
        layer = {
            "ln_1": "norm_1",
            "attn.c_attn": "attention.qkv",
            "attn.c_proj": "attention.out",
            "ln_2": "norm_2",
            "mlp.c_fc": "mlp.up",
            "mlp.c_proj": "mlp.down",
        }
        read = {
            "backbone.embed_tokens.weight": tensors["transformer.wte.weight"],
            "backbone.embed_positions.weight": tensors["transformer.wpe.weight"],
        }
        for kind in ("weight", "bias"):
            read[f"backbone.final_norm.{kind}"] = tensors[f"transformer.ln_f.{kind}"]
            for index in range(config.n_layer):
                for theirs, ours in layer.items():
                    tensor = tensors[f"transformer.h.{index}.{theirs}.{kind}"]
                    read[f"backbone.blocks.{index}.{ours}.{kind}"] = tensor.T if tensor.ndim == 2 else tensor
        return read


class LlamaFamily(PlainFamily):
    """Llama, and the base of the families made of its parts."""

    name, backbone = "llama", "llama"
    requires: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "hidden_act": ("silu",),
        "attention_bias": (False,),
        "mlp_bias": (False,),
        "use_sliding_window": (False,),
        "sliding_window": (None,),
    }
    norms: ClassVar[dict[str, str]] = {"input_layernorm": "norm_1", "post_attention_layernorm": "norm_2"}
    norm_offset: ClassVar[float] = 0.0
    """what a norm's weight is short of what it multiplies by"""

    def settings(self, model: Any) -> dict[str, Any]:
        config = model.config
        rotary = getattr(config, "rope_parameters", None) or {}
        options, heads = self.options(model), config.num_attention_heads
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
        if head_dim * heads != config.hidden_size:
            options["head_dim"] = head_dim
        theta = float(self.full_rotary(rotary).get("rope_theta", 10000.0))
        steps = _frequencies(model, self.full_rotary(rotary), self.frequencies_name)
        if not torch.equal(steps, rotary_frequencies(head_dim, theta, torch.float32, steps.device)):
            options["frequencies"] = steps.tolist()
        return {
            "num_attention_heads": heads,
            "num_key_value_heads": config.num_key_value_heads,
            "intermediate_size": config.intermediate_size,
            "norm_eps": config.rms_norm_eps,
            "rope_theta": theta,
            "backbone_options": options,
        }

    frequencies_name: ClassVar[str] = "inv_freq"

    def options(self, model: Any) -> dict[str, Any]:
        """Further options of the backbone."""
        return {}

    def full_rotary(self, rotary: Mapping[str, Any]) -> Mapping[str, Any]:
        """Settings of the rotary positions of blocks that see all tokens."""
        return rotary

    def weights(self, tensors: Mapping[str, torch.Tensor], config: Any) -> dict[str, torch.Tensor]:
        read = {
            "backbone.embed_tokens.weight": tensors["model.embed_tokens.weight"],
            "backbone.final_norm.weight": self.norm(tensors["model.norm.weight"]),
        }
        for index in range(config.num_hidden_layers):
            theirs, ours = f"model.layers.{index}.", f"backbone.blocks.{index}."
            for kind in ("weight", "bias"):
                parts = [tensors.get(f"{theirs}self_attn.{part}_proj.{kind}") for part in "qkv"]
                if kind == "weight" or parts[0] is not None:
                    read[f"{ours}attention.qkv.{kind}"] = torch.cat([_there(part) for part in parts])
            read[f"{ours}attention.out.weight"] = tensors[f"{theirs}self_attn.o_proj.weight"]
            for part in ("gate", "up", "down"):
                read[f"{ours}mlp.{part}.weight"] = tensors[f"{theirs}mlp.{part}_proj.weight"]
            for name, norm in self.norms.items():
                read[f"{ours}{norm}.weight"] = self.norm(tensors[f"{theirs}{name}.weight"])
            for name in ("q_norm", "k_norm"):
                if (weight := tensors.get(f"{theirs}self_attn.{name}.weight")) is not None:
                    scaled = self.norm(weight) * (self.query_scale(config) if name == "q_norm" else 1.0)
                    read[f"{ours}attention.{name}.weight"] = scaled
        return read

    def norm(self, weight: torch.Tensor) -> torch.Tensor:
        """What a norm multiplies by."""
        return weight + self.norm_offset if self.norm_offset else weight

    def query_scale(self, config: Any) -> float:
        """Factor on queries, beyond 1 / sqrt(head_dim)."""
        return 1.0


class Qwen2Family(LlamaFamily):
    """Qwen2 and Qwen2.5."""

    name, backbone = "qwen2", "qwen2"


class Qwen3Family(LlamaFamily):
    """Qwen3, without experts."""

    name, backbone = "qwen3", "qwen3"


class GemmaFamily(LlamaFamily):
    """Gemma, the first one."""

    name, backbone = "gemma", "gemma"
    requires: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "hidden_act": ("gelu_pytorch_tanh",),
        "attention_bias": (False,),
        "use_bidirectional_attention": (None, False),
    }
    norm_offset = 1.0


class Gemma3Family(GemmaFamily):
    """Gemma 3's text models."""

    name, backbone = "gemma3_text", "gemma3"
    requires: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "hidden_activation": ("gelu_pytorch_tanh",),
        "attention_bias": (False,),
        "use_bidirectional_attention": (None, False),
        "attn_logit_softcapping": (None,),
    }
    norms: ClassVar[dict[str, str]] = {
        "input_layernorm": "norm_1",
        "post_attention_layernorm": "norm_after_1",
        "pre_feedforward_layernorm": "norm_2",
        "post_feedforward_layernorm": "norm_after_2",
    }
    frequencies_name = "full_attention_inv_freq"

    def full_rotary(self, rotary: Mapping[str, Any]) -> Mapping[str, Any]:
        return rotary["full_attention"]

    def options(self, model: Any) -> dict[str, Any]:
        config = model.config
        local = [index for index, kind in enumerate(config.layer_types) if kind == "sliding_attention"]
        if not local:
            return {}
        rotary = config.rope_parameters["sliding_attention"]
        _check_rotary(rotary, ("default",))
        return {"window": config.sliding_window, "windowed": local, "window_theta": float(rotary["rope_theta"])}

    def query_scale(self, config: Any) -> float:
        return (config.head_dim / config.query_pre_attn_scalar) ** 0.5


PLAIN_FAMILIES: Registry[type[PlainFamily]] = Registry(
    "family of plain models", [Gpt2Family, LlamaFamily, Qwen2Family, Qwen3Family, GemmaFamily, Gemma3Family]
)


def family_of(config: PreTrainedConfig) -> PlainFamily:
    """The family of a plain model.

    Raises:
        CocomixError: there is none for it, or its configuration asks for what a backbone here does not compute.
    """
    kind = str(getattr(config, "model_type", ""))
    if kind not in PLAIN_FAMILIES:
        raise CocomixError(
            f"a model of the type {kind!r} cannot be given a concept channel yet; take one of the types"
            f" {PLAIN_FAMILIES.names}"
        )
    family = PLAIN_FAMILIES[kind]()
    for name, allowed in family.requires.items():
        value = getattr(config, name, allowed[0])
        if value not in allowed:
            raise CocomixError(
                f"this model has {name} {value!r}, which the {family.backbone} backbone here does not compute (it has"
                f" {' or '.join(map(repr, allowed))}); take another model of the type {kind}"
            )
    return family


def plain_settings(model: Any) -> dict[str, Any]:
    """Fields of `CoCoMixConfig` that describe the transformer of a plain model.

    Raises:
        CocomixError: as `family_of`.
    """
    config, shape = model.config, text_shape(model.config)
    ids = ("bos_token_id", "eos_token_id", "pad_token_id")
    family = family_of(config)
    return {
        "vocab_size": shape.vocab_size,
        "hidden_size": shape.hidden_size,
        "num_hidden_layers": shape.layers,
        "max_position_embeddings": shape.positions,
        "backbone": family.backbone,
        "tie_word_embeddings": config.tie_word_embeddings,
        "initializer_range": config.initializer_range,
        "final_logit_softcapping": getattr(config, "final_logit_softcapping", None),
        **{name: getattr(config, name, None) for name in ids},
        **family.settings(model),
    }


@torch.no_grad()
def copy_weights(plain: Any, model: Any) -> None:
    """Copy the weights of a plain model into the `CoCoMixForCausalLM` of its `plain_settings`.

    Raises:
        CocomixError: they are quantised, or not those of a plain model.
    """
    tensors = plain.state_dict()
    try:
        read = family_of(plain.config).weights(tensors, plain.config)
        if not plain.config.tie_word_embeddings:
            read["lm_head.weight"] = tensors["lm_head.weight"]
        for name, tensor in read.items():
            own = model.get_parameter(name)
            if own.shape != tensor.shape or not tensor.is_floating_point():
                raise KeyError(name)
            own.copy_(tensor)
    except KeyError as error:
        raise CocomixError(
            f"the weights of this {type(plain).__name__} are not those of a plain model ({error.args[0]}): they are"
            " quantised, or an adapter is on them; load it without quantisation, and merge the adapter first"
        ) from None
    missing = {name for name, _ in model.named_parameters() if name.startswith("backbone.")} - read.keys()
    if missing:
        raise CocomixError(f"this {type(plain).__name__} has no {sorted(missing)[0]}; take another model")


@torch.no_grad()
def fill_plain(plain: Any, tensors: Mapping[str, torch.Tensor]) -> None:
    """`copy_weights` the other way: the weights of a `CoCoMixForCausalLM`, by name, into a plain model of its shape.

    What each family's `weights` does is read off three plain models: of zeros, of ones, and of numbered elements. So
    every element of a student's is known to be some element of the plain model's, times a factor, plus an offset.
    """
    family = family_of(plain.config)
    theirs = {name: tensor for name, tensor in plain.state_dict().items() if name != "lm_head.weight"}

    def read(value: Callable[[int, torch.Tensor], torch.Tensor]) -> dict[str, torch.Tensor]:
        firsts = accumulate((tensor.numel() for tensor in theirs.values()), initial=0)
        pairs = zip(firsts, theirs.items(), strict=False)
        return family.weights({name: value(first, tensor.double()) for first, (name, tensor) in pairs}, plain.config)

    zeros, ones = read(lambda _, tensor: torch.zeros_like(tensor)), read(lambda _, tensor: torch.ones_like(tensor))
    numbered = read(lambda first, tensor: (first + torch.arange(tensor.numel()).double()).view_as(tensor))
    flat = torch.cat([tensor.flatten() for tensor in theirs.values()])
    for name, places in numbered.items():
        scale = ones[name] - zeros[name]
        index = ((places - zeros[name]) / scale).round().long().flatten()
        flat[index] = ((tensors[name].double() - zeros[name]) / scale).flatten().to(flat.dtype)
    for tensor, part in zip(theirs.values(), flat.split([one.numel() for one in theirs.values()]), strict=True):
        tensor.copy_(part.view_as(tensor))
    if not plain.config.tie_word_embeddings:
        plain.lm_head.weight.copy_(tensors["lm_head.weight"])


@torch.no_grad()
def check_same(plain: Any, model: Any) -> None:
    """Compare the logits of a plain model and the `CoCoMixForCausalLM` made of it, on a few tokens.

    Raises:
        CocomixError: they differ by more than rounding.
    """
    length = min(_TRIAL, text_shape(plain.config).positions or _TRIAL)
    ids = torch.arange(length, device=plain.device)[None] % text_shape(plain.config).vocab_size
    states = [(each, each.training) for each in (plain, model)]
    try:
        for each, _ in states:
            each.eval()
        mask = torch.ones_like(ids)  # without one GPT-2 warns that ids look like padding
        first = plain(input_ids=ids, attention_mask=mask, use_cache=False).logits.double()
        second = model(input_ids=ids, use_cache=False).logits.double()
    finally:
        for each, training in states:
            each.train(training)
    rounding = {torch.float64: 1e-9, torch.float32: 1e-4}.get(plain.dtype, 0.1)
    if not bool((first - second).abs().max() <= rounding * first.std().clamp_min(1e-6)):
        raise CocomixError(
            f"the {model.config.backbone} backbone does not compute what this {type(plain).__name__} does (its logits"
            f" differ by {float((first - second).abs().max()):.3g}); take another model"
        )


def _frequencies(model: PreTrainedModel, rotary: Mapping[str, Any], name: str) -> torch.Tensor:
    """The rotary frequencies that a plain model uses, float32 `[head_dim / 2]`."""
    _check_rotary(rotary, _STATIC_ROTARY)
    return getattr(model.base_model.rotary_emb, name).detach().cpu().float()


def _check_rotary(rotary: Mapping[str, Any], allowed: tuple[str, ...]) -> None:
    kind = rotary.get("rope_type", "default")
    if kind not in allowed:
        raise CocomixError(
            f"this model has rotary positions of the type {kind!r}, which the backbones here do not compute (they have"
            f" {', '.join(allowed)}); take another model"
        )


def _there(tensor: torch.Tensor | None) -> torch.Tensor:
    if tensor is None:
        raise KeyError("self_attn")
    return tensor
