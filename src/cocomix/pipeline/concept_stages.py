"""`cocomix name`: names of a run's concepts; and the statistics of a student's concepts, for the explorer.

Names belong to the autoencoder, so all students that learn its concepts share them. The training split is read: the
names say what the concepts were when they were taught, and held-out text stays unseen.

Statistics belong to one student. They are made from validation text, because what a student predicts in the text it
was trained on says less of what it will do elsewhere, and kept in the run's folder `atlas`. So are its output scores,
how much each concept can steer, in the folder `output-scores`.
"""

import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from rich.table import Table
from rich.text import Text

from cocomix.analysis.concept_index import (
    TOKENS,
    ConceptStatistics,
    StatisticsKey,
    gather_statistics,
    read_statistics,
    write_statistics,
)
from cocomix.analysis.naming import FoundNames, Names, edit_name, name_concepts, name_with, read_names, write_found
from cocomix.analysis.token_statistics import observe
from cocomix.labels.labeller import LiveLabels
from cocomix.labels.store import LabelReader
from cocomix.objectives.cocomix import CoCoMixStudent
from cocomix.objectives.forcing import STRONGEST
from cocomix.pipeline.evaluation_stages import snapshot_weights
from cocomix.pipeline.label_stages import AlignedLabelStage
from cocomix.pipeline.run import Run
from cocomix.pipeline.student_stages import StudentStage
from cocomix.pipeline.trained import existing_run, sae_stage
from cocomix.steering.study.output_score import STRENGTH, OutputScore, candidates, neutral_prompts, output_scores
from cocomix.utils.advice import command_line
from cocomix.utils.console import StageProgress, console, errors
from cocomix.utils.errors import CocomixError
from cocomix.utils.files import combined, in_words, sha256, sha256_of, write_text

NAMING_SPLIT, INDEX_SPLIT = "train", "val"
SHOWN = 12
"""Names shown at the end."""


def name_run(
    folder: Path, *, tokens: int, llm: str | None = None, llm_seconds: float = 30.0, layer: int | None = None
) -> Names:
    """Find names from about `tokens` tokens and write them to the run.

    Args:
        llm: a program that reads passages and prints a name; see `cocomix.analysis.naming`.
        llm_seconds: its time for each concept.
        layer: block whose autoencoder it is; None: `sae.layer`.

    Raises:
        CocomixError: no run, or one whose autoencoder is not finished.
    """
    run = existing_run(folder)
    stage = sae_stage(run, layer)
    found = find_names(run, tokens=tokens, llm=llm, llm_seconds=llm_seconds, layer=layer)
    write_found(folder, found, stage.names_file)
    return read_names(folder, found.sae, stage.names_file)


def find_names(
    run: Run, *, tokens: int, llm: str | None = None, llm_seconds: float = 30.0, layer: int | None = None
) -> FoundNames:
    """As `name_run`, but nothing is written."""
    stage = sae_stage(run, layer)
    sae, teacher, shards = stage.model(), run.teacher.model(), run.teacher_tokens.shards(NAMING_SPLIT)
    tokenizer, seq_len = run.teacher_tokens.tokenizer(), run.teacher.seq_len
    checksum = stage.checksum()
    with StageProgress(console, "names") as progress:
        seen = observe(
            teacher,
            sae,
            shards,
            layer=stage.layer,
            seq_len=seq_len,
            tokens=tokens,
            left_out=stage.left_out,
            progress=progress,
        )
        concepts = name_concepts(seen, lambda ids: str(tokenizer.decode(list(ids))), shards, seq_len)
    if llm is not None:
        with StageProgress(console, "names by the program") as progress:
            concepts, problems = name_with(llm, concepts, seconds=llm_seconds, progress=progress)
        for problem in problems:
            errors.print(f"cocomix: {problem}", style="yellow", highlight=False, markup=False, soft_wrap=True)
    return FoundNames(
        sae=checksum,
        tokens=shards.fingerprint,
        split=NAMING_SPLIT,
        windows=seen.windows,
        positions=seen.positions,
        concepts=concepts,
    )


