"""Texts that are hard on a tokenizer, and a tokenizer in GPT-2's own files."""

import random
from pathlib import Path

from tokenizers import ByteLevelBPETokenizer

ALPHABET = [
    "a",
    "Zeile",
    "don't",
    "I'LL",
    " ",
    "  ",
    "\n",
    "\r\n",
    "\t",
    "\u00a0",
    "\u2028",
    "\x85",
    "\x1c",
    "é",
    "e\u0301",
    "漢字",
]
ALPHABET += ["12", "3456", "?!", "...", "🎈", "<|endoftext|>", "<|end", "_", "'", "ſ", "\u200b", "\u3000"]


def nasty(seed: int, length: int) -> str:
    chance = random.Random(seed)
    return "".join(chance.choice(ALPHABET) for _ in range(length))


TEXTS = [nasty(seed, 5 + 40 * (seed % 9)) for seed in range(120)] + ["", "plain words only", "x" * 900, "\n" * 70]


def gpt2_files(folder: Path) -> None:
    trained = ByteLevelBPETokenizer()
    trained.train_from_iterator(TEXTS, vocab_size=400, special_tokens=["<|endoftext|>"])
    folder.mkdir()
    trained.save_model(str(folder))
