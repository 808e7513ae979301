"""The recipes of large corpora: they agree with the paper's, and run on a small folder in the hub's layout."""

from pathlib import Path

import pytest

from cocomix.data import load_tokenizer
from cocomix.experiments.config import ExperimentConfig
from cocomix.pipeline.config import load_config
from cocomix.pipeline.run import Run
from cocomix.utils.settings import read_yaml, validate
from tests.helpers.made_corpora import write_parquet
from tests.helpers.texts import TEXTS, gpt2_files

RECIPES = Path(__file__).parents[2] / "recipes"
TWINS = {"openwebtext": "69m-20b", "openwebmath": "69m-shift"}


@pytest.mark.parametrize("name", TWINS)
def test_they_agree_with_the_papers(name: str) -> None:
    ours = load_config(RECIPES / "data" / f"{name}.yaml")
    path = RECIPES / "paper" / f"{TWINS[name]}.yaml"
    paper = validate(ExperimentConfig, read_yaml(path), str(path))
    (setting,) = paper.settings
    theirs = paper.run_config(setting, Path("nowhere"))
    for section in ("seq_len", "corpus", "tokens", "teacher", "sae", "students_train", "evaluation"):
        assert getattr(ours, section) == getattr(theirs, section), section
    assert ours.students["ntp"] == theirs.students["ntp"] and ours.labels["exact"] == theirs.labels["exact"]


@pytest.mark.parametrize("name", TWINS)
@pytest.mark.parametrize("streaming", ["true", "false"])
def test_they_run_on_a_folder_in_the_hubs_layout(tmp_path: Path, name: str, streaming: str) -> None:
    write_parquet(tmp_path / "data" / "train-00000-of-00002.parquet", list(TEXTS[:60]), row_group_size=7)
    write_parquet(tmp_path / "data" / "train-00001-of-00002.parquet", [*TEXTS[60:], None])
    gpt2_files(tmp_path / "gpt2")
    small = [f"corpus.options.path={tmp_path / 'data'}", f"corpus.options.streaming={streaming}"]
    small += ["corpus.val_fraction=0.1", "corpus.test_fraction=0.1", f"tokens.tokenizer={tmp_path / 'gpt2'}"]
    run = Run(tmp_path / "run", load_config(RECIPES / "data" / f"{name}.yaml", small))
    for stage in ("corpus", "tokens"):
        run.run_stage(stage)
    assert run.corpus.figures["skipped"] == 1
    tokenizer = load_tokenizer(str(tmp_path / "gpt2"))
    as_text = {"add_special_tokens": False, "split_special_tokens": True}
    wanted = sum(len(tokenizer(text, **as_text)["input_ids"]) + 1 for text in TEXTS if text.strip())
    assert sum(run.tokens.figures["tokens"].values()) == wanted
    assert run.tokens.figures["vocab_size"] == 400
