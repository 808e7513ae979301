"""`cocomix push`: a student's folder for the hub, with a model card, and the upload.

Every row of the card comes from the run's records. Uploaded is what the stage wrote and its record lists, of that no
code and no pickles, and nothing else that lies in its folder. `public` keeps paths, user names and passwords here.
"""

import json
import re
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path, PurePath
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import yaml

from cocomix.data.special_tokens import SAVED
from cocomix.model.configuration_cocomix import CoCoMixConfig
from cocomix.pipeline.run import Run
from cocomix.pipeline.stage import RECORD
from cocomix.pipeline.student_stages import StudentStage
from cocomix.utils.errors import CocomixError
from cocomix.utils.files import read_json, sha256, write_text

Rows = list[tuple[str, str]]


def lineage(run: Run, student: StudentStage) -> dict[str, Rows]:
    """Rows of (label, value) by heading: the student, its training, its text, and what it used of a teacher.

    Raises:
        CocomixError: the student is not trained, or its files are damaged.
    """
    record = student.record()
    if record is None:
        raise CocomixError(f"{student.title} is not trained; run {student.command_line} first")
    student.check()  # refuses damaged files
    sections = {
        "Model": _model(student, record),
        "Training": _training(record),
        "Text and tokens": _text(run, student),
    }
    if student.inputs[1:]:
        sections["Concepts"] = _concepts(run, student)
    sections["Made by"] = _made(record)
    return {heading: [(label, value) for label, value in rows if value] for heading, rows in sections.items()}


def measured(run: Run, student: StudentStage) -> list[dict[str, Any]]:
    """`{dataset, split, metric, value, stderr}` of what was measured: perplexity, recall, the harness's tasks."""
    metrics: list[dict[str, Any]] = []
    for evaluation in run.evaluations:
        record = evaluation.record() if evaluation.student is student else None
        if record is None:
            continue
        source = public(run.corpus.figures["source"])
        for split in ("val", "test"):
            value = record["figures"][split]["perplexity"]
            metrics.append({"dataset": source, "split": split, "metric": "perplexity", "value": value, "stderr": None})
            bits = record["figures"][split].get("bits_per_byte")
            if bits is not None:
                metrics.append(
                    {"dataset": source, "split": split, "metric": "bits per byte", "value": bits, "stderr": None}
                )
        if "recall" in record["figures"]:
            value = record["figures"]["recall"]["recall"]
            metrics.append(
                {"dataset": source, "split": "val", "metric": "concept recall", "value": value, "stderr": None}
            )
    return metrics + _tasks(run, student)


def _tasks(run: Run, student: StudentStage) -> list[dict[str, Any]]:
    """Results of the harness that were made with the student as it is, over all documents."""
    metrics = []
    folder = run.folder / student.name.replace("students/", "harness/", 1)
    for path in sorted(folder.glob(f"*/{RECORD}")):
        record = read_json(path)
        if record["inputs_outcome"] != [student.outcome()] or record["settings"]["limit"] is not None:
            continue
        for metric in record["figures"]["metrics"]:
            kept = {name: metric[name] for name in ("metric", "value", "stderr")}
            metrics.append({"dataset": metric["task"], "split": "lm-evaluation-harness"} | kept)
    return metrics


def _model(student: StudentStage, record: dict[str, Any]) -> Rows:
    config = read_json(student.folder / "model" / "config.json")
    shape = student.config.model
    concept = student.config.mixing
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


def _text(run: Run, student: StudentStage) -> Rows:
    corpus, tokens = run.corpus.figures, run.tokens.figures
    options = _public(run.config.corpus.options)
    rows: Rows = [("source", public(corpus["source"]) + (f" {options}" if options else ""))]
    for split, counts in corpus["splits"].items():
        words = f"{counts['documents']:,} documents, {tokens['tokens'][split]:,} tokens"
        words += f", text sha256 {counts['sha256']}" if "sha256" in counts else ""
        rows.append((split, words))
    trained = "byte-level BPE trained on the train split"
    source = run.config.tokens.tokenizer
    rows.append(("tokenizer", f"{trained if source is None else public(source)}, vocabulary {tokens['vocab_size']:,}"))
    tokenizer = student.tokens.tokenizer()
    special = student.tokens.special.describe(lambda number: str(tokenizer.convert_ids_to_tokens(number)))
    rows.append(("special tokens", f"`{special}`" if "<" in special else special))
    rows.append(("training tokens", f"fingerprint {student.tokens.shards('train').fingerprint}"))
    return rows


