"""`cocomix name`: names of a run's concepts, from its training text.

Names belong to the autoencoder, so all students that learn its concepts share them. The training split is read: the
names say what the concepts were when they were taught, and held-out text stays unseen.
"""

from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from cocomix.analysis.concept_index import TOKENS, Atlas, AtlasKey, build, read_atlas, write_atlas
from cocomix.analysis.naming import FoundNames, Names, edit_name, name_concepts, name_with, read_names, write_found
from cocomix.analysis.token_statistics import observe
from cocomix.labels.labeller import LiveLabels
from cocomix.labels.store import LabelReader
from cocomix.pipeline.evaluation_stages import snapshot_weights
from cocomix.pipeline.student_stages import StudentStage
from cocomix.pipeline.trained import existing_run
from cocomix.utils.console import StageProgress, console, errors
from cocomix.utils.errors import CocomixError
from cocomix.utils.files import combined, sha256

NAMING_SPLIT = "train"
SHOWN = 12
"""Names shown at the end."""


def name_run(folder: Path, *, tokens: int, llm: str | None = None, llm_seconds: float = 30.0) -> Names:
    """Find names from about `tokens` tokens and keep them in the run.

    Args:
        llm: a program that reads passages and prints a name; see `cocomix.analysis.naming`.
        llm_seconds: its time for each concept.

    Raises:
        CocomixError: no run, or one whose autoencoder is not finished.
    """
    run = existing_run(folder)
    sae, teacher, shards = run.sae.model(), run.teacher.model(), run.tokens.shards(NAMING_SPLIT)
    tokenizer, seq_len = run.tokens.tokenizer(), run.config.seq_len
    checksum = run.sae.checksum()
    with StageProgress(console, "names") as progress:
        seen = observe(
            teacher, sae, shards, layer=run.config.sae.layer, seq_len=seq_len, tokens=tokens, progress=progress
        )
        concepts = name_concepts(seen, lambda ids: str(tokenizer.decode(list(ids))), shards, seq_len)
    if llm is not None:
        with StageProgress(console, "names by the program") as progress:
            concepts, problems = name_with(llm, concepts, seconds=llm_seconds, progress=progress)
        for problem in problems:
            errors.print(f"cocomix: {problem}", style="yellow", highlight=False, markup=False, soft_wrap=True)
    found = FoundNames(
        sae=checksum,
        tokens=shards.fingerprint,
        split=NAMING_SPLIT,
        windows=seen.windows,
        positions=seen.positions,
        concepts=concepts,
    )
    write_found(folder, found)
    return read_names(folder, checksum)


def edit_run(folder: Path, edits: list[str]) -> Names:
    """Take names from people, each as CONCEPT=NAME; an empty name takes an edit back.

    Raises:
        CocomixError: not of that form, no such concept, or no run with a finished autoencoder.
    """
    run = existing_run(folder)
    n_concepts, checksum = int(run.sae.figures["n_latents"]), run.sae.checksum()
    read = []
    for edit in edits:
        concept, equals, name = edit.partition("=")
        if not equals or not concept.strip().isdecimal() or int(concept) >= n_concepts:
            raise CocomixError(f"--edit {edit} is not CONCEPT=NAME with a concept from 0 to {n_concepts - 1}")
        read.append((int(concept), name))
    for concept, name in read:
        edit_name(folder, checksum, concept, name)
    return read_names(folder, checksum)


