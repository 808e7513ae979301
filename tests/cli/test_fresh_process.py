"""Every command in a fresh process, as a user starts it: what is wrong is one sentence and exit code 2, no traceback.

Elsewhere commands are forked from a process that has imported everything, which would hide an import that is missing.
"""

from pathlib import Path

import pytest

from tests.helpers.command import cocomix, refused
from tests.helpers.doc_blocks import GROUP

WRONG = {
    "demo": (("demo", "-r", "run", "sae.kk=3"), "sae.kk"),
    "corpus": (("corpus", "-r", "run", "corpus.source=folder", "corpus.options={path: nowhere}"), "nowhere"),
    "tokenize": (("tokenize", "-r", "run"), "cocomix corpus"),
    "train": (("train", "nobody", "-r", "run"), "nothing called 'nobody'"),
    "sae": (("sae", "-r", "run", "sae.k=5000"), "5000"),
    "export-sae": (("export-sae", "-r", "run", "-o", "out"), "cocomix sae"),
    "label": (("label", "-r", "run", "--name", "nothing"), "no labels called 'nothing'"),
    "evaluate": (("evaluate", "-r", "run"), "not done yet"),
    "certificate": (("certificate", "-r", "run"), "there is no run in run"),
    "perplexity": (("perplexity", ".", "nothing.txt"), "give a model folder"),
    "report": (("report", "-r", "run"), "not done yet"),
    "experiment": (("experiment", "absent.yaml"), "absent.yaml"),
    "generate": (("generate", "x", "-r", "run"), "no trained"),
    "name": (("name", "-r", "run"), "there is no run in run"),
    "inspect": (("inspect", "x", "-r", "run"), "there is no run in run"),
    "explore": (("explore", "run", "--port", "0", "--no-open"), "there is no run in run"),
    "export": (("export", "--student", "ntp", "-r", "run", "-o", "out"), "there is no run in run"),
    "export-dashboards": (("export-dashboards", "-r", "run", "-o", "out"), "there is no run in run"),
    "push": (("push", "--student", "ntp", "-r", "run", "--dry-run", "-o", "out"), "run is no run"),
    "pack": (("pack", "show", "nowhere"), "there is no pack nowhere"),
    "bench": (("bench",), "python -m benchmarks.speed"),
    "steer-eval": (("steer-eval", "-r", "run"), "there is no run in run"),
    "retrofit": (("retrofit", "./nowhere", "-r", "run"), "there is no such folder"),
    "clean": (("clean", "-r", "run"), "there is no run in run"),
    "doctor": (("doctor", "--tapir"), "No such option"),
}


def test_no_command_is_left_out() -> None:
    assert WRONG.keys() == GROUP.commands.keys()


@pytest.mark.parametrize("name", WRONG)
@pytest.mark.long
def test_what_is_wrong_is_one_sentence(name: str, tmp_path: Path) -> None:
    arguments, words = WRONG[name]
    refused(cocomix(*arguments, cwd=tmp_path, check=False, fresh=True), words)
