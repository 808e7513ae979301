"""What an experiment would take, without running it: parameters, FLOPs, memory, disk.

Every model is built on the meta device by the code that will train it, so shapes and FLOPs are the real ones. Bytes
follow the models in `plan_memory`. Seconds are not predicted: they follow only if the caller gives a peak to assume a
share of.

Nothing is downloaded, trained or allocated. What has to be known of a setting before it runs (vocabulary, corpus size,
concept model, number of concepts) is in `PlanInputs`: a hub is never asked, so names that are not folders here are
looked up in the small tables below; a finished tokens stage is read instead of assuming anything about the corpus; and
what has to be assumed is said in the plan's notes.

Not counted: evaluation, steering, timing, validation labels.
"""

from collections.abc import Collection
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.constrain import Constrain
from rich.table import Table
from rich.text import Text
from transformers import AutoConfig, AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, PreTrainedModel

from cocomix.data.tokenizer import load_tokenizer
from cocomix.experiments.config import ExperimentConfig
from cocomix.experiments.plan_memory import (
    KEPT,
    checkpoint_bytes,
    parameters,
    shard_bytes,
    store_bytes,
    training_memory,
)
from cocomix.model.build import Sizes, build_plain
from cocomix.model.flops import model_flops, sae_training_flops
from cocomix.model.text_config import text_shape
from cocomix.objectives.base import Objective
from cocomix.objectives.registry import build_student
from cocomix.pipeline.config import RunConfig
from cocomix.pipeline.label_stages import LabelStage
from cocomix.pipeline.run import Run
from cocomix.pipeline.student_stages import StudentStage
from cocomix.sae.sae import TopKSAE
from cocomix.train.config import TrainConfig
from cocomix.train.optimizer import OPTIMIZERS
from cocomix.utils.errors import CocomixError

GPT2_VOCABULARY = 50257
GPT2_SHAPES = {"gpt2": (768, 12, 12), "gpt2-medium": (1024, 24, 16), "gpt2-large": (1280, 36, 20)}
GPT2_SHAPES |= {"gpt2-xl": (1600, 48, 25), "distilgpt2": (768, 6, 12)}
"""Width, layers and heads of the published GPT-2 models, by their hub id without its owner."""

KNOWN_CORPORA = {
    "openwebtext": (9_040_017_095, "counted by nanoGPT, data/openwebtext/readme.md"),
    "open-web-math": (14_700_000_000, "by its dataset card, another tokenizer's"),
}
"""Tokens of hub datasets, training and held-out text together, by their hub id without its owner, and who says so."""


