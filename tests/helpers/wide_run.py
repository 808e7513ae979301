"""An explorer with any number of concepts: a random student, real statistics, names for every second concept."""

import threading
import zlib
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from cocomix import CoCoMixConfig, CoCoMixForCausalLM
from cocomix.analysis import ConceptName, Dashboards, FoundNames, StatisticsKey, gather_statistics, write_found
from cocomix.data import SpecialTokens, write_shards
from cocomix.explorer.catalog import CatalogEntry
from cocomix.explorer.schemas import ModelInfo
from cocomix.explorer.sessions import ModelSession, NameStore
from cocomix.steering.study.output_score import neutral_prompts, output_scores

VOCAB, SEQ, K = 60, 32, 6
SPECIAL = SpecialTokens.before_policies(eos_id=0)
KEY = "0/wide/0"
LABEL = "wide, seed 0"


class _Words:
    """A tokenizer with one token for each word."""

    all_special_ids = (SPECIAL.eos_id,)

    def get_vocab(self) -> dict[str, int]:
        return {f"w{token}": token for token in range(VOCAB)}

    def __call__(self, texts: list[str], **_: Any) -> dict[str, list[list[int]]]:
        return {"input_ids": [[1 + zlib.crc32(word.encode()) % (VOCAB - 1) for word in text.split()] for text in texts]}

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(f" w{token}" for token in ids)


class _WideSession(ModelSession):
    """A session whose parts are created here instead of loaded."""

    def __init__(self, n_concepts: int, folder: Path) -> None:
        torch.manual_seed(0)
        config = CoCoMixConfig(
            vocab_size=VOCAB,
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=64,
            mixer="interleave",
            concept_layer=1,
            num_concepts=n_concepts,
            concept_top_k=K,
            initializer_range=0.2,
        )
        self.model: Any = CoCoMixForCausalLM(config).eval()
        self.tokenizer: Any = _Words()
        self.special = SPECIAL
        self.predicts_concepts, self.lock, self._concept_list = True, threading.RLock(), None
        self.run: Any = SimpleNamespace(can_label=lambda _: False, has_teacher=False, lock=self.lock)
        self.stage: Any = SimpleNamespace(config=None)
        names = [
            ConceptName(concept=concept, name=f"number {concept}", source="tokens", stability=0.9)
            if concept % 2 == 0
            else ConceptName(concept=concept, why="its two halves disagree")
            for concept in range(n_concepts)
        ]
        write_found(
            folder, FoundNames(sae="wide", tokens="wide", split="train", windows=1, positions=1, concepts=names)
        )
        documents = np.random.default_rng(0).integers(1, VOCAB, (8, 4 * SEQ))
        shards = write_shards(folder / "tokens", documents, vocab_size=VOCAB, eos_id=SPECIAL.eos_id)
        key = StatisticsKey(student="wide", shards=shards.fingerprint, seq_len=SEQ, tokens=16 * SEQ)
        statistics = gather_statistics(self.model, shards, key)
        own = {concept: [1 + concept] for concept in range(2)}
        self.__dict__["_output_scores"] = output_scores(self.model, neutral_prompts(shards, SEQ), own)
        self.__dict__["name_store"] = NameStore(folder, "wide")
        self.__dict__["_dashboards"] = Dashboards(statistics, self.model, shards, self.decode)


class WideCatalog:
    """A catalog with this student only."""

    def __init__(self, n_concepts: int, folder: Path) -> None:
        self.session = _WideSession(n_concepts, folder)
        self.examples = ["one two three", "four five six seven"]

    def models(self) -> list[ModelInfo]:
        info = ModelInfo(
            key=KEY,
            label=LABEL,
            run="wide",
            student="wide",
            seed=0,
            predicts_concepts=True,
            steerable=True,
            n_concepts=self.session.n_concepts,
            top_k=K,
            positions=64,
            parameters=1,
            has_labels=False,
        )
        return [info]

    def entry(self, key: str) -> CatalogEntry:
        assert key == KEY
        run: Any = SimpleNamespace(folder=Path("wide"))
        stage: Any = SimpleNamespace(
            student="wide", seed=0, folder=Path("wide"), tokens=SimpleNamespace(special=SPECIAL)
        )
        return CatalogEntry(self.models()[0], run, stage, stage.folder / "model")

    def open(self, key: str) -> ModelSession:
        assert key == KEY
        return self.session
