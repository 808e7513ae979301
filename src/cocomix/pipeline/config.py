"""The configuration of a run, one section a stage.

Choices worth knowing: unknown keys are errors; what one section must know of another (a label set's name, a
concept layer inside the stack) is checked here, before anything runs; a student that names no training
section of its own shares `students_train`, so that all of them see the same tokens in the same order.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from cocomix.data.sources import SOURCES
from cocomix.data.special_tokens import Bos
from cocomix.labels.attribution import RULES, SIGNS, check_sign
from cocomix.model.build import ModelShape
from cocomix.model.loading import ATTENTION, check_attention
from cocomix.objectives.base import StudentSettings
from cocomix.objectives.cocomix import ConceptConfig
from cocomix.objectives.registry import StudentConfig
from cocomix.train.config import TrainConfig
from cocomix.utils.env import Precision
from cocomix.utils.settings import Section, read_yaml, validate

CONFIG = "config.yaml"
"""The settings' file in a run's folder; see `cocomix.utils.settings.SettingsFile`."""


class MixPartConfig(Section):
    """One source of a mixture."""

    source: str = Field(description=f"text source: {SOURCES.names}")
    weight: float = Field(
        default=1.0, gt=0, allow_inf_nan=False, description="its share of the characters, relative to the others'"
    )
    options: dict[str, Any] = Field(default_factory=dict, description="options of the source, e.g. {path: my/texts}")
    name: str | None = Field(
        default=None,
        pattern=r"^[\w.-]+$",
        description="what ids and the record call it; needed where two have the same source; empty: the source's name",
    )


class CorpusConfig(Section):
    """Where the text comes from and how whole documents are held out."""

    source: str = Field(default="sotu", description=f"text source: {SOURCES.names}")
    options: dict[str, Any] = Field(default_factory=dict, description="options of the source, e.g. {path: my/texts}")
    mix: tuple[MixPartConfig, ...] = Field(
        default=(),
        description="several sources in place of `source` and `options`, each with a share of the characters",
    )
    mix_until: Literal["first", "all"] = Field(
        default="first",
        description="a mixture ends with the first of its sources that has no more text, so that the shares hold, or"
        " when all of them are read",
    )
    val_fraction: float = Field(default=0.05, gt=0, lt=0.5, description="share of documents held out for validation")
    test_fraction: float = Field(
        default=0.05, gt=0, lt=0.5, description="share of documents held out for the final test"
    )
    every: int = Field(default=1, ge=1, description="keep every n-th document (a quick look at a large corpus)")
    file_bytes: int = Field(
        default=32_000_000, ge=1, description="size of a corpus file, the unit of parallel tokenising and of its memory"
    )

    @model_validator(mode="after")
    def _mix_fits(self) -> Self:
        names = [part.name or part.source for part in self.mix]
        if self.mix and self.options:
            raise ValueError("give either `source` and `options`, or `mix`, whose sources have options of their own")
        if len(set(names)) < len(names):
            raise ValueError(
                f"two sources of `mix` are called {next(n for n in names if names.count(n) > 1)!r}; give names"
            )
        return self


class TokensConfig(Section):
    """Tokenizer and token shards."""

    tokenizer: str | None = Field(
        default=None,
        description="folder, tokenizer.json or hub id of a tokenizer; empty: train a byte-level BPE on the train split",
    )
    vocab_size: int = Field(default=4096, ge=257, description="vocabulary of the trained tokenizer")
    train_chars: int | None = Field(
        default=None, ge=1, description="characters, about, the tokenizer is trained on, evenly spread; empty: all"
    )
    bos: Bos = Field(
        default="auto",
        description="whether every document, window and prompt begins with the tokenizer's beginning-of-text token"
        " (with its end-of-text token, if it has no other); auto: as the tokenizer does by default, and without one for"
        " a tokenizer trained here",
    )
    shard_tokens: int = Field(default=1_000_000, ge=1, description="tokens per shard file")
    workers: int | None = Field(
        default=None, ge=1, description="processes on each machine; tokens do not depend on it; empty: one a core"
    )


def _check_source(section: "TeacherConfig | SaeConfig") -> None:
    if section.pretrained is None and section.train is None:
        raise ValueError("give either `pretrained` or `train`")
    if section.train is not None and section.train.init_from is not None:
        raise ValueError("`train.init_from` is for students_train; use `pretrained` here")


class TeacherConfig(Section):
    """The concept model: trained here, or loaded."""

    pretrained: str | None = Field(
        default=None,
        description="folder, hub id, GGUF file or `package:NAME` of a causal LM; empty: train `model` here",
    )
    model: ModelShape = Field(default_factory=lambda: ModelShape(width=192, layers=6, heads=6))
    train: TrainConfig | None = Field(default=None, description="its training; needed unless pretrained")
    attention: str = Field(
        default="sdpa",
        description=f"attention implementation that it is run with: {', '.join(ATTENTION)}; families without sdpa run"
        " eager in its place",
    )

    tokenizer: Literal["shared", "own"] = Field(
        default="shared",
        description="shared: it reads the run's tokens, so its tokenizer must be the students'; own (pretrained only):"
        " it reads the text with its own tokenizer, in windows that follow documents, and labels are aligned by the"
        " bytes that have been read",
    )
    seq_len: int | None = Field(
        default=None,
        ge=4,
        description="tokens per window of a concept model with a tokenizer of its own; empty: seq_len of the run",
    )
    bos: Bos = Field(
        default="auto",
        description="as tokens.bos, for a concept model with a tokenizer of its own",
    )

    @field_validator("attention")
    @classmethod
    def _is_known(cls, attention: str) -> str:
        check_attention(attention)
        return attention

    @model_validator(mode="after")
    def _has_a_source(self) -> Self:
        _check_source(self)
        if self.tokenizer == "own" and self.pretrained is None:
            raise ValueError(
                "`tokenizer: own` is for a pretrained concept model; one that is trained here reads the run's tokens"
            )
        if self.tokenizer == "shared" and (self.seq_len is not None or self.bos != "auto"):
            raise ValueError("`seq_len` and `bos` are for `tokenizer: own`; else the run's own settings count")
        return self

    @property
    def shares_tokens(self) -> bool:
        """Whether it reads the students' tokens."""
        return self.tokenizer == "shared"


