"""The atlas of a run's student: kept in the run's folder, made from validation text where it is not there yet.

Validation text, since what a student predicts in the text it was trained on says less of what it will do elsewhere.
"""

from pathlib import Path
from typing import Any

from cocomix.analysis.atlas_record import Atlas, AtlasKey, read_atlas, write_atlas
from cocomix.analysis.concept_index import TOKENS, build
from cocomix.labels.label_reader import LabelReader
from cocomix.labels.live import LiveLabels
from cocomix.pipeline.snapshot_stage import snapshot_weights
from cocomix.pipeline.student_stages import StudentStage
from cocomix.utils.console import StageProgress
from cocomix.utils.files import combined, sha256
from cocomix.utils.pipeline_console import console

SPLIT = "val"


def student_atlas(
    stage: StudentStage, student: Any = None, *, snapshot: str | None = None, tokens: int = TOKENS
) -> Atlas:
    """The atlas of a finished student, from about `tokens` tokens; made, with progress in the terminal, if need be.

    It is made anew when the student was trained again, or the text or what its labels depend on is another.

    Args:
        student: the model, if it is loaded already.
        snapshot: name of one saved during training, to look at in place of the finished student; with `student`.

    Raises:
        CocomixError: the student is not finished or predicts no concepts, or there is too little validation text.
    """
    _ = stage.figures
    shards, labels = stage.tokens.shards(SPLIT), _labels(stage)
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
    """Validation labels by the rule and sign the student was taught with: stored ones, else made anew, else none."""
    labels = stage.labels
    if labels is None or not stage.variant.recall or not (labels.teacher.done() and labels.sae.done()):
        return None
    if all(needed.done() for needed in labels.needed):
        return labels.reader(SPLIT, stage.sign)
    return LiveLabels(stage.tokens.shards(SPLIT), labels.labeller((stage.sign,)), seq_len=labels.seq_len)


def _depend_on(stage: StudentStage) -> str:
    """Checksum of what makes the labels: the same whether they are stored or not."""
    assert stage.labels is not None
    settings = stage.labels.config.model_dump_json(include={"rule", "k", "precision"})
    return combined([stage.labels.teacher.checksum(), stage.labels.sae.checksum(), settings, stage.sign])
