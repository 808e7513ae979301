"""A run's finished models and what is done with them: find a student, inspect a text, export it or the autoencoder."""

from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from cocomix.analysis.inspect import Reading, read_text
from cocomix.analysis.naming import Names, read_names
from cocomix.labels.attribution import ConceptLabels, attribute_active, select_active
from cocomix.model.adapters import merged_state_dict
from cocomix.model.modeling_cocomix import CoCoMixForCausalLM
from cocomix.model.plain_models import check_same, fill_plain
from cocomix.pipeline.config import CONFIG
from cocomix.pipeline.label_stages import AlignedLabelStage
from cocomix.pipeline.run import Run, load_run
from cocomix.pipeline.sae_stage import SaeStage
from cocomix.pipeline.student_stages import StudentStage
from cocomix.sae.formats import FORMATS
from cocomix.sae.sae import TopKSAE
from cocomix.utils.advice import command_line
from cocomix.utils.errors import CocomixError, tokenizer_errors
from cocomix.utils.files import read_json, write_json


def existing_run(folder: Path, *, announce: bool = True) -> Run:
    """The run in `folder`, with its own settings; an edit of these is announced, as by `load_run`.

    Raises:
        CocomixError: there is none.
    """
    if not (folder / CONFIG).exists():
        raise CocomixError(
            f"there is no run in {folder}; run {command_line('cocomix demo', folder)} first or give another --run"
        )
    return load_run(folder, announce=announce)


def student_stage(run: Run, student: str, seed: int) -> StudentStage:
    """The stage of a student.

    Raises:
        CocomixError: the run has none of that name and seed.
    """
    for stage in run.students:
        if (stage.student, stage.seed) == (student, seed):
            return stage
    choices = ", ".join(f"{stage.student} (seed {stage.seed})" for stage in run.students)
    raise CocomixError(f"{run.folder} has no student {student!r} of seed {seed}; choose one of {choices}")


def sae_stage(run: Run, layer: int | None) -> SaeStage:
    """The stage of the autoencoders, for readers of that of block `layer`; None: of `sae.layer`.

    Raises:
        CocomixError: the run has none there.
    """
    layers = run.config.sae.layers
    if layer is not None and layer not in layers:
        raise CocomixError(
            f"{run.folder} has no autoencoder of block {layer}; there are those of {', '.join(map(str, layers))}"
            " (sae.layer, sae.also)"
        )
    return run.sae if layer is None else run.sae.of_layer(layer)


def with_concepts(run: Run, stage: StudentStage) -> Any:
    """The finished student of `stage`, one that predicts concepts.

    Raises:
        CocomixError: it is not finished, or predicts none; those that may are named.
    """
    model = stage.model()
    if getattr(getattr(model, "channel", None), "head", None) is None:
        suitable = sorted({other.student for other in run.students if other.uses_sae_concepts})
        raise CocomixError(
            f"the student {stage.student} predicts no concepts; "
            + (f"choose --student {' or '.join(suitable)}" if suitable else "train one with the objective cocomix")
        )
    return model


