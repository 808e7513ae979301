"""The models that the explorer can open.

`ModelCatalog` lists every finished student of the given runs and its snapshots. `ModelCatalog.open` loads one as a
`ModelSession` (see `sessions.py`) when it is first needed, and keeps the most recently used ones in memory.
"""

import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from cocomix.explorer.schemas import ModelInfo, NotFound
from cocomix.explorer.sessions import ModelSession, RunSession
from cocomix.model.configuration_cocomix import CoCoMixConfig
from cocomix.model.loading import model_config
from cocomix.model.mixers import MIXERS
from cocomix.model.predictors import PREDICTORS, ConceptPredictor
from cocomix.pipeline.evaluation_stages import snapshots_of, step_of
from cocomix.pipeline.student_stages import StudentStage
from cocomix.utils.advice import command_line
from cocomix.utils.errors import CocomixError

MAX_LOADED = 6
"""Students in memory at a time."""


class CatalogEntry:
    """One model of the catalog.

    Attributes:
        info: what the page shows about it.
        run: the run it belongs to.
        stage: the stage that trained it.
        folder: of its weights.
        lock: held while it is loaded.
    """

    def __init__(self, info: ModelInfo, run: RunSession, stage: StudentStage, folder: Path) -> None:
        self.info, self.run, self.stage, self.folder = info, run, stage, folder
        self.lock = threading.Lock()

    @property
    def is_finished(self) -> bool:
        """Whether it is the finished student, not a snapshot."""
        return self.folder == self.stage.folder / "model"


class ModelCatalog:
    """All finished students of some runs and their snapshots. Thread-safe.

    Args:
        folders: of the runs.

    Attributes:
        runs: the opened runs.
        entries: every model by key.
        examples: beginnings of the first run's held-out text.

    Raises:
        CocomixError: a folder is not a run, or no run has a finished student.
    """

    def __init__(self, folders: Sequence[Path]) -> None:
        self.runs = [RunSession(folder, number) for number, folder in enumerate(folders)]
        self.entries = {entry.info.key: entry for run in self.runs for entry in _entries(run, len(folders) > 1)}
        if not self.entries:
            listed = ", ".join(str(folder) for folder in folders)
            raise CocomixError(
                f"no student of {listed} is finished; run {command_line('cocomix demo', folders[0])} first"
            )
        self.examples = self.runs[0].examples()
        self._sessions: OrderedDict[str, ModelSession] = OrderedDict()
        self._lock = threading.Lock()

    def models(self) -> list[ModelInfo]:
        """All models, those that predict concepts first."""
        return sorted((entry.info for entry in self.entries.values()), key=lambda info: not info.predicts_concepts)

    def entry(self, key: str) -> CatalogEntry:
        """The model with this key, without loading it.

        Raises:
            NotFound: there is none.
        """
        if key not in self.entries:
            raise NotFound(
                f"there is no model {key!r}; choose one that /api/models lists, such as {next(iter(self.entries))}"
            )
        return self.entries[key]

    def open(self, key: str) -> ModelSession:
        """The model with this key, loaded.

        Raises:
            NotFound: there is none.
            CocomixError: it cannot be loaded.
        """
        entry = self.entry(key)
        with entry.lock:
            with self._lock:
                if key in self._sessions:
                    self._sessions.move_to_end(key)
                    return self._sessions[key]
            session = ModelSession(entry.run, entry.stage, entry.folder, predicts_concepts=entry.info.predicts_concepts)
            with self._lock:
                self._sessions[key] = session
                if len(self._sessions) > MAX_LOADED:
                    self._sessions.popitem(last=False)
            return session


def _entries(run: RunSession, several_runs: bool) -> Iterator[CatalogEntry]:
    for stage in run.run.students:
        if not stage.done():
            continue
        name = f"{run.name}: {stage.student}" if several_runs else stage.student
        key, label = f"{run.number}/{stage.student}/{stage.seed}", f"{name}, seed {stage.seed}"
        yield _entry(run, stage, stage.folder / "model", key, label)
        for snapshot in snapshots_of(stage):
            folder = stage.folder / "snapshots" / snapshot
            yield _entry(run, stage, folder, f"{key}/{snapshot}", f"{label}, step {step_of(snapshot):,}")


def _entry(run: RunSession, stage: StudentStage, folder: Path, key: str, label: str) -> CatalogEntry:
    config: Any = model_config(folder, stage.redo_hint)
    predicts_concepts = isinstance(config, CoCoMixConfig) and PREDICTORS[config.channel] is ConceptPredictor
    info = ModelInfo(
        key=key,
        label=label,
        run=run.name,
        student=stage.student,
        seed=stage.seed,
        predicts_concepts=predicts_concepts,
        steerable=predicts_concepts and MIXERS[config.mixer].uses_vector,
        n_concepts=config.num_concepts if predicts_concepts else 0,
        top_k=config.concept_top_k if predicts_concepts else 0,
        positions=config.max_position_embeddings,
        parameters=stage.figures["parameters"],
        has_labels=predicts_concepts and run.can_label(stage),
    )
    return CatalogEntry(info, run, stage, folder)
