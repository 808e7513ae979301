"""Collect what the finished stages measured into the report's input."""

import shlex
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from cocomix.objectives.variants import VARIANTS
from cocomix.pipeline.label_sets import LabelSet
from cocomix.pipeline.label_stages import LabelStage
from cocomix.pipeline.student_stages import EvaluationStage, StudentStage

if TYPE_CHECKING:
    from cocomix.pipeline.run import Run


def collect_results(run: "Run", reused: dict[str, bool], names: Sequence[str] | None = None) -> dict[str, Any]:
    """The report's input; the evaluations of every student, or of those called `names`, must be finished.

    Raises:
        CocomixError: a stage the report needs is missing; the sentence names the command that makes it.
    """
    chosen = list(run.config.students) if names is None else list(names)
    students = [_student(run, name) for name in chosen]
    made = [record["made"] for stage in run.students if stage.student in chosen and (record := stage.record())]
    corpus, tokens, teacher = run.corpus.figures, run.tokens.figures, run.teacher.figures
    return {
        "title": run.config.title,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "config": run.config.model_dump(mode="json"),
        "machine": made[-1]["machine"],
        "command": shlex.join(["cocomix", *sys.argv[1:]]),
        "commits": sorted({one["commit"] for one in made if one["commit"]}),
        "corpus": {
            "source": corpus["source"],
            "splits": {name: counts | {"tokens": tokens["tokens"][name]} for name, counts in corpus["splits"].items()},
        },
        "tokenizer": {"vocab_size": tokens["vocab_size"], "bytes_per_token": tokens["bytes_per_token"]},
        "teacher": teacher | {"val_perplexity": _last(teacher.get("curve"))},
        "sae": run.sae.figures | {"seconds": _seconds(run, run.sae.name)},
        "labels": [
            _labels(name, labels, sign)
            for name, labels in run.labels.items()
            if isinstance(labels, LabelStage) and labels.record() is not None
            for sign in labels.config.signs
        ],
        "students": students,
        "baseline": run.config.baseline,
        "stages": [
            {"name": name, "seconds": _seconds(run, name), "reused": reused.get(name, True)}
            for name, stage in run.stages.items()
            if stage.record() is not None
        ],
        "notes": [
            "The teacher, the SAE and the labels are made once and shared by all seeds;"
            " a seed sets a student's initialisation and the order of its batches.",
            *_live_labels(run, chosen),
            *_several_machines(made),
        ],
    }


def _several_machines(made: list[dict[str, Any]]) -> list[str]:
    """A warning where the students' seconds come from different machines or settings."""
    if all(one["machine"] == made[0]["machine"] for one in made):
        return []
    kinds = sorted({f"{m['device']}, {m['cpu']}, {m['threads']} threads" for m in (one["machine"] for one in made)})
    return [f"The students were not all trained under the same conditions ({'; '.join(kinds)}): compare no seconds."]


def _live_labels(run: "Run", chosen: list[str]) -> list[str]:
    """A note where labels are part of a student's own training cost, unlike those made once."""
    live = [name for name in chosen if (found := _labels_of(run, name)) is not None and found.config.live]
    if not live:
        return []
    return [f"The labels of {', '.join(live)} were made during training: its FLOPs and seconds include theirs."]


def _labels_of(run: "Run", student: str) -> LabelSet | None:
    return run.labels.get(getattr(run.config.students[student], "labels", None) or "")


def _student(run: "Run", name: str) -> dict[str, Any]:
    config: Any = run.config.students[name]
    stages = [stage for stage in run.evaluations if stage.student.student == name]
    first = stages[0].student.figures
    label = stages[0].student.labels
    return {
        "name": name,
        "objective": config.objective,
        "about": VARIANTS[config.objective].about(config),
        "width": first["width"],
        "parameters": first["parameters"],
        "label_rule": f"{label.config.rule}/{stages[0].student.sign}" if label else None,
        "flops_per_token": first["flops_per_token"],
        "runs": [_student_run(stage) for stage in stages],
    }


def _student_run(stage: EvaluationStage) -> dict[str, Any]:
    trained, measured, made = stage.student.figures, stage.figures, _material(stage.student)
    recall = measured.get("recall")
    return {
        "seed": stage.student.seed,
        "val_perplexity": measured["val"]["perplexity"],
        "test_perplexity": measured["test"]["perplexity"],
        "val_loss": measured["val"]["loss"],
        "test_loss": measured["test"]["loss"],
        "seconds": trained["seconds"],
        "tokens": trained["tokens"],
        "flops": trained["flops"],
        "label_seconds": made["seconds"],
        "label_flops": made["flops"],
        "recall": recall["recall"] if recall else None,
        "recall_baseline": recall["baseline"] if recall else None,
        "curve": trained["curve"],
    }


def _material(student: StudentStage) -> dict[str, float]:
    """Seconds and operations of what was made once for this student's training: labels, or the teacher's logits."""
    if student.labels is not None:
        return student.labels.made_once()
    if student.logits is not None:
        return {name: student.logits.figures[name] for name in ("seconds", "flops")}
    return {"seconds": 0.0, "flops": 0.0}


def _labels(name: str, labels: LabelStage, sign: str) -> dict[str, Any]:
    config, figures = labels.config, labels.figures
    return {
        "name": name,
        "rule": config.rule,
        "sign": sign,
        "k": config.k,
        "valid_share": figures["train"]["valid_share"][sign],
        "seconds": figures["train"]["seconds"],
        "flops": figures["flops"],
        "tokens_per_second": figures["train"]["tokens_per_second"],
    }


def _seconds(run: "Run", name: str) -> float:
    record = run.stages[name].record()
    return record["seconds"] if record else 0.0


def _last(curve: list[dict[str, Any]] | None) -> float | None:
    points = [point["val_perplexity"] for point in curve or [] if "val_perplexity" in point]
    return points[-1] if points else None