def inspect_text(folder: Path, text: str, *, student: str, seed: int, top: int, concept: int | None) -> Reading:
    """`read_text` of a run's student, with the teacher's labels by the student's own rule, and names, if any.

    Raises:
        CocomixError: no such run or student, or as `read_text`.
    """
    run = existing_run(folder)
    stage = student_stage(run, student, seed)
    model, tokenizer = with_concepts(run, stage), stage.tokens.tokenizer()
    with tokenizer_errors("of this run"):
        ids = stage.tokens.special.prompt(tokenizer, text)
    if not text.strip():
        raise CocomixError("the text is empty; give some words")
    uses_sae = stage.uses_sae_concepts and stage.sae.done()  # bootstrapped concepts are the student's own
    names = read_names(folder, stage.sae.checksum(), stage.sae.names_file) if uses_sae else Names(None, {})
    fits = len(ids) <= model.config.max_position_embeddings
    return read_text(
        model,
        ids,
        lambda part: str(tokenizer.decode(list(part))),
        top=top,
        concept=concept,
        labels=teacher_labels(stage, ids) if uses_sae and fits else None,
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
    if stage.labels is None or not stage.labels.of_teacher:
        return False
    return all(needed.done() for needed in (stage.sae.teacher, stage.sae.teacher_tokens, stage.sae))


def labels_of(stage: StudentStage, ids: list[int], teacher: PreTrainedModel, sae: TopKSAE) -> ConceptLabels | None:
    """`teacher_labels` with models that are loaded already; only for a student that has labels."""
    if stage.labels is None or len(ids) < 2:
        return None
    taught_last = stage.labels.last
    if isinstance(taught_last, AlignedLabelStage):
        return taught_last.of_text(ids, teacher, sae, stage.sign)
    config = stage.labels.config
    tokens = torch.tensor([ids], device=sae.encoder_weight.device)
    active = attribute_active(
        teacher,
        sae,
        tokens,
        layer=stage.sae.layer,
        rule=config.rule,
        sign=stage.sign,
        left_out=stage.sae.left_out,
    )
    active.valid[:, : stage.tokens.special.first_position] = False
    return select_active(active, config.k)


def export_sae(run: Run, name: str, folder: Path, layer: int | None = None) -> Path:
    """Write the run's finished autoencoder to `folder` in the format called `name`; returns `folder`.

    Args:
        layer: of which block; None: `sae.layer`.

    Raises:
        CocomixError: no such format, one that cannot represent this autoencoder, or a folder in use.
    """
    format = FORMATS.choose(name)()
    check_new(folder)
    stage = sae_stage(run, layer)
    sae = stage.model()
    teacher = run.config.teacher.pretrained
    metadata = {
        "layer": stage.layer,
        "model": teacher or f"{run.config.title} (trained by cocomix)",
        "prepend_bos": run.teacher_tokens.special.bos_id is not None,
        "full_share": stage.figures.get("full_share", 1.0),
        "context_size": stage.figures.get("context_size", stage.seq_len),
    }
    format.write(sae.cpu(), folder, metadata)
    return folder


def export_student(run: Run, student: str, seed: int, folder: Path) -> Path:
    """Write a plain student, with its tokenizer, as other programs expect a GPT-2 or Llama; returns `folder`.

    A student whose channel was dropped, or that was fine-tuned without one, is one, too.

    Raises:
        CocomixError: no such finished student, one that is no plain transformer, or a folder in use.
    """
    stage = student_stage(run, student, seed)
    check_new(folder)
    model = stage.model()
    if isinstance(model, CoCoMixForCausalLM):
        if model.config.has_channel:
            plain = sorted({other.student for other in run.students if other.config.ends_plain})
            raise CocomixError(
                f"the student {student} has a predictor ({model.config.channel}) in the middle of its stack, for which"
                " GPT-2 and Llama have no place, and without it would be another model; export a plain student"
                f" ({', '.join(plain) or 'train one, such as ntp'})"
            )
        if model.config.logit_cap is not None:
            raise CocomixError(
                f"the student {student} has a logit_cap, for which GPT-2 and Llama have no place, and without it would"
                " be another model; export one that was trained without"
            )
        shaped, model = stage.plain_model(), model.cpu()
        fill_plain(shaped, merged_state_dict(model))
        check_same(shaped, model)
        model = shaped
    write_plain(model.cpu(), stage.tokens.tokenizer(), folder)
    return folder


def write_plain(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write a plain causal LM in float32 with the names that converters look for."""
    if getattr(model.config, "activation_function", None) == "gelu_pytorch_tanh":
        model.config.activation_function = "gelu_new"  # the same function under GPT-2's own name for it
    model.float().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    settings = read_json(folder / "tokenizer_config.json")
    write_json(folder / "tokenizer_config.json", settings | {"tokenizer_class": "PreTrainedTokenizerFast"})
    vocabulary: Any = getattr(tokenizer, "backend_tokenizer", None)
    if hasattr(getattr(vocabulary, "model", None), "save"):
        vocabulary.model.save(str(folder))  # vocab.json and merges.txt, for programs that do not read tokenizer.json


def check_new(folder: Path) -> None:
    """Refuse a folder that holds something.

    Raises:
        CocomixError: it does, or it is a file.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise CocomixError(f"{folder} is not empty; give a new folder")
