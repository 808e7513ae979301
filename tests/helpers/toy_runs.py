"""Runs of a few steps on a few made-up words, with a concept model that is trained in them."""

from pathlib import Path

import numpy as np

import cocomix
from cocomix.pipeline.config import load_config
from cocomix.pipeline.run import Run
from tests.helpers.made_corpora import write_jsonl
from tests.helpers.own_tokenizer import student_settings

WORDS = ["the", "road", "and", "ship", "counted", "bill", "senate", "year"]


def write_texts(folder: Path) -> Path:
    """`texts.jsonl` in `folder`, which is returned: 40 documents of 4 to 40 words."""
    rng = np.random.default_rng(0)
    write_jsonl(folder / "texts.jsonl", [" ".join(rng.choice(WORDS, int(n))) for n in rng.integers(4, 40, 40)])
    return folder


def toy_run(folder: Path, texts: Path, *more: str) -> Run:
    """A run on `write_texts` with overrides `more`; nothing is done yet."""
    recipe = Path(cocomix.__file__).parent / "recipes" / "tiny.yaml"
    train = "train: {batch_size: 4, steps: 3, learning_rate: 0.01, n_evals: 0}"
    settings = (
        *student_settings(texts),
        f"teacher={{model: {{width: 16, layers: 3, heads: 2}}, {train}}}",
        f"sae={{layer: 0, n_latents: 32, k: 4, {train}}}",
        "labels.exact={rule: exact, signs: [helpful], k: 2, batch_size: 4}",
        "evaluation={windows: 4, curve_windows: 2, sae_windows: 8, batch_size: 4, probe_positions: 200}",
    )
    return Run(folder, load_config(recipe, [*settings, *more]))
