"""Labelling the same tokens: ours with both rules and precisions, and the reference's arithmetic."""

import time
from copy import deepcopy

import torch
from transformers import PreTrainedModel

from benchmarks.speed.dense import dense_labels
from benchmarks.speed.synthetic import token_windows
from benchmarks.speed.workload import Lap, Setting, Workload
from cocomix.labels.attribution import ConceptLabels, labelling_flops
from cocomix.labels.labeller import ConceptLabeller
from cocomix.sae.sae import TopKSAE

SIGN = "signed"
"""The reference's sign; every sign costs the same."""


class Labelling(Workload):
    """Label the shape's windows, `batch_size` of them per pass.

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
        """Warm the libraries up with a short window, then choose the fastest number of windows per pass."""
        self.label(self.windows[:1, :16], 1)
        seconds = {size: self._pass(size) / size for size in self.setting.shape.label_batches}
        self.batch_size = min(seconds, key=seconds.__getitem__)
        self.note = f"{self.batch_size} a pass"

    def _pass(self, size: int) -> float:
        """Return the seconds of one pass over `size` windows."""
        self.setting.synchronize()
        started = time.perf_counter()
        self.label(self.windows[:size], size)
        self.setting.synchronize()
        return time.perf_counter() - started

    def run(self, lap: Lap) -> None:
        self.label(self.windows, self.batch_size)

    def label(self, windows: torch.Tensor, batch_size: int) -> None:
        """Label `windows` int64 `[windows, seq_len]`, `batch_size` of them per pass."""
        raise NotImplementedError


class OurLabels(Labelling):
    """Labelling with `ConceptLabeller`, as the label stage does it.

    Attributes:
        labels: labels of the last run.
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
    """Labelling with the reference's arithmetic in float32, on a copy of the teacher whose weights take gradients."""

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


def agreement(first: ConceptLabels, second: ConceptLabels) -> dict[str, float]:
    """Compare two sets of labels of the same tokens, over the positions labelled in both.

    Returns:
        `labels`: mean share of a position's labels that the other set has too; `best`: share of positions with the
        same first label; `valid`: share of all positions that are labelled in both or in neither.
    """
    both = first.valid & second.valid
    shared = (first.ids.unsqueeze(-1) == second.ids.unsqueeze(-2)).any(-1).double().mean(-1)
    return {
        "labels": float(shared[both].mean()),
        "best": float((first.ids[..., 0] == second.ids[..., 0])[both].double().mean()),
        "valid": float((first.valid == second.valid).double().mean()),
    }
