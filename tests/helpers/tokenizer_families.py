"""Tokenizers of known families at toy size, made from their classes, with letters as their only pieces."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    ByT5Tokenizer,
    GemmaTokenizer,
    GPT2Tokenizer,
    GPTNeoXTokenizer,
    LlamaTokenizer,
    PreTrainedTokenizerFast,
    Qwen2Tokenizer,
    XGLMTokenizer,
)

from cocomix.data import train_tokenizer

TEXTS = ["the road and the ship are counted. ", "what ends <here> is |not| the /text\n"]
LETTERS = sorted({*"abcdefghijklmnopqrstuvwxyz", *"ABCDEFGHIJKLMNOPQRSTUVWXYZ", *"<>|/_.,[]0123456789\n"})
BYTES = sorted(pre_tokenizers.ByteLevel.alphabet())


def byte_level(cls: Any, first: str, **options: Any) -> Any:
    return cls(vocab={token: number for number, token in enumerate([first, *BYTES])}, merges=[], **options)


def sentencepiece(cls: Any, specials: list[str], space: str = "▁", **options: Any) -> Any:
    return cls(vocab={token: number for number, token in enumerate([*specials, space, *LETTERS])}, merges=[], **options)


def llama_3() -> PreTrainedTokenizerFast:
    """No class of its own: a byte-level BPE whose tokenizer.json has a template."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    ends = ["<|begin_of_text|>", "<|end_of_text|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=ends, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS * 20, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|begin_of_text|> $A", pair="<|begin_of_text|> $A $B", special_tokens=[("<|begin_of_text|>", 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=ends[0], eos_token=ends[1])


def xglm() -> XGLMTokenizer:
    pieces = [(token, 0.0) for token in ("<s>", "<pad>", "</s>", "<unk>")]
    return XGLMTokenizer(vocab=[*pieces, ("▁", -2.0), *((letter, -3.0) for letter in LETTERS)])


FAMILIES: dict[str, Callable[[Path], Any]] = {
    "trained here": lambda folder: train_tokenizer(TEXTS * 20, 300, folder),
    "GPT2Tokenizer": lambda _: byte_level(GPT2Tokenizer, "<|endoftext|>"),
    "GPTNeoXTokenizer": lambda _: byte_level(GPTNeoXTokenizer, "<|endoftext|>"),
    "Qwen2Tokenizer": lambda _: byte_level(Qwen2Tokenizer, "<|endoftext|>"),
    "LlamaTokenizer": lambda _: sentencepiece(LlamaTokenizer, ["<unk>", "<s>", "</s>"]),
    "LlamaTokenizer, add_bos_token": lambda _: sentencepiece(
        LlamaTokenizer, ["<unk>", "<s>", "</s>"], add_bos_token=True
    ),
    "GemmaTokenizer": lambda _: sentencepiece(GemmaTokenizer, ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]),
    "GemmaTokenizer, add_bos_token": lambda _: sentencepiece(
        GemmaTokenizer, ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"], add_bos_token=True
    ),
    "a template in tokenizer.json": lambda _: llama_3(),
    "XGLMTokenizer": lambda _: xglm(),
    "ByT5Tokenizer": lambda _: ByT5Tokenizer(),
}
