"""A run that is being explored: its teacher and autoencoder, loaded when first needed and shared by its students."""

import threading
from functools import cached_property
from pathlib import Path

from transformers import PreTrainedModel

from cocomix.evaluation.perplexity import window_subset
from cocomix.explorer.namebook import NameBook
from cocomix.labels.labels import ConceptLabels
from cocomix.pipeline.inspect_command import has_teacher_labels, labels_of
from cocomix.pipeline.student_stages import StudentStage
from cocomix.pipeline.trained import existing_run
from cocomix.sae.sae import TopKSAE
from cocomix.utils.files import sha256

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
