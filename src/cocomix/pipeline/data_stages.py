"""Corpus and token stages."""

import os
import shutil
import time
from pathlib import Path
from typing import Any

from cocomix.data.corpus import SPLITS, STATE, Corpus, CorpusWriter
from cocomix.data.shards import TokenShards, token_dtype
from cocomix.data.sources import open_source
from cocomix.data.tokenize import Job, TokenizerSpec, encode_parts, finished_part, join_parts
from cocomix.data.tokenizer import load_tokenizer, train_tokenizer
from cocomix.pipeline.attempts import ATTEMPT
from cocomix.pipeline.config import RunConfig
from cocomix.pipeline.stage import SECONDS, ExternalInputs, Stage, external_stages, stable_name
from cocomix.utils.console import is_main, rank, world_size
from cocomix.utils.distributed import barrier
from cocomix.utils.errors import CocomixError, ConfigError
from cocomix.utils.files import read_sealed, sha256, write_sealed


class CorpusStage(Stage):
    """Documents of the source, held out whole, as JSON lines."""

    def __init__(self, run_dir: Path, config: RunConfig) -> None:
        super().__init__(run_dir, "corpus", "cocomix corpus")
        self.config = config.corpus

    def settings(self) -> dict[str, Any]:
        return self.config.model_dump(mode="json", exclude={"file_bytes"})  # documents are the same, however cut

    def outputs(self) -> list[str]:
        return ["text/corpus.json"]

    def scratch(self) -> list[str]:
        return [*super().scratch(), STATE]

    def verify(self) -> None:
        Corpus(self.folder / "text").check()

    def describe(self, figures: dict[str, Any]) -> str:
        counted = ", ".join(f"{split} {counts['documents']} documents" for split, counts in figures["splits"].items())
        skipped = figures.get("skipped", 0)
        return counted + (f"; {skipped} bad records skipped, see {self.folder / 'skipped.jsonl'}" if skipped else "")

    def work(self, folder: Path, progress: Any) -> dict[str, Any]:
        try:
            source = open_source(self.config.source, self.config.options)
        except ConfigError as error:
            raise ConfigError(f"corpus.source and corpus.options: {error}") from error
        writer = CorpusWriter(
            folder,
            every=self.config.every,
            val_fraction=self.config.val_fraction,
            test_fraction=self.config.test_fraction,
            file_bytes=self.config.file_bytes,
        )
        return {"source": self.config.source, **writer.write(source, progress)}


