"""What is known of a setting before it runs: vocabulary, corpus size, concept model, number of concepts.

Nothing is downloaded, trained or allocated. Models live on the meta device; a hub is never asked, so names that are
not folders here are looked up in the small tables below; what has to be assumed is said in `notes`. A finished
tokens stage is read instead of assuming anything about the corpus.
"""

from functools import cached_property
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, PreTrainedModel

from cocomix.data.tokenizer import load_tokenizer
from cocomix.model.build import Sizes, build_plain
from cocomix.pipeline.config import RunConfig
from cocomix.pipeline.run import Run
from cocomix.train.config import TrainConfig
from cocomix.utils.errors import CocomixError

GPT2_VOCABULARY = 50257
GPT2_SHAPES = {"gpt2": (768, 12, 12), "gpt2-medium": (1024, 24, 16), "gpt2-large": (1280, 36, 20)}
GPT2_SHAPES |= {"gpt2-xl": (1600, 48, 25), "distilgpt2": (768, 6, 12)}
"""Width, layers and heads of the published GPT-2 models, by their hub id without its owner."""

KNOWN_CORPORA = {
    "openwebtext": (9_040_017_095, "counted by nanoGPT, data/openwebtext/readme.md"),
    "open-web-math": (14_700_000_000, "by its dataset card, another tokenizer's"),
}
"""Tokens of hub datasets, training and held-out text together, by their hub id without its owner, and who says so."""


class Outlook:
    """One setting of an experiment, looked at before it runs.

    Args:
        name: the setting.
        run: its stages.
        earlier: settings made before it, by name, which it may refer to as `$NAME/...`.
        corpus_tokens: tokens of the training split, if the user says so.

    Attributes:
        notes: what was assumed, one sentence each.
    """

    def __init__(self, name: str, run: Run, earlier: dict[str, "Outlook"], corpus_tokens: int | None) -> None:
        self.name, self.run, self.config, self._earlier = name, run, run.config, earlier
        self.notes: list[str] = []
        self._record = (run.tokens.record() or {}).get("figures")
        self.vocab_size = self._vocab_size()
        self.corpus, self.basis = self._corpus(corpus_tokens)
        self.n_concepts, self.k = self._concepts()

    def sizes(self, reads: frozenset[str]) -> Sizes:
        """What a student that reads `reads` takes from the run, as its stage will."""
        n_concepts, k = (self.n_concepts, self.k) if "sae" in reads else (0, 0)
        width = self.teacher.config.hidden_size if "teacher" in reads and self.teacher is not None else 0
        return Sizes(self.vocab_size, self.config.seq_len, n_concepts, k, width, self.config.sae.layer)

    @cached_property
    def teacher(self) -> PreTrainedModel | None:
        """The concept model on the meta device; None if its shape is not known here."""
        source = self.config.teacher.pretrained
        if source is not None and (other := self._referred(source)) is not None:
            return other.teacher
        with torch.device("meta"):
            if source is None:
                shape = self.config.teacher.model
                return build_plain(shape, vocab_size=self.vocab_size, seq_len=self.config.seq_len)
            if (Path(source) / "config.json").is_file():
                return AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(source, trust_remote_code=False))
            known = GPT2_SHAPES.get(Path(source).name)
            if known is not None:
                width, layers, heads = known
                return GPT2LMHeadModel(GPT2Config(n_embd=width, n_layer=layers, n_head=heads))
        self.notes.append(
            f"the shape of the concept model {source} is not known here: what depends on it is left out; a local"
            " folder would be read"
        )
        return None

    def _vocab_size(self) -> int:
        if self._record is not None:
            return self._record["vocab_size"]
        source = self.config.tokens.tokenizer
        if source is None:
            return self.config.tokens.vocab_size
        if (other := self._referred(source)) is not None:
            return other.vocab_size
        if Path(source).exists():
            return len(load_tokenizer(source))
        if Path(source).name in GPT2_SHAPES:
            return GPT2_VOCABULARY
        raise CocomixError(
            f"setting {self.name}: the vocabulary of the tokenizer {source} is not known here and a plan asks no hub;"
            " put the tokenizer into a folder and name that in tokens.tokenizer"
        )

    def _corpus(self, given: int | None) -> tuple[dict[str, int], str]:
        """Tokens of each split, and whether they are `given`, `measured` or `assumed`."""
        held_out = {"val": self.config.corpus.val_fraction, "test": self.config.corpus.test_fraction}
        share = 1 - sum(held_out.values())
        if given is None and self._record is not None:
            return dict(self._record["tokens"]), "measured"
        train = self._assumed(share) if given is None else given
        splits = {split: round(train * fraction / share) for split, fraction in held_out.items()}
        return {"train": train, **splits}, "assumed" if given is None else "given"

    def _assumed(self, share: float) -> int:
        """One pass over what the longest training reads, or the corpus if it is known to be smaller."""
        read = [train.steps * train.batch_size * self.config.seq_len for train in self._trainings() if train.steps]
        path = str(self.config.corpus.options.get("path", ""))
        whole, who = KNOWN_CORPORA.get(Path(path).name, (None, ""))
        if not read and whole is None:
            raise CocomixError(
                f"setting {self.name}: every training length is in epochs and the corpus is not tokenised yet, so"
                f" nothing can be counted; run its stages {self.name}:corpus and {self.name}:tokens first"
            )
        known = None if whole is None else round(whole / self.config.corpus.every * share)
        if known is not None and (not read or known < max(read)):
            self.notes.append(f"{path} has {known:,} training tokens ({who})")
            return known
        self.notes.append(f"the corpus has {max(read):,} training tokens, as many as the longest training reads")
        return max(read)

    def _trainings(self) -> list[TrainConfig]:
        config: RunConfig = self.config
        made_here = [
            section.train
            for section in (config.teacher, config.sae)
            if section.pretrained is None and section.train is not None
        ]
        return [*made_here, *(stage.train for stage in self.run.students)]

    def _concepts(self) -> tuple[int, int]:
        sae = self.config.sae
        if sae.pretrained is not None:
            if (other := self._referred(sae.pretrained)) is not None:
                return other.n_concepts, other.k
            if not {"n_latents", "k"} <= sae.model_fields_set:
                self.notes.append(
                    f"the loaded SAE has {sae.n_latents} latents, {sae.k} of them active; set sae.n_latents and sae.k"
                    " to be sure"
                )
        return sae.n_latents, sae.k

    def _referred(self, source: str) -> "Outlook | None":
        """The earlier setting whose folder holds `source`, unless that is a path of its own."""
        try:
            owner = Path(source).relative_to(self.run.folder.parent).parts[0]
        except (ValueError, IndexError):
            return None
        if owner in self._earlier:
            return self._earlier[owner]
        if Path(source).exists():
            return None
        raise CocomixError(
            f"setting {self.name} needs {source}, and no setting before it is called {owner!r}; correct the name, or"
            " put the setting it belongs to first"
        )
