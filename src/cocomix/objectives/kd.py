"""Knowledge distillation: next-token loss plus the divergence from the teacher's next-token distribution.

The teacher runs in every step (`LiveTeacher`, exact), or its k most likely tokens are read from a store that is
computed once (`StoredTeacher`). Then all other tokens count as one outcome, which gives a lower bound of the
divergence.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import Field
from transformers import PreTrainedModel

from cocomix.model.build import Sizes
from cocomix.model.flops import model_flops
from cocomix.model.modeling_cocomix import z_losses
from cocomix.objectives.base import Objective
from cocomix.objectives.ntp import NtpObjective, PlainStudent


class KdStudent(PlainStudent):
    """Knowledge distillation: next-token loss plus the KL divergence from the teacher's distribution."""

    name = "kd"

    kd_weight: float = Field(default=0.1, ge=0, description="weight of the KL divergence")
    teacher_top_k: int | None = Field(
        default=None,
        ge=1,
        description="read the teacher's k most likely tokens from a store made once; empty: run the teacher each step",
    )

    @property
    def reads(self) -> frozenset[str]:
        return frozenset({"teacher"} if self.teacher_top_k is None else {"logits"})

    @property
    def stored_teacher_tokens(self) -> int | None:
        return self.teacher_top_k

    def make_objective(self, model: Any, sizes: Sizes, teacher: Callable[[], PreTrainedModel]) -> Objective:
        source = LiveTeacher(teacher()) if self.teacher_top_k is None else StoredTeacher()
        return KdObjective(model, source, self.kd_weight)

    def summary(self) -> str:
        where = "live" if self.teacher_top_k is None else f"its {self.teacher_top_k} likeliest tokens, stored"
        return f"distillation, KL weight {self.kd_weight:g}, teacher {where}"


class TeacherDistribution(ABC):
    """Base class of sources of the teacher's distribution."""

    @abstractmethod
    def divergence(self, log_probs: torch.Tensor, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """KL(teacher || student) of each position, `[batch, seq - 1]`.

        Args:
            log_probs: the student's log-probabilities, `[batch, seq - 1, vocab]`, float32 or better.
            batch: the objective's batch.
        """

    def flops_per_token(self, seq_len: int) -> float:
        """FLOPs per token of running the teacher."""
        return 0.0


class LiveTeacher(TeacherDistribution):
    """The teacher's full distribution, computed in every step: sum_v p(v) (log p(v) - log q(v))."""

    def __init__(self, teacher: PreTrainedModel) -> None:
        self.teacher = teacher

    def divergence(self, log_probs: torch.Tensor, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        with torch.no_grad():
            logits = self.teacher(input_ids=batch["input_ids"], use_cache=False).logits[:, :-1]
            # A published teacher may have spare rows beyond the tokenizer's vocabulary, which are not tokens, or lack
            # rows for tokens that no text has, whose probability is 0.
            teacher_log_probs = logits[..., : log_probs.shape[-1]].to(log_probs.dtype).log_softmax(-1)
            log_probs = log_probs[..., : teacher_log_probs.shape[-1]]
        return F.kl_div(log_probs, teacher_log_probs, log_target=True, reduction="none").sum(-1)

    def flops_per_token(self, seq_len: int) -> float:
        return model_flops(self.teacher.config, seq_len).forward


class StoredTeacher(TeacherDistribution):
    """The teacher's k most likely tokens, read from a store; all other tokens count as one outcome.

    The batch has `teacher_ids` and `teacher_log_probs`, `[batch, seq, k]`.
    """

    def divergence(self, log_probs: torch.Tensor, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        teacher = batch["teacher_log_probs"][:, :-1].to(log_probs.dtype)
        student = log_probs.gather(-1, batch["teacher_ids"][:, :-1])
        stored = (teacher.exp() * (teacher - student)).sum(-1)
        tiny = torch.finfo(log_probs.dtype).tiny
        rest, student_rest = ((1 - logs.exp().sum(-1)).clamp_min(0) for logs in (teacher, student))
        return stored + torch.where(rest > 0, rest * ((rest + tiny).log() - (student_rest + tiny).log()), 0.0)


class KdObjective(NtpObjective):
    """-log q(x[t+1]) + weight * KL(p || q), mean over the `seq - 1` targets; p is the teacher's, q the student's.

    Args:
        model: the student.
        source: source of p; the teacher gets no gradients and is not part of this module's state.
        weight: weight of the divergence; 0.1 in the paper.
    """

    holds_logits = True
    holds_teacher_logits = True

    def __init__(self, model: PreTrainedModel, source: TeacherDistribution, weight: float) -> None:
        super().__init__(model)
        self.source, self.weight = source, weight

    def forward(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        ids = batch["input_ids"]
        logits = self.model(input_ids=ids, use_cache=False).logits[:, :-1]
        log_probs = logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)
        ntp = -log_probs.gather(-1, ids[:, 1:, None]).mean()
        if self.z_loss:
            ntp = ntp + self.z_loss * z_losses(logits).mean()
        return ntp + self.weight * self.source.divergence(log_probs, batch).mean()

    def flops_per_token(self, seq_len: int) -> float:
        return super().flops_per_token(seq_len) + self.source.flops_per_token(seq_len)
