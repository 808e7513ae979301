"""The groups of workloads: one small class per group, registered in `GROUPS` in the order they run.

The workloads of a group take turns, so only figures of the same group are compared. A group returns raw figures: the
seconds of every workload in every round. `benchmarks.speed.keys` turns them into ratios.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

import torch

from benchmarks.speed.generation import GeneratingModel, Generation
from benchmarks.speed.labelling import DenseLabels, OurLabels, agreement
from benchmarks.speed.measure import Timing, time_interleaved
from benchmarks.speed.own_process import measure_in_own_process
from benchmarks.speed.sae_steps import SAE_STEPS
from benchmarks.speed.shapes import SHAPES
from benchmarks.speed.students import MIXINGS, STUDENTS, TrainingState, TrainingStep
from benchmarks.speed.synthetic import StoredData, autoencoder, concept_model, student_config
from benchmarks.speed.workload import Lap, Progress, Setting, Workload
from cocomix.model.flops import model_flops
from cocomix.utils.errors import CocomixError


class Group(ABC):
    """Workloads that are measured in turns.

    Attributes:
        title: title of the printed table.
        rounds: default number of rounds.
    """

    title: ClassVar[str]
    rounds: ClassVar[int]

    @abstractmethod
    def measure(self, setting: Setting, progress: Progress) -> dict[str, Any]:
        """Return raw figures, ready for JSON; timed workloads are under the key `contestants`, by name."""

    def fits(self, setting: Setting) -> bool:
        """Return whether the group can be measured on this device."""
        return True

    def repeats(self, setting: Setting) -> int:
        """Return the number of rounds in this setting."""
        return setting.repeats or self.rounds


def measure_interleaved(
    workloads: Iterable[Workload], rounds: int, setting: Setting, progress: Progress
) -> dict[str, Any]:
    """Prepare and time `workloads`; those not available here are listed in `missing` with the reason."""
    ready: list[Workload] = []
    missing: dict[str, str] = {}
    for workload in workloads:
        try:
            workload.prepare()
            ready.append(workload)
        except CocomixError as error:
            missing[workload.name] = str(error)
    timings = time_interleaved(ready, rounds, synchronize=setting.synchronize, progress=progress)
    return {"contestants": {item.name: _record(item, timings[item.name]) for item in ready}, "missing": missing}


def _record(workload: Workload, timing: Timing) -> dict[str, Any]:
    return {
        "unit": workload.unit,
        "units": workload.units,
        "precision": workload.precision,
        "flops": workload.flops,
        "note": workload.note,
        "seconds": timing.seconds,
        "laps": timing.laps,
    }


DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


class Matmul(Workload):
    """A square matrix product of size `side`, written to preallocated memory."""

    unit = "product"
    units = 1.0

    def __init__(self, setting: Setting, side: int, precision: str) -> None:
        self.name, self.setting, self.side, self.precision = f"{side} {precision}", setting, side, precision
        self.flops = 2.0 * side**3

    def prepare(self) -> None:
        generator = torch.Generator().manual_seed(self.setting.seed)
        matrices = [torch.randn(self.side, self.side, generator=generator) for _ in range(3)]
        self.a, self.b, self.out = (matrix.to(self.setting.device, DTYPES[self.precision]) for matrix in matrices)

    def run(self, lap: Lap) -> None:
        torch.mm(self.a, self.b, out=self.out)


class Peak(Group):
    """The fastest square matrix product of this machine, as its limit."""

    title, rounds = "matrix products", 5

    def measure(self, setting: Setting, progress: Progress) -> dict[str, Any]:
        products = [Matmul(setting, side, precision) for side in setting.shape.matmuls for precision in DTYPES]
        return measure_interleaved(products, self.repeats(setting), setting, progress)


class Step(Group):
    """A training step, and the dense labelling of the same tokens, because the reference's step does both."""

    title, rounds = "training step", 4

    def measure(self, setting: Setting, progress: Progress) -> dict[str, Any]:
        data = StoredData(setting.shape, setting.seed)
        states = {name: TrainingState(name, setting, data) for name in STUDENTS}
        same_tokens = setting.shape.model_copy(update={"label_windows": setting.shape.batch})
        relabel = DenseLabels(
            Setting(same_tokens, None, setting.device, setting.seed), concept_model(setting), autoencoder(setting)
        )
        relabel.name = "dense labels fp32"
        steps = [TrainingStep(states[name], "fp32") for name in STUDENTS]
        narrow = [TrainingStep(states[name], "bf16") for name in ("gpt2", "cocomix")]
        return measure_interleaved([*steps, *narrow, relabel], self.repeats(setting), setting, progress)


class Memory(Group):
    """Peak memory of a training step, each student in its own process."""

    title, rounds = "memory of a step", 1

    def measure(self, setting: Setting, progress: Progress) -> dict[str, Any]:
        # The dense student's memory is only for comparison; one measurement is enough.
        runs = [*STUDENTS, *["gpt2", "cocomix"] * (self.repeats(setting) - 1)]
        measured: dict[str, list[dict[str, Any]]] = {name: [] for name in STUDENTS}
        for done, name in enumerate(runs, 1):
            measured[name].append(measure_in_own_process(name, "fp32", setting))
            progress(done, len(runs))
        return {
            "bytes": {
                f"{name} fp32": {kind: [run[kind] for run in runs] for kind in ("step", "forward_backward", "before")}
                for name, runs in measured.items()
            }
        }


