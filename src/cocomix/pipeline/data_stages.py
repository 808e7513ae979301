"""Corpus and token stages."""

import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

from cocomix.data.byte_counts import ByteCounts, byte_counts
from cocomix.data.corpus import SKIPPED, SPLITS, STATE, Corpus, CorpusWriter, passed_over
from cocomix.data.document_windows import DocumentWindows
from cocomix.data.packing import MANIFEST as PACKING
from cocomix.data.shards import TokenShards, token_dtype
from cocomix.data.sources import TextSource, open_mix, open_source
from cocomix.data.special_tokens import SpecialTokens, saved_with_tokenizer, with_policy
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
        settings = self.config.model_dump(mode="json", exclude={"file_bytes"})  # documents are the same, however cut
        for name in ("source", "options") if self.config.mix else ("mix", "mix_until"):
            del settings[name]  # not read; and runs made before there were mixtures have no such keys
        return settings

    def outputs(self) -> list[str]:
        return ["text/corpus.json"]

    def scratch(self) -> list[str]:
        return [*super().scratch(), STATE]

    def verify(self) -> None:
        Corpus(self.folder / "text").check()

    def describe(self, figures: dict[str, Any]) -> str:
        counted = [", ".join(f"{split} {counts['documents']} documents" for split, counts in figures["splits"].items())]
        whole = sum(part["chars"] for part in figures.get("mix", {}).values())
        counted += [f"{name} {part['chars'] / whole:.1%} of the text" for name, part in figures.get("mix", {}).items()]
        tallies = passed_over(self.folder)
        first = {name: f", the first, {tally.first()}" for name, tally in tallies.items()}
        if skipped := figures.get("skipped", 0):
            counted.append(f"{skipped} bad records skipped, see {self.folder / SKIPPED}{first.get('skipped', '')}")
        if "left_out" in tallies:
            counted.append(f"{tallies['left_out'].count} files or records left out{first['left_out']}")
        return "; ".join(counted)

    def work(self, folder: Path, progress: Any) -> dict[str, Any]:
        source = self._source()
        writer = CorpusWriter(
            folder,
            every=self.config.every,
            val_fraction=self.config.val_fraction,
            test_fraction=self.config.test_fraction,
            file_bytes=self.config.file_bytes,
        )
        return {"source": str(source) if self.config.mix else self.config.source, **writer.write(source, progress)}

    def _source(self) -> TextSource:
        try:
            if self.config.mix:
                parts = [(part.name or part.source, part.weight, part.source, part.options) for part in self.config.mix]
                return open_mix(parts, self.config.mix_until)
            return open_source(self.config.source, self.config.options)
        except ConfigError as error:
            where = "corpus.mix" if self.config.mix else "corpus.source and corpus.options"
            raise ConfigError(f"{where}: {error}") from error


