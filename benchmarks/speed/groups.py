"""What is measured together: one small class a group, registered in `GROUPS` in the order they run.

A group's contestants take turns, so only figures of one group are compared. What comes out is raw: seconds of every
round and contestant. `keys` makes the ratios of it.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

from benchmarks.speed.contestant import Contestant, Progress, Setting
from benchmarks.speed.generation import Generation, Writer
from benchmarks.speed.labellers import DenseLabels, OurLabels, agreement
from benchmarks.speed.matmul import DTYPES, Matmul
from benchmarks.speed.measure import Timing, interleaved
from benchmarks.speed.own_process import measure_alone
from benchmarks.speed.sae_steps import RIVALS
from benchmarks.speed.shapes import SHAPES
from benchmarks.speed.students import STUDENTS, Trainee, TrainingStep
from benchmarks.speed.synthetic import StoredData, autoencoder, concept_model, student_config
from cocomix.model.flops import model_flops
from cocomix.utils.errors import CocomixError


class Group(ABC):
    """Some contestants, measured in turns.

    Attributes:
        title: for the reader.
        rounds: how many, unless the setting says.
    """

    title: ClassVar[str]
    rounds: ClassVar[int]

    @abstractmethod
    def measure(self, setting: Setting, progress: Progress) -> dict[str, Any]:
        """Raw figures, ready for JSON; `contestants` by name, if there are any."""

    def fits(self, setting: Setting) -> bool:
        """Whether it can be measured on this device."""
        return True

    def repeats(self, setting: Setting) -> int:
        """Rounds in this setting."""
        return setting.repeats or self.rounds


def take_turns(contestants: Iterable[Contestant], rounds: int, setting: Setting, progress: Progress) -> dict[str, Any]:
    """Prepare and time `contestants`; those that cannot be had here are named in `missing` with the reason."""
    ready: list[Contestant] = []
    missing: dict[str, str] = {}
    for one in contestants:
        try:
            one.prepare()
            ready.append(one)
        except CocomixError as error:
            missing[one.name] = str(error)
    timings = interleaved(ready, rounds, settle=setting.settle, progress=progress)
    return {"contestants": {one.name: _about(one, timings[one.name]) for one in ready}, "missing": missing}


def _about(one: Contestant, timing: Timing) -> dict[str, Any]:
    return {
        "unit": one.unit,
        "units": one.units,
        "precision": one.precision,
        "flops": one.flops,
        "note": one.note,
        "seconds": timing.seconds,
        "laps": timing.laps,
    }


class Peak(Group):
    """The machine's fastest matrix product."""

    title, rounds = "matrix products", 5

    def measure(self, setting: Setting, progress: Progress) -> dict[str, Any]:
        products = [Matmul(setting, side, precision) for side in setting.shape.matmuls for precision in DTYPES]
        return take_turns(products, self.repeats(setting), setting, progress)


class Step(Group):
    """A training step; the dense labelling of its tokens takes turns with it, since the reference's step has both."""

    title, rounds = "training step", 4

    def measure(self, setting: Setting, progress: Progress) -> dict[str, Any]:
        data = StoredData(setting.shape, setting.seed)
        trainees = {name: Trainee(name, setting, data) for name in STUDENTS}
        same_tokens = setting.shape.model_copy(update={"label_windows": setting.shape.batch})
        relabel = DenseLabels(
            Setting(same_tokens, None, setting.device, setting.seed), concept_model(setting), autoencoder(setting)
        )
        relabel.name = "dense labels fp32"
        steps = [TrainingStep(trainees[name], "fp32") for name in STUDENTS]
        narrow = [TrainingStep(trainees[name], "bf16") for name in ("gpt2", "cocomix")]
        return take_turns([*steps, *narrow, relabel], self.repeats(setting), setting, progress)


class Memory(Group):
    """Peak memory of a training step, each student in a process of its own."""

    title, rounds = "memory of a step", 1

    def measure(self, setting: Setting, progress: Progress) -> dict[str, Any]:
        # The dense twin's memory is there for comparison, and once is enough.
        runs = [*STUDENTS, *["gpt2", "cocomix"] * (self.repeats(setting) - 1)]
        found: dict[str, list[dict[str, Any]]] = {name: [] for name in STUDENTS}
        for done, name in enumerate(runs, 1):
            found[name].append(measure_alone(name, "fp32", setting))
            progress(done, len(runs))
        return {
            "bytes": {
                f"{name} fp32": {kind: [run[kind] for run in runs] for kind in ("step", "forward_backward", "before")}
                for name, runs in found.items()
            }
        }


