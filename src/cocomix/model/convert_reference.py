"""Conversion between CoCoMix models and checkpoints of the method's reference implementation.

The reference stores GPT-2's Conv1D weights as `[in, out]`, here they are `[out, in]`. It stores the concept projection
`compress_layer.weight` as `[d, C]`, here it is `[C, d]`.
"""

import torch

from cocomix.model.configuration_cocomix import CoCoMixConfig
from cocomix.model.modeling_cocomix import CoCoMixForCausalLM
from cocomix.utils.errors import CocomixError

_TOP = {
    "transformer.pre_bias": ("channel.head.pre_bias", False),
    "transformer.wte.weight": ("backbone.embed_tokens.weight", False),
    "transformer.wpe.weight": ("backbone.embed_positions.weight", False),
    "transformer.ln_f.weight": ("backbone.final_norm.weight", False),
    "transformer.ln_f.bias": ("backbone.final_norm.bias", False),
    "transformer.concept_predictor.weight": ("channel.head.proj.weight", False),
    "transformer.concept_predictor.bias": ("channel.head.proj.bias", False),
    "transformer.compress_layer.weight": ("channel.vector.weight", True),
    "transformer.compress_layer.bias": ("channel.vector.bias", False),
}
_BLOCK = {
    "ln_1": ("norm_1", False),
    "attn.c_attn": ("attention.qkv", True),
    "attn.c_proj": ("attention.out", True),
    "ln_2": ("norm_2", False),
    "mlp.c_fc": ("mlp.up", True),
    "mlp.c_proj": ("mlp.down", True),
}


_MASKS = (".attn.bias", ".attn.masked_bias")
"""Causal masks, which older GPT-2 code saves with the weights."""


def _names(n_layer: int) -> dict[str, tuple[str, bool]]:
    """Map the reference's parameter names to (name here, whether it is transposed)."""
    names = dict(_TOP)
    for layer in range(n_layer):
        for reference_name, (name, transposed) in _BLOCK.items():
            reference, here = f"transformer.h.{layer}.{reference_name}", f"backbone.blocks.{layer}.{name}"
            names[f"{reference}.weight"] = (f"{here}.weight", transposed)
            names[f"{reference}.bias"] = (f"{here}.bias", False)
    return names


def load_student(
    state_dict: dict[str, torch.Tensor],
    *,
    n_head: int,
    concept_layer: int,
    top_k: int,
    layer_norm_eps: float = 1e-5,
) -> CoCoMixForCausalLM:
    """Build a model from a reference checkpoint, in the checkpoint's dtype.

    Args:
        state_dict: the reference's parameters; `lm_head.weight` may be missing because it is tied.
        n_head: attention heads, which the checkpoint does not state.
        concept_layer: the block (0-based) before which concepts are mixed in; the reference's `insert_layer_idx`.
        top_k: concepts kept of a prediction; the reference's `concept_num`.
        layer_norm_eps: epsilon of the layer norms.

    Raises:
        CocomixError: a parameter is missing, unknown or of the wrong shape.
    """
    tensors = {key: value for key, value in state_dict.items() if not key.endswith(_MASKS)}
    blocks = [int(key.split(".")[2]) for key in tensors if key.startswith("transformer.h.")]
    names = _names(max(blocks, default=-1) + 1)
    head = tensors.pop("lm_head.weight", None)
    wrong = sorted(set(tensors) ^ set(names))
    if wrong:
        state = "missing from" if wrong[0] in names else "unknown in"
        raise CocomixError(f"{wrong[0]} is {state} this reference checkpoint; give the student's complete state_dict")
    embedding = tensors["transformer.wte.weight"]
    if head is not None and not torch.equal(head, embedding):
        raise CocomixError(
            "lm_head.weight differs from transformer.wte.weight, which the reference ties; fix the checkpoint"
        )
    config = CoCoMixConfig(
        vocab_size=embedding.shape[0],
        hidden_size=embedding.shape[1],
        num_hidden_layers=max(blocks, default=-1) + 1,
        num_attention_heads=n_head,
        intermediate_size=tensors["transformer.h.0.mlp.c_fc.weight"].shape[1],
        max_position_embeddings=tensors["transformer.wpe.weight"].shape[0],
        norm_eps=layer_norm_eps,
        concept_layer=concept_layer,
        num_concepts=tensors["transformer.concept_predictor.weight"].shape[0],
        concept_top_k=top_k,
    )
    model = CoCoMixForCausalLM(config)
    model.to(embedding.dtype)  # pyright: ignore[reportArgumentType]
    with torch.no_grad():
        for reference_name, (name, transposed) in names.items():
            parameter, stored = model.get_parameter(name), tensors[reference_name]
            value = stored.T if transposed else stored
            if parameter.shape != value.shape:
                raise CocomixError(
                    f"{reference_name} has shape {tuple(stored.shape)}, which does not fit the rest of the checkpoint;"
                    " give an unmodified one"
                )
            parameter.copy_(value)
    model.tie_weights()
    return model.eval()


def to_reference_layout(model: CoCoMixForCausalLM, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Rename and transpose parameters or gradients to the reference's layout.

    Args:
        model: the model they belong to.
        tensors: by the names of `model.named_parameters()`.
    """
    names = _names(model.config.num_hidden_layers)
    return {
        reference_name: tensors[name].T if transposed else tensors[name]
        for reference_name, (name, transposed) in names.items()
        if name in tensors
    }