class TokensStage(Stage):
    """A tokenizer and one folder of token shards a split."""

    distributed = True
    bos_setting: ClassVar[str] = "tokens.bos"
    """the setting that says whether windows begin with BOS"""

    def __init__(self, run_dir: Path, config: RunConfig, corpus: CorpusStage, external_inputs: ExternalInputs) -> None:
        other_runs = external_stages(external_inputs, config.tokens.tokenizer)
        super().__init__(run_dir, "tokens", "cocomix tokenize", [corpus, *other_runs])
        self.config, self.external_inputs = config.tokens, external_inputs
        self.seq_len, self.packs = config.seq_len, config.tokens.packing == "best_fit"
        self.corpus = corpus

    def settings(self) -> dict[str, Any]:
        settings = self.config.model_dump(mode="json", exclude={"workers"})  # tokens are the same for any number
        if settings["train_chars"] is None:
            del settings["train_chars"]  # as in runs made before there was such a key
        if settings["bos"] == "auto":
            del settings["bos"]  # likewise
        if self.packs:
            settings["seq_len"] = self.seq_len
        else:
            del settings["packing"]  # likewise
        return settings | {"tokenizer": stable_name(self.external_inputs, self.config.tokenizer)}

    def outputs(self) -> list[str]:
        manifests = ["manifest.json", *([PACKING] if self.packs else [])]
        return ["tokenizer/tokenizer_config.json", *(f"{split}/{name}" for split in SPLITS for name in manifests)]

    def scratch(self) -> list[str]:
        return [*super().scratch(), PARTS, MADE_OF]

    def verify(self) -> None:
        for split in SPLITS:
            self.shards(split)

    def describe(self, figures: dict[str, Any]) -> str:
        counts = ", ".join(f"{split} {count:,} tokens" for split, count in figures["tokens"].items())
        bos = self.special.bos_id
        counts += "" if bos is None else f"; every document, window and prompt begins with token {bos}"
        if not self.packs:
            return counts
        return counts + _describe_packing(figures["packing"]["train"], figures["tokens"]["train"])

    def work(self, folder: Path, progress: Any) -> dict[str, Any]:
        corpus = Corpus(self.corpus.folder / "text")
        if is_main():
            self._drop_parts_of_another_corpus(folder, corpus)
            self._make_tokenizer(folder, corpus, progress)
        barrier()
        tokenizer: Any = load_tokenizer(str(folder / "tokenizer"))
        special = saved_with_tokenizer(tokenizer)
        assert special is not None, "it was saved with the tokenizer"
        tokenizer_spec = TokenizerSpec(folder / "tokenizer", len(tokenizer), special.eos_id, special)
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
        counts, packing = {}, {}
        for split in SPLITS:
            shards = join_parts(
                parts[split],
                folder / split,
                vocab_size=tokenizer_spec.vocab_size,
                eos_id=special.eos_id,
                special=special,
                shard_tokens=self.config.shard_tokens,
                dtype=dtype,
            )
            counts[split] = shards.n_tokens
            if self.packs:
                packed = shards.packed(self.seq_len).packing
                assert packed is not None, "it was just written"
                packing[split] = packed.figures
        n_bytes = sum((finished_part(part) or {})["text_bytes"] for part in parts["test"])
        sizes = {"vocab_size": tokenizer_spec.vocab_size, "tokens": counts}
        return sizes | {"bytes_per_token": n_bytes / counts["test"]} | ({"packing": packing} if self.packs else {})

    def _workers(self) -> int | None:
        """Processes of this one; of those that torchrun started on this machine, each gets its share."""
        processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        return None if self.config.workers is None else max(1, self.config.workers // processes)

    def _drop_parts_of_another_corpus(self, folder: Path, corpus: Corpus) -> None:
        """Delete the parts of a stopped attempt if its texts have been replaced since, under the same settings."""
        try:
            made_of = _made_of(folder)
            same = made_of["corpus"] == corpus.fingerprint and made_of["version"] == PARTS_VERSION
        except (OSError, ValueError, KeyError, TypeError):
            same = False
        if same:
            return
        for path in folder.iterdir():
            if path.name not in {SECONDS, ATTEMPT}:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        (folder / PARTS).mkdir()
        write_sealed(folder / MADE_OF, {"corpus": corpus.fingerprint, "version": PARTS_VERSION})

    def _make_tokenizer(self, folder: Path, corpus: Corpus, progress: Any) -> None:
        made_of = _made_of(folder)
        if (folder / "tokenizer").exists() and made_of.get("tokenizer") == _sums(folder / "tokenizer"):
            return
        shutil.rmtree(folder / "tokenizer", ignore_errors=True)
        temporary = folder / "tokenizer.tmp"
        shutil.rmtree(temporary, ignore_errors=True)
        if self.config.tokenizer is None:
            every = max(1, corpus.count("train", "chars") // (self.config.train_chars or 1 << 62))
            texts = (text.text for number, text in enumerate(corpus.documents("train")) if number % every == 0)
            n_chars = corpus.count("train", "chars") // every

            def report(chars: int) -> None:
                progress(min(chars, n_chars), None, {"tokenizer: characters": chars, "of about": n_chars})

            tokenizer: Any = train_tokenizer(texts, self.config.vocab_size, temporary, report)
        else:
            tokenizer = load_tokenizer(self.config.tokenizer)
        with_policy(tokenizer, SpecialTokens.of_tokenizer(tokenizer, self.config.bos)).save_pretrained(temporary)
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

    def windows(self, split: str, seq_len: int, *, overlapping: bool = False) -> TokenShards | DocumentWindows:
        """What the concept model reads of `split` in windows of `seq_len`: the windows that students train on."""
        return self.shards(split)

    def bytes_of(self, split: str) -> ByteCounts | None:
        """Bytes of the tokens of `split`; None where that takes their text, and it is not there any more."""

        def texts() -> Iterator[str]:
            for document in Corpus(self.corpus.folder / "text").documents(split):
                yield document.text

        tokenizer, shards = self.tokenizer(), self.shards(split)
        try:
            return byte_counts(tokenizer, shards, texts)
        except CocomixError:
            return None

    def tokenizer(self) -> Any:
        """The run's tokenizer; by default it does what the tokens' policy says."""
        self.check()
        return with_policy(load_tokenizer(str(self.folder / "tokenizer")), self.special)

    @property
    def special(self) -> SpecialTokens:
        """Where special tokens stand in the finished tokens."""
        _ = self.figures
        return TokenShards.open(self.folder / "train", verify=False).special


PARTS, MADE_OF = "parts", "made-of.json"
PARTS_VERSION = 2
"""Version of the parts of a stopped attempt; 2: text that spells a special token is text."""


def _made_of(folder: Path) -> dict[str, Any]:
    return read_sealed(folder / MADE_OF)


def _sums(folder: Path) -> dict[str, str]:
    return {path.name: sha256(path) for path in sorted(folder.iterdir())}


def _parts(folder: Path, corpus: Corpus, split: str) -> list[Path]:
    return [folder / PARTS / f"{split}-{number:05d}.json" for number in range(len(corpus.files(split)))]


def _describe_packing(figures: dict[str, Any], n_tokens: int) -> str:
    """What packing did to the training split, as the end of a sentence."""
    cut, by_stream = (figures[name] / figures["documents"] for name in ("cut", "cut_by_stream"))
    padded = f", padded {figures['padded'] / n_tokens:.3%}" if figures["padded"] else ""
    return (
        f"; packed by best fit: {cut:.1%} of documents cut ({by_stream:.1%} in slices of the stream),"
        f" tokens dropped {figures['dropped'] / n_tokens:.3%}{padded}"
    )


class _Pace:
    """Progress callback that reports each finished part."""

    def __init__(self, jobs: int, progress: Any) -> None:
        self._jobs, self._progress = jobs, progress
        self._started, self._done, self._tokens = time.monotonic(), 0, 0

    def __call__(self, record: dict[str, Any]) -> None:
        self._done, self._tokens = self._done + 1, self._tokens + record["tokens"]
        rate = round(self._tokens / (time.monotonic() - self._started))
        self._progress(self._done, self._jobs, {"tokens": self._tokens, "tokens/s": rate})
