"""What is made of windows of tokens: concept labels by one rule, or the teacher's likeliest next tokens.

A window's labels must not depend on the windows beside it: then one process, two, a resumed one and a student that
labels while it trains all get the same. So every pass has exactly `batch_size` windows, short ones filled up by
repetition: libraries choose a matrix product's kernel, and with it the order of its sums, by shape, and the reference
rule's mean loss divides by the number of windows. Precision is the labeller's own, whatever autocast it is called
under. `batch_size` itself is one of the settings that labels depend on.
"""

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

from cocomix.labels.attribution import attribute_active, with_sign
from cocomix.labels.labels import ConceptLabels, select_active
from cocomix.sae.sae import TopKSAE
from cocomix.utils.precision import autocast


class Labeller(ABC):
    """Makes sets of labels, each under its name.

    Args:
        teacher: the concept model.
        n_labels: labels a position.
        n_ids: ids are below it.
        batch_size: windows a pass.
        precision: "fp32", or "bf16" for autocast in the teacher's passes.
    """

    names: Sequence[str]

    def __init__(self, teacher: PreTrainedModel, *, n_labels: int, n_ids: int, batch_size: int, precision: str) -> None:
        self.teacher, self.n_labels, self.n_ids = teacher, n_labels, n_ids
        self.batch_size, self.precision = batch_size, precision
        self.device = next(teacher.parameters()).device

    def __call__(self, ids: torch.Tensor) -> dict[str, ConceptLabels]:
        """Labels of windows `ids` int64 `[windows, seq]`, at least one and any number of them, on the CPU."""
        parts = [self._pass(part) for part in ids.split(self.batch_size)]
        return {
            name: ConceptLabels(*(torch.cat(fields) for fields in zip(*(part[name] for part in parts), strict=True)))
            for name in self.names
        }

    @abstractmethod
    def make(self, ids: torch.Tensor) -> dict[str, ConceptLabels]:
        """Labels of one pass, `ids` int64 `[batch_size, seq]` on the teacher's device."""

    def _pass(self, ids: torch.Tensor) -> dict[str, ConceptLabels]:
        missing = self.batch_size - len(ids)
        full = torch.cat([ids, ids[-1:].expand(missing, -1)]) if missing else ids
        own = autocast(self.device, self.precision)
        if isinstance(own, contextlib.nullcontext):
            own = torch.autocast(self.device.type, enabled=False)
        with own:
            made = self.make(full.to(self.device))
        return {
            name: ConceptLabels(*(field[: len(ids)].detach().cpu() for field in labels))
            for name, labels in made.items()
        }


class ConceptLabeller(Labeller):
    """Concept labels by one rule, a set for each sign from one attribution pass.

    Args:
        sae: autoencoder of the teacher's residual stream after block `layer` (0-based).
        rule, signs: see `cocomix.labels.attribution`.
        k: labels a position K_attr.
    """

    def __init__(
        self,
        teacher: PreTrainedModel,
        sae: TopKSAE,
        *,
        layer: int,
        rule: str,
        signs: Sequence[str],
        k: int,
        batch_size: int = 16,
        precision: str = "fp32",
    ) -> None:
        super().__init__(teacher, n_labels=k, n_ids=sae.n_latents, batch_size=batch_size, precision=precision)
        self.sae, self.layer, self.rule, self.names = sae, layer, rule, signs

    def make(self, ids: torch.Tensor) -> dict[str, ConceptLabels]:
        signed = attribute_active(self.teacher, self.sae, ids, layer=self.layer, rule=self.rule, sign="signed")
        return {sign: select_active(with_sign(signed, self.rule, sign), self.n_labels) for sign in self.names}


class TopTokens(Labeller):
    """The teacher's `k` likeliest next tokens of every position; scores are their log-probabilities in nats.

    Args:
        vocab_size: tokens there are; a published teacher may have spare rows beyond them.
    """

    names = ("top",)

    def __init__(
        self, teacher: PreTrainedModel, *, k: int, vocab_size: int, batch_size: int = 16, precision: str = "fp32"
    ) -> None:
        super().__init__(teacher, n_labels=k, n_ids=vocab_size, batch_size=batch_size, precision=precision)

    @torch.no_grad()
    def make(self, ids: torch.Tensor) -> dict[str, ConceptLabels]:
        logits = self.teacher(input_ids=ids, use_cache=False).logits
        top = logits[..., : self.n_ids].float().log_softmax(-1).topk(self.n_labels, dim=-1)
        return {"top": ConceptLabels(top.indices, top.values, torch.ones_like(ids, dtype=torch.bool))}
