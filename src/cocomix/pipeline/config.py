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
from cocomix.labels.controls import CONTROLS
from cocomix.labels.schedule import label_phases
from cocomix.model.build import ModelShape
from cocomix.model.loading import ATTENTION, check_attention
from cocomix.objectives.base import StudentSettings
from cocomix.objectives.cocomix import ConceptConfig
from cocomix.objectives.registry import StudentConfig
from cocomix.pipeline.pack import with_pack
from cocomix.pipeline.presets import PRESETS, WIDTHS, expanded
from cocomix.sae.kinds import SAE_KINDS
from cocomix.train.config import TrainConfig
from cocomix.train.optimizer import OPTIMIZERS
from cocomix.utils.env import Precision
from cocomix.utils.settings import Section, added, read_yaml, validate

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
    packing: Literal["stream", "best_fit"] = added(
        "stream",
        description="what a window holds: a slice of all documents one after the other, or whole documents where they"
        " fit, so that few are cut; tokens are made anew for another seq_len",
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
        if self.model.logit_cap is not None:
            raise ValueError(
                "a capped concept model is none of Transformers' families, which labels are made with; leave"
                " teacher.model.logit_cap out"
            )
        return self

    @property
    def shares_tokens(self) -> bool:
        """Whether it reads the students' tokens."""
        return self.tokenizer == "shared"


class SaeConfig(Section):
    """The sparse autoencoder on the teacher's residual stream."""

    pretrained: str | None = Field(
        default=None,
        description="SAE folder or file of a format that cocomix reads, or hub id; empty: train one here",
    )
    layer: int = Field(default=3, ge=0, description="teacher block (0-based) whose output the SAE reads")
    also: tuple[int, ...] = added(
        default=(),
        description="further blocks, each with an autoencoder of the same settings; all are trained on one pass of the"
        " teacher in each step, up to the deepest, and end as each would alone; labels are of `layer` unless they say"
        " otherwise",
    )
    n_latents: int = Field(default=2048, ge=1, description="number of concepts C")
    k: int = Field(
        default=16, ge=1, description="active latents per position K; a loaded SAE that has a K of its own keeps it"
    )
    aux_k: int = Field(default=64, ge=1, description="dead latents used by the auxiliary loss")
    aux_coefficient: float = Field(default=1 / 32, ge=0, description="weight of the auxiliary loss")
    dead_after_tokens: int = Field(
        default=100_000, ge=1, description="a latent silent for this many tokens counts as dead"
    )
    kind: str = added(
        default="topk",
        description=f"what is trained: {SAE_KINDS.names}; all but topk learn thresholds and have k active latents on"
        " average",
    )
    kind_options: dict[str, Any] = added(
        default={}, description="options of the kind, e.g. {prefixes: [0.1, 1]} of matryoshka"
    )
    most_active: int | None = added(
        default=None,
        ge=1,
        description="largest number of active latents at a position, of a kind with thresholds; empty: twice k",
    )
    init: Literal["random", "data"] = added(
        default="random",
        description="where each latent points at the start: a random direction, or a hidden state; data leaves fewer"
        " of them dead",
    )
    skip_first: int | None = added(
        default=None,
        ge=0,
        description="positions at the start of each window, or of each document with context: document, left out of"
        " its training, quality and labels: attention sinks; empty: 1 for a pretrained teacher, 0 for one trained in"
        " the run",
    )
    skip_norm: float | None = added(
        default=None,
        gt=1,
        allow_inf_nan=False,
        description="also leave out positions whose hidden state is longer than so many times the median of its"
        " window, or document: massive activations; empty: none",
    )
    train: TrainConfig | None = Field(default=None, description="its training; needed unless pretrained")

    @model_validator(mode="after")
    def _k_fits(self) -> Self:
        _check_source(self)
        if self.train is not None and not OPTIMIZERS[self.train.optimizer].for_any_model:
            raise ValueError("an autoencoder has no transformer blocks; set sae.train.optimizer to adamw")
        if self.train is not None and self.train.z_loss:
            raise ValueError("an autoencoder has no next-token logits; leave sae.train.z_loss out")
        if self.also and self.pretrained is not None:
            raise ValueError("`also` is for autoencoders that are trained here; a loaded one is of one layer")
        if self.also and (min(self.also) < 0 or len(set(self.layers)) < len(self.layers)):
            raise ValueError(f"also {list(self.also)} must be blocks other than layer {self.layer}, each once")
        if self.k > self.n_latents:
            raise ValueError(f"k {self.k} is larger than n_latents {self.n_latents}; lower k or add latents")
        SAE_KINDS.check(self.kind, self.kind_options)
        if self.most_active is not None and self.kind == "topk":
            raise ValueError("`most_active` is for kinds with thresholds; topk has k active latents everywhere")
        if self.most_active is not None and not self.k <= self.most_active <= self.n_latents:
            raise ValueError(f"most_active {self.most_active} must be from k {self.k} to n_latents {self.n_latents}")
        return self

    @property
    def layers(self) -> tuple[int, ...]:
        """Blocks that have an autoencoder, `layer` first."""
        return (self.layer, *self.also)

    @property
    def named_layers(self) -> list[tuple[str, int]]:
        """Each of them with the setting that names it."""
        return [("sae.layer", self.layer), *(("sae.also", layer) for layer in self.also)]


class LabelConfig(Section):
    """Concept labels by one rule, several signs share the cost of one attribution pass; or a control."""

    rule: str = Field(
        default="exact",
        description=f"attribution rule: {RULES.names}; or a control, which runs no teacher: {CONTROLS.names}",
    )
    of: str | None = added(default=None, description="random only: the label set whose labels are moved about")
    layer: int | None = added(
        default=None, description="teacher block whose autoencoder they are of, one of sae.also; empty: sae.layer"
    )
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
        if rule not in CONTROLS and rule not in RULES:
            raise ValueError(f"there is no label rule {rule!r}; choose one of {RULES.names}, {CONTROLS.names}")
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

    @model_validator(mode="after")
    def _control_fits(self) -> Self:
        moves = self.rule in CONTROLS and CONTROLS[self.rule].moves_labels
        if moves != (self.of is not None):
            raise ValueError(
                f"labels by the rule {self.rule} are those of another set; name it with `of`"
                if moves
                else f"labels by the rule {self.rule} are no other set's; leave `of` out"
            )
        if self.rule in CONTROLS and (self.live or self.scores):
            raise ValueError(f"labels by the rule {self.rule} are never stored; leave `live` and `scores` out")
        fields = type(self).model_fields
        given = [name for name in ("k", "signs", "layer") if moves and getattr(self, name) != fields[name].default]
        if given:
            raise ValueError(f"labels by the rule {self.rule} have the {given[0]} of the set {self.of}; leave it out")
        return self


class PackConfig(Section):
    """Where teacher, autoencoder and labels come from, in place of making them."""

    source: str = Field(
        description="folder of a concept pack, name of one that comes with cocomix, or hub id; `pack: NAME` is short"
        " for it"
    )
    checksum: str | None = Field(
        default=None, description="of its pack.json; filled in when it is first read, so that a run keeps to one pack"
    )
    least_share: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="refuse a pack that covers a smaller share of the training text; what it does not cover has no"
        " labels",
    )