def _concepts(run: Run, student: StudentStage) -> Rows:
    read = {stage.name for stage in student.inputs}
    rows: Rows = []
    teacher = run.teacher
    source = run.config.teacher.pretrained
    rows.append(("teacher", "trained in this run" if source is None else str(public(source))))
    rows.append(("teacher's shape", _if_done(teacher, lambda: _shape(teacher))))
    rows.append(("teacher's weights", _if_done(teacher, lambda: f"sha256 {teacher.checksum()}")))
    if run.sae.name in read or student.labels is not None:
        figures, loaded = student.sae.figures, run.config.sae.pretrained
        rows.append(("SAE", "trained in this run" if loaded is None else str(public(loaded))))
        kept = f"{figures['n_latents']:,} concepts, {figures['k']} active, after block {figures['layer']}"
        rows.append(("SAE's shape", f"{kept}; explained variance {figures['explained_variance']:.4f}"))
        rows.append(("SAE's weights", _if_done(student.sae, lambda: f"sha256 {student.sae.checksum()}")))
    if student.labels is not None:
        rows.append(("labels", f"{student.labels.in_words(student.sign)}, {student.labels.n_labels} a position"))
    if student.logits is not None:
        rows.append(
            ("teacher's distribution", f"its {student.config.stored_teacher_tokens} most likely tokens, stored")
        )
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


TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{6,}")
DATA_FILE = re.compile(
    r"\.(bin|bz2|csv|gz|jsonl?|md|model|npz|parquet|pt|safetensors|txt|xz|ya?ml|zst)$", re.IGNORECASE
)


def public(value: Any) -> Any:
    """A setting for publication: of a path on this machine the last part, of an address no user, password and query.

    `OWNER/NAME` is taken for an id on the hub unless there is a folder `OWNER` here, or it names a data file.
    """
    if not isinstance(value, str | Path):
        return value
    text = TOKEN.sub("(a token)", str(value))
    scheme, separator, rest = text.partition("://")
    if separator and scheme.lower() != "file":
        parts = urlsplit(text)
        return f"{scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
    if separator or _is_path(text):
        return PurePath(re.split(r"[/\\]", (rest if separator else text).rstrip("/\\"))[-1]).name
    return re.sub(r"^[^\s/]+@", "", text)


def _is_path(text: str) -> bool:
    if text.startswith(("/", "~", ".", "\\")) or re.match(r"[A-Za-z]:[/\\]", text):
        return True
    if text.startswith("$") or "/" not in text:  # a part of another setting's run, or a name
        return False
    deep = text.count("/") > 1 or any(sign in text for sign in "*?[\\@")
    return deep or DATA_FILE.search(text) is not None or Path(text).exists() or Path(text).parent.is_dir()


LOADING = """```python
{imports}from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("{repo}")
tokenizer = AutoTokenizer.from_pretrained("{repo}")
ids = tokenizer("Once upon a time", return_tensors="pt").input_ids
print(tokenizer.decode(model.generate(ids, max_new_tokens=40)[0]))
```"""
OWN = """The architecture is not part of Transformers: the Python package `cocomix` must be installed, and importing
`cocomix.model` registers the architecture. This repository holds no code, and `trust_remote_code` is not needed."""
PLAIN = "A plain Transformers model: nothing else is needed to load it."


