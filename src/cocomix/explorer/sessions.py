"""One opened student and all that can be asked of it; for use by several threads."""

import threading
import time
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from cocomix.analysis.dashboards import Dashboard, Dashboards
from cocomix.analysis.inspect import Reading, check_length, read_text
from cocomix.analysis.listing import Catalogue, Listing
from cocomix.analysis.record import ConceptName, Names
from cocomix.explorer.namebook import NameBook
from cocomix.explorer.opened import OpenedRun
from cocomix.explorer.paired_generation import CachedReader, End, Judge, Start, Step, duet
from cocomix.explorer.refusals import NotThere
from cocomix.model.concept_logits import steered
from cocomix.model.loading import load_causal_lm
from cocomix.model.plan import Setting
from cocomix.pipeline.atlas_command import SPLIT, student_atlas
from cocomix.pipeline.student_stages import StudentStage
from cocomix.utils.distributed import device
from cocomix.utils.errors import CocomixError

NO_CONCEPTS = "this student predicts no concepts; choose one trained with the objective cocomix"


class Instrument:
    """A student with its names, its atlas and the run's teacher.

    Args:
        run, stage: whose student it is.
        folder: of the model: the finished one or a snapshot.
        predicts: whether it predicts concepts.

    Raises:
        CocomixError: it cannot be loaded.
    """

    def __init__(self, run: OpenedRun, stage: StudentStage, folder: Path, *, predicts: bool) -> None:
        self.run, self.stage, self.folder, self.predicts = run, stage, folder, predicts
        model = load_causal_lm(folder, f"the student {stage.student}", stage.again)
        self.model: Any = model.to(device())  # pyright: ignore[reportArgumentType]
        self.tokenizer = stage.tokens.tokenizer()
        self.lock = threading.RLock()
        self._listed: tuple[Names, Catalogue] | None = None

    @property
    def n_concepts(self) -> int:
        """C; 0 where it predicts none."""
        return self.model.config.num_concepts if self.predicts else 0

    def encode(self, text: str) -> list[int]:
        """Tokens of a text.

        Raises:
            CocomixError: there is no word in it, or it is longer than the student has positions.
        """
        with self.lock:
            ids = self.tokenizer.encode(text) if text.strip() else []
        check_length(ids, self.model.config.max_position_embeddings)
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Text of tokens."""
        return str(self.tokenizer.decode(list(ids)))

    def read(self, text: str, *, concept: int | None, top: int) -> Reading:
        """What it makes of a text; see `cocomix.analysis.inspect`.

        Raises:
            CocomixError: as `encode`, or no such concept.
        """
        ids = self.encode(text)
        labelled = self.predicts and self.run.labelled(self.stage)
        labels = self.run.labels(self.stage, ids) if labelled else None
        names = self.book.names() if self.predicts else Names(None, {})
        with self.lock:
            return read_text(self.model, ids, self.decode, top=top, concept=concept, labels=labels, name=names.name)

    @cached_property
    def book(self) -> NameBook:
        """Names of its concepts.

        Raises:
            CocomixError: it has no concepts.
        """
        if not self.predicts:
            raise CocomixError(NO_CONCEPTS)
        return self.run.book(self.stage)

    def rename(self, concept: int, name: str) -> ConceptName:
        """Call a concept something else; an empty name takes the edit back.

        Raises:
            NotThere: it has no such concept.
        """
        book = self.book
        self._check(concept)
        return book.edit(concept, name)

    def listing(self, *, q: str, sort: str, offset: int, limit: int) -> Listing:
        """Its concepts, searched and sorted; see `cocomix.analysis.concept_index`."""
        names = self.book.names()
        with self.lock:
            if self._listed is None or self._listed[0] is not names:
                self._listed = names, Catalogue(self._dashboards.atlas, names)
            return self._listed[1].listing(q=q, sort=sort, offset=offset, limit=limit)

    def dashboard(self, concept: int) -> Dashboard:
        """All that is known of a concept.

        Raises:
            NotThere: it has no such concept.
        """
        names = self.book.names()
        self._check(concept)
        with self.lock:
            return self._dashboards.of(concept, names)

    def look(self) -> None:
        """Make its atlas, if there is none yet; whoever asks for a concept first would wait for it."""
        with self.lock:
            _ = self._dashboards

    @cached_property
    def _dashboards(self) -> Dashboards:
        snapshot = None if self.folder.name == "model" else self.folder.name
        atlas = student_atlas(self.stage, self.model, snapshot=snapshot)
        return Dashboards(atlas, self.model, self.stage.tokens.shards(SPLIT), self.decode)

    def duet(
        self, prompt: str, setting: Setting, *, tokens: int, temperature: float, seed: int
    ) -> Iterator[Start | Step | End]:
        """A continuation without steering beside one with it; see `cocomix.explorer.paired_generation`.

        As many tokens as there is room for. Everything is checked before this returns.

        Raises:
            CocomixError: as `encode`, no room, or concepts that it does not have or mix in.
        """
        ids = self.encode(prompt)
        positions = self.model.config.max_position_embeddings
        if len(ids) == positions:
            raise CocomixError(f"the prompt fills all {positions} positions of the model; shorten it")
        with self.lock, steered(self.model, [{}, setting]):
            pass
        return duet(
            self.model,
            self.lock,
            self._judge(list(setting)),
            ids,
            setting,
            self.decode,
            tokens=min(tokens, positions - len(ids)),
            temperature=temperature,
            seed=seed,
            clock=time.perf_counter,
        )

    def _judge(self, concepts: Sequence[int]) -> Judge:
        if not self.run.has_teacher:
            return Judge("the unsteered student", CachedReader(self.model, self.lock), [])
        reader = CachedReader(self.run.teacher(), self.run.lock)
        if not (self.run.has_sae and self.stage.variant.recall):
            return Judge("teacher", reader, [])
        return Judge("teacher", reader, concepts, self.run.sae(), self.stage.sae.config.layer)

    def _check(self, concept: int) -> None:
        if not 0 <= concept < self.n_concepts:
            raise NotThere(f"there is no concept {concept}; the student's are 0 to {self.n_concepts - 1}")