class EvaluationConfig(Section):
    """How finished students are measured."""

    batch_size: int = Field(default=16, ge=1, description="windows per forward pass")
    windows: int | None = Field(
        default=None, ge=1, description="windows of each held-out split measured, evenly spread; empty: all"
    )
    channel_windows: int | None = added(
        default=None,
        ge=0,
        description="validation windows on which a student's loss is also measured with its vector replaced, evenly"
        " spread; empty: up to 64, and no more than half of those its perplexity is measured on; 0: none",
    )
    curve_windows: int = Field(default=64, ge=1, description="validation windows behind each point of a training curve")
    sae_windows: int = Field(default=1024, ge=1, description="validation windows the SAE's quality is measured on")
    probe_positions: int = Field(
        default=20_000,
        ge=0,
        description="validation positions of the k-sparse probes on the SAE's quality page (some seconds); 0: none",
    )


class PredictabilityConfig(Section):
    """How `cocomix label --predictability` measures what labels offer to learn."""

    threshold: float = Field(
        default=0.1, ge=0, description="labels fewer nats above their marginal than this are warned of"
    )
    tokens: int = Field(
        default=200_000, ge=1, description="tokens the next-token student is trained on whose hidden states are probed"
    )
    model: ModelShape | None = Field(
        default=None, description="its shape; empty: that of the first student that reads the labels"
    )
    concept_layer: int | None = Field(
        default=None, ge=1, description="block (0-based) whose input is probed; empty: that student's"
    )
    positions: int = Field(
        default=98_304, ge=1, description="training positions, in evenly spread windows, that the probe is fitted to"
    )
    passes: float = Field(default=2.0, gt=0, description="passes over them")
    val_windows: int = Field(default=256, ge=1, description="validation windows, evenly spread, that it is measured on")


