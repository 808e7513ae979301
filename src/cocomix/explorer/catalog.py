"""The models that can be looked at, by key; each is loaded when first asked for, and a few are kept."""

import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field

from cocomix.explorer.security import NotThere
from cocomix.explorer.sessions import Instrument, OpenedRun
from cocomix.model.configuration_cocomix import CoCoMixConfig
from cocomix.model.loading import model_config
from cocomix.model.mixers import MIXERS
from cocomix.model.predictors import PREDICTORS, ConceptPredictor
from cocomix.pipeline.evaluation_stages import snapshots_of, step_of
from cocomix.pipeline.student_stages import StudentStage
from cocomix.utils.errors import CocomixError

KEPT = 6
"""Students in memory at a time."""


class ModelInfo(BaseModel):
    """A student, or one saved during its training, without its weights."""

    key: str = Field(description="number of the run, student, seed and, of a snapshot, its name")
    label: str
    run: str = Field(description="name of the run's folder")
    student: str
    seed: int
    predicts: bool = Field(description="whether it predicts concepts")
    steerable: bool = Field(description="whether it also mixes them in")
    n_concepts: int
    top_k: int
    positions: int
    parameters: int
    has_labels: bool = Field(description="whether the teacher can say which concepts it should have predicted")


class Entry:
    """One model of the catalog."""

    def __init__(self, info: ModelInfo, run: OpenedRun, stage: StudentStage, folder: Path) -> None:
        self.info, self.run, self.stage, self.folder = info, run, stage, folder
        self.lock = threading.Lock()
        """held while it is loaded"""

    @property
    def whole(self) -> bool:
        """Whether it is the finished student, no snapshot."""
        return self.folder == self.stage.folder / "model"


class Catalog:
    """All finished students of some runs and their snapshots; for use by several threads.

    Args:
        folders: of the runs.

    Attributes:
        examples: starts of the first run's held-out text.

    Raises:
        CocomixError: a folder is no run, or none has a finished student.
    """

    def __init__(self, folders: Sequence[Path]) -> None:
        self.runs = [OpenedRun(folder, number) for number, folder in enumerate(folders)]
        self.entries = {entry.info.key: entry for run in self.runs for entry in _entries(run, len(folders) > 1)}
        if not self.entries:
            given = ", ".join(str(folder) for folder in folders)
            raise CocomixError(f"no student of {given} is finished; run `cocomix demo --run {folders[0]}` first")
        self.examples = self.runs[0].examples()
        self._open: OrderedDict[str, Instrument] = OrderedDict()
        self._lock = threading.Lock()

    def models(self) -> list[ModelInfo]:
        """What there is, those that predict concepts first."""
        return sorted((entry.info for entry in self.entries.values()), key=lambda info: not info.predicts)

    def entry(self, key: str) -> Entry:
        """The model called `key`.

        Raises:
            NotThere: there is none.
        """
        if key not in self.entries:
            raise NotThere(f"there is no model {key!r}; choose one that /api/models lists, such as {next(iter(self))}")
        return self.entries[key]

    def open(self, key: str) -> Instrument:
        """The model called `key`, loaded.

        Raises:
            NotThere: there is none.
            CocomixError: it cannot be loaded.
        """
        entry = self.entry(key)
        with entry.lock:
            with self._lock:
                if key in self._open:
                    self._open.move_to_end(key)
                    return self._open[key]
            opened = Instrument(entry.run, entry.stage, entry.folder, predicts=entry.info.predicts)
            with self._lock:
                self._open[key] = opened
                if len(self._open) > KEPT:
                    self._open.popitem(last=False)
            return opened

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)


def _entries(run: OpenedRun, several: bool) -> Iterator[Entry]:
    for stage in run.run.students:
        if not stage.done():
            continue
        name = f"{run.name}: {stage.student}" if several else stage.student
        key, label = f"{run.number}/{stage.student}/{stage.seed}", f"{name}, seed {stage.seed}"
        yield _entry(run, stage, stage.folder / "model", key, label)
        for snapshot in snapshots_of(stage):
            folder = stage.folder / "snapshots" / snapshot
            yield _entry(run, stage, folder, f"{key}/{snapshot}", f"{label}, step {step_of(snapshot):,}")


def _entry(run: OpenedRun, stage: StudentStage, folder: Path, key: str, label: str) -> Entry:
    config: Any = model_config(folder, stage.redo_hint)
    predicts = isinstance(config, CoCoMixConfig) and PREDICTORS[config.channel] is ConceptPredictor
    info = ModelInfo(
        key=key,
        label=label,
        run=run.name,
        student=stage.student,
        seed=stage.seed,
        predicts=predicts,
        steerable=predicts and MIXERS[config.mixer].uses_vector,
        n_concepts=config.num_concepts if predicts else 0,
        top_k=config.concept_top_k if predicts else 0,
        positions=config.max_position_embeddings,
        parameters=stage.figures["parameters"],
        has_labels=predicts and run.labelled(stage),
    )
    return Entry(info, run, stage, folder)