class PlanInputs:
    """What a plan reads or assumes of one setting.

    Args:
        name: the setting.
        run: its stages.
        earlier: settings made before it, by name, which it may refer to as `$NAME/...`.
        corpus_tokens: tokens of the training split, if the user says so.
        tries: trainings of each variant that choose its learning rate.
        untried: variants that take another's rate.

    Attributes:
        notes: what was assumed, one sentence each.
    """

    def __init__(
        self,
        name: str,
        run: Run,
        earlier: dict[str, "PlanInputs"],
        corpus_tokens: int | None,
        tries: int = 0,
        untried: Collection[str] = (),
    ) -> None:
        self.name, self.run, self.config, self._earlier, self.tries = name, run, run.config, earlier, tries
        self.untried = untried
        self.notes: list[str] = []
        if tries:
            self.notes.append(f"{tries} trainings of each variant that choose its learning rate are in its FLOPs")
        self._record = (run.tokens.record() or {}).get("figures")
        self.vocab_size = self._vocab_size()
        self.corpus, self.basis = self._corpus(corpus_tokens)
        self.n_concepts, self.k = self._concepts()

    def sizes(self, reads: frozenset[str]) -> Sizes:
        """What a student that reads `reads` takes from the run, as its stage will."""
        n_concepts, k = (self.n_concepts, self.k) if "sae" in reads else (0, 0)
        width = text_shape(self.teacher.config).hidden_size if "teacher" in reads and self.teacher is not None else 0
        return Sizes(self.vocab_size, self.config.seq_len, n_concepts, k, width, self.config.sae.layer)

    @cached_property
    def teacher(self) -> PreTrainedModel | None:
        """The concept model on the meta device; None if its shape is not known here."""
        source = self.config.teacher.pretrained
        if source is not None and (other := self._referred(source)) is not None:
            return other.teacher
        with torch.device("meta"):
            if source is None:
                shape = self.config.teacher.model
                return build_plain(shape, vocab_size=self.vocab_size, seq_len=self.config.seq_len)
            if (Path(source) / "config.json").is_file():
                shape = AutoConfig.from_pretrained(source, trust_remote_code=False)
                return AutoModelForCausalLM.from_config(shape, attn_implementation=None)  # not one its file names
            known = GPT2_SHAPES.get(Path(source).name)
            if known is not None:
                width, layers, heads = known
                return GPT2LMHeadModel(GPT2Config(n_embd=width, n_layer=layers, n_head=heads))
        self.notes.append(
            f"the shape of the concept model {source} is not known here: what depends on it is left out; a local"
            " folder would be read"
        )
        return None

    def _vocab_size(self) -> int:
        if self._record is not None:
            return self._record["vocab_size"]
        source = self.config.tokens.tokenizer
        if source is None:
            return self.config.tokens.vocab_size
        if (other := self._referred(source)) is not None:
            return other.vocab_size
        if Path(source).exists():
            return len(load_tokenizer(source))
        if Path(source).name in GPT2_SHAPES:
            return GPT2_VOCABULARY
        raise CocomixError(
            f"setting {self.name}: the vocabulary of the tokenizer {source} is not known here and a plan asks no hub;"
            " put the tokenizer into a folder and name that in tokens.tokenizer"
        )

    def _corpus(self, given: int | None) -> tuple[dict[str, int], str]:
        """Tokens of each split, and whether they are `given`, `measured` or `assumed`."""
        held_out = {"val": self.config.corpus.val_fraction, "test": self.config.corpus.test_fraction}
        share = 1 - sum(held_out.values())
        if given is None and self._record is not None:
            return dict(self._record["tokens"]), "measured"
        train = self._assumed(share) if given is None else given
        splits = {split: round(train * fraction / share) for split, fraction in held_out.items()}
        return {"train": train, **splits}, "assumed" if given is None else "given"

    def _assumed(self, share: float) -> int:
        """One pass over what the longest training reads, or the corpus if it is known to be smaller."""
        read = [train.steps * train.batch_size * self.config.seq_len for train in self._trainings() if train.steps]
        path = str(self.config.corpus.options.get("path", ""))
        whole, who = KNOWN_CORPORA.get(Path(path).name, (None, ""))
        if not read and whole is None:
            raise CocomixError(
                f"setting {self.name}: every training length is in epochs and the corpus is not tokenised yet, so"
                f" nothing can be counted; run its stages {self.name}:corpus and {self.name}:tokens first"
            )
        known = None if whole is None else round(whole / self.config.corpus.every * share)
        if known is not None and (not read or known < max(read)):
            self.notes.append(f"{path} has {known:,} training tokens ({who})")
            return known
        self.notes.append(f"the corpus has {max(read):,} training tokens, as many as the longest training reads")
        return max(read)

    def _trainings(self) -> list[TrainConfig]:
        config: RunConfig = self.config
        made_here = [
            section.train
            for section in (config.teacher, config.sae)
            if section.pretrained is None and section.train is not None
        ]
        return [*made_here, *(stage.train for stage in self.run.students)]

    def _concepts(self) -> tuple[int, int]:
        sae = self.config.sae
        if sae.pretrained is not None:
            if (other := self._referred(sae.pretrained)) is not None:
                return other.n_concepts, other.k
            if not {"n_latents", "k"} <= sae.model_fields_set:
                self.notes.append(
                    f"the loaded SAE has {sae.n_latents} latents, {sae.k} of them active; set sae.n_latents and sae.k"
                    " to be sure"
                )
        return sae.n_latents, sae.k

    def _referred(self, source: str) -> "PlanInputs | None":
        """The earlier setting whose folder holds `source`, unless that is a path of its own."""
        try:
            owner = Path(source).relative_to(self.run.folder.parent).parts[0]
        except (ValueError, IndexError):
            return None
        if owner in self._earlier:
            return self._earlier[owner]
        if Path(source).exists():
            return None
        raise CocomixError(
            f"setting {self.name} needs {source}, and no setting before it is called {owner!r}; correct the name, or"
            " put the setting it belongs to first"
        )


WIDTH = 100
COLUMNS = ("variant", "params", "width", "steps", "tokens", "FLOPs/tok", "FLOPs", "GiB", "sharded")
UNITS = ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k"))
BYTES = ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"))


