"""Texts, a concept model whose tokenizer is not the students', and settings of small runs with both."""

from pathlib import Path

import numpy as np

from tests.data.test_byte_offsets import TOKENIZERS
from tests.helpers.made_corpora import write_jsonl
from tests.helpers.small_llamas import small_llama

WORDS = ["the", "road", "and", "ship", "counted;", "naïve", "café", "中文字", "e\u0301", "👩\u200d👧", "bill\r\n"]


def awkward_texts() -> list[str]:
    rng = np.random.default_rng(0)
    return [" ".join(rng.choice(WORDS, int(size))) for size in rng.integers(20, 90, 14)]


def write_inputs(folder: Path) -> Path:
    """`texts.jsonl` and `teacher` in `folder`, which is returned."""
    write_jsonl(folder / "texts.jsonl", awkward_texts())
    small_llama(len(TOKENIZERS["large"]), positions=64).save_pretrained(folder / "teacher")
    TOKENIZERS["large"].save_pretrained(folder / "teacher")
    return folder


def student_settings(inputs: Path) -> list[str]:
    """Overrides of a run on `write_inputs`, without the concept model's."""
    return [
        f"corpus={{source: jsonl, options: {{path: {inputs / 'texts.jsonl'}}}, val_fraction: 0.2, test_fraction: 0.2}}",
        "seq_len=24",
        "tokens.vocab_size=300",
        "tokens.workers=1",
        "students={ntp: {objective: ntp, model: {width: 16, layers: 2, heads: 2}},"
        " cocomix: {objective: cocomix, labels: exact, model: {width: 16, layers: 2, heads: 2},"
        " concept: {concept_layer: 1}}}",
        "students_train={batch_size: 4, steps: 2, n_evals: 1, learning_rate: 0.01}",
    ]
