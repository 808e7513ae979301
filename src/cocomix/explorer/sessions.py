"""One opened student and all that can be asked of it; for use by several threads."""

import threading
import time
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from cocomix.analysis.concept_index import ConceptIndex, Listing
from cocomix.analysis.dashboards import Dashboard, Dashboards
from cocomix.analysis.inspect import Reading, check_length, read_text
from cocomix.analysis.naming import EDITED, FOUND, ConceptName, Names, edit_name, read_names, with_edits
from cocomix.evaluation.perplexity import window_subset
from cocomix.explorer.paired_generation import CachedReader, End, Judge, Start, Step, duet
from cocomix.explorer.security import NotThere
from cocomix.labels.attribution import ConceptLabels
from cocomix.model.interventions import Setting, steered
from cocomix.model.loading import load_causal_lm
from cocomix.pipeline.concept_stages import INDEX_SPLIT, student_statistics
from cocomix.pipeline.student_stages import StudentStage
from cocomix.pipeline.trained import existing_run, has_teacher_labels, labels_of
from cocomix.sae.sae import TopKSAE
from cocomix.utils.distributed import device
from cocomix.utils.errors import CocomixError
from cocomix.utils.files import sha256

# Names of concepts while they are being looked at: read once, read again when the files change, edited in place.

_Stamp = tuple[int, int] | None


class NameBook:
    """Names kept in a run for one set of concepts; for use by several threads.

    Args:
        folder: of the run.
        key: checksum of the weights the concepts belong to.
    """

    def __init__(self, folder: Path, key: str) -> None:
        self.folder, self.key = folder, key
        self._lock = threading.Lock()
        self._read: tuple[_Stamp, _Stamp, Names] | None = None

    def names(self) -> Names:
        """As they are on disk now: `cocomix name` may have been run meanwhile.

        Raises:
            CocomixError: a file is damaged.
        """
        with self._lock:
            return self._names()

    def edit(self, concept: int, name: str) -> ConceptName:
        """Call `concept` `name`; an empty one takes the edit back. Returns what is known of it then.

        Raises:
            CocomixError: a file is damaged.
        """
        with self._lock:
            edit_name(self.folder, self.key, concept, name)
            return self._names().of(concept)

    def _names(self) -> Names:
        found, edited = _stamp(self.folder / FOUND), _stamp(self.folder / EDITED)
        if self._read is None or self._read[0] != found:
            self._read = found, edited, read_names(self.folder, self.key)
        elif self._read[1] != edited:
            self._read = found, edited, with_edits(self.folder, self.key, self._read[2].found)
        return self._read[2]


def _stamp(path: Path) -> _Stamp:
    """Inode and time of change; files here are replaced, never written over."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_ino, found.st_mtime_ns


# A run that is being explored: its teacher and autoencoder, loaded when first needed and shared by its students.

EXAMPLES, EXAMPLE_TOKENS = 3, 48
"""Starts of held-out text that are offered, and tokens of each at most."""
KEPT_LABELS = 16


class OpenedRun:
    """One run.

    Args:
        folder: as the user gave it; command lines name it so.
        number: its place among the runs explored.

    Attributes:
        lock: held by whoever runs the teacher.

    Raises:
        CocomixError: there is no run.
    """

    def __init__(self, folder: Path, number: int) -> None:
        self.folder, self.number = folder, number
        self.name = folder.resolve().name
        self.run = existing_run(folder)
        self.lock = threading.RLock()
        self._books: dict[str, NameBook] = {}
        self._labels: dict[tuple[str, tuple[int, ...]], ConceptLabels | None] = {}

    @cached_property
    def has_teacher(self) -> bool:
        """Whether the teacher is there, to judge text."""
        return self.run.teacher.done()

    @cached_property
    def has_sae(self) -> bool:
        """Whether its autoencoder is there, too."""
        return self.has_teacher and self.run.sae.done()

    def load(self) -> None:
        """Load teacher and autoencoder now, so that nobody waits for them later."""
        with self.lock:
            _ = self._teacher, self._sae

    def teacher(self) -> PreTrainedModel:
        """The teacher; run it under `lock`."""
        with self.lock:
            return self._teacher

    def sae(self) -> TopKSAE:
        """The teacher's autoencoder."""
        with self.lock:
            return self._sae

    @cached_property
    def _teacher(self) -> PreTrainedModel:
        return self.run.teacher.model()

    @cached_property
    def _sae(self) -> TopKSAE:
        return self.run.sae.model()

    def labelled(self, stage: StudentStage) -> bool:
        """Whether the teacher can say which concepts a student should have predicted."""
        return stage.variant.recall and has_teacher_labels(stage)

    def labels(self, stage: StudentStage, ids: list[int]) -> ConceptLabels | None:
        """The teacher's labels of a text, `[1, seq, K_attr]`; only of a student that is `labelled`.

        Those of the last few texts are kept: one text is read again for every concept that is chosen in it.
        """
        asked = stage.name, tuple(ids)
        with self.lock:
            if asked not in self._labels:
                self._labels[asked] = labels_of(stage, ids, self._teacher, self._sae)
            labels = self._labels[asked] = self._labels.pop(asked)  # now the youngest
            if len(self._labels) > KEPT_LABELS:
                del self._labels[next(iter(self._labels))]
            return labels

    def book(self, stage: StudentStage) -> NameBook:
        """Names of a student's concepts; all students that learn the autoencoder's share them."""
        with self.lock:
            shared = stage.variant.recall and self.run.sae.done()
            owner = "sae" if shared else stage.name
            if owner not in self._books:
                own = sorted((stage.folder / "model").glob("*.safetensors"))
                self._books[owner] = NameBook(self.folder, self.run.sae.checksum() if shared else sha256(*own))
            return self._books[owner]

    def examples(self) -> list[str]:
        """Starts of held-out windows, spread over the validation split, up to the last whole word."""
        shards, tokenizer = self.run.tokens.shards("val"), self.run.tokens.tokenizer()
        seq_len = self.run.config.seq_len
        chosen = window_subset(shards.n_windows(seq_len), EXAMPLES)
        length = min(EXAMPLE_TOKENS, seq_len // 2)  # so that there is room to go on writing
        texts = [str(tokenizer.decode(ids[:length].tolist())).strip() for ids in shards.windows(chosen, seq_len)]
        return [text.rsplit(maxsplit=1)[0] if text else text for text in texts]


NO_CONCEPTS = "this student predicts no concepts; choose one trained with the objective cocomix"


class Instrument:
    """A student with its names, the statistics of its concepts and the run's teacher.

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
        self._listed: tuple[Names, ConceptIndex] | None = None

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
                self._listed = names, ConceptIndex(self._dashboards.statistics, names)
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
        """Gather the statistics of its concepts, unless they are kept; else the first request would wait for them."""
        with self.lock:
            _ = self._dashboards

    @cached_property
    def _dashboards(self) -> Dashboards:
        snapshot = None if self.folder.name == "model" else self.folder.name
        statistics = student_statistics(self.stage, self.model, snapshot=snapshot)
        return Dashboards(statistics, self.model, self.stage.tokens.shards(INDEX_SPLIT), self.decode)

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