def model_card(
    *,
    repo: str,
    own_architecture: bool,
    sections: dict[str, Rows],
    measured: list[dict[str, Any]],
    config: str,
    licence: str | None,
) -> str:
    """The README.md of a model's repository.

    Args:
        repo: USER/NAME, as the loading example shows it.
        own_architecture: whether loading needs `import cocomix.model`.
        sections: lineage, rows of (label, value) by heading.
        measured: `{dataset, split, metric, value, stderr}` each.
        config: the student's settings as YAML.
        licence: the hub's licence id; None: the card says that none was stated.
    """
    from huggingface_hub import EvalResult, ModelCard, ModelCardData

    name = repo.rpartition("/")[2]
    results = [
        EvalResult(
            task_type="text-generation",
            dataset_type=metric["dataset"],
            dataset_name=f"{metric['dataset']} ({metric['split']})",
            dataset_split=metric["split"],  # the hub tells figures on one dataset apart by it
            metric_type=metric["metric"],
            metric_value=metric["value"],
        )
        for metric in measured
    ]
    data = ModelCardData(
        license=licence,
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["cocomix"] if own_architecture else ["cocomix", "baseline"],
        model_name=name,
        eval_results=results or None,
    )
    parts = [f"# {name}", OWN if own_architecture else PLAIN]
    imports = "import cocomix.model  # registers the architecture\n" if own_architecture else ""
    parts.append(LOADING.format(repo=repo, imports=imports))
    for heading, rows in sections.items():
        parts += [f"## {heading}", _table(("", ""), rows)]
    if measured:
        shown = [(f"{metric['dataset']} ({metric['split']})", metric["metric"], _value(metric)) for metric in measured]
        parts += ["## Measured", _table(("on", "metric", "value"), shown)]
    parts += ["## Settings of the student", f"```yaml\n{config.strip()}\n```"]
    if licence is None:
        parts += ["## Licence", "No licence was stated when this model was pushed."]
    parts.append("Every figure above comes from the records of the run that made this model.")
    return str(ModelCard(f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(parts) + "\n"))


def _value(metric: dict[str, Any]) -> str:
    return f"{metric['value']:.4f}" + ("" if metric["stderr"] is None else f" ± {metric['stderr']:.4f}")


def _table(headings: tuple[str, ...], rows: Any) -> str:
    lines = [headings, tuple("---" for _ in headings), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)


PATTERNS = ("*.safetensors", "*.json", "*.txt", "*.model", "*.jinja")
"""Files of a model's folder that may be uploaded: weights, configuration, tokenizer; no code, no pickles."""
CARD = "README.md"


class Upload(NamedTuple):
    """A file of the repository."""

    name: str
    bytes: int


Show = Callable[[Sequence[Upload]], None]


def push_student(
    run: Run,
    name: str,
    seed: int,
    *,
    repo: str | None,
    private: bool = False,
    licence: str | None = None,
    dry_run: bool = False,
    only_stage: Path | None = None,
    show: Show = lambda _: None,
) -> str:
    """Upload a student with its model card; returns where it is.

    Args:
        repo: USER/NAME on the hub; made if it does not exist.
        dry_run: upload nothing.
        only_stage: write what would be uploaded into this folder instead, which must be empty or new.
        show: called with the list of files before anything is uploaded.

    Raises:
        CocomixError: no such trained student, or the hub refuses or cannot be reached.
    """
    student = next((stage for stage in run.students if stage.student == name and stage.seed == seed), None)
    if student is None:
        choices = ", ".join(f"{stage.student} seed {stage.seed}" for stage in run.students)
        raise CocomixError(f"this run has no student {name!r} of seed {seed}; it has {choices}")
    if only_stage is not None:
        if only_stage.exists() and (not only_stage.is_dir() or any(only_stage.iterdir())):
            raise CocomixError(f"{only_stage} is not empty; give a new folder")
        show(stage_folder(run, student, only_stage, repo or f"USER/{name}", licence))
        return str(only_stage)
    if not dry_run and (repo is None or repo.count("/") != 1 or not all(repo.split("/"))):
        raise CocomixError(f"{repo!r} is not a repository; give --to USER/NAME")
    repo = repo or f"USER/{name}"
    with tempfile.TemporaryDirectory(prefix="cocomix-") as folder:
        show(stage_folder(run, student, Path(folder), repo, licence))
        return repo if dry_run else _upload(Path(folder), repo, private)


