"""Answers of text at tokens: against a loop over decoded prefixes, with and without a beginning-of-text token."""

import contextlib
from pathlib import Path

import numpy as np
import pytest

from cocomix.data import Document
from cocomix.data.shards import write_shards
from cocomix.data.special_tokens import SpecialTokens
from cocomix.sae.probing import TEXT_PROPERTIES
from cocomix.sae.text_answers import probing_figures, window_answers

TEXTS = ["On 3 May he asked: “Who, é, is it?” We know. In 1903 it was Rome.", "a Fort", "Nobody knew 12 of them. " * 4]
"""One token is one byte, so that a prefix of tokens is a prefix of bytes."""
EOS, BOS = 256, 257


def byte_ends(text: str, ids: np.ndarray) -> np.ndarray:
    assert bytes(ids.tolist()) == text.encode()
    return np.arange(1, len(ids) + 1)


@pytest.mark.parametrize("bos", [None, BOS, EOS])
def test_answers_are_those_of_the_text_read(bos: int | None, tmp_path: Path) -> None:
    special = SpecialTokens(bos, EOS) if bos is not None else SpecialTokens.before_policies(EOS)
    tokens = [list(text.encode()) for text in TEXTS]
    shards = write_shards(tmp_path / "shards", tokens, vocab_size=258, eos_id=EOS, special=special)
    documents = [Document(f"{1850 + 60 * number}", text) for number, text in enumerate(TEXTS)]
    windows = np.array([0, 1, 3, shards.n_windows(9) - 1])
    answers, owners = window_answers(shards, documents, byte_ends, windows, 9)
    offsets = shards.places(windows, 9)
    stream = shards.span(0, shards.n_tokens).tolist()
    ids = shards.windows(windows, 9)
    asked = 0
    for row in range(len(windows)):
        for place in range(9):
            offset = int(offsets[row, place])
            if offset < 0:
                assert place == 0 and ids[row, 0] == bos and owners[row, 0] == -1
                continue
            assert stream[offset] == ids[row, place]
            number = sum(start <= offset for start in shards.documents.tolist()) - 1
            assert owners[row, place] == number
            text, begin = TEXTS[number].encode(), int(shards.documents[number]) + (bos == BOS)
            read = text[: offset + 1 - begin]
            for name, kind in TEXT_PROPERTIES.items():
                expected = -1
                if ids[row, place] < 256:
                    with contextlib.suppress(UnicodeDecodeError):
                        expected = int(kind().answers(documents[number])[len(read.decode())])
                assert answers[name][row, place] == expected
                asked += expected >= 0
    assert asked > 40


def test_a_property_of_one_document_has_no_figure_and_others_do() -> None:
    generator = np.random.default_rng(0)
    documents = generator.integers(0, 20, 800)
    ids = np.stack([generator.choice(30, 4, replace=False) for _ in range(800)])
    answers = {"told": (ids == 3).any(-1).astype(np.int8), "never": np.full(800, -1, np.int8)}
    figures = probing_figures(answers, documents, np.ones(ids.shape), ids, generator.normal(size=(800, 4)), 30)
    assert set(figures) == {"told"} and figures["told"]["k=1"] == 1.0
