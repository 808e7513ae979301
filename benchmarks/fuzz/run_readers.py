"""Readers of what a run and its user write: configs, records, concept names, steering."""

import json
import shutil
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from benchmarks.fuzz.hostile_values import YAML
from benchmarks.fuzz.reader import Reader, check_inside, replace_file, reseal
from cocomix.analysis.naming import ConceptName, FoundNames, edit_name, read_names, write_found
from cocomix.experiments.config import ExperimentConfig
from cocomix.experiments.grid import Grid
from cocomix.pipeline.config import load_config, validate_config
from cocomix.pipeline.stage import RECORD, Stage
from cocomix.pipeline.trained import existing_run
from cocomix.steering import from_json, parse_steering
from cocomix.utils.console import Stopwatch
from cocomix.utils.errors import CocomixError
from cocomix.utils.files import sha256_of, write_sealed
from cocomix.utils.settings import LEGACY_SEAL, SettingsFile, copy_path, read_yaml, validate

TINY = files("cocomix") / "recipes" / "tiny.yaml"


class TwoFileStage(Stage):
    """A stage that writes two files."""

    def settings(self) -> dict[str, Any]:
        return {"setting": [1, "x"]}

    def work(self, folder: Path, progress: Any) -> dict[str, Any]:
        (folder / "a.txt").write_text("something")
        (folder / "b").mkdir()
        (folder / "b" / "c.bin").write_bytes(bytes(range(256)))
        return {"value": 1.5, "curve": [{"step": 1, "loss": 2.0}]}

    def outputs(self) -> list[str]:
        return ["a.txt"]


def _stages(folder: Path) -> tuple[TwoFileStage, TwoFileStage]:
    first = TwoFileStage(folder, "first", "cocomix first")
    return first, TwoFileStage(folder, "second", "cocomix second", [first])


def _make_stages(folder: Path) -> None:
    for stage in _stages(folder):
        stage.run(lambda *_: None)
        stage.check()
    shutil.rmtree(folder / ".partial", ignore_errors=True)


def _read_stages(folder: Path) -> None:
    for stage in _stages(folder):
        _ = stage.done(), stage.outcome(), stage.record()
        stage.check()


def _seal_stages(folder: Path) -> None:
    for path in folder.rglob(RECORD):
        reseal(path, lambda record: ((entry, entry["file"]) for entry in record["files"]))
        try:
            write_sealed(path, json.loads(path.read_bytes()))
        except (OSError, ValueError, TypeError, RecursionError):
            continue


def _make_clock(folder: Path) -> None:
    watch = Stopwatch(folder / "seconds.json")
    watch.keep()


def _make_names(folder: Path) -> None:
    concepts = [
        ConceptName(concept=concept, name=f"name {concept}", source="tokens", occurrences=concept)
        for concept in range(6)
    ]
    write_found(folder, FoundNames(sae="x", tokens="t", split="train", windows=3, positions=24, concepts=concepts))
    edit_name(folder, "x", 2, "mine")
    edit_name(folder, "y", 3, "other's")


def _read_names(folder: Path) -> None:
    names = read_names(folder, "x")
    _ = [names.name(concept) for concept in range(-1, 8)]
    edit_name(folder, "x", 1, "new")


def _make_config(folder: Path) -> None:
    config = validate_config(yaml.safe_load(TINY.read_text()), "tiny")
    SettingsFile(folder / "config.yaml").write(config.model_dump(mode="json"))


def _read_run_config(folder: Path) -> None:
    run = existing_run(folder)
    check_inside(folder, *(stage.folder for stage in run.stages.values()))
    _ = [stage.done() for stage in run.stages.values()]


def _seal_config(folder: Path) -> None:
    """As an earlier version wrote it: the checksum in the first line, and no copy beside it."""
    copy_path(folder / "config.yaml").unlink(missing_ok=True)
    try:
        text = (folder / "config.yaml").read_text()
    except (OSError, ValueError):
        return
    rest = text.partition("\n")[2] if text.startswith("#") else text
    (folder / "config.yaml").write_text(f"{LEGACY_SEAL}{sha256_of(rest)}; whoever edits\n{rest}")


