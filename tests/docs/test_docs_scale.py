"""docs/scale.md is true: its commands parse, its keys exist, its figures are the plan's, its scripts run."""

import os
import re
import shlex
import shutil
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from cocomix.experiments.config import ExperimentConfig
from cocomix.experiments.plan import plan
from cocomix.pipeline.config import load_config, validate_config
from cocomix.utils.settings import read_yaml, validate
from tests.helpers.doc_blocks import after_cocomix, parsed
from tests.helpers.launched_commands import checkpoints, ended, half_way, prepare, start, wait_until, weights

ROOT = Path(__file__).parents[2]
DOC = (ROOT / "docs" / "scale.md").read_text(encoding="utf-8")
OWT = ROOT / "recipes" / "data" / "openwebtext.yaml"


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", DOC, flags=re.DOTALL)


def commands() -> list[list[str]]:
    """What is typed after `cocomix`, in blocks and in the text; scripts inside of quotes are run below."""
    lines = [line for text in (*blocks("sh"), *blocks("yaml")) for line in text.splitlines() if "cocomix" in line]
    prose = re.sub(r"```.*?```", "", DOC, flags=re.DOTALL)
    lines += [" ".join(code.split()) for code in re.findall(r"`([^`]*cocomix [^`]*)`", prose)]
    found = (after_cocomix(shlex.split(line.rstrip("& "))) for line in lines)
    return [words for words in found if words is not None]


def test_every_command_parses() -> None:
    seen = set()
    for words in commands():
        context = parsed(words)
        overrides = context.params.get("overrides") or []
        if words[0] != "experiment" and overrides:
            load_config(OWT, overrides)
        for option in ("config", "recipe"):
            assert context.params.get(option) is None or (ROOT / context.params[option]).exists(), words
        seen.add(words[0])
    assert seen == {"corpus", "tokenize", "train", "sae", "label", "evaluate", "report", "experiment"}


def test_every_key_exists() -> None:
    recipe = read_yaml(OWT)
    recipe["teacher"] = {"train": {"steps": 1}}
    recipe["sae"] = {"train": {"steps": 1}}
    sections = r"(?:students_train|teacher|sae|tokens|corpus|evaluation)"
    keys = set(re.findall(rf"[`' ]({sections}(?:\.\w+)+)", DOC))
    assert len(keys) > 8
    known = validate_config(recipe, "docs/scale.md").model_dump(mode="json")
    for key in keys:
        value: Any = known
        for part in key.split("."):
            assert part in value, key
            value = value[part]


def test_memory_is_the_plans(tmp_path: Path) -> None:
    recipe, gpus = re.search(r"<!-- plan: (\S+), (\d+) GPUs -->", DOC).groups()  # pyright: ignore
    made = plan(validate(ExperimentConfig, read_yaml(ROOT / recipe), recipe), tmp_path, gpus=int(gpus))
    (setting,) = made["settings"].values()
    rows = {row["name"]: row for row in setting["variants"]}
    told = re.findall(r"^\| (\w+) \| ([\d.]+)B \| ([\d.]+) \| ([\d.]+) \|$", DOC, flags=re.MULTILINE)
    assert [name for name, *_ in told] == ["ntp", "cocomix"]
    for name, *figures in told:
        row = rows[name]
        expected = row["parameters"] / 1e9, row["memory"]["ddp_gib"], row["memory"]["sharded_gib"]
        assert [float(figure) for figure in figures] == pytest.approx(expected, abs=0.05), name


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare(tmp_path_factory.mktemp("prepared"), "runs/owt")


@pytest.fixture
def home(prepared: Path, tmp_path: Path) -> Iterator[Path]:
    """A home with the documented run, and stand-ins for what a cluster has."""
    home = Path(shutil.copytree(prepared, tmp_path / "home"))
    stand_ins = {
        "python": f'exec {sys.executable} "$@"',
        "srun": "for i in $(seq 0 $((SLURM_NTASKS - 1))); do\n"
        '  SLURM_PROCID=$i SLURM_LOCALID=$i "$@" & tasks="$tasks $!"\ndone\n'
        "for task in $tasks; do wait $task || exit $?; done",
        "scontrol": 'if [ "$1" = show ]; then echo 127.0.0.1; else echo "$@" >> requeued; fi',
    }
    (home / "bin").mkdir()
    for name, body in stand_ins.items():
        (home / "bin" / name).write_text(f"#!/bin/bash\n{body}\n")
        (home / "bin" / name).chmod(0o755)
    yield home


def of_ntp(script: str) -> str:
    """A documented script, for the student that is there, and on a free port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    return (
        script.replace("train cocomix", "train ntp").replace("students/cocomix", "students/ntp").replace("29500", port)
    )


def path(home: Path) -> str:
    return f"{home / 'bin'}:{os.environ['PATH']}"


@pytest.mark.long
def test_the_batch_script_queues_itself_again_until_it_is_done(home: Path) -> None:
    (script,) = blocks("bash")
    (home / "batch.sh").write_text(of_ntp(script))
    slurm = {"SLURM_NTASKS": "2", "SLURM_JOB_NODELIST": "here", "SLURM_JOB_ID": "17", "PATH": path(home)}
    job = start(home, "bash", "batch.sh", **slurm)
    wait_until(lambda: half_way(home / "runs/owt"), job)
    for process in psutil.Process(job.pid).children(recursive=True):
        if "cocomix" in process.cmdline():
            process.send_signal(signal.SIGUSR1)
    ((code, said),) = ended(job)
    assert code == 0 and said.count("saved; rerun the same command to resume") == 2, said
    assert (home / "requeued").read_text() == "requeue 17\n"
    assert len(checkpoints(home / "runs/owt")) == 1
    ((code, said),) = ended(start(home, "bash", "batch.sh", **slurm))
    assert code == 0, said
    assert weights(home / "runs/owt")
    assert (home / "requeued").read_text() == "requeue 17\n"


@pytest.mark.long
def test_an_evicted_pod_has_saved_and_is_not_taken_for_done(home: Path) -> None:
    (job,) = (yaml.safe_load(text) for text in blocks("yaml"))
    (container,) = job["spec"]["template"]["spec"]["containers"]
    (script,) = container["args"]
    script = of_ntp(script).replace("/runs/", "runs/")
    where = {"JOB_COMPLETION_INDEX": "0", "PATH": path(home)}
    pod = start(home, *container["command"], script, **where)
    wait_until(lambda: half_way(home / "runs/owt"), pod)
    pod.terminate()
    ((code, said),) = ended(pod)
    assert code == 1 and "saved; rerun the same command to resume" in said, (code, said)
    assert len(checkpoints(home / "runs/owt")) == 1
    ((code, said),) = ended(start(home, *container["command"], script, **where))
    assert code == 0, said
    assert weights(home / "runs/owt")