class Labels(Group):
    """Labelling by both rules and precisions, and by the reference's arithmetic."""

    title, rounds = "labelling", 3

    def measure(self, setting: Setting, progress: Progress) -> dict[str, Any]:
        teacher, sae = concept_model(setting), autoencoder(setting)
        ours = [
            OurLabels(setting, teacher, sae, rule, precision)
            for rule in ("reference", "exact")
            for precision in ("fp32", "bf16")
        ]
        everyone = [*ours, DenseLabels(setting, teacher, sae)]
        raw = take_turns(everyone, self.repeats(setting), setting, progress)
        made = {one.name: one.labels for one in ours}
        return raw | {
            "agreement": {
                rule: agreement(made[f"{rule} fp32"], made[f"{rule} bf16"]) for rule in ("reference", "exact")
            }
        }


class Generate(Group):
    """Cached greedy generation."""

    title, rounds = "generation", 5

    def measure(self, setting: Setting, progress: Progress) -> dict[str, Any]:
        writers = [Writer(name, setting) for name in ("gpt2", "cocomix")]
        everyone = [Generation(writer, batch) for batch in setting.shape.generate_batches for writer in writers]
        return take_turns(everyone, self.repeats(setting), setting, progress)


class Sae(Group):
    """A training step of the autoencoder."""

    title, rounds = "autoencoder step", 5

    def measure(self, setting: Setting, progress: Progress) -> dict[str, Any]:
        return take_turns((build(setting) for build in RIVALS), self.repeats(setting), setting, progress)


class Grow(Group):
    """Student step and labelling along one axis after the other, at a small base."""

    title, rounds = "growth", 3

    def measure(self, setting: Setting, progress: Progress) -> dict[str, Any]:
        axes = setting.shape.growth.axes
        total, done = sum(len(values) for values in axes.values()), 0
        found: dict[str, list[dict[str, Any]]] = {axis: [] for axis in axes}
        for axis, values in axes.items():
            for value in values:
                small = Setting(setting.shape.at(axis, value), setting.repeats, setting.device, setting.seed)
                raw = take_turns(_growing(small), self.repeats(setting), small, lambda done, total: None)
                seconds = {name: about["seconds"] for name, about in raw["contestants"].items()}
                found[axis].append({"at": value, "seconds": seconds})
                done += 1
                progress(done, total)
        return {"axes": found}


def _growing(small: Setting) -> Sequence[Contestant]:
    """Student steps and labelling of one batch, ours and the dense twins'."""
    fixed = small.shape.model_copy(update={"label_windows": small.shape.batch, "label_batches": (small.shape.batch,)})
    data, one = StoredData(small.shape, small.seed), Setting(fixed, None, small.device, small.seed)
    steps = [TrainingStep(Trainee(name, small, data), "fp32") for name in ("cocomix", "dense")]
    teacher, sae = concept_model(one), autoencoder(one)
    ours, dense = OurLabels(one, teacher, sae, "reference", "fp32"), DenseLabels(one, teacher, sae)
    ours.name, dense.name = "cocomix labels", "dense labels"
    return [*steps, ours, dense]


class Gpu(Group):
    """Ours in bf16 at every size, each in a process of its own: tokens a second, share of the peak, memory."""

    title, rounds = "sizes in bf16", 10
    sizes: ClassVar[Sequence[str]] = ("69m", "386m", "1.38b")

    def fits(self, setting: Setting) -> bool:
        return setting.device.type == "cuda"

    def measure(self, setting: Setting, progress: Progress) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for done, name in enumerate(self.sizes, 1):
            one = Setting(SHAPES[name], None, setting.device, setting.seed)
            alone = measure_alone("cocomix", "bf16", one, steps=WARMUP_STEPS + self.repeats(setting))
            found[name] = {
                "tokens": one.shape.tokens,
                "flops": model_flops(student_config(one.shape), one.shape.seq_len).training * one.shape.tokens,
                "seconds": alone["seconds"][WARMUP_STEPS:],
                "bytes": alone["step"],
            }
            progress(done, len(self.sizes))
        return {"sizes": found}


WARMUP_STEPS = 3
"""Steps of `Gpu` that are not counted."""

GROUPS: dict[str, Group] = {
    "peak": Peak(),
    "step": Step(),
    "memory": Memory(),
    "labelling": Labels(),
    "generate": Generate(),
    "sae": Sae(),
    "growth": Grow(),
    "gpu": Gpu(),
}
"""By the name that --only takes."""
