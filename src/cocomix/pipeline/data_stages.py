"""Corpus and token stages."""

import shutil
from pathlib import Path
from typing import Any

from cocomix.config import RunConfig
from cocomix.corpus import SOURCES, read_corpus, split_documents, write_corpus
from cocomix.errors import CocomixError
from cocomix.pipeline.lent import Lending, borrowed, known_as
from cocomix.pipeline.stage import Stage
from cocomix.tokens import TokenShards, load_tokenizer, tokenize_corpus, train_tokenizer

SPLITS = ("train", "val", "test")


class CorpusStage(Stage):
    """Documents of the source, held out whole, as JSON lines."""

    def __init__(self, run_dir: Path, config: RunConfig) -> None:
        super().__init__(run_dir, "corpus", "cocomix corpus")
        self.config = config.corpus

    def settings(self) -> dict[str, Any]:
        return self.config.model_dump(mode="json")

    def outputs(self) -> list[str]:
        return ["text/corpus.json"]

    def describe(self, figures: dict[str, Any]) -> str:
        return ", ".join(f"{split} {counts['documents']} documents" for split, counts in figures["splits"].items())

    def work(self, folder: Path, progress: Any) -> dict[str, Any]:
        source = SOURCES.get(self.config.source)
        if source is None:
            raise CocomixError(f"there is no text source {self.config.source!r}; choose one of {', '.join(SOURCES)}")
        documents = list(source(self.config.options))[:: self.config.every]
        splits = split_documents(documents, self.config.val_fraction, self.config.test_fraction)
        shutil.rmtree(folder / "text", ignore_errors=True)
        return {"source": self.config.source, "splits": write_corpus(folder / "text", splits)["splits"]}


class TokensStage(Stage):
    """A tokenizer and one folder of token shards a split."""

    def __init__(self, run_dir: Path, config: RunConfig, corpus: CorpusStage, lending: Lending) -> None:
        lent = borrowed(lending, config.tokens.tokenizer)
        super().__init__(run_dir, "tokens", "cocomix tokenize", [corpus, *lent])
        self.config, self.lending = config.tokens, lending
        self.corpus = corpus

    def settings(self) -> dict[str, Any]:
        return self.config.model_dump(mode="json") | {"tokenizer": known_as(self.lending, self.config.tokenizer)}

    def outputs(self) -> list[str]:
        return ["tokenizer/tokenizer_config.json", *(f"{split}/manifest.json" for split in SPLITS)]

    def describe(self, figures: dict[str, Any]) -> str:
        return ", ".join(f"{split} {count:,} tokens" for split, count in figures["tokens"].items())

    def work(self, folder: Path, progress: Any) -> dict[str, Any]:
        text = self.corpus.folder / "text"
        if self.config.tokenizer is None:
            texts = (document.text for document in read_corpus(text, "train"))
            tokenizer = train_tokenizer(texts, self.config.vocab_size, folder / "tokenizer")
        else:
            tokenizer = load_tokenizer(self.config.tokenizer)
            tokenizer.save_pretrained(folder / "tokenizer")
        counts, n_bytes = {}, 0
        for number, split in enumerate(SPLITS):
            shutil.rmtree(folder / split, ignore_errors=True)
            shards = tokenize_corpus(
                tokenizer, read_corpus(text, split), folder / split, shard_tokens=self.config.shard_tokens
            )
            counts[split] = shards.n_tokens
            if split == "test":
                n_bytes = sum(len(document.text.encode()) for document in read_corpus(text, split))
            progress(number + 1, len(SPLITS), {})
        return {"vocab_size": len(tokenizer), "tokens": counts, "bytes_per_token": n_bytes / counts["test"]}

    def check_lengths(self, seq_len: int) -> None:
        """Refuse a split shorter than one window before anything is trained on the others."""
        for split, count in self.figures["tokens"].items():
            if count < seq_len:
                more = "" if split == "train" else f", raise corpus.{split}_fraction"
                raise CocomixError(
                    f"the {split} split has {count} tokens, fewer than one window of {seq_len};"
                    f" add text{more} or lower seq_len"
                )

    def shards(self, split: str) -> TokenShards:
        """The finished shards of `split`; checksums are verified on opening."""
        _ = self.figures
        return TokenShards.open(self.folder / split)

    def tokenizer(self) -> Any:
        """The run's tokenizer."""
        return load_tokenizer(str(self.folder / "tokenizer"))
