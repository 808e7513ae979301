"""Runs and students that are open in the explorer. Everything here may be used by several threads.

- `NameStore`: names of one set of concepts, read from the run's files and edited there.
- `RunSession`: one run, with the teacher and SAE that all its students share, loaded when first needed.
- `ModelSession`: one loaded student and everything the page can do with it.

A model is used under its lock, because hooks sit on the model and not on the request.
"""

import math
import threading
import time
from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedModel

from cocomix.analysis.channel import ChannelReading, read_channel
from cocomix.analysis.concept_index import ConceptIndex, Listing
from cocomix.analysis.dashboards import Dashboard, Dashboards, mixes
from cocomix.analysis.inspect import Reading, check_length, read_text
from cocomix.analysis.naming import (
    EDITED,
    FOUND,
    ConceptName,
    FoundNames,
    Names,
    edit_name,
    read_names,
    with_edits,
    write_found,
)
from cocomix.data.byte_counts import document_bytes
from cocomix.data.byte_offsets import ByteOffsets
from cocomix.data.special_tokens import SpecialTokens
from cocomix.evaluation.perplexity import window_subset
from cocomix.explorer.paired_generation import CachedModel, StreamingJudge, for_streaming, generate_pair
from cocomix.explorer.schemas import NotFound, Preset, PresetsResponse, StreamEvent
from cocomix.labels.attribution import ConceptLabels
from cocomix.model.interventions import Setting, steered
from cocomix.model.loading import load_causal_lm
from cocomix.pipeline.concept_stages import (
    INDEX_SPLIT,
    find_names,
    preset_strength,
    print_unkept,
    student_output_scores,
    student_statistics,
)
from cocomix.pipeline.sae_stage import SaeStage
from cocomix.pipeline.student_stages import StudentStage
from cocomix.pipeline.trained import existing_run, has_teacher_labels, labels_of
from cocomix.sae.sae import TopKSAE
from cocomix.steering.study.output_score import OutputScore, most_steerable
from cocomix.utils.distributed import device
from cocomix.utils.errors import CocomixError, tokenizer_errors
from cocomix.utils.files import in_words, sha256

NAME_TOKENS = 250_000
"""Tokens of the training split that concepts are named from, as in `cocomix name`."""
EXAMPLES, EXAMPLE_TOKENS = 3, 48
"""Number of example texts, and the most tokens of each."""
CACHED_LABELS = 16
"""Texts whose teacher labels are kept."""
OUTPUT_SCORE = "output_score"
PRESETS = 5
"""Concepts of the steering gallery."""
NO_CONCEPTS = "this student predicts no concepts; choose one trained with the objective cocomix"

_FileVersion = tuple[int, int] | None


class NameStore:
    """Names of one set of concepts, in the run's folder.

    Args:
        folder: of the run.
        key: checksum of the weights the concepts belong to.
        unkept: found names to use where the folder has none, because it cannot be written.
        file: where `cocomix name` writes found ones.
    """

    def __init__(self, folder: Path, key: str, unkept: FoundNames | None = None, file: str = FOUND) -> None:
        self.folder, self.key, self._file = folder, key, file
        self._unkept = unkept if unkept is not None and unkept.sae == key else None
        self._lock = threading.Lock()
        self._read: tuple[_FileVersion, _FileVersion, Names] | None = None

    def names(self) -> Names:
        """The names on disk now; `cocomix name` may have changed them since the last call.

        Raises:
            CocomixError: a file is damaged.
        """
        with self._lock:
            return self._names()

    def edit(self, concept: int, name: str) -> ConceptName:
        """Set the name of a concept; an empty name removes the edit. Returns the name that then holds.

        Raises:
            CocomixError: a file is damaged, or cannot be written.
        """
        with self._lock:
            try:
                edit_name(self.folder, self.key, concept, name)
            except OSError as error:
                raise CocomixError(f"the name cannot be kept: {in_words(error)}") from error
            return self._names().of(concept)

    def _names(self) -> Names:
        found, edited = _file_version(self.folder / self._file), _file_version(self.folder / EDITED)
        if self._read is None or self._read[0] != found:
            names = read_names(self.folder, self.key, self._file)
            if names.found is None and self._unkept is not None:
                names = with_edits(self.folder, self.key, self._unkept)
            self._read = found, edited, names
        elif self._read[1] != edited:
            self._read = found, edited, with_edits(self.folder, self.key, self._read[2].found)
        return self._read[2]


def _file_version(path: Path) -> _FileVersion:
    """Inode and modification time. Files of a run are replaced, never written in place."""
    try:
        stat = path.stat()
    except FileNotFoundError:
        return None
    return stat.st_ino, stat.st_mtime_ns


