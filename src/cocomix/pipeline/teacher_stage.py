"""The concept model's stage."""

from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from cocomix.data.special_tokens import trained_policy
from cocomix.data.tokenizer import load_tokenizer
from cocomix.model.build import build_plain, special_ids
from cocomix.model.documents import KEY, document_rule, mask_documents
from cocomix.model.loading import load_causal_lm, model_config
from cocomix.model.teacher import check_teacher
from cocomix.model.text_config import text_shape
from cocomix.objectives.ntp import NtpObjective
from cocomix.pipeline.config import RunConfig
from cocomix.pipeline.data_stages import TokensStage
from cocomix.pipeline.stage import ExternalInputs, external_stages, stable_name
from cocomix.pipeline.training import (
    ModelStage,
    context_setting,
    describe_curve,
    recipe,
    train_objective,
    training_figures,
    validation_curve,
)
from cocomix.train.batches import BatchSource
from cocomix.utils.console import is_main
from cocomix.utils.distributed import device
from cocomix.utils.errors import CocomixError
from cocomix.utils.settings import identity

SPARE_IDS = 1024
"""Embedding rows a published model may have beyond its tokenizer's vocabulary, as padding for alignment."""


class TeacherStage(ModelStage):
    """The concept model: trained here on the same shards, or loaded and copied into the run."""

    distributed = True

    def __init__(self, run_dir: Path, config: RunConfig, tokens: TokensStage, external_inputs: ExternalInputs) -> None:
        external = external_stages(external_inputs, config.teacher.pretrained)
        read = [tokens] if config.teacher.shares_tokens else []
        super().__init__(run_dir, "teacher", "cocomix train teacher", [*read, *external])
        self.external_inputs = external_inputs
        self.config, self.evaluation = config.teacher, config.evaluation
        self.reads_tokens = config.teacher_reads_tokens
        self.seq_len = config.teacher.seq_len or config.seq_len
        # Windows of a tokenizer of its own follow documents in any case.
        self.context = context_setting(config) if config.teacher.shares_tokens else {}
        self.tokens = tokens

    def settings(self) -> dict[str, Any]:
        attention = {} if self.config.attention == "sdpa" else {"attention": self.config.attention}
        attention |= self.context
        if self.config.pretrained is not None:
            name = stable_name(self.external_inputs, self.config.pretrained)
            tokenizer = {} if self.config.shares_tokens else {"tokenizer": self.config.tokenizer}
            return {"pretrained": name, "seq_len": self.seq_len} | tokenizer | attention
        elsewhere = {"attention", "tokenizer", "bos"}
        own = {name: value for name, value in identity(self.config).items() if name not in elsewhere}
        return own | attention | {"seq_len": self.seq_len, "train": recipe(self.config.train)}

    def describe(self, figures: dict[str, Any]) -> str:
        return f"{figures['description']}{describe_curve(figures)}"

    def work(self, folder: Path, progress: Any) -> dict[str, Any]:
        if self.config.shares_tokens:
            self.tokens.check_lengths(self.seq_len)
        if self.config.pretrained is not None:
            return self._load(folder, self.config.pretrained)
        train = self.config.train
        assert train is not None, "the config asks for pretrained or train"
        vocab_size = self.tokens.figures["vocab_size"]
        torch.manual_seed(train.seed)
        special = special_ids(self.tokens.tokenizer(), self.tokens.special)
        model = build_plain(self.config.model, vocab_size=vocab_size, seq_len=self.seq_len, special=special)
        if self.context:
            mask_documents(model, self.tokens.special)
        validate = validation_curve(
            self.tokens.shards("val"),
            self.seq_len,
            self.evaluation,
            train.precision,
            bytes_of=self.tokens.bytes_of("val"),
        )
        data = BatchSource(self.tokens.shards("train"), self.seq_len)
        result = train_objective(NtpObjective(model), data, train, folder, validate, progress)
        if is_main():
            self.tokens.tokenizer().save_pretrained(folder / "model")
        return training_figures(result) | {"parameters": model.num_parameters(), "description": _describe(model)}

    def _load(self, folder: Path, source: str) -> dict[str, Any]:
        model = load_causal_lm(source, "the concept model", precision="saved")
        if self.config.shares_tokens:
            self._check_vocabulary(model, source)
        positions = text_shape(model.config).positions
        if positions is not None and positions < self.seq_len:
            raise CocomixError(
                f"the concept model {source} has {positions} positions,"
                f" fewer than seq_len {self.seq_len}; lower {'' if self.config.shares_tokens else 'teacher.'}seq_len"
            )
        if self.context:
            mask_documents(model, self.tokens.special)
        if not self.config.shares_tokens and document_rule(model.config) is not None:
            setattr(model.config, KEY, None)  # its windows follow documents
        if is_main():
            model.save_pretrained(folder / "model")
            if not self.config.shares_tokens:
                _own_tokenizer(source).save_pretrained(folder / "model")
        saved = str(model.dtype).removeprefix("torch.")
        check_teacher(model.float())
        description = f"{source}: {_describe(model)}"
        return {"parameters": model.num_parameters(), "description": description, "saved_dtype": saved}

    def _check_vocabulary(self, model: PreTrainedModel, source: str) -> None:
        """Refuse a model whose tokens are others than those of the shards.

        Raises:
            CocomixError: the tokenizers differ, or the text has a token for which the model has no row.
        """
        tokenizer = self.tokens.tokenizer()
        rows = text_shape(model.config).vocab_size
        hint = (
            "set tokens.tokenizer to the concept model's own tokenizer, or teacher.tokenizer=own to let it read the"
            " text with that and the students with theirs"
        )
        published = _published_tokenizer(source)
        if published is not None and published.get_vocab() != tokenizer.get_vocab():
            raise CocomixError(
                f"the concept model {source} numbers its tokens differently from the students' tokenizer; {hint}"
            )
        # With a tokenizer of its own, however many rows it has were meant: some models have thousands to spare.
        if published is None and not len(tokenizer) <= rows <= len(tokenizer) + SPARE_IDS:
            raise CocomixError(
                f"the concept model {source} has a vocabulary of {rows} and the students' tokenizer {len(tokenizer)};"
                f" {hint}"
            )
        if rows < len(tokenizer):  # Gemma 3's tokenizer has a token for images, for which the text model has no row
            largest = max(self.tokens.shards(split).largest_id() for split in self.tokens.figures["tokens"])
            if largest >= rows:
                text = tokenizer.convert_ids_to_tokens(largest)
                raise CocomixError(
                    f"the concept model {source} has {rows} rows for tokens and the text has the token {largest}"
                    f" ({text!r}), for which it has none; remove it from the text, or {hint}"
                )
        special = None if published is None else trained_policy(published, source, model.config.model_type)
        here = self.tokens.special
        if special is not None and special.bos_id != here.bos_id:
            begin = ["with" if policy.bos_id is not None else "without" for policy in (special, here)]
            raise CocomixError(
                f"the concept model {source} was trained {begin[0]} a beginning-of-text token first and the tokens of"
                f" this run are {begin[1]} one; set tokens.bos={str(special.bos_id is not None).lower()}"
            )

    def must_read_tokens(self, why: str) -> None:
        """Refuse what needs a concept model that reads the students' tokens; it `why`.

        Raises:
            CocomixError: it has another tokenizer.
        """
        if not self.reads_tokens:
            raise CocomixError(
                f"the concept model {why}, token by token, and reads other tokens than the students; train with"
                " tokens.tokenizer set to the concept model's own"
            )

    def model(self, precision: str = "fp32") -> PreTrainedModel:
        """The finished concept model for passes in `precision`, in evaluation mode, taking no gradients."""
        self.check()
        model = load_causal_lm(
            self.folder / "model",
            "the concept model",
            self.redo_hint,
            precision=precision,
            attention=self.config.attention,
        )
        return model.requires_grad_(False).to(device())  # pyright: ignore[reportArgumentType]

    @property
    def published(self) -> bool:
        """Whether it comes from outside, trained neither in this run nor in one whose teacher this run was given."""
        given = external_stages(self.external_inputs, self.config.pretrained)
        if given and isinstance(given[0], TeacherStage):
            return given[0].published
        return self.config.pretrained is not None

    @property
    def width(self) -> int:
        """Width of the finished concept model's hidden states."""
        _ = self.figures
        return text_shape(model_config(self.folder / "model", self.redo_hint)).hidden_size


def _published_tokenizer(source: str) -> PreTrainedTokenizerBase | None:
    """The tokenizer beside a model's weights; None: there is no valid one."""
    try:
        return load_tokenizer(source)
    except CocomixError:
        return None


def _own_tokenizer(source: str) -> PreTrainedTokenizerBase:
    try:
        return load_tokenizer(source)
    except CocomixError as error:
        raise CocomixError(
            f"the concept model {source} has no tokenizer of its own to read the text with ({error}); put it beside the"
            " weights, or set teacher.tokenizer=shared if its tokens are the students'"
        ) from error


def _describe(model: PreTrainedModel) -> str:
    shape = text_shape(model.config)
    return f"{model.config.model_type}, {shape.layers} layers, width {shape.hidden_size}"