def stage_folder(run: Run, student: StudentStage, folder: Path, repo: str, licence: str | None) -> list[Upload]:
    """Write model, tokenizer and card into `folder`; returns the files.

    Raises:
        CocomixError: the student is not trained, is damaged, or its record lists no files.
    """
    sections = lineage(run, student)
    names = _files(student)
    model = student.folder / "model"
    config = (model / "config.json").read_text(encoding="utf-8")
    card = model_card(
        repo=repo,
        own_architecture=f'"model_type": "{CoCoMixConfig.model_type}"' in config,
        sections=sections,
        measured=measured(run, student),
        config=_settings(student),
        licence=licence,
    )
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        shutil.copyfile(model / name, folder / name)
    if SAVED not in (model / "tokenizer_config.json").read_text(encoding="utf-8"):  # trained before it was saved there
        student.tokens.tokenizer().save_pretrained(folder)
    staged = sorted(folder.iterdir())
    for path in staged:
        if path.name.endswith("config.json"):
            _forget_paths(path)
    write_text(folder / CARD, card)
    return [Upload(path.name, path.stat().st_size) for path in (folder / CARD, *staged)]


def _files(student: StudentStage) -> list[str]:
    """Names of the files in the model's folder that the stage wrote, and that may be uploaded."""
    listed = [PurePath(entry["file"]) for entry in (student.record() or {}).get("files", [])]
    names = [path.name for path in listed if str(path.parent) == "model" and any(map(path.match, PATTERNS))]
    if not names:
        raise CocomixError(
            f"the record of {student.title} is of an earlier version and lists no files; {student.redo_hint}"
        )
    return sorted(names)


def _forget_paths(path: Path) -> None:
    """Leave out of a configuration where Transformers says it was loaded from on this machine."""

    def forgotten(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: forgotten(item) for name, item in value.items()}
        if isinstance(value, list):
            return [forgotten(item) for item in value]
        local = isinstance(value, str) and Path(value).is_absolute() and len(Path(value).parts) > 2
        return public(value) if local else value

    config = json.loads(path.read_text(encoding="utf-8"))
    if forgotten(config) != config:
        write_text(path, json.dumps(forgotten(config), indent=2, ensure_ascii=False) + "\n")


def _settings(student: StudentStage) -> str:
    record = student.record() or {}
    kept = {name: record["settings"][name] for name in ("student", "train", "seq_len")}
    return yaml.safe_dump(_public(kept), sort_keys=False)


def _public(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _public(item) for name, item in value.items()}
    return [_public(item) for item in value] if isinstance(value, list | tuple) else public(value)


def _upload(folder: Path, repo: str, private: bool) -> str:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError

    api = HfApi()
    try:
        url = api.create_repo(repo, private=private, exist_ok=True)
        if private and not api.repo_info(repo).private:
            raise CocomixError(f"{repo} exists and is public; make it private on the hub, or leave out --private")
        api.upload_folder(repo_id=repo, folder_path=folder, commit_message="Model, tokenizer and card from cocomix")
    except LocalTokenNotFoundError as error:
        raise CocomixError("you are not logged in to the hub; run `hf auth login`") from error
    except HFValidationError as error:
        raise CocomixError(f"{repo!r} is not a valid name for a repository; give --to USER/NAME") from error
    except HfHubHTTPError as error:
        raise CocomixError(_refusal(error, repo)) from error
    except CocomixError:
        raise
    except Exception as error:
        if not _of_the_network(error):
            raise
        raise CocomixError(
            f"the hub cannot be reached ({type(error).__name__}); check the network and HF_HUB_OFFLINE, and push again"
        ) from error
    return str(url)


NETWORK = ("httpcore", "httpcore2", "httpx", "httpx2", "huggingface_hub", "requests", "urllib3")
"""Packages whose errors are the network's; which of them the hub's client uses depends on its version."""


def _of_the_network(error: Exception) -> bool:
    return isinstance(error, OSError) or type(error).__module__.partition(".")[0] in NETWORK


def _refusal(error: Any, repo: str) -> str:
    """One sentence for an HTTP error; the error's own text may quote the request and stays out."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status == 401:
        return "the hub does not know your token; run `hf auth login`"
    if status == 403:
        return f"the hub does not let you write to {repo}; check its owner and your token's rights"
    return f"the hub refused the upload to {repo} (status {status}); try again later"