class Mixing(Group):
    """Our training step by what a concept slot starts from, and its peak memory, each variant in its own process."""

    title, rounds = "concept slots", 9

    def measure(self, setting: Setting, progress: Progress) -> dict[str, Any]:
        data = StoredData(setting.shape, setting.seed)
        steps = [TrainingStep(TrainingState(name, setting, data), "fp32") for name in MIXINGS]
        raw = measure_interleaved(steps, self.repeats(setting), setting, progress)
        return raw | {"bytes": {name: measure_in_own_process(name, "fp32", setting)["step"] for name in MIXINGS}}


class Labels(Group):
    """Labelling with both rules and precisions, and with the reference's arithmetic."""

    title, rounds = "labelling", 3

    def measure(self, setting: Setting, progress: Progress) -> dict[str, Any]:
        teacher, sae = concept_model(setting), autoencoder(setting)
        ours = [
            OurLabels(setting, teacher, sae, rule, precision)
            for rule in ("reference", "exact")
            for precision in ("fp32", "bf16")
        ]
        workloads = [*ours, DenseLabels(setting, teacher, sae)]
        raw = measure_interleaved(workloads, self.repeats(setting), setting, progress)
        labels = {workload.name: workload.labels for workload in ours}
        return raw | {
            "agreement": {
                rule: agreement(labels[f"{rule} fp32"], labels[f"{rule} bf16"]) for rule in ("reference", "exact")
            }
        }


class Generate(Group):
    """Cached greedy generation."""

    title, rounds = "generation", 5

    def measure(self, setting: Setting, progress: Progress) -> dict[str, Any]:
        models = [GeneratingModel(name, setting) for name in ("gpt2", "cocomix")]
        workloads = [
            Generation(generator_model, batch) for batch in setting.shape.generate_batches for generator_model in models
        ]
        return measure_interleaved(workloads, self.repeats(setting), setting, progress)


class Sae(Group):
    """A training step of the autoencoder."""

    title, rounds = "autoencoder step", 5

    def measure(self, setting: Setting, progress: Progress) -> dict[str, Any]:
        return measure_interleaved((build(setting) for build in SAE_STEPS), self.repeats(setting), setting, progress)


class Grow(Group):
    """Training step and labelling as one size at a time grows from a small base."""

    title, rounds = "growth", 3

    def measure(self, setting: Setting, progress: Progress) -> dict[str, Any]:
        axes = setting.shape.growth.axes
        total, done = sum(len(values) for values in axes.values()), 0
        points: dict[str, list[dict[str, Any]]] = {axis: [] for axis in axes}
        for axis, values in axes.items():
            for value in values:
                small = Setting(setting.shape.at(axis, value), setting.repeats, setting.device, setting.seed)
                raw = measure_interleaved(
                    _growth_workloads(small), self.repeats(setting), small, lambda done, total: None
                )
                seconds = {name: record["seconds"] for name, record in raw["contestants"].items()}
                points[axis].append({"at": value, "seconds": seconds})
                done += 1
                progress(done, total)
        return {"axes": points}


def _growth_workloads(small: Setting) -> Sequence[Workload]:
    """Return training steps and labelling of one batch, each in our and in the dense version."""
    fixed = small.shape.model_copy(update={"label_windows": small.shape.batch, "label_batches": (small.shape.batch,)})
    data, setting = StoredData(small.shape, small.seed), Setting(fixed, None, small.device, small.seed)
    steps = [TrainingStep(TrainingState(name, small, data), "fp32") for name in ("cocomix", "dense")]
    teacher, sae = concept_model(setting), autoencoder(setting)
    ours, dense = OurLabels(setting, teacher, sae, "reference", "fp32"), DenseLabels(setting, teacher, sae)
    ours.name, dense.name = "cocomix labels", "dense labels"
    return [*steps, ours, dense]


class Gpu(Group):
    """Our training step in bf16 at every size, each in its own process: throughput, share of the peak, memory."""

    title, rounds = "sizes in bf16", 10
    sizes: ClassVar[Sequence[str]] = ("69m", "386m", "1.38b")

    def fits(self, setting: Setting) -> bool:
        return setting.device.type == "cuda"

    def measure(self, setting: Setting, progress: Progress) -> dict[str, Any]:
        measured: dict[str, Any] = {}
        for done, name in enumerate(self.sizes, 1):
            size = Setting(SHAPES[name], None, setting.device, setting.seed)
            figures = measure_in_own_process("cocomix", "bf16", size, steps=WARMUP_STEPS + self.repeats(setting))
            measured[name] = {
                "tokens": size.shape.tokens,
                "flops": model_flops(student_config(size.shape), size.shape.seq_len).training * size.shape.tokens,
                "seconds": figures["seconds"][WARMUP_STEPS:],
                "bytes": figures["step"],
            }
            progress(done, len(self.sizes))
        return {"sizes": measured}


WARMUP_STEPS = 3
"""Untimed first steps of `Gpu`."""

GROUPS: dict[str, Group] = {
    "peak": Peak(),
    "step": Step(),
    "memory": Memory(),
    "mixing": Mixing(),
    "labelling": Labels(),
    "generate": Generate(),
    "sae": Sae(),
    "growth": Grow(),
    "gpu": Gpu(),
}
"""Groups by the name `--only` takes, in the order they run."""