def plan_table(plan: dict[str, Any]) -> RenderableType:
    """A table a setting, what its shared stages and its disk take, and what was assumed.

    Args:
        plan: what `cocomix.experiments.plan.plan` returned.
    """
    parts: list[RenderableType] = [Text(plan["title"], style="bold")]
    for name, setting in plan["settings"].items():
        parts += [_variants(name, setting), *(Text(line) for line in _lines(setting))]
        parts += [Text(f"Note: {note}.", style="dim") for note in setting["notes"]]
    parts.append(Text(f"\nAll settings: {count(plan['flops'])} FLOPs{_hours(plan)}", style="bold"))
    parts.append(
        Text(
            "FLOPs: training, all seeds. GiB: weights, gradients, moments, activations and logits of a micro-batch"
            f" on each of {plan['gpus']} GPUs under DDP; sharded: with the first three split over them; ! is more"
            f" than {plan['gpu_memory_gib']:g} GiB. An estimate: leave a tenth free.",
            style="dim",
        )
    )
    hours = [f"Assumed: {plan['assumption']}."] if plan["assumption"] else []
    return Constrain(Group(*parts, *(Text(line, style="dim") for line in hours)), WIDTH)


def _variants(name: str, setting: dict[str, Any]) -> Table:
    title = Text(f"\n{name}: {setting['title']}", style="bold")
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for column in COLUMNS:
        is_name = column == "variant"
        table.add_column(column, justify="left" if is_name else "right", no_wrap=not is_name, overflow="fold")
    for row in setting["variants"]:
        table.add_row(*_cells(row))
    return table


def _cells(row: dict[str, Any]) -> list[str]:
    memory = row["memory"]
    return [
        row["name"],
        count(row["parameters"]),
        "?" if row["width"] is None else str(row["width"]),
        f"{row['steps']:,}",
        count(row["tokens"]),
        count(row["flops_per_token"]),
        count(row["flops"]),
        *("?" if memory is None else _gib(memory[f"{way}_gib"], memory[f"fits_{way}"]) for way in ("ddp", "sharded")),
    ]


def _gib(size: float, fits: bool) -> str:
    return f"{size:.{1 if size >= 10 else 2}f}" + ("" if fits else " !")


def _lines(setting: dict[str, Any]) -> list[str]:
    seeds, corpus = len(setting["seeds"]), setting["corpus"]
    shared = ", ".join(f"{name} {count(flops)}" for name, flops in setting["shared"].items())
    disk = ", ".join(f"{name} {count(size, BYTES)}" for name, size in setting["disk"].items())
    splits = ", ".join(f"{split} {count(corpus[split])}" for split in ("train", "val", "test"))
    return [
        f"{seeds} seed{'s' if seeds > 1 else ''}, windows of {setting['seq_len']} tokens, vocabulary of"
        f" {setting['vocab_size']}; tokens ({corpus['basis']}): {splits}",
        f"Made once, FLOPs: {shared or 'nothing'}",
        f"Disk: {disk}; together {count(sum(setting['disk'].values()), BYTES)}",
        f"Together: {count(setting['flops'])} FLOPs{_hours(setting)}",
    ]


def _hours(part: dict[str, Any]) -> str:
    return "" if part["hours"] is None else f", {part['hours']:,.2f} hours"


def count(number: float | None, units: tuple[tuple[float, str], ...] = UNITS) -> str:
    """Three figures with a unit: `85.1M`, `2.10TB`; beyond the units as `3.1e+18`, `?` for None."""
    if number is None:
        return "?"
    if number >= 1000 * units[0][0]:
        return f"{number:.2e}"
    size, unit = next(((size, unit) for size, unit in units if number >= size), (1, ""))
    scaled = number / size
    return f"{scaled:.{0 if unit == '' else 2 if scaled < 10 else 1 if scaled < 100 else 0}f}{unit}"


GIB = 2**30