class RunConfig(Section):
    """A whole run, corpus to report."""

    title: str = Field(default="cocomix run", description="heading of the report")
    seeds: tuple[int, ...] = Field(
        default=(0,), min_length=1, description="seeds of the students (initialisation and data order)"
    )
    preset: str | None = added(
        default=None,
        description=f"{' or '.join(PRESETS)}: the paper's defaults, or a baseline of 2026 for every student, where its"
        " settings are not given; the run keeps these values and not the name",
    )
    size: int | None = added(
        default=None,
        description=f"1 to {len(WIDTHS)}: sets the students' width, layers and heads, and of students_train batch_size,"
        " learning_rate and weight_decay, where they are not given; the run keeps these values and not the size",
    )
    seq_len: int = Field(default=256, ge=2, description="tokens per window, everywhere")
    context: Literal["window", "document"] = added(
        "window",
        description="what a token attends to, in every model: what is before it in its window, or in its document only;"
        " positions then start again with each document",
    )
    pack: PackConfig | None = added(
        None,
        description="a concept pack, which gives teacher, sae and, if none are given, labels; the run keeps them",
    )
    corpus: CorpusConfig = Field(default_factory=CorpusConfig)
    tokens: TokensConfig = Field(default_factory=TokensConfig)
    teacher: TeacherConfig
    sae: SaeConfig
    labels: dict[str, LabelConfig] = Field(default_factory=dict, description="label sets by name")
    students: dict[str, StudentConfig] = Field(min_length=1, description="students by name")
    students_train: TrainConfig = Field(description="training of every student")
    baseline: str = Field(default="ntp", description="student the others are compared with")
    evaluation: EvaluationConfig = Field(default_factory=EvaluationConfig)
    predictability: PredictabilityConfig = Field(default_factory=PredictabilityConfig)

    @model_validator(mode="before")
    @classmethod
    def _with_presets(cls, raw: Any) -> Any:
        return with_pack(expanded(raw, cls.model_fields["seq_len"].default)) if isinstance(raw, dict) else raw

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
        deepest, name = max((layer, name) for name, layer in self.sae.named_layers)
        if self.teacher.pretrained is None and deepest >= self.teacher.model.layers:
            raise ValueError(
                f"{name} {deepest} is outside the teacher's {self.teacher.model.layers} blocks;"
                f" choose 0 to {self.teacher.model.layers - 1}"
            )
        if self.pack is not None and self.sae.also:
            raise ValueError("a pack has one autoencoder; leave sae.also out")
        for label_name, label in self.labels.items():
            self._check_labels(label_name, label)
            if label.live and not self.teacher.shares_tokens:
                raise ValueError(
                    f"labels {label_name!r} cannot be live: the concept model reads other tokens than the students; set"
                    f" labels.{label_name}.live=false"
                )
        return self

    def _check_labels(self, name: str, label: LabelConfig) -> None:
        control, sae = label.rule in CONTROLS, self.sae
        if label.of is not None and (label.of not in self.labels or self.labels[label.of].of is not None):
            sources = ", ".join(name for name, other in self.labels.items() if other.of is None)
            raise ValueError(f"labels {name!r} are to be those of {label.of!r}; choose one of {sources or 'none'}")
        most, what = (sae.n_latents, "latents (sae.n_latents)") if control else (sae.k, "active latents (sae.k)")
        if label.layer is not None and label.layer not in sae.layers:
            raise ValueError(
                f"labels {name!r} are of block {label.layer}, which has no autoencoder; there are those of"
                f" {', '.join(map(str, sae.layers))} (sae.layer, sae.also)"
            )
        if sae.pretrained is None and label.k > most:
            raise ValueError(f"labels {name!r} ask for k {label.k} of only {most} {what}")

    def _check_parts(self, name: str, student: StudentSettings) -> None:
        """Refuse label sets that there are not, or that do not go together in one student."""
        parts = student.label_parts
        for part in parts:
            if part.set not in self.labels:
                raise ValueError(f"student {name!r} asks for labels {part.set!r}; there are: {', '.join(self.labels)}")
            source = self.label_source(part.set)
            signs = () if source.rule in CONTROLS else source.signs
            if part.sign is not None and part.sign not in signs:
                raise ValueError(f"student {name!r} asks for the sign {part.sign!r}, which its labels do not have")
        sizes = {part.set: self.label_source(part.set).k for part in parts}
        if len(set(sizes.values())) > 1:
            listed = ", ".join(f"{label} {k}" for label, k in sizes.items())
            raise ValueError(f"the labels of student {name!r} differ in k ({listed}); give them the same")
        layers = {part.set: self.label_layer(part.set) for part in parts}
        if len(set(layers.values())) > 1:
            listed = ", ".join(f"{label} {layer}" for label, layer in layers.items())
            raise ValueError(f"the labels of student {name!r} are of several layers ({listed}); give them the same")
        for phase in label_phases(parts) if parts else ():
            live = [parts[place].set for place in phase.parts if self.label_source(parts[place].set).live]
            if live and len(phase.parts) > 1:
                raise ValueError(f"student {name!r} mixes {live[0]}, which is live; set labels.{live[0]}.live=false")

    @property
    def teacher_reads_tokens(self) -> bool:
        """Whether the teacher can read the students' tokens: it shares them, or they are its own tokenizer's."""
        return self.teacher.shares_tokens or self.tokens.tokenizer == self.teacher.pretrained

    def label_source(self, name: str) -> LabelConfig:
        """The settings of the set `name`, or of the set whose labels it moves."""
        config = self.labels[name]
        return config if config.of is None else self.labels[config.of]

    def label_layer(self, name: str) -> int:
        """The block whose autoencoder the set `name` is of."""
        layer = self.label_source(name).layer
        return self.sae.layer if layer is None else layer

    def _check_student(self, name: str, student: StudentSettings) -> None:
        mix = student.mixing
        if not self.teacher.shares_tokens and student.reads_outputs:
            raise ValueError(
                f"student {name!r} (objective {student.objective}) learns from the concept model's outputs at each"
                " token, so both need one tokenizer; leave it out, or set teacher.tokenizer=shared and tokens.tokenizer"
                " to the concept model's"
            )
        if "teacher" in student.reads and not self.teacher_reads_tokens:
            raise ValueError(
                f"student {name!r} starts as the concept model, so it reads that model's tokens; set"
                f" tokens.tokenizer={self.teacher.pretrained}"
            )
        if student.label_sign is not None and not student.label_parts:
            raise ValueError(f"student {name!r} asks for the sign {student.label_sign!r}, which its labels do not have")
        self._check_parts(name, student)
        if student.same_size_as is not None:
            other = self.students.get(student.same_size_as)
            if other is None or other.same_size_as is not None:
                raise ValueError(
                    f"student {name!r} matches the parameters of {student.same_size_as!r},"
                    " which is not a student of fixed width in this run"
                )
        layers = student.depth
        if mix is not None and layers is not None and mix.concept_layer >= layers:
            raise ValueError(
                f"student {name!r}: concept_layer {mix.concept_layer} is outside the stack of"
                f" {layers} blocks; choose 1 to {layers - 1}"
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