def edit_run(folder: Path, edits: list[str], layer: int | None = None) -> Names:
    """Set names by hand, each as CONCEPT=NAME; an empty name removes an edit.

    Raises:
        CocomixError: an edit of another form, an unknown concept, or no run with a finished autoencoder.
    """
    run = existing_run(folder)
    stage = sae_stage(run, layer)
    n_concepts, checksum = int(stage.figures["n_latents"]), stage.checksum()
    parsed = []
    for edit in edits:
        concept, equals, name = edit.partition("=")
        if not equals or not concept.strip().isdecimal() or int(concept) >= n_concepts:
            raise CocomixError(f"--edit {edit} is not CONCEPT=NAME with a concept from 0 to {n_concepts - 1}")
        parsed.append((int(concept), name))
    for concept, name in parsed:
        edit_name(folder, checksum, concept, name)
    return read_names(folder, checksum, stage.names_file)


def print_names(names: Names, run: Path) -> None:
    """Print the run's names set by hand and the best found ones, how many there are, and why others have none."""
    found = names.found
    if found is None:
        console.print(f"no names found yet; run {command_line('cocomix name', run)}", soft_wrap=True)
        return
    concepts = [names.of(concept) for concept in range(len(found.concepts))]
    named = [concept for concept in concepts if concept.name is not None]
    named.sort(key=lambda concept: (not concept.edited, -(concept.coverage or 0)))
    silent = sum(not concept.occurrences and concept.name is None for concept in concepts)
    rare = sum(concept.stability is None and concept.name is None for concept in concepts) - silent
    unstable = len(concepts) - len(named) - silent - rare
    edited = sum(concept.edited for concept in named)
    table = Table(box=None, pad_edge=False)
    table.add_column("concept", justify="right")
    table.add_column("name")
    table.add_column("share", justify="right")
    table.add_column("covers", justify="right")
    table.add_column("stability", justify="right")
    for concept in named[:SHOWN]:
        stability = "–" if concept.stability is None else f"{concept.stability:.2f}"
        covers = "–" if concept.coverage is None else f"{concept.coverage:.0%}"
        name = (concept.name or "") + (" (edited)" if concept.edited else "")
        table.add_row(str(concept.concept), Text(name), f"{concept.share:.2%}", covers, stability)
    console.print(table)
    console.print(
        f"{len(named)} of {len(concepts)} concepts have a name ({edited} edited), {unstable} are unstable, {rare} too"
        f" rare, {silent} never active; from {found.positions:,} tokens of the {found.split} split. share: of"
        " positions; covers: of those, the share at which a token of the name is",
        highlight=False,
        soft_wrap=True,
    )


def student_statistics(
    stage: StudentStage, student: Any = None, *, snapshot: str | None = None, tokens: int = TOKENS
) -> ConceptStatistics:
    """Statistics of a finished student's concepts, from about `tokens` tokens; gathered only if they are not kept yet.

    Where they cannot be kept, because the run may not be written, that is printed.

    They are gathered again when the student was trained again, or the text or what its labels depend on changed.

    Args:
        student: the model, if it is loaded already.
        snapshot: name of one saved during training, used in place of the finished student; then `student` is it.

    Raises:
        CocomixError: the student is not finished or predicts no concepts, or there is too little validation text.
    """
    _ = stage.figures
    shards, labels = stage.tokens.shards(INDEX_SPLIT), _labels(stage)
    key = StatisticsKey(
        student=stage.checksum() if snapshot is None else sha256(*snapshot_weights(stage, snapshot)),
        shards=shards.fingerprint,
        labels=None if labels is None else _depend_on(stage),
        seq_len=stage.run_config.seq_len,
        tokens=tokens,
    )
    path = statistics_path(stage, snapshot)
    kept = read_statistics(path, key)
    if kept is not None:
        return kept
    truth = None if stage.labels is None else f"{stage.labels.describe_labels(stage.sign)} labels"
    model = stage.model() if student is None else student
    with StageProgress(console, f"concept statistics of {stage.student}, seed {stage.seed}") as progress:
        statistics = gather_statistics(model, shards, key, labels=labels, truth=truth, progress=progress)
    try:
        write_statistics(path, statistics)
    except OSError as error:
        print_unkept(f"the concept statistics of {stage.student}", error)
    return statistics


