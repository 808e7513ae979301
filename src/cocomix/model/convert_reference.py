"""Checkpoints in the layout of the method's reference implementation.

GPT-2's Conv1D weights are `[in, out]` there and `[out, in]` here; the concept projection `compress_layer.weight`
is `[d, C]` there and stored by rows here.
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
"""Causal masks that older GPT-2 code saves among the weights."""


def _names(n_layer: int) -> dict[str, tuple[str, bool]]:
    """Reference name -> (our name, whether it is transposed)."""
    names = dict(_TOP)
    for layer in range(n_layer):
        for theirs, (ours, transposed) in _BLOCK.items():
            prefix, own = f"transformer.h.{layer}.{theirs}", f"backbone.blocks.{layer}.{ours}"
            names[f"{prefix}.weight"] = (f"{own}.weight", transposed)
            names[f"{prefix}.bias"] = (f"{own}.bias", False)
    return names


def load_student(
    state_dict: dict[str, torch.Tensor],
    *,
    n_head: int,
    concept_layer: int,
    top_k: int,
    layer_norm_eps: float = 1e-5,
) -> CoCoMixForCausalLM:
    """A model from a reference checkpoint, in the checkpoint's dtype.

    Args:
        state_dict: the reference's parameters; `lm_head.weight` may be missing, as it is tied.
        n_head: attention heads, which the checkpoint does not tell.
        concept_layer: `insert_layer_idx` there: the block (0-based) before which concepts are mixed in.
        top_k: `concept_num` there: concepts kept of a prediction.
        layer_norm_eps: epsilon of the layer norms.

    Raises:
        CocomixError: a parameter is missing, unknown or of the wrong shape.
    """
    given = {key: value for key, value in state_dict.items() if not key.endswith(_MASKS)}
    blocks = [int(key.split(".")[2]) for key in given if key.startswith("transformer.h.")]
    names = _names(max(blocks, default=-1) + 1)
    head = given.pop("lm_head.weight", None)
    wrong = sorted(set(given) ^ set(names))
    if wrong:
        state = "missing from" if wrong[0] in names else "unknown in"
        raise CocomixError(f"{wrong[0]} is {state} this reference checkpoint; give the student's whole state_dict")
    embedding = given["transformer.wte.weight"]
    if head is not None and not torch.equal(head, embedding):
        raise CocomixError(
            "lm_head.weight differs from transformer.wte.weight, which the reference ties; mend the checkpoint"
        )
    config = CoCoMixConfig(
        vocab_size=embedding.shape[0],
        hidden_size=embedding.shape[1],
        num_hidden_layers=max(blocks, default=-1) + 1,
        num_attention_heads=n_head,
        intermediate_size=given["transformer.h.0.mlp.c_fc.weight"].shape[1],
        max_position_embeddings=given["transformer.wpe.weight"].shape[0],
        norm_eps=layer_norm_eps,
        concept_layer=concept_layer,
        num_concepts=given["transformer.concept_predictor.weight"].shape[0],
        concept_top_k=top_k,
    )
    model = CoCoMixForCausalLM(config)
    model.to(embedding.dtype)  # pyright: ignore[reportArgumentType]
    with torch.no_grad():
        for theirs, (ours, transposed) in names.items():
            parameter, value = model.get_parameter(ours), given[theirs]
            value = value.T if transposed else value
            if parameter.shape != value.shape:
                raise CocomixError(
                    f"{theirs} has shape {tuple(given[theirs].shape)}, which does not fit the rest of the checkpoint"
                )
            parameter.copy_(value)
    model.tie_weights()
    return model.eval()


def to_reference_layout(model: CoCoMixForCausalLM, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Parameters or gradients by our names, renamed and transposed into the reference's layout.

    Args:
        model: the model they belong to.
        tensors: by the names of `model.named_parameters()`.
    """
    names = _names(model.config.num_hidden_layers)
    return {
        theirs: tensors[ours].T if transposed else tensors[ours]
        for theirs, (ours, transposed) in names.items()
        if ours in tensors
    }