def plan(
    config: ExperimentConfig,
    folder: Path,
    *,
    gpus: int = 8,
    gpu_memory_gib: float = 80.0,
    corpus_tokens: int | None = None,
    peak_tflops: float | None = None,
    utilisation: float = 0.4,
) -> dict[str, Any]:
    """Count everything `config` asks for; nothing is run, downloaded or allocated.

    Args:
        folder: where its runs are or would be; finished token stages there are read.
        gpus: GPUs that share a batch.
        gpu_memory_gib: memory of each.
        corpus_tokens: tokens of the training split of every setting; None: measured if tokenised, else assumed.
        peak_tflops: peak of one GPU, in 10^12 operations a second; given, `hours` are estimated.
        utilisation: share of that peak assumed to be reached.

    Returns:
        JSON-able: `title`, `gpus`, `gpu_memory_gib`, `settings` (see `_setting`), `flops`, `hours` and `assumption`
        (None without a peak).

    Raises:
        CocomixError: a setting does not validate, or too little is known to count anything.
    """
    if gpus < 1 or not 0 < utilisation <= 1:
        raise CocomixError(f"{gpus} GPUs at a utilisation of {utilisation} make no plan; give 1 or more, above 0 to 1")
    if peak_tflops is not None and not peak_tflops > 0:
        raise CocomixError(f"a peak of {peak_tflops} TFLOPS makes no plan; give one above 0")
    inputs_by_setting: dict[str, PlanInputs] = {}
    for name in config.settings:
        run = Run(folder / name, config.run_config(name, folder))
        tries = 0 if config.tuning is None else len(config.tuning.learning_rates)
        run.students = [stage for stage in run.students if config.trains(stage.student, stage.seed)]
        untried = config.tuning.same_as if config.tuning else ()
        inputs_by_setting[name] = PlanInputs(name, run, dict(inputs_by_setting), corpus_tokens, tries, untried)
    settings: dict[str, dict[str, Any]] = {
        name: {"title": config.settings[name].title} | _setting(inputs, gpus, gpu_memory_gib)
        for name, inputs in inputs_by_setting.items()
    }
    flops = sum(setting["flops"] for setting in settings.values())
    speed = None if peak_tflops is None else peak_tflops * 1e12 * utilisation * gpus
    for setting in settings.values():
        setting["hours"] = None if speed is None else setting["flops"] / speed / 3600
    return {
        "title": config.title,
        "gpus": gpus,
        "gpu_memory_gib": gpu_memory_gib,
        "settings": settings,
        "flops": flops,
        "hours": None if speed is None else flops / speed / 3600,
        "assumption": None if speed is None else f"{utilisation:.0%} of {peak_tflops:g} TFLOPS on each of {gpus} GPUs",
    }


def _setting(inputs: PlanInputs, gpus: int, gpu_memory_gib: float) -> dict[str, Any]:
    """One setting: `variants` (one dict each), `shared` (FLOPs by stage), `disk` (bytes), `corpus`, `notes`, totals."""
    run, config = inputs.run, inputs.config
    first = [stage for stage in run.students if stage.seed == config.seeds[0]]
    variants = [_variant(inputs, stage, gpus, gpu_memory_gib) for stage in first]
    shared = _shared(inputs)
    unknown = [row["name"] for row in variants if row["flops"] is None]
    unknown += [name for name, flops in shared.items() if flops is None]
    if unknown:
        inputs.notes.append(f"the total leaves out: {', '.join(unknown)}")
    return {
        "seq_len": config.seq_len,
        "seeds": list(config.seeds),
        "vocab_size": inputs.vocab_size,
        "corpus": inputs.corpus | {"basis": inputs.basis},
        "variants": variants,
        "shared": shared,
        "disk": _disk(inputs, variants),
        "flops": sum(row["flops"] or 0 for row in variants) + sum(flops or 0 for flops in shared.values()),
        "notes": inputs.notes,
    }


