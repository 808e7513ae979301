"""What a run's records say about one student; nothing here is typed or guessed."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cocomix.pipeline.stage import RECORD
from cocomix.pipeline.student_stages import StudentStage
from cocomix.utils.errors import CocomixError
from cocomix.utils.files import read_json, sha256

if TYPE_CHECKING:
    from cocomix.pipeline.run import Run

Rows = list[tuple[str, str]]


def lineage(run: "Run", student: StudentStage) -> dict[str, Rows]:
    """Rows of (what, value) by heading: the student, its training, text, and what it read of a teacher.

    Raises:
        CocomixError: the student is not trained, or its files are damaged.
    """
    record = student.record()
    if record is None:
        raise CocomixError(f"{student.title} is not trained; run `{student.command} --run {run.folder}` first")
    student.check()  # nothing damaged is passed on
    sections = {
        "Model": _model(student, record),
        "Training": _training(record),
        "Text and tokens": _text(run, student),
    }
    if student.inputs[1:]:
        sections["Concepts"] = _concepts(run, student)
    sections["Made by"] = _made(record)
    return {heading: [(what, value) for what, value in rows if value] for heading, rows in sections.items()}


def measured(run: "Run", student: StudentStage) -> list[dict[str, Any]]:
    """`{dataset, split, metric, value, stderr}` of what was measured: perplexity, recall, the harness's tasks."""
    found: list[dict[str, Any]] = []
    for evaluation in run.evaluations:
        record = evaluation.record() if evaluation.student is student else None
        if record is None:
            continue
        source = run.corpus.figures["source"]
        for split in ("val", "test"):
            value = record["figures"][split]["perplexity"]
            found.append({"dataset": source, "split": split, "metric": "perplexity", "value": value, "stderr": None})
        if "recall" in record["figures"]:
            value = record["figures"]["recall"]["recall"]
            found.append(
                {"dataset": source, "split": "val", "metric": "concept recall", "value": value, "stderr": None}
            )
    return found + _tasks(run, student)


def _tasks(run: "Run", student: StudentStage) -> list[dict[str, Any]]:
    """Results of the harness that were made with the student as it is, over all documents."""
    found = []
    folder = run.folder / student.name.replace("students/", "harness/", 1)
    for path in sorted(folder.glob(f"*/{RECORD}")):
        record = read_json(path)
        if record["inputs_outcome"] != [student.outcome()] or record["settings"]["limit"] is not None:
            continue
        for one in record["figures"]["metrics"]:
            kept = {name: one[name] for name in ("metric", "value", "stderr")}
            found.append({"dataset": one["task"], "split": "lm-evaluation-harness"} | kept)
    return found


def _model(student: StudentStage, record: dict[str, Any]) -> Rows:
    config = read_json(student.folder / "model" / "config.json")
    shape = student.config.model
    concept = getattr(student.config, "concept", None) or getattr(student.config, "mix", None)
    weights = sorted((student.folder / "model").glob("*.safetensors"))
    return [
        ("student", f"{student.student}, seed {student.seed}, objective {student.config.objective}"),
        ("architecture", str((config.get("architectures") or [config["model_type"]])[0])),
        ("parameters", f"{record['figures']['parameters']:,}"),
        ("shape", f"{shape.backbone}, {shape.layers} layers, width {record['figures']['width']}, {shape.heads} heads"),
        ("context", f"{student.run_config.seq_len} tokens"),
        ("concept layer", "" if concept is None else f"{concept.concept_layer}, mixer {concept.mixer}"),
        ("FLOPs a token", f"{record['figures']['flops_per_token']:,.0f} (forward and backward)"),
        ("weights", f"sha256 {sha256(*weights)}"),
    ]


