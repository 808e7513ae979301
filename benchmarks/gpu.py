"""`benchmarks/gpu.sh`: tests, speed and a short training on one GPU, in at most twelve minutes, as one JSON.

Parts, each with its own limit of time; a part that fails says why and the others go on:

- `tests`: the tests marked gpu;
- `steps`: training steps of the paper's 69M and 386M shapes in bf16, ours and Transformers' GPT-2, compiled and not:
  tokens a second, model FLOPs utilisation, peak memory;
- `labelling`: concept labels by a teacher of GPT-2's size, tokens a second;
- `training`: a 69M student on the built-in text, its teacher, autoencoder and labels included, with its loss curve.

Utilisation is over the card's dense bf16 peak as its vendor gives it (`PEAKS`), else over the fastest matrix product
measured here. With `--toy` everything is tiny and runs on any machine; the figures then mean nothing.
"""

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.provenance import provenance
from benchmarks.speed.groups import DTYPES, Matmul
from benchmarks.speed.labelling import OurLabels
from benchmarks.speed.own_process import ROOT, measure_in_own_process
from benchmarks.speed.shapes import SHAPES
from benchmarks.speed.students import TrainingState
from benchmarks.speed.synthetic import StoredData, autoencoder, concept_model
from benchmarks.speed.workload import Setting
from cocomix.utils.errors import CocomixError
from cocomix.utils.files import write_json

PEAKS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "RTX 4090": 165e12}
"""Dense bf16 operations a second, by a part of the card's name."""
BATCHES = {"69m": 16, "386m": 8, "tiny": 2}
"""Windows a step."""
WARMUP, TIMED = 4, 10
"""Steps that are not timed (the first compiles), and those that are."""
LIMITS = {"tests": 120, "steps": 240, "labelling": 45, "training": 300}
"""Seconds of each part."""
TOY_PATIENCE = 8
"""Factor on these at toy size, which runs on whatever machine tests do."""