class TokensStage(Stage):
    """A tokenizer and one folder of token shards a split."""

    distributed = True

    def __init__(self, run_dir: Path, config: RunConfig, corpus: CorpusStage, external_inputs: ExternalInputs) -> None:
        other_runs = external_stages(external_inputs, config.tokens.tokenizer)
        super().__init__(run_dir, "tokens", "cocomix tokenize", [corpus, *other_runs])
        self.config, self.external_inputs = config.tokens, external_inputs
        self.corpus = corpus

    def settings(self) -> dict[str, Any]:
        settings = self.config.model_dump(mode="json", exclude={"workers"})  # tokens are the same for any number
        if settings["train_chars"] is None:
            del settings["train_chars"]  # as in runs made before there was such a key
        return settings | {"tokenizer": stable_name(self.external_inputs, self.config.tokenizer)}

    def outputs(self) -> list[str]:
        return ["tokenizer/tokenizer_config.json", *(f"{split}/manifest.json" for split in SPLITS)]

    def scratch(self) -> list[str]:
        return [*super().scratch(), PARTS, MADE_OF]

    def verify(self) -> None:
        for split in SPLITS:
            self.shards(split)

    def describe(self, figures: dict[str, Any]) -> str:
        return ", ".join(f"{split} {count:,} tokens" for split, count in figures["tokens"].items())

    def work(self, folder: Path, progress: Any) -> dict[str, Any]:
        corpus = Corpus(self.corpus.folder / "text")
        if is_main():
            self._drop_parts_of_another_corpus(folder, corpus)
            self._make_tokenizer(folder, corpus)
        barrier()
        tokenizer: Any = load_tokenizer(str(folder / "tokenizer"))
        tokenizer_spec = TokenizerSpec(folder / "tokenizer", len(tokenizer), int(tokenizer.eos_token_id))
        dtype = token_dtype(tokenizer_spec.vocab_size).str
        parts = {split: _parts(folder, corpus, split) for split in SPLITS}
        jobs = [
            Job(corpus.folder / entry["file"], entry["sha256"], part, dtype)
            for split in SPLITS
            for entry, part in zip(corpus.files(split), parts[split], strict=True)
        ]
        own_jobs = [job for job in jobs[rank() :: world_size()] if finished_part(job.part) is None]
        encode_parts(own_jobs, tokenizer_spec, self._workers(), _Pace(len(own_jobs), progress))
        barrier()
        if not is_main():
            return {}
        counts = {}
        for split in SPLITS:
            shards = join_parts(
                parts[split],
                folder / split,
                vocab_size=tokenizer_spec.vocab_size,
                eos_id=tokenizer_spec.eos_id,
                shard_tokens=self.config.shard_tokens,
                dtype=dtype,
            )
            counts[split] = shards.n_tokens
        n_bytes = sum((finished_part(part) or {})["text_bytes"] for part in parts["test"])
        return {"vocab_size": tokenizer_spec.vocab_size, "tokens": counts, "bytes_per_token": n_bytes / counts["test"]}

    def _workers(self) -> int | None:
        """Processes of this one; of those that torchrun started on this machine, each gets its share."""
        processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        return None if self.config.workers is None else max(1, self.config.workers // processes)

    def _drop_parts_of_another_corpus(self, folder: Path, corpus: Corpus) -> None:
        """Delete the parts of a stopped attempt if its texts have been replaced since, under the same settings."""
        try:
            same = _made_of(folder)["corpus"] == corpus.fingerprint
        except (OSError, ValueError, KeyError, TypeError):
            same = False
        if same:
            return
        for path in folder.iterdir():
            if path.name not in {SECONDS, ATTEMPT}:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        (folder / PARTS).mkdir()
        write_sealed(folder / MADE_OF, {"corpus": corpus.fingerprint})

    def _make_tokenizer(self, folder: Path, corpus: Corpus) -> None:
        made_of = _made_of(folder)
        if (folder / "tokenizer").exists() and made_of.get("tokenizer") == _sums(folder / "tokenizer"):
            return
        shutil.rmtree(folder / "tokenizer", ignore_errors=True)
        temporary = folder / "tokenizer.tmp"
        shutil.rmtree(temporary, ignore_errors=True)
        if self.config.tokenizer is None:
            every = max(1, corpus.count("train", "chars") // (self.config.train_chars or 1 << 62))
            texts = (text.text for number, text in enumerate(corpus.documents("train")) if number % every == 0)
            train_tokenizer(texts, self.config.vocab_size, temporary)
        else:
            load_tokenizer(self.config.tokenizer).save_pretrained(temporary)
        sums = _sums(temporary)
        os.replace(temporary, folder / "tokenizer")
        # The tokenizer of a stopped attempt may be damaged before the next one uses it.
        write_sealed(folder / MADE_OF, made_of | {"tokenizer": sums})

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
        self.check()
        return load_tokenizer(str(self.folder / "tokenizer"))


PARTS, MADE_OF = "parts", "made-of.json"


def _made_of(folder: Path) -> dict[str, Any]:
    return read_sealed(folder / MADE_OF)


def _sums(folder: Path) -> dict[str, str]:
    return {path.name: sha256(path) for path in sorted(folder.iterdir())}


def _parts(folder: Path, corpus: Corpus, split: str) -> list[Path]:
    return [folder / PARTS / f"{split}-{number:05d}.json" for number in range(len(corpus.files(split)))]


class _Pace:
    """Progress callback that reports each finished part."""

    def __init__(self, jobs: int, progress: Any) -> None:
        self._jobs, self._progress = jobs, progress
        self._started, self._done, self._tokens = time.monotonic(), 0, 0

    def __call__(self, record: dict[str, Any]) -> None:
        self._done, self._tokens = self._done + 1, self._tokens + record["tokens"]
        rate = round(self._tokens / (time.monotonic() - self._started))
        self._progress(self._done, self._jobs, {"tokens": self._tokens, "tokens/s": rate})
