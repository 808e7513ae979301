"""What an experiment would take, without running it: parameters, FLOPs, memory, disk.

Every model is built on the meta device by the code that will train it, so shapes and FLOPs are the real ones. Bytes
follow the models in `plan_memory`, what is assumed about inputs is in `plan_outlook` and said in the plan's notes.
Seconds are not predicted: they follow only if the caller gives a peak to assume a share of.

Not counted: evaluation, steering, timing, validation labels.
"""

from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from cocomix.experiments.config import ExperimentConfig
from cocomix.experiments.plan_memory import (
    KEPT,
    checkpoint_bytes,
    parameters,
    shard_bytes,
    store_bytes,
    training_memory,
)
from cocomix.experiments.plan_outlook import Outlook
from cocomix.experiments.plan_table import plan_table
from cocomix.model.flops import model_flops, sae_training_flops
from cocomix.objectives.base import Objective
from cocomix.objectives.variants import build_student
from cocomix.pipeline.label_stages import LabelStage
from cocomix.pipeline.run import Run
from cocomix.pipeline.student_stages import StudentStage
from cocomix.sae.sae import TopKSAE
from cocomix.train.config import TrainConfig
from cocomix.utils.errors import CocomixError

__all__ = ["plan", "plan_table"]

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
    outlooks: dict[str, Outlook] = {}
    for name in config.settings:
        run = Run(folder / name, config.run_config(name, folder))
        outlooks[name] = Outlook(name, run, dict(outlooks), corpus_tokens)
    settings: dict[str, dict[str, Any]] = {
        name: {"title": config.settings[name].title} | _setting(outlook, gpus, gpu_memory_gib)
        for name, outlook in outlooks.items()
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


def _setting(outlook: Outlook, gpus: int, gpu_memory_gib: float) -> dict[str, Any]:
    """One setting: `variants` (one dict each), `shared` (FLOPs by stage), `disk` (bytes), `corpus`, `notes`, totals."""
    run, config = outlook.run, outlook.config
    first = [stage for stage in run.students if stage.seed == config.seeds[0]]
    variants = [_variant(outlook, stage, gpus, gpu_memory_gib) for stage in first]
    shared = _shared(outlook)
    unknown = [row["name"] for row in variants if row["flops"] is None]
    unknown += [name for name, flops in shared.items() if flops is None]
    if unknown:
        outlook.notes.append(f"the total leaves out: {', '.join(unknown)}")
    return {
        "seq_len": config.seq_len,
        "seeds": list(config.seeds),
        "vocab_size": outlook.vocab_size,
        "corpus": outlook.corpus | {"basis": outlook.basis},
        "variants": variants,
        "shared": shared,
        "disk": _disk(outlook, variants),
        "flops": sum(row["flops"] or 0 for row in variants) + sum(flops or 0 for flops in shared.values()),
        "notes": outlook.notes,
    }


def _variant(outlook: Outlook, stage: StudentStage, gpus: int, gpu_memory_gib: float) -> dict[str, Any]:
    """One student; figures that need an unknown concept model are None."""
    seq_len, seeds = outlook.config.seq_len, len(outlook.config.seeds)
    steps = stage.train.total_steps(outlook.corpus["train"] // seq_len)
    tokens = steps * stage.train.batch_size * seq_len
    labels = None if stage.labels is None or not stage.labels.config.live else stage.labels
    live = labels is not None or "teacher" in stage.config.reads
    row = {"name": stage.student, "objective": stage.config.objective, "about": stage.variant.about(stage.config)}
    row |= {"steps": steps, "batch_size": stage.train.batch_size, "tokens": tokens, "seeds": seeds}
    if live and outlook.teacher is None:
        names = ("parameters", "width", "flops_per_token", "flops", "checkpoint_bytes", "model_bytes", "memory")
        return row | dict.fromkeys(names)
    with torch.device("meta"):
        students = outlook.config.students
        model = build_student(students, stage.student, lambda name: outlook.sizes(students[name].reads))
        sizes = outlook.sizes(stage.config.reads)
        if labels is not None:
            each = labels.flops_per_token(_given(outlook.teacher).config, outlook.n_concepts, outlook.k)
            sizes = sizes._replace(label_flops=each * labels.live_share(stage.train.batch_size, gpus))
        objective: Objective = stage.variant.objective(stage.config, model, sizes, lambda: _given(outlook.teacher))
    memory = training_memory(objective, outlook.teacher if live else None, stage.train, seq_len, gpus)
    if labels is not None:
        with torch.device("meta"):
            autoencoder = TopKSAE(_given(outlook.teacher).config.hidden_size, outlook.n_concepts, outlook.k)
        memory = memory._replace(kept=memory.kept + KEPT * sum(parameters(autoencoder)))
        outlook.notes.append(f"{stage.student}: the activations of its live labels' passes are not in its memory")
    gib = {"ddp_gib": memory.total() / GIB, "sharded_gib": memory.total(gpus) / GIB}
    parts = {f"{part}_gib": size / GIB for part, size in memory._asdict().items()}
    fits = {"fits_ddp": gib["ddp_gib"] <= gpu_memory_gib, "fits_sharded": gib["sharded_gib"] <= gpu_memory_gib}
    per_token = objective.flops_per_token(seq_len)
    return row | {
        "parameters": model.num_parameters(),
        "width": model.config.hidden_size,
        "flops_per_token": per_token,
        "flops": per_token * tokens * seeds,
        "checkpoint_bytes": checkpoint_bytes(objective),
        "model_bytes": 4 * sum(parameters(model)),
        "memory": gib | parts | fits,
    }


def _given(teacher: PreTrainedModel | None) -> PreTrainedModel:
    assert teacher is not None, "students that need an unknown one are not built"
    return teacher


def _shared(outlook: Outlook) -> dict[str, float | None]:
    """Training FLOPs of what all students share, by stage; None where the concept model is not known."""
    config, run, teacher = outlook.config, outlook.run, outlook.teacher
    corpus, seq_len, sae = outlook.corpus["train"], config.seq_len, config.sae
    windows = corpus // seq_len * seq_len

    def read(train: TrainConfig) -> int:
        return train.total_steps(corpus // seq_len) * train.batch_size * seq_len

    known: Any = None if teacher is None else teacher.config
    flops: dict[str, float | None] = {}
    if config.teacher.pretrained is None and config.teacher.train is not None and known is not None:
        flops["teacher"] = model_flops(known, seq_len).training * read(config.teacher.train)
    if sae.pretrained is None and sae.train is not None:
        each = None if known is None else sae_training_flops(known, sae.n_latents, sae.k, sae.layer, seq_len)
        flops["sae"] = None if each is None else each * read(sae.train)
    for stage in _label_stages(run):
        flops[stage.name] = None
        if known is not None:
            flops[stage.name] = windows * stage.flops_per_token(known, outlook.n_concepts, outlook.k)
    for stage in run.logits.values():
        flops[stage.name] = None if known is None else windows * model_flops(known, seq_len).forward
    return flops


def _disk(outlook: Outlook, variants: list[dict[str, Any]]) -> dict[str, int]:
    """Bytes by kind; `checkpoints` are those of the largest student, one at a time, and go when it is done."""
    run, seq_len, corpus = outlook.run, outlook.config.seq_len, outlook.corpus
    disk = {"tokens": sum(shard_bytes(tokens, outlook.vocab_size) for tokens in corpus.values())}
    for stage in _label_stages(run):
        per_sign = sum(
            store_bytes(corpus[split], seq_len, stage.config.k, outlook.n_concepts, scores=stage.config.scores)
            for split in stage.splits
        )
        disk[stage.name] = per_sign * len(stage.config.signs)
    for stage in run.logits.values():
        disk[stage.name] = store_bytes(corpus["train"], seq_len, stage.k, outlook.vocab_size, scores=True)
    disk["models"] = sum((row["model_bytes"] or 0) * row["seeds"] for row in variants)
    disk["checkpoints"] = max((row["checkpoint_bytes"] or 0 for row in variants), default=0)
    return disk


def _label_stages(run: Run) -> list[LabelStage]:
    """Those that some student reads."""
    return [stage for stage in run.shared() if isinstance(stage, LabelStage)]
