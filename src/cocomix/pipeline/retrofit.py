"""`cocomix retrofit`: a finished model gets a concept channel, is trained, and is compared with itself.

`retrofit_overrides` makes the settings of a run of a model: it is the concept model, its tokenizer is the run's, and
two students start as it. `RetrofitStage` holds the comparison: the base as it is, fine-tuned without a channel, and
retrofitted. Concepts come from the run's own stages, an autoencoder and labels, or from a pack (`pack_overrides`).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text
from transformers import AutoConfig

from cocomix.evaluation.perplexity import perplexity
from cocomix.evaluation.recall import concept_nats, training_counts
from cocomix.model.adapters import is_adapter
from cocomix.model.plain_models import family_of
from cocomix.model.text_config import text_shape
from cocomix.objectives.retrofit import TEACHER, FinetuneStudent, RetrofitStudent
from cocomix.pipeline.config import LabelConfig
from cocomix.pipeline.pack import Pack, PackManifest, find_pack
from cocomix.pipeline.run import Run
from cocomix.pipeline.stage import Stage
from cocomix.pipeline.student_stages import EvaluationStage
from cocomix.utils.errors import CocomixError, reason
from cocomix.utils.files import check_source
from cocomix.utils.gguf import local_source

RETROFITTED, FINETUNED = "retrofit", "finetuned"
"""Names of the students that are added to settings without any."""
HEEDED = {"teacher_forcing": 0.25, "steered": 0.75}
"""What makes the upper blocks of a retrofitted student heed its concepts, see `cocomix.objectives.forcing`."""


def retrofit_overrides(
    model: str, raw: Mapping[str, Any], trains: str | None = None, pack: str | None = None
) -> list[str]:
    """Overrides that make a run of `raw` settings one that retrofits `model`.

    Args:
        model: folder, hub id, GGUF file or `package:NAME`; `teacher`: the concept model that the settings have.
        trains: the part that students without one in `raw` train.
        pack: folder, name or hub id of a pack that the concepts come from; None: the one in `raw`, if there is one.

    Raises:
        CocomixError: the model or the pack cannot be read, or the model is of a family that cannot be given a channel.
    """
    overrides = []
    sections = {name: value for name, value in raw.items() if isinstance(value, Mapping)}
    base: dict[str, Any] = {"head_from": "sae", "vector_from": "pull"}
    known = raw.get("pack")
    known = known.get("source") if isinstance(known, Mapping) else known
    pack = pack or known
    if pack is None:
        layer, labels = sections.get("sae", {}).get("layer"), next(iter(sections.get("labels", {})), None)
        concepts: dict[str, Any] = {"labels": labels}
        k = LabelConfig.model_validate(sections.get("labels", {}).get(labels, {})).k
        if model != TEACHER:
            layers = _layers(model)
            overrides += [_override("teacher.pretrained", model), _override("tokens.tokenizer", model)]
            if layer is None:
                layer = max(0, layers // 2 - 1)
                overrides.append(_override("sae.layer", layer))
    else:
        about = Pack(find_pack(pack)).about
        overrides += [] if pack == known else [_override("pack", pack)]  # settings with a pack have its checksum, too
        overrides += pack_overrides(model, about, sections)
        layer, concepts, k = about.sae.layer, *_pack_labels(pack, about)
        if model not in (TEACHER, about.teacher.source):
            base, layer = {"base": model, "head_from": "random"}, max(0, _layers(model) // 2 - 1)
    students = sections.get("students", {})
    there = {
        name: each.get("trains") for name, each in students.items() if each.get("objective") == RetrofitStudent.name
    }
    if there:
        other = next((name for name, part in there.items() if trains not in (None, part)), None)
        if other is not None:
            raise CocomixError(
                f"the settings have the student {other} already, which trains {there[other]}; give"
                f" students.{other}.trains={trains} in place of --trains, or another --run"
            )
        return overrides
    if concepts["labels"] is None or layer is None:
        raise CocomixError("the settings have no label set, or no sae.layer; add one, or leave --config out")
    part = {"trains": trains or "lora"}
    mixing: dict[str, Any] = {**base, **concepts, "concept": {"concept_layer": layer + 1, "top_k": k, **HEEDED}}
    overrides.append(_override(f"students.{RETROFITTED}", {"objective": RetrofitStudent.name, **part, **mixing}))
    if part["trains"] != "channel":
        alike = {"objective": FinetuneStudent.name, **part, "concept_layer": layer + 1}
        alike |= {name: value for name, value in base.items() if name == "base"}
        overrides.append(_override(f"students.{FINETUNED}", alike))
    if not students:
        overrides.append(_override("baseline", RETROFITTED if part["trains"] == "channel" else FINETUNED))
    return overrides


def pack_overrides(model: str, about: PackManifest, sections: Mapping[str, Any]) -> list[str]:
    """Overrides that take concept model, autoencoder and labels from a pack, and the text that it has labels of.

    Tokens are the model's. If it is the pack's own concept model, windows begin as the pack's do, too.
    """
    own = model in (TEACHER, about.teacher.source)
    overrides = [_override("tokens.tokenizer", about.teacher.source if own else model)]
    if own:
        overrides.append(_override("tokens.bos", about.teacher.bos))
    if "corpus" not in sections and about.corpora:
        overrides.append(_override("corpus", about.corpora[0].settings))
    return overrides


def _pack_labels(pack: str, about: PackManifest) -> tuple[dict[str, Any], int]:
    """The pack's label set that a student reads if nothing else is said, with its k: the first one, of the helpful
    labels where it has them, because what they say comes true in the text that follows."""
    if not about.corpora:
        raise CocomixError(f"the pack {pack} has no labels; give one that has")
    labels = about.corpora[0].labels[0]
    sign = "helpful" if "helpful" in labels.signs else labels.signs[0]
    return {"labels": labels.name, "sign": sign}, labels.k


def _override(key: str, value: Any) -> str:
    return f"{key}={yaml.safe_dump(value, default_flow_style=True, width=10_000).removesuffix('...' + chr(10)).strip()}"


def _layers(model: str) -> int:
    """Number of blocks of a plain model that can be given a channel."""
    source = local_source(model, "the model")
    check_source(source, "the model")
    try:
        config = AutoConfig.from_pretrained(source, trust_remote_code=False)
    except Exception as error:  # a damaged file raises errors of many types
        raise CocomixError(
            f"the model {model} cannot be read ({reason(error)}); give a model folder or hub id"
        ) from error
    family_of(config)
    return text_shape(config).layers


class RetrofitStage(Stage):
    """A retrofitted student compared with its base as it is, and with the base fine-tuned without a channel."""

    def __init__(self, retrofitted: EvaluationStage, finetuned: EvaluationStage | None) -> None:
        student = retrofitted.student
        name = student.name.replace("students/", "retrofit/", 1)
        others = [] if finetuned is None else [finetuned]
        inputs = dict.fromkeys([retrofitted, *others, student, student.tokens, *_labels(student)])
        super().__init__(student.run_dir, name, "cocomix retrofit teacher", list(inputs))
        self.retrofitted, self.finetuned, self.student = retrofitted, finetuned, student

    def settings(self) -> dict[str, Any]:
        return self.retrofitted.settings()

    def describe(self, figures: dict[str, Any]) -> str:
        losses = figures["loss"]
        words = ", ".join(f"{name} {split['val']:.3f}" for name, split in losses.items())
        concepts = figures.get("concepts")
        return f"validation loss {words}" + (f"; concepts {_nats(concepts)} nats above marginal" if concepts else "")

    def work(self, folder: Path, progress: Any) -> dict[str, Any]:
        student: Any = self.student
        options: dict[str, Any] = {"seq_len": self.retrofitted.seq_len, "max_windows": self.retrofitted.windows}
        options |= {"batch_size": self.retrofitted.batch_size}
        base = student.base_model()
        losses: dict[str, Any] = {"base": {}}
        for number, split in enumerate(("val", "test")):
            losses["base"][split] = perplexity(base, student.tokens.shards(split), **options)["loss"]
            progress(number + 1, 3, {})
        del base
        for name, stage in (("finetuned", self.finetuned), ("retrofitted", self.retrofitted)):
            if stage is not None:
                losses[name] = {split: stage.figures[split]["loss"] for split in ("val", "test")}
        model: Any = student.model()
        trained = sum(
            p.numel() for name, p in model.named_parameters() if student.config.trains == "all" or is_adapter(name)
        )
        figures = {"loss": losses, "trained_parameters": trained, "parameters": student.figures["parameters"]}
        if student.labels is not None:
            train = student.labels.reader("train", student.sign)
            counts = training_counts(
                train,
                student.tokens.shards("train").n_windows(options["seq_len"]),
                model.config.num_concepts,
                seq_len=options["seq_len"],
            )
            val = student.labels.reader("val", student.sign)
            figures["concepts"] = concept_nats(model, student.tokens.shards("val"), val, counts, **options)
            figures["concepts"] |= self.retrofitted.figures.get("recall", {})
        progress(3, 3, {})
        return figures


def _labels(student: Any) -> list[Stage]:
    return [] if student.labels is None else list(student.labels.needed)


def retrofit_stages(run: Run) -> list[RetrofitStage]:
    """The comparison of each retrofitted student and seed of a run.

    Raises:
        CocomixError: it has no such student.
    """
    stages = []
    for evaluation in run.evaluations:
        settings: Any = evaluation.student.config
        if isinstance(settings, RetrofitStudent):
            stages.append(RetrofitStage(evaluation, _alike(run, evaluation)))
    if not stages:
        raise CocomixError("no student of this run has the objective retrofit; add one, or give another --config")
    for stage in stages:
        stage.user_options = list(stage.student.user_options)
    return stages


def _alike(run: Run, evaluation: EvaluationStage) -> EvaluationStage | None:
    """The evaluation of the student that is fine-tuned from the same base in the same part, with the same seed."""
    own: Any = evaluation.student.config
    shared = ("base", "trains", "lora_rank", "lora_alpha", "length", "learning_rate")
    for other in run.evaluations:
        settings = other.student.config
        if isinstance(settings, FinetuneStudent) and other.student.seed == evaluation.student.seed:
            same_blocks = own.trains != "lora" or settings.concept_layer == own.concept.concept_layer
            if same_blocks and all(getattr(settings, name) == getattr(own, name) for name in shared):
                return other
    return None


def run_retrofit(run: Run) -> list[RetrofitStage]:
    """Do every stage that the comparisons need, then these."""
    stages = retrofit_stages(run)
    needed = {stage.name for comparison in stages for stage in comparison.upstream()}
    order = [stage for stage in run.stages.values() if stage.name in needed]
    for number, stage in enumerate([*order, *stages]):
        run.do(stage, f"[{number + 1}/{len(order) + len(stages)}] {stage.name}")
    return stages


def retrofit_table(stages: list[RetrofitStage]) -> Table:
    """Losses of base, fine-tuned and retrofitted model, and what the concepts are predicted at."""
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("model", overflow="fold", min_width=12)
    for heading in ("loss, val", "test", "recall", "nats above marginal"):
        table.add_column(heading, justify="right", no_wrap=True)
    shown = set()
    for stage in stages:
        figures, student = stage.figures, f"{stage.student.student}, seed {stage.student.seed}"
        for name, losses in figures["loss"].items():
            concepts = figures.get("concepts") if name == "retrofitted" else None
            title = {"base": "as it is", "finetuned": "fine-tuned", "retrofitted": "retrofitted"}[name]
            title += f" ({student})" if len(stages) > 1 and concepts else ""
            row = (title, f"{losses['val']:.4f}", f"{losses['test']:.4f}")
            if row in shown:  # students may share a base and what they are compared with
                continue
            shown.add(row)
            recall = f"{concepts['recall']:.3f} ({concepts['baseline']:.3f})" if concepts else ""
            table.add_row(Text(title), *row[1:], recall, _nats(concepts) if concepts else "")
    return table


def _nats(concepts: Mapping[str, Any]) -> str:
    low, high = concepts["interval"]
    return f"{concepts['nats']:+.3f} [{low:+.3f}, {high:+.3f}]"