class RunSession:
    """One run.

    Args:
        folder: as the user gave it; command lines on the page name it so.
        number: its index among the opened runs.

    Attributes:
        lock: held while the teacher runs.
        found_names: names that were found now, for a folder in which they could not be kept.

    Raises:
        CocomixError: there is no run.
    """

    def __init__(self, folder: Path, number: int) -> None:
        self.folder, self.number = folder, number
        self.name = folder.resolve().name
        self.run = existing_run(folder)
        self.lock = threading.RLock()
        self.found_names: dict[str, FoundNames] = {}
        self._name_stores: dict[str, NameStore] = {}
        self._saes: dict[int, TopKSAE] = {}
        self._labels: dict[tuple[str, tuple[int, ...]], ConceptLabels | None] = {}

    @cached_property
    def has_teacher(self) -> bool:
        """Whether the run has its teacher, which judges generated text."""
        return self.run.teacher.done()

    @cached_property
    def has_sae(self) -> bool:
        """Whether the run has its teacher and the teacher's SAE."""
        return self.has_teacher and self.run.sae.done()

    def name_concepts(self, tokens: int = NAME_TOKENS) -> None:
        """Find names for the concepts of each layer's SAE if none are kept; they are kept if the run can be written."""
        for layer in self.run.sae_layers_read if self.has_sae else ():
            sae = self.run.sae.of_layer(layer)
            if read_names(self.folder, sae.checksum(), sae.names_file).found is not None:
                continue
            found = find_names(self.run, tokens=tokens, layer=layer)
            self.found_names[found.sae] = found
            try:
                write_found(self.folder, found, sae.names_file)
            except OSError as error:
                print_unkept("the names of concepts", error)

    def load(self) -> None:
        """Load teacher and SAE now, so that no request has to wait for them."""
        with self.lock:
            _ = self._teacher
            for layer in self.run.sae_layers_read:
                _ = self.sae(self.run.sae.of_layer(layer))

    def teacher(self) -> PreTrainedModel:
        """The teacher; run it under `lock`."""
        with self.lock:
            return self._teacher

    def sae(self, stage: SaeStage) -> TopKSAE:
        """The teacher's SAE of the layer of `stage`."""
        with self.lock:
            if stage.layer not in self._saes:
                self._saes[stage.layer] = stage.model()
            return self._saes[stage.layer]

    @cached_property
    def _teacher(self) -> PreTrainedModel:
        return self.run.teacher.model()

    @cached_property
    def streaming_teacher(self) -> PreTrainedModel:
        """The teacher as a judge of text while it is written; run it under `lock`."""
        with self.lock:  # no hooks of a reader are copied
            return for_streaming(self._teacher)

    def can_label(self, stage: StudentStage) -> bool:
        """Whether the teacher can label the concepts that a student should have predicted."""
        return stage.uses_sae_concepts and has_teacher_labels(stage)

    def labels(self, stage: StudentStage, ids: list[int]) -> ConceptLabels | None:
        """The teacher's labels of a text, `[1, seq, K_attr]`; only for a student with `can_label`.

        The labels of the last few texts are cached: a text is read again for every concept that is chosen in it.
        """
        key = stage.name, tuple(ids)
        with self.lock:
            if key not in self._labels:
                self._labels[key] = labels_of(stage, ids, self._teacher, self.sae(stage.sae))
            labels = self._labels[key] = self._labels.pop(key)  # moves it to the end, as the most recent
            if len(self._labels) > CACHED_LABELS:
                del self._labels[next(iter(self._labels))]
            return labels

    def name_store(self, stage: StudentStage) -> NameStore:
        """Names of a student's concepts; all students that learn the SAE's concepts share them."""
        with self.lock:
            shared = stage.uses_sae_concepts and self.run.sae.done()
            owner = stage.sae.names_file if shared else stage.name
            if owner not in self._name_stores:
                weights = sorted((stage.folder / "model").glob("*.safetensors"))
                key = stage.sae.checksum() if shared else sha256(*weights)
                self._name_stores[owner] = NameStore(self.folder, key, self.found_names.get(key), stage.sae.names_file)
            return self._name_stores[owner]

    def examples(self) -> list[str]:
        """Beginnings of held-out windows, spread over the validation split and cut after a whole word."""
        shards, tokenizer = self.run.tokens.shards("val"), self.run.tokens.tokenizer()
        seq_len = self.run.config.seq_len
        chosen = window_subset(shards.n_windows(seq_len), EXAMPLES)
        length = min(EXAMPLE_TOKENS, seq_len // 2)  # leaves room to continue the text
        begins = [_longest_text(ids[:length].tolist(), shards.special) for ids in shards.windows(chosen, seq_len)]
        texts = [str(tokenizer.decode(ids)).strip() for ids in begins]
        return [text.rsplit(maxsplit=1)[0] if text else text for text in texts]


def _longest_text(ids: list[int], special: SpecialTokens) -> list[int]:
    """The longest part of `ids` between special tokens; all of it where their spelling is encoded as them again."""
    if not special.text_is_text:
        return ids
    ends = [-1, *(place for place, token in enumerate(ids) if token in (special.bos_id, special.eos_id)), len(ids)]
    return max((ids[start + 1 : end] for start, end in pairwise(ends)), key=len)


class ModelSession:
    """A loaded student with its names and its concept index, and its run's teacher.

    Args:
        run, stage: the student's.
        folder: of the model: the finished one or a snapshot.
        predicts_concepts: whether the student does.

    Attributes:
        model: the student, in evaluation mode.
        lock: held while it runs.

    Raises:
        CocomixError: it cannot be loaded.
    """

    def __init__(self, run: RunSession, stage: StudentStage, folder: Path, *, predicts_concepts: bool) -> None:
        self.run, self.stage, self.folder, self.predicts_concepts = run, stage, folder, predicts_concepts
        model = load_causal_lm(folder, f"the student {stage.student}", stage.redo_hint)
        self.model: Any = model.to(device())  # pyright: ignore[reportArgumentType]
        self.tokenizer, self.special = stage.tokens.tokenizer(), stage.tokens.special
        self.lock = threading.RLock()
        self._concept_list: tuple[Names, ConceptIndex] | None = None

    @property
    def n_concepts(self) -> int:
        """C; 0 if it predicts none."""
        return self.model.config.num_concepts if self.predicts_concepts else 0

    def encode(self, text: str) -> list[int]:
        """Token ids of a text.

        Raises:
            CocomixError: it has no words, or more tokens than the student has positions.
        """
        with self.lock, tokenizer_errors("of this run"):
            ids = self.special.prompt(self.tokenizer, text) if text.strip() else []
        check_length(ids, self.model.config.max_position_embeddings)
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids."""
        return str(self.tokenizer.decode(list(ids)))

    def read(self, text: str, *, concept: int | None, top: int) -> Reading:
        """Concepts, losses and next-token odds at each token of a text; see `cocomix.analysis.inspect`.

        Raises:
            CocomixError: as `encode`, or no such concept.
        """
        ids = self.encode(text)
        has_labels = self.predicts_concepts and self.run.can_label(self.stage)
        labels = self.run.labels(self.stage, ids) if has_labels else None
        names = self.name_store.names() if self.predicts_concepts else Names(None, {})
        with self.lock:
            return read_text(self.model, ids, self.decode, top=top, concept=concept, labels=labels, name=names.name)

    def read_channel(self, text: str, *, at: int, top: int) -> ChannelReading:
        """What came through the channel of one token of a text; see `cocomix.analysis.channel`.

        Raises:
            CocomixError: as `encode`, the student mixes no vector in, or nothing predicts that token.
        """
        ids = self.encode(text)
        names = self.name_store.names() if self.predicts_concepts else Names(None, {})
        with self.lock:
            return read_channel(self.model, ids, at, top=top, name=names.name)

    def bits_per_byte(self, text: str, reading: Reading) -> float | None:
        """Loss of a text behind its first token over the bytes of these tokens; None if they stand for none."""
        ids = [token.id for token in reading.tokens]
        before = int(ids[:1] == [self.special.bos_id])
        sizes = document_bytes(self._offsets, text, np.array(ids[before:], dtype=np.int64))
        size = int(sizes[1 - before :].sum())
        nats = sum(token.loss for token in reading.tokens if token.loss is not None)
        return nats / (math.log(2) * size) if size else None

    @cached_property
    def _offsets(self) -> ByteOffsets:
        return ByteOffsets(self.tokenizer)

    @cached_property
    def name_store(self) -> NameStore:
        """Names of its concepts.

        Raises:
            CocomixError: it has no concepts.
        """
        if not self.predicts_concepts:
            raise CocomixError(NO_CONCEPTS)
        return self.run.name_store(self.stage)

    def rename(self, concept: int, name: str) -> ConceptName:
        """Set the name of a concept; an empty name removes the edit.

        Raises:
            NotFound: it has no such concept.
        """
        names = self.name_store
        self._check_concept(concept)
        return names.edit(concept, name)

    def list_concepts(self, *, q: str, sort: str, offset: int, limit: int) -> Listing:
        """Its concepts, searched and sorted; see `cocomix.analysis.concept_index`."""
        names = self.name_store.names()
        with self.lock:
            if self._concept_list is None or self._concept_list[0] is not names:
                self._concept_list = names, ConceptIndex(self._dashboards.statistics, names)
            return self._concept_list[1].listing(q=q, sort=sort, offset=offset, limit=limit)

    def dashboard(self, concept: int) -> Dashboard:
        """Everything known about a concept.

        Raises:
            NotFound: it has no such concept.
        """
        names = self.name_store.names()
        self._check_concept(concept)
        with self.lock:
            return self._dashboards.of(concept, names)

    def build_index(self) -> None:
        """Make statistics and output scores of its concepts if there are none; else the first request would wait."""
        with self.lock:
            _ = self._dashboards, self._output_scores

    def presets(self) -> PresetsResponse:
        """The concepts with the best output scores; see `cocomix.steering.study.output_score`."""
        names = self.name_store.names()
        with self.lock:
            scores = self._output_scores
        chosen = [
            Preset(
                name=names.name(score.concept),
                words=[self.decode([token]) for token in score.tokens],
                strength=preset_strength(self.stage),
                **score.model_dump(include={"concept", "score", "steered", "unsteered"}),
            )
            for score in most_steerable(scores, PRESETS, self.decode)
        ]
        return PresetsResponse(presets=chosen, scored=len(scores))

    def ranked(self, by: str) -> list[int]:
        """All its concepts in the order `by`: one of the concept list's, or `output_score`; unscored ones are left out.

        Raises:
            CocomixError: no such order.
        """
        if by != OUTPUT_SCORE:
            return [row.concept for row in self.list_concepts(q="", sort=by, offset=0, limit=self.n_concepts).concepts]
        with self.lock:
            scores = self._output_scores
        return [score.concept for score in sorted(scores, key=lambda score: (-score.score, score.concept))]

    @property
    def dashboards(self) -> Dashboards:
        """What makes its dashboards; hold `lock` while it is used."""
        return self._dashboards

    @cached_property
    def _output_scores(self) -> list[OutputScore]:
        if not mixes(self.model):
            return []
        statistics, names = self._dashboards.statistics, self.name_store.names()
        return student_output_scores(self.stage, self.model, statistics, names, snapshot=self._snapshot)

    @property
    def _snapshot(self) -> str | None:
        return None if self.folder.name == "model" else self.folder.name

    @cached_property
    def _dashboards(self) -> Dashboards:
        statistics = student_statistics(self.stage, self.model, snapshot=self._snapshot)
        return Dashboards(statistics, self.model, self.stage.tokens.shards(INDEX_SPLIT), self.decode)

    def generate_pair(
        self, prompt: str, setting: Setting, *, tokens: int, temperature: float, seed: int
    ) -> Iterator[StreamEvent]:
        """A continuation without steering beside one with it; see `cocomix.explorer.paired_generation`.

        Generates at most as many tokens as the model has positions left. Everything is checked before this returns.

        Raises:
            CocomixError: as `encode`, no positions left, or concepts that it does not have or does not mix in.
        """
        ids = self.encode(prompt)
        positions = self.model.config.max_position_embeddings
        if len(ids) == positions:
            raise CocomixError(f"the prompt fills all {positions} positions of the model; shorten it")
        with self.lock, steered(self.model, [{}, setting]):
            pass
        return generate_pair(
            self._writer,
            self.lock,
            self._judge(list(setting)),
            ids,
            setting,
            self.decode,
            self._token_bytes(),
            tokens=min(tokens, positions - len(ids)),
            temperature=temperature,
            seed=seed,
            clock=time.perf_counter,
        )

    @cached_property
    def _writer(self) -> Any:
        with self.lock:  # no hooks of a reader are copied
            return for_streaming(self.model)

    def _token_bytes(self) -> list[int]:
        """Bytes of each token of the vocabulary, 0 for special ones."""
        lengths = self._offsets.lengths(self.model.config.vocab_size)
        lengths[[number for number in self.tokenizer.all_special_ids if number < len(lengths)]] = 0
        return lengths.tolist()

    def _judge(self, concepts: Sequence[int]) -> StreamingJudge:
        if not (self.run.has_teacher and self.run.run.teacher.reads_tokens):
            return StreamingJudge("the unsteered student", CachedModel(self._writer, self.lock), [])
        teacher = CachedModel(self.run.streaming_teacher, self.run.lock)
        if not (self.run.has_sae and self.stage.uses_sae_concepts):
            return StreamingJudge("teacher", teacher, [])
        return StreamingJudge("teacher", teacher, concepts, self.run.sae(self.stage.sae), self.stage.sae.layer)

    def _check_concept(self, concept: int) -> None:
        if not 0 <= concept < self.n_concepts:
            raise NotFound(f"there is no concept {concept}; the student's are 0 to {self.n_concepts - 1}")
