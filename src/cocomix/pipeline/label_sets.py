"""Which kind of label set a run's settings ask for, and the stages it takes."""

from pathlib import Path

from cocomix.labels.controls import CONTROLS
from cocomix.pipeline.config import RunConfig
from cocomix.pipeline.label_stages import (
    AlignedLabelStage,
    ControlSet,
    LabelSet,
    LabelStage,
    LiveLabelSet,
    TeacherLabelStage,
)
from cocomix.pipeline.pack_stages import PackLabelStage
from cocomix.pipeline.sae_stage import SaeStage
from cocomix.pipeline.stage import Stage
from cocomix.pipeline.teacher_stage import TeacherStage


def label_set(run_dir: Path, name: str, config: RunConfig, teacher: TeacherStage, sae: SaeStage) -> LabelSet:
    """The set `name`: stored, aligned, from a pack, live or a control, as its settings say."""
    section = config.labels[name]
    if section.layer is not None:
        sae = sae.of_layer(section.layer)
    if section.rule in CONTROLS:
        source = None if section.of is None else label_set(run_dir, section.of, config, teacher, sae)
        return ControlSet(name, config, teacher, sae if source is None else source.sae, source)
    if section.live:
        return LiveLabelSet(name, section, teacher, sae)
    if config.pack is not None:
        return PackLabelStage(run_dir, name, config, teacher, sae)
    if not config.teacher.shares_tokens:
        return AlignedLabelStage(run_dir, name, config, TeacherLabelStage(run_dir, name, config, teacher, sae))
    return LabelStage(run_dir, name, config, teacher, sae)


def label_stages(labels: LabelSet) -> list[Stage]:
    """The stages that store a set of labels, in the order in which they are done; none for a live one."""
    if isinstance(labels, AlignedLabelStage):
        return [*labels.sources(), labels]
    return [labels] if isinstance(labels, Stage) else []
