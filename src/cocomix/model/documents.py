"""Attention that does not cross documents: windows of several documents, of which each is read as if it were alone.

`mask_documents` makes a model read so, and its config.json says it (`document_attention`); everything that loads the
model with `load_causal_lm` follows it. Where a document begins is read off the tokens: behind an end-of-text token, or
at one where the policy has the same token at the beginning of texts (`SpecialTokens`).

Choices:
- Positions start again with each document, as they do where it is alone. A plain Transformers model is given such
  `position_ids`, from which Transformers makes the mask; `CoCoMixModel` makes its own.
- A pass is masked if it has neither an attention mask nor positions nor a cache of its own: then it is of windows. Any
  other is of texts, one a row (generation, padded batches), and is left alone.
- The masks are dense, bool `[batch, 1, queries, keys]`: a byte for each pair, as many operations as without, and no
  flash attention. FLOP counts are those of whole windows, which is what is computed.
- Targets are those of the stream: the last token of a document still predicts the token behind it.
"""

from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import PreTrainedModel

from cocomix.data.special_tokens import SpecialTokens
from cocomix.model.configuration_cocomix import CoCoMixConfig
from cocomix.model.teacher import frozen
from cocomix.model.text_config import text_shape
from cocomix.utils.errors import CocomixError, reason

KEY = "document_attention"
"""Key in config.json; an object with the fields of `DocumentRule`."""
OWN = ("attention_mask", "position_ids", "past_key_values", "cache", "inputs_embeds")
"""Arguments of a pass that make it one of texts."""


class DocumentRule(NamedTuple):
    """Where documents begin."""

    eos_id: int
    """id of the end-of-text token"""
    at_eos: bool
    """whether a document begins at that token, and not behind it"""

    def begins(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Where a document, or what a window has of it, begins: bool `[batch, seq]`."""
        ends = input_ids == self.eos_id
        if not self.at_eos:
            ends = ends.roll(1, dims=1)
        return torch.cat((torch.ones_like(ends[:, :1]), ends[:, 1:]), dim=1)

    def positions(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Positions in their documents, int64 `[batch, seq]`."""
        places = torch.arange(input_ids.shape[1], device=input_ids.device).expand_as(input_ids)
        return places - places.masked_fill(~self.begins(input_ids), 0).cummax(dim=1).values

    def numbers(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Numbers of the documents of a row, int64 `[batch, seq]`."""
        return self.begins(input_ids).cumsum(dim=1)


def document_rule(config: Any) -> DocumentRule | None:
    """The rule in a model's configuration; None if it reads windows as one text.

    Raises:
        CocomixError: it is not one.
    """
    saved = getattr(config, KEY, None)
    if saved is None:
        return None
    if not isinstance(saved, dict) or set(saved) != set(DocumentRule._fields):
        raise CocomixError(f"{KEY} in config.json is not a rule of documents; restore the file, or remove the key")
    rule = DocumentRule(**saved)
    if type(rule.eos_id) is not int or rule.eos_id < 0 or type(rule.at_eos) is not bool:
        raise CocomixError(f"{KEY} in config.json is not a rule of documents; restore the file, or remove the key")
    return rule


def document_positions(
    model: PreTrainedModel, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None
) -> torch.Tensor | None:
    """Positions in their documents, int64 `[batch, seq]`, as `model` reads a pass over `input_ids` `[batch, seq]`.

    None: each row is one text to it, because it knows no documents or the pass has an attention mask of its own.
    """
    rule = document_rule(model.config)
    return None if rule is None or attention_mask is not None else rule.positions(input_ids)


class _DocumentPositions:
    """Forward pre-hook that adds `position_ids` to a pass of windows.

    Attributes:
        adds_arguments: tells `cocomix.kernels.plain_linear.is_wrapped` that outputs are still the module's own.
    """

    adds_arguments = True

    def __init__(self, rule: DocumentRule) -> None:
        self.rule = rule

    def __call__(
        self, _module: nn.Module, arguments: tuple[Any, ...], options: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        ids = arguments[0] if len(arguments) == 1 else options.get("input_ids")
        own = len(arguments) > 1 or any(options.get(name) is not None for name in OWN) or options.get("use_cache")
        if ids is None or own:
            return None
        # With the cache that most models make by default, Transformers would not look for documents.
        return arguments, options | {"position_ids": self.rule.positions(ids), "use_cache": False}


def mask_documents(model: PreTrainedModel, special: SpecialTokens) -> None:
    """Make `model` read windows document by document, and its saved configuration say so.

    Raises:
        CocomixError: it does not support that.
    """
    rule = DocumentRule(special.eos_id, special.bos_id == special.eos_id)
    setattr(model.config, KEY, rule._asdict())
    apply_rule(model)
    if model.device.type != "meta":  # on which nothing can be tried out
        _check(model, rule)


def apply_rule(model: PreTrainedModel) -> None:
    """Make a loaded model follow the rule in its configuration, if there is one."""
    rule = document_rule(model.config)
    if rule is None or model.config.model_type == CoCoMixConfig.model_type:  # which follows it by itself
        return
    for module in {id(one): one for one in (model, model.base_model)}.values():
        kept = [hook for hook in module._forward_pre_hooks.values() if isinstance(hook, _DocumentPositions)]
        if not kept:
            module.register_forward_pre_hook(_DocumentPositions(rule), with_kwargs=True)


@torch.no_grad()
def _check(model: PreTrainedModel, rule: DocumentRule) -> None:
    """Compare two documents in one window with each of them alone.

    Raises:
        CocomixError: the logits differ.
    """
    name = type(model).__name__
    hint = f"so {name} cannot be used with context: document; set context=window or choose another model"
    shape = text_shape(model.config)
    length = min(7, shape.positions or 7)
    if length < 6 or shape.vocab_size < length + 1:
        return  # too small to hold two documents
    rows = [number for number in range(8) if number != rule.eos_id][: length - 1]
    ids = torch.tensor([[*rows[:3], rule.eos_id, *rows[3:]]], device=model.device)
    edge = 3 if rule.at_eos else 4
    with frozen(model), torch.autocast(model.device.type, enabled=False):
        try:
            together = model(input_ids=ids, use_cache=False).logits
            alone = [model(input_ids=part, use_cache=False).logits for part in (ids[:, :edge], ids[:, edge:])]
        except Exception as error:  # a model of any family may fail in any way
            raise CocomixError(
                f"positions of its own fail ({type(error).__name__}: {reason(error)}), {hint}"
            ) from error
    apart = torch.cat(alone, dim=1)
    if not (together - apart).abs().max() <= 1e-3 * apart.std():
        raise CocomixError(f"a document in a window is read differently from one alone, {hint}")