class SaeConfig(Section):
    """The TopK sparse autoencoder on the teacher's residual stream."""

    pretrained: str | None = Field(
        default=None,
        description="SAE folder or file of a format that cocomix reads, or hub id; empty: train one here",
    )
    layer: int = Field(default=3, ge=0, description="teacher block (0-based) whose output the SAE reads")
    n_latents: int = Field(default=2048, ge=1, description="number of concepts C")
    k: int = Field(
        default=16, ge=1, description="active latents per position K; a loaded SAE that has a K of its own keeps it"
    )
    aux_k: int = Field(default=64, ge=1, description="dead latents used by the auxiliary loss")
    aux_coefficient: float = Field(default=1 / 32, ge=0, description="weight of the auxiliary loss")
    dead_after_tokens: int = Field(
        default=100_000, ge=1, description="a latent silent for this many tokens counts as dead"
    )
    train: TrainConfig | None = Field(default=None, description="its training; needed unless pretrained")

    @model_validator(mode="after")
    def _k_fits(self) -> Self:
        _check_source(self)
        if self.k > self.n_latents:
            raise ValueError(f"k {self.k} is larger than n_latents {self.n_latents}; lower k or add latents")
        return self


class LabelConfig(Section):
    """Concept labels by one rule; several signs share the cost of one attribution pass."""

    rule: str = Field(default="exact", description=f"attribution rule: {RULES.names}")
    signs: tuple[str, ...] = Field(
        default=("helpful",),
        min_length=1,
        description=f"of {', '.join(SIGNS)} (raises the loss, lowers it, either); one label set each",
    )
    k: int = Field(default=4, ge=1, description="labels per position K_attr")
    precision: Precision = Field(default="fp32", description="of the teacher's passes; fp32, bf16 or auto")
    batch_size: int = Field(
        default=16, ge=1, description="windows in every pass of the teacher; last bits may depend on it, so labels do"
    )
    live: bool = Field(
        default=False,
        description="make labels while students train, in every epoch of each, nothing on disk; the same labels."
        " Passes are filled up to batch_size, so let it divide the windows a process trains on in a step",
    )
    scores: bool = Field(
        default=False, description="store each label's score, too, 4 more bytes; training does not read them"
    )

    @field_validator("rule")
    @classmethod
    def _rule_exists(cls, rule: str) -> str:
        RULES.choose(rule)
        return rule

    @field_validator("signs")
    @classmethod
    def _signs_exist(cls, signs: tuple[str, ...]) -> tuple[str, ...]:
        for sign in signs:
            check_sign(sign)
        return signs

    @model_validator(mode="after")
    def _live_has_no_store(self) -> Self:
        if self.live and self.scores:
            raise ValueError("`scores` are for stored labels; live ones keep nothing, so leave one of the two out")
        return self


class EvaluationConfig(Section):
    """How finished students are measured."""

    batch_size: int = Field(default=16, ge=1, description="windows per forward pass")
    windows: int | None = Field(
        default=None, ge=1, description="windows of each held-out split measured, evenly spread; empty: all"
    )
    curve_windows: int = Field(default=64, ge=1, description="validation windows behind each point of a training curve")
    sae_windows: int = Field(default=1024, ge=1, description="validation windows the SAE's quality is measured on")