def _variant(inputs: PlanInputs, stage: StudentStage, gpus: int, gpu_memory_gib: float) -> dict[str, Any]:
    """One student; figures that need an unknown concept model are None."""
    seq_len, seeds = inputs.config.seq_len, sum(other.student == stage.student for other in inputs.run.students)
    trainings = seeds + (0 if stage.student in inputs.untried else inputs.tries)
    steps = stage.train.total_steps(inputs.corpus["train"] // seq_len)
    tokens = steps * stage.train.batch_size * seq_len
    labels = None if stage.labels is None or not stage.labels.live_share(1, 1) else stage.labels
    live = labels is not None or "teacher" in stage.config.reads
    row = {"name": stage.student, "objective": stage.config.objective, "about": stage.config.describe()}
    row |= {"steps": steps, "batch_size": stage.train.batch_size, "tokens": tokens, "seeds": seeds}
    if live and inputs.teacher is None:
        names = ("parameters", "width", "flops_per_token", "flops", "checkpoint_bytes", "model_bytes", "memory")
        return row | dict.fromkeys(names)
    with torch.device("meta"):
        students = inputs.config.students
        model = build_student(students, stage.student, lambda name: inputs.sizes(students[name].reads))
        sizes = inputs.sizes(stage.config.reads)
        if labels is not None:
            each = labels.flops_per_token(_given(inputs.teacher).config, inputs.n_concepts, inputs.k)
            sizes = sizes._replace(label_flops=each * labels.live_share(stage.train.batch_size, gpus))
        objective: Objective = stage.config.make_objective(model, sizes, lambda: _given(inputs.teacher))
    memory = training_memory(objective, inputs.teacher if live else None, stage.train, seq_len, gpus)
    if labels is not None:
        with torch.device("meta"):
            autoencoder = TopKSAE(text_shape(_given(inputs.teacher).config).hidden_size, inputs.n_concepts, inputs.k)
        memory = memory._replace(kept=memory.kept + KEPT * sum(parameters(autoencoder)))
        inputs.notes.append(f"{stage.student}: the activations of its live labels' passes are not in its memory")
    gib = {"ddp_gib": memory.total() / GIB, "sharded_gib": memory.total(gpus) / GIB}
    parts = {f"{part}_gib": size / GIB for part, size in memory._asdict().items()}
    fits = {"fits_ddp": gib["ddp_gib"] <= gpu_memory_gib, "fits_sharded": gib["sharded_gib"] <= gpu_memory_gib}
    per_token = objective.flops_per_token(seq_len)
    step_flops = OPTIMIZERS[stage.train.optimizer].step_flops(objective.trainable())
    return row | {
        "parameters": model.num_parameters(),
        "width": model.config.hidden_size,
        "flops_per_token": per_token,
        "flops": (per_token * tokens + steps * step_flops) * trainings,
        "checkpoint_bytes": checkpoint_bytes(objective, stage.train),
        "model_bytes": 4 * sum(parameters(model)),
        "memory": gib | parts | fits,
    }


def _given(teacher: PreTrainedModel | None) -> PreTrainedModel:
    assert teacher is not None, "students that need an unknown one are not built"
    return teacher


def _shared(inputs: PlanInputs) -> dict[str, float | None]:
    """Training FLOPs of what all students share, by stage; None where the concept model is not known."""
    config, run, teacher = inputs.config, inputs.run, inputs.teacher
    corpus, seq_len, sae = inputs.corpus["train"], config.seq_len, config.sae
    windows = corpus // seq_len * seq_len

    def read(train: TrainConfig) -> int:
        return train.total_steps(corpus // seq_len) * train.batch_size * seq_len

    known: Any = None if teacher is None else teacher.config
    flops: dict[str, float | None] = {}
    if config.teacher.pretrained is None and config.teacher.train is not None and known is not None:
        flops["teacher"] = model_flops(known, seq_len).training * read(config.teacher.train)
    if sae.pretrained is None and sae.train is not None:
        each = (
            None
            if known is None
            else sae_training_flops(known, sae.n_latents, sae.k, max(sae.layers), seq_len, len(sae.layers))
        )
        flops["sae"] = None if each is None else each * read(sae.train)
    for stage in _label_stages(run):
        flops[stage.name] = None
        if known is not None:
            each = stage.flops_per_token(known, inputs.n_concepts, inputs.k)
            flops[stage.name] = windows * stage.times_read * each
    for stage in run.logits.values():
        flops[stage.name] = None if known is None else windows * model_flops(known, seq_len).forward
    return flops


def _disk(inputs: PlanInputs, variants: list[dict[str, Any]]) -> dict[str, int]:
    """Bytes by kind; `checkpoints` are those of the largest student, one at a time, and go when it is done."""
    run, seq_len, corpus = inputs.run, inputs.config.seq_len, inputs.corpus
    disk = {"tokens": sum(shard_bytes(tokens, inputs.vocab_size) for tokens in corpus.values())}
    for stage in _label_stages(run):
        per_sign = sum(
            store_bytes(corpus[split], seq_len, stage.config.k, inputs.n_concepts, scores=stage.config.scores)
            for split in stage.splits
        )
        disk[stage.name] = per_sign * len(stage.config.signs)
    for stage in run.logits.values():
        disk[stage.name] = store_bytes(corpus["train"], seq_len, stage.k, inputs.vocab_size, scores=True)
    disk["models"] = sum((row["model_bytes"] or 0) * row["seeds"] for row in variants)
    disk["checkpoints"] = max((row["checkpoint_bytes"] or 0 for row in variants), default=0)
    return disk


def _label_stages(run: Run) -> list[LabelStage]:
    """Those that some student reads."""
    return [stage for stage in run.shared() if isinstance(stage, LabelStage)]
