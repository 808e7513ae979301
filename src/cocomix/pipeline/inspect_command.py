"""`cocomix inspect`: from a run to a reading of a text."""

from pathlib import Path

import torch
from transformers import PreTrainedModel

from cocomix.analysis.inspect import Reading, read_text
from cocomix.analysis.record import Names, read_names
from cocomix.labels.attribution import attribute_active
from cocomix.labels.labels import ConceptLabels, select_active
from cocomix.pipeline.student_stages import StudentStage
from cocomix.pipeline.trained import existing_run, student_stage, with_concepts
from cocomix.sae.sae import TopKSAE
from cocomix.utils.errors import CocomixError


def inspect_text(folder: Path, text: str, *, student: str, seed: int, top: int, concept: int | None) -> Reading:
    """`read_text` of a run's student, with the teacher's labels by the student's own rule, and names, if any.

    Raises:
        CocomixError: no such run or student, or as `read_text`.
    """
    run = existing_run(folder)
    stage = student_stage(run, student, seed)
    model, tokenizer = with_concepts(run, stage), stage.tokens.tokenizer()
    ids = tokenizer.encode(text)
    if not text.strip():
        raise CocomixError("the text is empty; give some words")
    of_the_sae = stage.variant.recall and stage.sae.done()  # bootstrapped concepts are the student's own
    names = read_names(folder, stage.sae.checksum()) if of_the_sae else Names(None, {})
    fits = len(ids) <= model.config.max_position_embeddings
    return read_text(
        model,
        ids,
        lambda some: str(tokenizer.decode(list(some))),
        top=top,
        concept=concept,
        labels=teacher_labels(stage, ids) if of_the_sae and fits else None,
        name=names.name,
    )


def teacher_labels(stage: StudentStage, ids: list[int]) -> ConceptLabels | None:
    """Labels `[1, seq, K_attr]` of a text by the rule and sign the student was taught with.

    None where it was taught without labels, the teacher is not there, or there is no next token.
    """
    if not has_teacher_labels(stage):
        return None
    return labels_of(stage, ids, stage.sae.teacher.model(), stage.sae.model())


def has_teacher_labels(stage: StudentStage) -> bool:
    """Whether it was taught with labels whose teacher and autoencoder are there."""
    return stage.labels is not None and stage.sae.teacher.done() and stage.sae.done()


def labels_of(stage: StudentStage, ids: list[int], teacher: PreTrainedModel, sae: TopKSAE) -> ConceptLabels | None:
    """`teacher_labels` with the models at hand; only of a student that has them."""
    if stage.labels is None or len(ids) < 2:
        return None
    config = stage.labels.config
    tokens = torch.tensor([ids], device=sae.encoder_weight.device)
    active = attribute_active(teacher, sae, tokens, layer=stage.sae.config.layer, rule=config.rule, sign=stage.sign)
    return select_active(active, config.k)