class Machine:
    """What is measured: a device, at full or at toy size."""

    def __init__(self, *, toy: bool) -> None:
        self.toy = toy
        self.device = torch.device("cpu" if toy or not torch.cuda.is_available() else "cuda")
        self.sizes = ["tiny"] if toy else ["69m", "386m"]

    def setting(self, size: str) -> Setting:
        """The setting of a size, with a batch that fills a card."""
        shape = SHAPES[size].model_copy(update={"batch": BATCHES[size], "label_windows": BATCHES[size]})
        return Setting(
            shape.model_copy(update={"label_batches": (max(1, shape.batch // 2), shape.batch)}), None, self.device, 0
        )

    def peak(self) -> tuple[float, str]:
        """bf16 operations a second of this device, and where the number comes from."""
        name = torch.cuda.get_device_name() if self.device.type == "cuda" else "cpu"
        for part, peak in PEAKS.items():
            if part in name:
                return peak, f"the vendor's figure for {part}"
        setting = self.setting(self.sizes[0])
        products = [Matmul(setting, side, precision) for side in setting.shape.matmuls for precision in DTYPES]
        fastest = max((_speed(product), product.name) for product in products if product.precision == "bf16")
        return fastest[0], f"the fastest matrix product measured here, {fastest[1]}"


def _speed(product: Matmul) -> float:
    product.prepare()
    seconds = []
    for _ in range(5):
        product.setting.synchronize()
        started = time.perf_counter()
        product.run(lambda lap: None)
        product.setting.synchronize()
        seconds.append(time.perf_counter() - started)
    assert product.flops is not None
    return product.flops / min(seconds)


def command(arguments: list[str], limit: float) -> str:
    """Run a Python program from the repository's root; returns what it printed.

    Raises:
        CocomixError: it failed, with the last of what it printed, or took longer than `limit` seconds.
    """
    try:
        done = subprocess.run(
            [sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=limit, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise CocomixError(f"it took longer than its {limit:.0f} s") from error
    said = done.stdout + done.stderr
    if done.returncode:
        raise CocomixError(f"exit code {done.returncode}: {' '.join(said.split())[-300:]}")
    return said


def tests(machine: Machine, limit: float) -> dict[str, Any]:
    """The tests marked gpu; without a GPU they are skipped."""
    folders = ["tests/kernels/test_gpu.py"] if machine.toy else []
    said = command(["-m", "pytest", "-n0", "-p", "no:cacheprovider", "-m", "gpu", *folders], limit)
    return {"summary": said.strip().splitlines()[-1]}


def steps(machine: Machine, limit: float) -> dict[str, Any]:
    """Training steps, each in a process of its own; those that do not fit the limit are left out."""
    peak, basis = machine.peak()
    measured: dict[str, Any] = {"peak_flops": peak, "peak_is": basis, "left_out": []}
    started = time.monotonic()
    for size in machine.sizes:
        setting = machine.setting(size)
        for student in ("gpt2", "cocomix"):
            flops = TrainingState(student, setting, StoredData(setting.shape, 0)).flops()
            for compiled in (False, True):
                name = f"{student} {size}{' compiled' if compiled else ''}"
                if time.monotonic() - started > limit:
                    measured["left_out"].append(name)
                    continue
                record = measure_in_own_process(student, "bf16", setting, WARMUP + TIMED, compiled=compiled)
                seconds = median(record["seconds"][WARMUP:])
                measured[name] = {
                    "tokens_per_second": setting.shape.tokens / seconds,
                    "mfu": flops / seconds / peak,
                    "peak_bytes": record["step"],
                    "first_step_seconds": record["seconds"][0],
                }
    return measured


def labelling(machine: Machine, limit: float) -> dict[str, Any]:
    """Labels by each rule with a teacher of GPT-2's size."""
    setting = machine.setting(machine.sizes[0])
    teacher, sae = concept_model(setting), autoencoder(setting)
    measured = {}
    for rule in ("exact", "activation"):
        work = OurLabels(setting, teacher, sae, rule, "bf16")
        work.prepare()
        seconds = []
        started = time.monotonic()
        while not seconds or (len(seconds) < 5 and time.monotonic() - started < limit / 2):
            begun = time.perf_counter()
            work.run(lambda lap: None)
            setting.synchronize()
            seconds.append(time.perf_counter() - begun)
        measured[rule] = {"tokens_per_second": work.units / median(seconds), "windows_a_pass": work.batch_size}
    return measured


def training(machine: Machine, limit: float) -> dict[str, Any]:
    """A whole run up to one student; its loss is finite and falls, or the part has failed."""
    recipe = ["-c", "src/cocomix/recipes/tiny.yaml"] if machine.toy else ["-c", "benchmarks/gpu.yaml"]
    shorter = ["students_train.steps=20", "teacher.train.steps=20", "sae.train.steps=40"] if machine.toy else []
    with tempfile.TemporaryDirectory() as folder:
        started = time.monotonic()
        for stage in (
            ["corpus"],
            ["tokenize"],
            ["train", "teacher"],
            ["sae"],
            ["label", "--name", "exact"],
            ["train", "cocomix"],
        ):
            left = limit - (time.monotonic() - started)
            command(["-m", "cocomix", *stage, "-r", folder, *recipe, *shorter], max(left, 1.0))
        figures = json.loads((Path(folder) / "students/cocomix/seed0/stage.json").read_text(encoding="utf-8"))[
            "figures"
        ]
        taken = time.monotonic() - started
    curve = [{"step": point["step"], "train_loss": point["train_loss"]} for point in figures["curve"]]
    losses = [point["train_loss"] for point in curve]
    if not all(map(math.isfinite, losses)) or losses[-1] >= losses[0]:
        raise CocomixError(f"the loss did not fall: {losses}")
    kept = {name: figures[name] for name in ("parameters", "tokens", "seconds")}
    return kept | {
        "curve": curve,
        "val_perplexity": figures["curve"][-1]["val_perplexity"],
        "seconds_of_all_stages": taken,
    }


PARTS: dict[str, Callable[[Machine, float], dict[str, Any]]] = {
    "tests": tests,
    "steps": steps,
    "labelling": labelling,
    "training": training,
}
"""Parts by name, in the order they run."""


def main() -> None:
    """Parse the command line, do the parts, and write what is known after each."""
    parser = argparse.ArgumentParser(
        prog="benchmarks/gpu.sh", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("output", type=Path, help="JSON file to write")
    parser.add_argument("--toy", action="store_true", help="tiny sizes, on the CPU; the figures mean nothing")
    parser.add_argument("--only", nargs="*", choices=PARTS, default=list(PARTS), help="these parts; default: all")
    arguments = parser.parse_args()
    machine = Machine(toy=arguments.toy)
    if machine.device.type == "cpu" and not arguments.toy:
        sys.exit("benchmarks/gpu.sh: PyTorch finds no CUDA device here; add --toy to try the script without one")
    card = torch.cuda.get_device_name() if machine.device.type == "cuda" else os.uname().machine
    report: dict[str, Any] = provenance() | {"device": card, "toy": arguments.toy}
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    for name in arguments.only:
        started = time.monotonic()
        try:
            result = PARTS[name](machine, LIMITS[name] * (TOY_PATIENCE if machine.toy else 1))
        except (CocomixError, RuntimeError) as error:
            result = {"failed": " ".join(str(error).split())[:500]}
        report[name] = result | {"part_seconds": time.monotonic() - started}
        print(f"{name}: {json.dumps(report[name])[:400]}", flush=True)
        write_json(arguments.output, report)
    if any("failed" in report[name] for name in arguments.only):
        sys.exit(1)


if __name__ == "__main__":
    main()
