"""The tokens of a concept model that reads the text with its own tokenizer."""

from pathlib import Path
from typing import Any

from cocomix.data.byte_offsets import ByteOffsets
from cocomix.data.corpus import SPLITS, Corpus
from cocomix.data.document_windows import DocumentWindows
from cocomix.data.shards import TokenShards
from cocomix.data.text_ends import ENDS, write_ends
from cocomix.data.tokenizer import load_tokenizer
from cocomix.model.loading import model_config
from cocomix.model.text_config import text_shape
from cocomix.pipeline.config import RunConfig
from cocomix.pipeline.data_stages import CorpusStage, TokensStage
from cocomix.pipeline.stage import Stage
from cocomix.pipeline.teacher_stage import TeacherStage
from cocomix.utils.console import is_main
from cocomix.utils.errors import CocomixError
from cocomix.utils.files import make_folder


class TeacherTokensStage(TokensStage):
    """The corpus in the concept model's own tokens, and the bytes of its document that each token has read."""

    bos_setting = "teacher.bos"

    def __init__(self, run_dir: Path, config: RunConfig, corpus: CorpusStage, teacher: TeacherStage) -> None:
        Stage.__init__(self, run_dir, "teacher-tokens", "cocomix train teacher", [corpus, teacher])
        source = {"tokenizer": str(teacher.folder / "model"), "bos": config.teacher.bos}
        self.config = config.tokens.model_copy(update=source)
        self.seq_len, self.packs = teacher.seq_len, False
        self.corpus, self.teacher = corpus, teacher

    def settings(self) -> dict[str, Any]:
        return {"bos": self.config.bos, "shard_tokens": self.config.shard_tokens}

    def outputs(self) -> list[str]:
        return [*super().outputs(), *(f"{ENDS}/{split}.bin" for split in SPLITS)]

    def describe(self, figures: dict[str, Any]) -> str:
        lost = 1 - figures["located"]["train"]
        said = f"; {lost:.1%} of them cannot be located in the text and get no labels" if lost else ""
        return f"{super().describe(figures)}{said}"

    def work(self, folder: Path, progress: Any) -> dict[str, Any]:
        figures = super().work(folder, progress)
        if not is_main():
            return {}
        make_folder(folder / ENDS)
        corpus, offsets = Corpus(self.corpus.folder / "text"), ByteOffsets(load_tokenizer(str(folder / "tokenizer")))
        located = {}
        for split in SPLITS:
            shards = TokenShards.open(folder / split)
            self._check_rows(shards.largest_id())
            found = write_ends(folder / ENDS / f"{split}.bin", shards, corpus.documents(split), offsets)
            located[split] = found.located / max(1, found.tokens)
        return figures | {"located": located}

    def windows(self, split: str, seq_len: int, *, overlapping: bool = False) -> DocumentWindows:
        """Windows of `split` that follow its documents."""
        return DocumentWindows(self.shards(split), seq_len, overlapping=overlapping)

    def _check_rows(self, largest: int) -> None:
        rows = text_shape(model_config(self.teacher.folder / "model", self.teacher.redo_hint)).vocab_size
        if largest >= rows:
            raise CocomixError(
                f"the concept model has {rows} rows for tokens and its tokenizer makes the token {largest} of the text,"
                " for which it has none; use intact weights and the tokenizer that belongs to them"
            )