class _KeptScores(BaseModel):
    """The file of output scores."""

    key: str
    scores: list[OutputScore]


def preset_strength(stage: StudentStage) -> float:
    """Strength of `Amplify` at which concepts are scored and shown: STRENGTH, or of a student that was trained to be
    steered twice the strongest of its training, at which much of the concept costs little fluency (docs/results.md)."""
    settings = stage.config
    trained = isinstance(settings, CoCoMixStudent) and settings.concept.steered > 0
    return 2 * STRONGEST if trained else STRENGTH


def student_output_scores(
    stage: StudentStage, student: Any, statistics: ConceptStatistics, names: Names, *, snapshot: str | None = None
) -> list[OutputScore]:
    """Output scores of up to `CANDIDATES` concepts, see `steering.study.output_score`; made only if not kept yet.

    They are made again when the student, the text or the tokens of the names changed. A name set by hand changes none.

    Args:
        student: the loaded model, one that mixes its concepts in; it is steered meanwhile: hold its lock.
        statistics: of this student.
        snapshot: as in `student_statistics`.
    """
    tokenizer, shards = stage.tokens.tokenizer(), stage.tokens.shards(INDEX_SPLIT)
    own = candidates(
        statistics, names, lambda ids: str(tokenizer.decode(list(ids))), vocab_size=student.config.vocab_size
    )
    prompts, strength = neutral_prompts(shards, statistics.key.seq_len), preset_strength(stage)
    key = sha256_of(json.dumps([statistics.key.student, prompts.tolist(), strength, list(own.items())]))
    path = statistics_path(stage, snapshot, folder="output-scores").with_suffix(".json")
    try:
        kept = _KeptScores.model_validate_json(path.read_bytes())
        if kept.key == key:
            return kept.scores
    except (OSError, ValueError):
        pass  # none yet, or damaged
    with StageProgress(console, f"output scores of {stage.student}, seed {stage.seed}") as progress:
        scores = output_scores(student, prompts, own, strength=strength, progress=progress)
    try:
        path.parent.mkdir(exist_ok=True)
        write_text(path, _KeptScores(key=key, scores=scores).model_dump_json())
    except OSError as error:
        print_unkept(f"the output scores of {stage.student}", error)
    return scores


def print_unkept(what: str, error: OSError) -> None:
    """Say that something will have to be made again, because the run's folder cannot be written."""
    notice = f"{what} cannot be kept ({in_words(error)}) and will be made again next time"
    errors.print(f"cocomix: {notice}", style="yellow", highlight=False, markup=False, soft_wrap=True)


def statistics_path(stage: StudentStage, snapshot: str | None = None, *, folder: str = "atlas") -> Path:
    """The file of the statistics of the student, or of a snapshot of it."""
    name = f"{stage.student}-seed{stage.seed}" + ("" if snapshot is None else f"-{snapshot}")
    return stage.run_dir / folder / f"{name}.safetensors"


def _labels(stage: StudentStage) -> LabelReader | None:
    """Validation labels by the student's rule and sign: stored ones, else computed again, else none."""
    labels = stage.labels
    if labels is None or not stage.uses_sae_concepts or not labels.sae.done():
        return None
    if labels.needs_teacher and not labels.teacher.done():
        return None
    if all(needed.done() for needed in labels.needed):
        return labels.reader(INDEX_SPLIT, stage.sign)
    if not labels.teacher.config.shares_tokens:
        return None  # they are made of the whole text, at other tokens
    return LiveLabels(stage.tokens.shards(INDEX_SPLIT), labels.labeller((stage.sign,)), seq_len=labels.seq_len)


def _depend_on(stage: StudentStage) -> str:
    """Checksum of what makes the labels: the same whether they are stored or not."""
    assert stage.labels is not None
    if isinstance(stage.labels.last, AlignedLabelStage):
        return combined([stage.labels.last.outcome(), stage.sign])
    settings = stage.labels.config.model_dump_json(include={"rule", "k", "precision"})
    return combined([stage.labels.teacher.checksum(), stage.labels.sae.checksum(), settings, stage.sign])
