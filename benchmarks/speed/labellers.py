"""Labelling the same tokens: ours by both rules and precisions, and the reference's arithmetic."""

import time
from copy import deepcopy

import torch
from transformers import PreTrainedModel

from benchmarks.speed.contestant import Contestant, Lap, Setting
from benchmarks.speed.dense_labels import dense_labels
from benchmarks.speed.synthetic import token_windows
from cocomix.labels.attribution import ConceptLabels, labelling_flops
from cocomix.labels.labeller import ConceptLabeller
from cocomix.sae.sae import TopKSAE

SIGN = "signed"
"""The reference's sign; it costs nothing either way."""


class Labelling(Contestant):
    """Labels the shape's windows, `batch_size` of them a pass.

    Args:
        windows: tokens, int64 `[windows, seq_len]`.
    """

    unit, warm = "token", True

    def __init__(self, name: str, setting: Setting, teacher: PreTrainedModel, sae: TopKSAE, rule: str) -> None:
        shape = setting.shape
        self.name, self.setting, self.teacher, self.sae, self.rule = name, setting, teacher, sae, rule
        self.windows = token_windows(shape, shape.label_windows, setting.seed)
        self.units = float(self.windows.numel())
        self.batch_size = shape.label_batches[0]
        per_token = labelling_flops(
            teacher.config, n_latents=sae.n_latents, k=sae.k, layer=shape.sae_layer, rule=rule, seq_len=shape.seq_len
        )
        self.flops = per_token * self.units

    def prepare(self) -> None:
        """Try each number of windows a pass, after a short window that wakes the libraries; keep the fastest."""
        self.label(self.windows[:1, :16], 1)
        seconds = {size: self._pass(size) / size for size in self.setting.shape.label_batches}
        self.batch_size = min(seconds, key=seconds.__getitem__)
        self.note = f"{self.batch_size} a pass"

    def _pass(self, size: int) -> float:
        """Seconds of one pass over `size` windows."""
        self.setting.settle()
        started = time.perf_counter()
        self.label(self.windows[:size], size)
        self.setting.settle()
        return time.perf_counter() - started

    def run(self, lap: Lap) -> None:
        self.label(self.windows, self.batch_size)

    def label(self, windows: torch.Tensor, batch_size: int) -> None:
        """Label `windows` int64 `[windows, seq_len]`, `batch_size` of them a pass."""
        raise NotImplementedError


class OurLabels(Labelling):
    """`ConceptLabeller`, what the label stage calls.

    Attributes:
        labels: of the last run.
    """

    labels: ConceptLabels

    def __init__(self, setting: Setting, teacher: PreTrainedModel, sae: TopKSAE, rule: str, precision: str) -> None:
        super().__init__(f"{rule} {precision}", setting, teacher, sae, rule)
        self.precision = precision

    def label(self, windows: torch.Tensor, batch_size: int) -> None:
        labeller = ConceptLabeller(
            self.teacher,
            self.sae,
            layer=self.setting.shape.sae_layer,
            rule=self.rule,
            signs=[SIGN],
            k=self.setting.shape.labels,
            batch_size=batch_size,
            precision=self.precision,
        )
        self.labels = labeller(windows)[SIGN]


class DenseLabels(Labelling):
    """The reference's arithmetic in float32, on a copy of the teacher whose weights take gradients."""

    precision = "fp32"

    def __init__(self, setting: Setting, teacher: PreTrainedModel, sae: TopKSAE) -> None:
        super().__init__("dense fp32", setting, teacher, sae, "reference")

    def prepare(self) -> None:
        self.teacher = deepcopy(self.teacher).requires_grad_(True)
        super().prepare()

    def label(self, windows: torch.Tensor, batch_size: int) -> None:
        shape = self.setting.shape
        for part in windows.split(batch_size):
            dense_labels(self.teacher, self.sae, part.to(self.setting.device), shape.sae_layer, shape.labels).cpu()


def agreement(one: ConceptLabels, other: ConceptLabels) -> dict[str, float]:
    """How far two sets of labels of the same tokens agree, over the positions that have labels in both.

    Returns:
        `labels`: mean share of a position's labels that the other has too; `best`: share of positions whose first
        label is the same; `valid`: share of positions on which both say whether there are labels.
    """
    both = one.valid & other.valid
    shared = (one.ids.unsqueeze(-1) == other.ids.unsqueeze(-2)).any(-1).double().mean(-1)
    return {
        "labels": float(shared[both].mean()),
        "best": float((one.ids[..., 0] == other.ids[..., 0])[both].double().mean()),
        "valid": float((one.valid == other.valid).double().mean()),
    }
