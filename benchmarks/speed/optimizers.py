"""What an optimiser costs: our training step with each, in turns, as ratios to AdamW.

python -m benchmarks.speed.optimizers --shape 69m [--repeats 5] [--device cuda] [--json optimizers.json]
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch

from benchmarks.speed.measure import figure, ratios, time_interleaved
from benchmarks.speed.shapes import SHAPES
from benchmarks.speed.students import TrainingState, TrainingStep
from benchmarks.speed.synthetic import StoredData
from benchmarks.speed.workload import Setting
from cocomix.train.optimizer import OPTIMIZERS
from cocomix.utils.files import write_json


def measure(setting: Setting, precision: str) -> dict[str, Any]:
    """Seconds of a step and of its update with each optimiser, as ratios to AdamW, round by round."""
    data = StoredData(setting.shape, setting.seed)
    steps = [TrainingStep(TrainingState("cocomix", setting, data, name), precision) for name in OPTIMIZERS]
    for step, name in zip(steps, OPTIMIZERS, strict=True):
        step.name = name
        step.prepare()
    timings = time_interleaved(steps, setting.repeats or 5, synchronize=setting.synchronize)
    base = timings["adamw"]
    return {
        name: {
            "step_vs_adamw": figure(ratios(timing.seconds, base.seconds)),
            "update_vs_adamw": figure(ratios(timing.laps["update"], base.laps["update"])),
            "seconds": timing.seconds,
        }
        for name, timing in timings.items()
    }


def main() -> None:
    """Print the ratios, and write them if asked to."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--shape", choices=SHAPES, default="69m")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--json", type=Path, help="file for the figures")
    options = parser.parse_args()
    setting = Setting(SHAPES[options.shape], options.repeats, torch.device(options.device), 0)
    settings = {"shape": options.shape, "precision": options.precision, "threads": torch.get_num_threads()}
    found = measure(setting, options.precision)
    if options.json is not None:
        write_json(options.json, settings | {"torch": torch.__version__, "optimizers": found})
    print(json.dumps(settings | {name: figures["step_vs_adamw"] for name, figures in found.items()}, indent=1))


if __name__ == "__main__":
    main()