def _overridden(folder: Path) -> None:
    line = (folder / "override.txt").read_bytes().decode("utf-8", "surrogateescape")  # as a command line is
    load_config(folder / "recipe.yaml", [line])


def _read_experiment(folder: Path) -> None:
    config = validate(ExperimentConfig, read_yaml(folder / "experiment.yaml"), "the experiment")
    grid = Grid(config, folder / "grid")
    check_inside(folder, *(run.folder for run in grid.runs.values()))


EXPERIMENT = {
    "title": "t",
    "seeds": [0, 1],
    "baseline": "ntp",
    "variants": {"ntp": None, "cocomix": None},
    "settings": {
        "a": {"title": "s"},
        "b": {"title": "l", "overrides": {"tokens": {"tokenizer": "$a/tokens/tokenizer"}}, "variants": ["ntp"]},
    },
    "claims": [{"id": 1, "compare": [{"better": "cocomix", "than": "ntp", "settings": ["a"]}]}],
    "steering": {"variant": "cocomix"},
    "timing_steps": 3,
}


def _make_experiment(folder: Path) -> None:
    base = yaml.safe_load(TINY.read_text())
    students = base.pop("students")
    for name in ("title", "seeds", "baseline"):
        base.pop(name)
    variants = {name: students[name] for name in EXPERIMENT["variants"]}
    (folder / "experiment.yaml").write_text(
        yaml.safe_dump(EXPERIMENT | {"base": base, "variants": variants}, sort_keys=False)
    )


STEERING = {"steering": [{"concept": 3, "do": "amplify", "amount": 4.0}, {"concept": 7, "do": "ablate", "start": 2}]}
LINE = "c123=+4,c7:off,c9=clamp:2@10, some name = dampen:0.5"


def _resolve(name: str) -> int:
    if name != "some name":
        raise CocomixError(f"there is no concept {name!r}; choose another")
    return 5


def _read_line(folder: Path) -> None:
    parse_steering((folder / "line.txt").read_bytes().decode("utf-8", "surrogateescape"), _resolve)


OVERRIDES = ("sae.k=8", "seeds=[0, 1]", "students.cocomix.concept={concept_layer: 1}", "corpus.options={path: x}")


def _make_override(folder: Path) -> None:
    (folder / "recipe.yaml").write_bytes(TINY.read_bytes())
    (folder / "override.txt").write_text(OVERRIDES[0])


READERS = (
    Reader(
        "config",
        lambda folder: (folder / "recipe.yaml").write_bytes(TINY.read_bytes()),
        lambda folder: load_config(folder / "recipe.yaml"),
        hostile={f"YAML {n}": replace_file("recipe.yaml", f"title: {text}\n") for n, text in enumerate(YAML)},
    ),
    Reader("run-config", _make_config, _read_run_config, seal=_seal_config, anywhere=True),
    Reader(
        "override",
        _make_override,
        _overridden,
        hostile={f"YAML {n}": replace_file("override.txt", f"title={text}") for n, text in enumerate(YAML)}
        | {
            line: replace_file("override.txt", line)
            for line in (*OVERRIDES, "=", "a=", ".=1", "a..b=1", "x.y=1", "sae=1", "\x00=1")
        },
    ),
    Reader("experiment", _make_experiment, _read_experiment),
    Reader("stages", _make_stages, _read_stages, seal=_seal_stages),
    Reader("seconds", _make_clock, lambda folder: Stopwatch(folder / "seconds.json").seconds),
    Reader("names", _make_names, _read_names),
    Reader(
        "steering-json",
        lambda folder: (folder / "steering.json").write_text(json.dumps(STEERING)),
        lambda folder: from_json((folder / "steering.json").read_bytes().decode("utf-8", "surrogateescape")),
    ),
    Reader("steering-line", lambda folder: (folder / "line.txt").write_text(LINE), _read_line),
)
