"""Small hand-written task data in the hub's formats, and tiny models with their tokenizers."""

import json
from pathlib import Path
from typing import Any

import lm_eval.tasks
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from lm_eval.tasks import TaskManager
from transformers import GPT2Config, GPT2LMHeadModel

from cocomix import CoCoMixConfig, CoCoMixForCausalLM
from cocomix.data import train_tokenizer

TEXT = (
    "The house gave way and the long road went over the hill. A farmer took bread, salt and a lamp to the river. "
    "She asked him why the water was so cold, and he said that winter had come early to the valley this year. "
)

LAMBADA = [
    {"text": "The farmer took bread and salt and went to the river with his lamp to find the water"},
    {"text": "She asked why it was cold and he said that this year the winter had come"},
    {"text": "The long road went over the hill and down to the house"},
    {"text": "He gave her bread, and she gave him salt"},
    {"text": "A lamp"},
]
WIKITEXT = [{"page": TEXT * 3}, {"page": " = The valley = \n \n The river , which was cold , ran 3 @.@ 5 miles . \n"}]
HELLASWAG = [
    {
        "activity_label": "Walking",
        "ctx_a": "A farmer walks to the river.",
        "ctx_b": "he",
        "endings": [
            "drinks the water.",
            "eats the lamp [title] twice.",
            "is the road.",
            "salts the hill and the house.",
        ],
        "label": str(label),
    }
    for label in (0, 2, 3)
]
PIQA = [
    {"goal": "To warm the house", "sol1": "light the lamp", "sol2": "salt the river", "label": 0},
    {"goal": "To find the road", "sol1": "eat bread", "sol2": "walk over the hill and look down", "label": 1},
]
SIQA = [
    {
        "context": "The farmer gave her bread.",
        "question": "Why did he do this?",
        "answerA": "she was cold",
        "answerB": "she was hungry",
        "answerC": "the road was long and the lamp was out",
        "label": "2",
    }
]
ARC = [
    {
        "id": str(number),
        "question": "What is cold?",
        "choices": {"text": ["winter", "a lamp", "bread and salt"], "label": ["A", "B", "C"]},
        "answerKey": key,
    }
    for number, key in enumerate("AC")
]
WINOGRANDE = [
    {
        "sentence": "The farmer took a lamp as _ was dark.",
        "option1": "the road",
        "option2": "bread",
        "answer": "1",
    },
    {
        "sentence": "She ate bread, not salt, as _ was good.",
        "option1": "salt",
        "option2": "bread",
        "answer": "2",
    },
]


def write_task_data(folder: Path) -> Path:
    """The datasets of seven tasks, each in a different layout that the hub uses."""
    write_jsonl(folder / "EleutherAI/lambada_openai/test.jsonl", LAMBADA)
    _parquet(folder / "EleutherAI/wikitext_document_level/wikitext-2-raw-v1/test-00000-of-00001.parquet", WIKITEXT)
    _parquet(folder / "EleutherAI/wikitext_document_level/wikitext-2-raw-v1/train-00000-of-00001.parquet", WIKITEXT)
    for split in ("train", "validation"):  # the harness opens the training split, where few-shot examples are
        _parquet(folder / f"Rowan__hellaswag/data/{split}-00000-of-00001.parquet", HELLASWAG)
        write_jsonl(folder / f"baber/piqa/{split}.jsonl", PIQA)
        write_jsonl(folder / f"lighteval__siqa/{split}.jsonl", SIQA)
        write_jsonl(folder / f"allenai/winogrande/winogrande_xl/{split}.jsonl", WINOGRANDE)
    files = []
    for split in ("train", "validation", "test"):
        _parquet(folder / f"allenai/ai2_arc/parts/{split}-00000-of-00001.parquet", ARC)
        files.append(f"  - split: {split}\n    path: parts/{split}-*\n")
    card = f"---\nconfigs:\n- config_name: ARC-Easy\n  data_files:\n{''.join(files)}---\nARC\n"
    (folder / "allenai/ai2_arc/README.md").write_text(card)
    return folder


def gpt2(folder: Path) -> Path:
    """A random GPT-2 with 48 positions and its tokenizer."""
    tokenizer = train_tokenizer([TEXT], 280, folder)
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=48,
        n_embd=16,
        n_layer=2,
        n_head=2,
        initializer_range=0.3,
        bos_token_id=0,
        eos_token_id=0,
    )
    GPT2LMHeadModel(config).save_pretrained(folder)
    return folder


def student(folder: Path, **settings: object) -> Path:
    """A random CoCoMix model with 48 positions and its tokenizer."""
    tokenizer = train_tokenizer([TEXT], 280, folder)
    torch.manual_seed(0)
    settings = {
        "backbone": "llama",
        "concept_layer": 1,
        "num_concepts": 12,
        "concept_top_k": 3,
        "initializer_range": 0.3,
    } | settings
    config = CoCoMixConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        max_position_embeddings=48,
        bos_token_id=0,
        eos_token_id=0,
        **settings,
    )
    CoCoMixForCausalLM(config).save_pretrained(folder)
    return folder


def one_by_one(model: Any, tokenizer: Any, context: str, continuation: str) -> tuple[float, bool]:
    """The slow twin of the harness's loglikelihood: one pass a token, no padding, no cache; use a float64 model."""
    ids = tokenizer.encode(context + continuation)
    start = len(tokenizer.encode(context))
    total, greedy = 0.0, True
    with torch.no_grad():
        for place in range(start, len(ids)):
            context_ids = ids[max(0, len(ids) - 1 - model.config.max_position_embeddings) : place]
            row = model(torch.tensor([context_ids]), use_cache=False).logits[0, -1].log_softmax(-1)
            total += float(row[ids[place]])
            greedy = greedy and int(row.argmax()) == ids[place]
    return total, greedy


def small_index() -> TaskManager:
    """An index of the tested tasks only; reading the whole index takes seconds."""
    folder = Path(lm_eval.tasks.__file__).parent
    parts = ("lambada", "wikitext", "hellaswag", "piqa", "siqa", "arc", "winogrande", "super_glue/copa")
    return TaskManager(include_defaults=False, include_path=[folder / part for part in parts])


def write_jsonl(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def _parquet(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path)