def _training(record: dict[str, Any]) -> Rows:
    figures, train = record["figures"], record["settings"]["train"]
    steps = figures["curve"][-1]["step"] if figures["curve"] else train["steps"]
    warmup = f"warm-up {train['warmup_fraction']:g} of the steps"
    return [
        ("tokens seen", f"{figures['tokens']:,}, repeats counted"),
        ("steps", "" if steps is None else f"{steps:,} of {train['batch_size']} windows"),
        ("FLOPs", f"{figures['flops']:.4g}"),
        ("time of the steps", f"{figures['seconds']:.0f} s"),
        ("learning rate", f"{train['learning_rate']:g} at its maximum, {warmup}"),
        ("precision", train["precision"]),
    ]


def _text(run: "Run", student: StudentStage) -> Rows:
    corpus, tokens = run.corpus.figures, run.tokens.figures
    options = {name: public(value) for name, value in run.config.corpus.options.items()}
    rows: Rows = [("source", corpus["source"] + (f" {options}" if options else ""))]
    for split, counts in corpus["splits"].items():
        words = f"{counts['documents']:,} documents, {tokens['tokens'][split]:,} tokens"
        words += f", text sha256 {counts['sha256']}" if "sha256" in counts else ""
        rows.append((split, words))
    trained = "byte-level BPE trained on the train split"
    source = run.config.tokens.tokenizer
    rows.append(("tokenizer", f"{trained if source is None else public(source)}, vocabulary {tokens['vocab_size']:,}"))
    rows.append(("training tokens", f"fingerprint {student.tokens.shards('train').fingerprint}"))
    return rows


def _concepts(run: "Run", student: StudentStage) -> Rows:
    read = {stage.name for stage in student.inputs}
    rows: Rows = []
    teacher = run.teacher
    source = run.config.teacher.pretrained
    rows.append(("teacher", "trained in this run" if source is None else str(public(source))))
    rows.append(("teacher's shape", _if_done(teacher, lambda: _shape(teacher))))
    rows.append(("teacher's weights", _if_done(teacher, lambda: f"sha256 {teacher.checksum()}")))
    if run.sae.name in read or student.labels is not None:
        figures, loaded = run.sae.figures, run.config.sae.pretrained
        rows.append(("SAE", "trained in this run" if loaded is None else str(public(loaded))))
        kept = f"{figures['n_latents']:,} concepts, {figures['k']} active, after block {figures['layer']}"
        rows.append(("SAE's shape", f"{kept}; explained variance {figures['explained_variance']:.4f}"))
        rows.append(("SAE's weights", _if_done(run.sae, lambda: f"sha256 {run.sae.checksum()}")))
    if student.labels is not None:
        labels = student.labels.config
        rows.append(("labels", f"rule {labels.rule}, sign {student.sign}, {labels.k} a position"))
    if student.logits is not None:
        rows.append(("teacher's distribution", f"its {student.config.teacher_top_k} likeliest tokens, stored"))
    return rows


def _shape(teacher: Any) -> str:
    teacher.check()
    config = read_json(teacher.folder / "model" / "config.json")
    layers = config.get("num_hidden_layers", config.get("n_layer"))
    return f"{config['model_type']}, {layers} layers, width {config.get('hidden_size', config.get('n_embd'))}"


def _if_done(stage: Any, value: Callable[[], str]) -> str:
    return value() if stage.done() else ""


def _made(record: dict[str, Any]) -> Rows:
    made, machine = record["made"], record["made"]["machine"]
    return [
        ("cocomix commit", made["commit"] or "not recorded"),
        ("at", made["at"]),
        ("machine", f"{machine['device']}, {machine['cpu']}, {machine['cores']} cores"),
        ("versions", f"Python {machine['python']}, torch {machine['torch']}, Transformers {machine['transformers']}"),
    ]


def public(value: Any) -> Any:
    """A setting as strangers may see it: of a path on this machine only the last part."""
    if isinstance(value, str | Path) and (Path(value).is_absolute() or str(value).startswith(("~", "."))):
        return Path(value).name
    return value