class RunConfig(Section):
    """A whole run, corpus to report."""

    title: str = Field(default="cocomix run", description="heading of the report")
    seeds: tuple[int, ...] = Field(
        default=(0,), min_length=1, description="seeds of the students (initialisation and data order)"
    )
    seq_len: int = Field(default=256, ge=2, description="tokens per window, everywhere")
    corpus: CorpusConfig = Field(default_factory=CorpusConfig)
    tokens: TokensConfig = Field(default_factory=TokensConfig)
    teacher: TeacherConfig
    sae: SaeConfig
    labels: dict[str, LabelConfig] = Field(default_factory=dict, description="label sets by name")
    students: dict[str, StudentConfig] = Field(min_length=1, description="students by name")
    students_train: TrainConfig = Field(description="training of every student")
    baseline: str = Field(default="ntp", description="student the others are compared with")
    evaluation: EvaluationConfig = Field(default_factory=EvaluationConfig)

    @model_validator(mode="after")
    def _names_exist(self) -> Self:
        for name in (*self.labels, *self.students):
            if not name.replace("-", "").replace("_", "").isalnum():
                raise ValueError(f"the name {name!r} may hold only letters, digits, '-' and '_'")
        for name, student in self.students.items():
            self._check_student(name, student)
        if min(self.seeds) < 0 or len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds {list(self.seeds)} must be different numbers, 0 or more")
        if self.baseline not in self.students:
            raise ValueError(f"baseline {self.baseline!r} is not a student; there are: {', '.join(self.students)}")
        if self.teacher.pretrained is None and self.sae.layer >= self.teacher.model.layers:
            raise ValueError(
                f"sae.layer {self.sae.layer} is outside the teacher's {self.teacher.model.layers} blocks;"
                f" choose 0 to {self.teacher.model.layers - 1}"
            )
        for label_name, label in self.labels.items():
            if label.live and not self.teacher.shares_tokens:
                raise ValueError(
                    f"labels {label_name!r} cannot be live: the concept model reads other tokens than the students; set"
                    f" labels.{label_name}.live=false"
                )
            if self.sae.pretrained is None and label.k > self.sae.k:
                raise ValueError(
                    f"labels {label_name!r} ask for k {label.k} of only {self.sae.k} active latents (sae.k)"
                )
        return self

    def _check_student(self, name: str, student: StudentSettings) -> None:
        labels, sign, mix = student.label_set, student.label_sign, student.mixing
        if not self.teacher.shares_tokens and student.reads & {"teacher", "logits"}:
            raise ValueError(
                f"student {name!r} (objective {student.objective}) learns from the concept model's outputs at each"
                " token, so both need one tokenizer; leave it out, or set teacher.tokenizer=shared and tokens.tokenizer"
                " to the concept model's"
            )
        if labels is not None and labels not in self.labels:
            raise ValueError(f"student {name!r} asks for labels {labels!r}; there are: {', '.join(self.labels)}")
        if sign is not None and (labels is None or sign not in self.labels[labels].signs):
            raise ValueError(f"student {name!r} asks for the sign {sign!r}, which its labels do not have")
        if student.same_size_as is not None:
            other = self.students.get(student.same_size_as)
            if other is None or other.same_size_as is not None:
                raise ValueError(
                    f"student {name!r} matches the parameters of {student.same_size_as!r},"
                    " which is not a student of fixed width in this run"
                )
        if mix is not None and mix.concept_layer >= student.model.layers:
            raise ValueError(
                f"student {name!r}: concept_layer {mix.concept_layer} is outside the stack of"
                f" {student.model.layers} blocks; choose 1 to {student.model.layers - 1}"
            )
        n_latents = student.own_latents or (self.sae.n_latents if self.sae.pretrained is None else None)
        top_k = mix.top_k if isinstance(mix, ConceptConfig) else None
        if n_latents is not None and (top_k or 1) > n_latents:
            raise ValueError(f"student {name!r} keeps {top_k} concepts of only {n_latents}; lower its concept.top_k")


def load_config(path: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Load `path` (YAML), apply overrides such as `sae.k=8`, and validate.

    Raises:
        CocomixError: a missing, malformed or cut file, an unknown key, or a value that does not fit.
    """
    return validate_config(read_yaml(path, overrides), str(path))


def validate_config(raw: dict[str, Any], origin: str) -> RunConfig:
    """Validate a run's plain mapping; `origin` names it in the error."""
    return validate(RunConfig, raw, origin)