def print_names(names: Names) -> None:
    """Names by hand and those that cover most of their concept; how many there are, and why others have none."""
    found = names.found
    if found is None:
        console.print("no names found yet; run `cocomix name`", highlight=False)
        return
    all_names = [names.of(concept) for concept in range(len(found.concepts))]
    named = [one for one in all_names if one.name is not None]
    named.sort(key=lambda one: (not one.edited, -(one.coverage or 0)))
    silent = sum(not one.occurrences and one.name is None for one in all_names)
    rare = sum(one.stability is None and one.name is None for one in all_names) - silent
    unstable = len(all_names) - len(named) - silent - rare
    edited = sum(one.edited for one in named)
    table = Table(box=None, pad_edge=False)
    table.add_column("concept", justify="right")
    table.add_column("name")
    table.add_column("share", justify="right")
    table.add_column("covers", justify="right")
    table.add_column("stability", justify="right")
    for one in named[:SHOWN]:
        stability = "–" if one.stability is None else f"{one.stability:.2f}"
        covers = "–" if one.coverage is None else f"{one.coverage:.0%}"
        name = (one.name or "") + (" (edited)" if one.edited else "")
        table.add_row(str(one.concept), Text(name), f"{one.share:.2%}", covers, stability)
    console.print(table)
    console.print(
        f"{len(named)} of {len(all_names)} concepts have a name ({edited} edited), {unstable} are unstable, {rare} too"
        f" rare, {silent} never active; from {found.positions:,} tokens of the {found.split} split. share: of"
        " positions; covers: of those, the share at which a token of the name is",
        highlight=False,
        soft_wrap=True,
    )


INDEX_SPLIT = "val"
"""Not the training split, because predictions on text a student was trained on say less about new text."""


def student_atlas(
    stage: StudentStage, student: Any = None, *, snapshot: str | None = None, tokens: int = TOKENS
) -> Atlas:
    """The atlas of a finished student, from about `tokens` tokens; made, with progress in the terminal, if need be.

    It is rebuilt if the student was trained again, or if the text or anything its labels depend on changed.

    Args:
        student: the model, if it is loaded already.
        snapshot: name of one saved during training, to look at in place of the finished student; with `student`.

    Raises:
        CocomixError: the student is not finished or predicts no concepts, or there is too little validation text.
    """
    _ = stage.figures
    shards, labels = stage.tokens.shards(INDEX_SPLIT), _labels(stage)
    key = AtlasKey(
        student=stage.checksum() if snapshot is None else sha256(*snapshot_weights(stage, snapshot)),
        shards=shards.fingerprint,
        labels=None if labels is None else _depend_on(stage),
        seq_len=stage.run_config.seq_len,
        tokens=tokens,
    )
    path = atlas_path(stage, snapshot)
    kept = read_atlas(path, key)
    if kept is not None:
        return kept
    truth = None if stage.labels is None else f"{stage.labels.config.rule}/{stage.sign} labels"
    model = stage.model() if student is None else student
    with StageProgress(console, f"atlas of {stage.student}, seed {stage.seed}") as progress:
        made = build(model, shards, key, labels=labels, truth=truth, progress=progress)
    write_atlas(path, made)
    return made


def atlas_path(stage: StudentStage, snapshot: str | None = None) -> Path:
    """Where the atlas of the student, or of a snapshot of it, lies."""
    name = f"{stage.student}-seed{stage.seed}" + ("" if snapshot is None else f"-{snapshot}")
    return stage.run_dir / "atlas" / f"{name}.safetensors"


def _labels(stage: StudentStage) -> LabelReader | None:
    """Validation labels by the rule and sign the student was trained with: stored ones, or else made now, or None."""
    labels = stage.labels
    if labels is None or not stage.variant.recall or not (labels.teacher.done() and labels.sae.done()):
        return None
    if all(needed.done() for needed in labels.needed):
        return labels.reader(INDEX_SPLIT, stage.sign)
    return LiveLabels(stage.tokens.shards(INDEX_SPLIT), labels.labeller((stage.sign,)), seq_len=labels.seq_len)


def _depend_on(stage: StudentStage) -> str:
    """Checksum of what makes the labels: the same whether they are stored or not."""
    assert stage.labels is not None
    settings = stage.labels.config.model_dump_json(include={"rule", "k", "precision"})
    return combined([stage.labels.teacher.checksum(), stage.labels.sae.checksum(), settings, stage.sign])
