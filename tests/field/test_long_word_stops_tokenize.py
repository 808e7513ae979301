"""A document without blanks (a genome, base64) kept the BPE trainer busy for hours, deaf to Ctrl-C."""

import json
import signal
import time
from pathlib import Path
from random import Random

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from cocomix.data import train_tokenizer
from cocomix.data.tokenizer import END_OF_TEXT, LONGEST_WORD
from tests.helpers.forked import Forked

ROAD = "the road and the ship are counted. "


def plainly_trained(texts: list[str], vocab_size: int) -> dict:
    """The trainer as it was, without a cap."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=vocab_size, special_tokens=[END_OF_TEXT], initial_alphabet=alphabet, show_progress=False
        ),
    )
    return json.loads(tokenizer.to_str())


def trained(texts: list[str], vocab_size: int, folder: Path) -> dict:
    train_tokenizer(texts, vocab_size, folder)
    return json.loads((folder / "tokenizer.json").read_text())


def test_a_word_of_any_length_takes_time_in_proportion(tmp_path: Path) -> None:
    """The trainer sees it in parts: the same merges as from the parts alone, which takes no time worth measuring."""
    word = "".join(Random(0).choices("ACGT", k=300_000))  # over half a minute for the trainer as it was
    parts = [word[start : start + LONGEST_WORD] for start in range(0, len(word), LONGEST_WORD)]
    capped = trained([word, ROAD * 50], 400, tmp_path)
    assert capped["model"] == plainly_trained([*parts, ROAD * 50], 400)["model"]


def test_ordinary_text_gives_the_vocabulary_it_always_gave(tmp_path: Path) -> None:
    texts = [ROAD * 40 + "naïve — “quotes” 🎈\r\n\t x" + "-" * 600, "x" * LONGEST_WORD, " \n" * 300 + "Ünïcode"]
    capped, plain = trained(texts, 420, tmp_path), plainly_trained(texts, 420)
    assert [capped[key] for key in ("model", "pre_tokenizer")] == [plain[key] for key in ("model", "pre_tokenizer")]


def test_ctrl_c_ends_the_training_of_a_tokenizer(tmp_path: Path) -> None:
    random, folder = Random(0), tmp_path / "texts"
    folder.mkdir()
    for number in range(40):
        words = ("".join(random.choices("abcdefghijklmnop", k=20)) for _ in range(4_000))
        (folder / f"{number}.txt").write_text(" ".join(words))
    settings = ["corpus.source=folder", f"corpus.options={{path: {folder}}}", "tokens.vocab_size=60000"]
    corpus = Forked(["-m", "cocomix", "corpus", "-r", "run", "corpus.val_fraction=0.1", *settings], cwd=tmp_path)
    assert corpus.wait(60) == 0, corpus.communicate()
    tokenize = Forked(["-m", "cocomix", "tokenize", "-r", "run", "corpus.val_fraction=0.1"], cwd=tmp_path)
    while not list((tmp_path / "run" / ".partial").glob("tokens-*/made-of.json")):
        assert tokenize.poll() is None, tokenize.communicate()
        time.sleep(0.02)
    time.sleep(1)  # it has read its texts and learns merges, for half a minute
    tokenize.send_signal(signal.SIGINT)
    assert tokenize.wait(timeout=2) == 130
    assert "stopped; rerun the same command" in tokenize.communicate()[1]
