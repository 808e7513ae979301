"""Steer any language model through a sparse autoencoder of its residual stream.

The usual way, to compare CoCoMix with: the latents that the SAE finds at a position are changed as a student's
concept logits would be, and the difference that this makes to the SAE's reconstruction is added to the residual
stream, x + std * (c' - c) W_dec. So what the SAE does not explain stays as it is, and since the position's std is in
it a strength means the same at all positions. A latent that is not active counts as 0.
"""

import inspect
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from cocomix.model.interventions import Plan, Scale, Steering
from cocomix.model.teacher import check_layer
from cocomix.sae.sae import TopKSAE
from cocomix.utils.errors import CocomixError


@contextmanager
def steer_residual(model: PreTrainedModel, sae: TopKSAE, layer: int, steering: Steering) -> Iterator[None]:
    """Within: every forward pass of `model` has its residual stream changed after block `layer`.

    Strengths are in the SAE's own units: Amplify(s) adds s times the decoder's row and the position's std, Clamp(v)
    brings the latent to v, Dampen and Ablate take it part or all of the way to 0. All else is as in `steered`.

    Args:
        model: any Transformers causal LM.
        sae: of its residual stream after block `layer` (0-based), on the same device.
        steering: interventions by latent, for all rows or a list with a mapping for each.

    Raises:
        CocomixError: no such layer or latent, or an SAE of another width; within, a batch the rows do not fit.
    """
    block = check_layer(model, layer)
    width = model.config.get_text_config().hidden_size
    if sae.d_model != width:
        raise CocomixError(
            f"the SAE reads hidden states of width {sae.d_model} and the model's have {width}; use an SAE of this model"
        )
    plan = Plan(steering, sae.n_latents)
    places: list[torch.Tensor] = []
    inner: nn.Module = model.base_model  # what the blocks belong to, so that calls of it alone are counted right too
    signature = inspect.signature(inner.forward)

    def note_places(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        places[:] = [token_places(signature.bind_partial(*args).arguments | kwargs)]

    def change(_module: nn.Module, _inputs: Any, output: Any) -> Any:
        hidden = output[0] if isinstance(output, tuple) else output
        changed = changed_residual(hidden, sae, plan, places[0] if places else None)
        return (changed, *output[1:]) if isinstance(output, tuple) else changed

    with ExitStack() as hooks:
        if plan.has_start:
            hooks.callback(inner.register_forward_pre_hook(note_places, with_kwargs=True).remove)
        if not plan.idle:
            hooks.callback(block.register_forward_hook(change).remove)
        yield


def changed_residual(hidden: torch.Tensor, sae: TopKSAE, plan: Plan, places: torch.Tensor | None) -> torch.Tensor:
    """The residual stream as `plan` has it; `hidden` `[batch, seq, d_model]` stays as it is.

    Where nothing is due the result has the same bits. The SAE works in its own precision, under autocast too.
    """
    changed = hidden.clone()
    with torch.autocast(hidden.device.type, enabled=False):
        latents = sae.encode(hidden)
        unit = torch.ones_like(latents.std)
        scale = Scale(unit, torch.zeros_like(unit))
        for rows, apply, concepts, due in plan.changes(len(hidden), places):
            before = concept_activations(latents.values[rows], latents.ids[rows], concepts)
            difference = (apply(before, scale.for_rows(rows)) - before) @ sae.decoder_weight[concepts]
            after = changed[rows] + (difference * latents.std[rows]).to(hidden.dtype)
            changed[rows] = after if due is None else torch.where(due, after, changed[rows])
    return changed


def token_places(arguments: dict[str, Any]) -> torch.Tensor:
    """Place of each new token in its row, padding aside, int64 `[batch or 1, seq]`.

    Args:
        arguments: of a model's forward pass, by name.
    """
    ids, embedded, mask = (arguments.get(name) for name in ("input_ids", "inputs_embeds", "attention_mask"))
    tokens = embedded if ids is None else ids
    assert tokens is not None, "a forward pass is given tokens or their embeddings"
    new = tokens.shape[1]
    if isinstance(mask, torch.Tensor) and mask.dim() == 2:
        return (mask.long().cumsum(-1) - 1)[:, -new:]
    if arguments.get("position_ids") is not None:  # with a cache of fixed size the mask has four dimensions by now
        return arguments["position_ids"][:, -new:]
    cache = arguments.get("cache", arguments.get("past_key_values"))  # the newer name and the older
    past = 0 if cache is None else int(cache.get_seq_length())
    return torch.arange(past, past + new, device=tokens.device)[None]


def concept_activations(values: torch.Tensor, ids: torch.Tensor, concepts: Sequence[int]) -> torch.Tensor:
    """Latents of some concepts, 0 where they are not active, `[..., concepts]`.

    Args:
        values, ids: of the K latents of each position, `[..., K]`; see `SparseLatents`.
    """
    matches = ids.unsqueeze(-2) == torch.tensor(concepts, device=ids.device).unsqueeze(-1)
    return (matches * values.clamp_min(0).unsqueeze(-2)).sum(-1)
