"""The concept model's stage."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, PreTrainedModel

from cocomix.data.special_tokens import trained_policy
from cocomix.model.build import build_plain, special_ids
from cocomix.model.loading import load_causal_lm, model_config
from cocomix.objectives.ntp import NtpObjective
from cocomix.pipeline.config import RunConfig
from cocomix.pipeline.data_stages import TokensStage
from cocomix.pipeline.stage import ExternalInputs, external_stages, stable_name
from cocomix.pipeline.training import (
    ModelStage,
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

SPARE_IDS = 1024
"""Embedding rows a published model may have beyond its tokenizer's vocabulary, as padding for alignment."""


class TeacherStage(ModelStage):
    """The concept model: trained here on the same shards, or loaded and copied into the run."""

    distributed = True

    def __init__(self, run_dir: Path, config: RunConfig, tokens: TokensStage, external_inputs: ExternalInputs) -> None:
        external = external_stages(external_inputs, config.teacher.pretrained)
        super().__init__(run_dir, "teacher", "cocomix train teacher", [tokens, *external])
        self.external_inputs = external_inputs
        self.config, self.seq_len, self.evaluation = config.teacher, config.seq_len, config.evaluation
        self.tokens = tokens

    def settings(self) -> dict[str, Any]:
        if self.config.pretrained is not None:
            return {"pretrained": stable_name(self.external_inputs, self.config.pretrained), "seq_len": self.seq_len}
        return self.config.model_dump(mode="json") | {"seq_len": self.seq_len, "train": recipe(self.config.train)}

    def describe(self, figures: dict[str, Any]) -> str:
        return f"{figures['description']}{describe_curve(figures)}"

    def work(self, folder: Path, progress: Any) -> dict[str, Any]:
        self.tokens.check_lengths(self.seq_len)
        if self.config.pretrained is not None:
            return self._load(folder, self.config.pretrained)
        train = self.config.train
        assert train is not None, "the config asks for pretrained or train"
        vocab_size = self.tokens.figures["vocab_size"]
        torch.manual_seed(train.seed)
        special = special_ids(self.tokens.tokenizer(), self.tokens.special)
        model = build_plain(self.config.model, vocab_size=vocab_size, seq_len=self.seq_len, special=special)
        validate = validation_curve(self.tokens.shards("val"), self.seq_len, self.evaluation, train.precision)
        data = BatchSource(self.tokens.shards("train"), self.seq_len)
        result = train_objective(NtpObjective(model), data, train, folder, validate, progress)
        if is_main():
            self.tokens.tokenizer().save_pretrained(folder / "model")
        return training_figures(result) | {"parameters": model.num_parameters(), "description": _describe(model)}

    def _load(self, folder: Path, source: str) -> dict[str, Any]:
        model = load_causal_lm(source, "the concept model")
        self._check_vocabulary(model, source)
        positions = getattr(model.config, "max_position_embeddings", None)  # Bloom has no limit
        if positions is not None and positions < self.seq_len:
            raise CocomixError(
                f"the concept model {source} has {positions} positions,"
                f" fewer than seq_len {self.seq_len}; lower seq_len"
            )
        if is_main():
            model.save_pretrained(folder / "model")
        return {"parameters": model.num_parameters(), "description": f"{source}: {_describe(model)}"}

    def _check_vocabulary(self, model: PreTrainedModel, source: str) -> None:
        tokenizer = self.tokens.tokenizer()
        size = model.config.vocab_size
        hint = "set tokens.tokenizer to the concept model's own tokenizer"
        if not len(tokenizer) <= size <= len(tokenizer) + SPARE_IDS:
            raise CocomixError(
                f"the concept model {source} has a vocabulary of {size} and the students' tokenizer {len(tokenizer)};"
                f" {hint}"
            )
        try:
            published = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
        except Exception:  # the Tokenizers library raises nothing narrower
            return  # no valid tokenizer beside the weights: only sizes can be compared
        if published.get_vocab() != tokenizer.get_vocab():
            raise CocomixError(
                f"the concept model {source} numbers its tokens differently from the students' tokenizer; {hint}"
            )
        special, here = trained_policy(published, source, model.config.model_type), self.tokens.special
        if special is not None and special.bos_id != here.bos_id:
            begin = ["with" if policy.bos_id is not None else "without" for policy in (special, here)]
            raise CocomixError(
                f"the concept model {source} was trained {begin[0]} a beginning-of-text token first and the tokens of"
                f" this run are {begin[1]} one; set tokens.bos={str(special.bos_id is not None).lower()}"
            )

    def model(self) -> PreTrainedModel:
        """The finished concept model, in evaluation mode, taking no gradients."""
        self.check()
        model = load_causal_lm(self.folder / "model", "the concept model", self.redo_hint)
        return model.requires_grad_(False).to(device())  # pyright: ignore[reportArgumentType]

    @property
    def width(self) -> int:
        """Width of the finished concept model's hidden states."""
        _ = self.figures
        return model_config(self.folder / "model", self.redo_hint).hidden_size


def _describe(model: PreTrainedModel) -> str:
    config = model.config
    return f"{config.model_type}, {config.num_hidden_layers} layers, width {config.hidden_size}"
