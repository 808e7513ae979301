"""Perplexity of the models saved during a student's training."""

import csv
import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from cocomix.evaluation.perplexity import perplexity
from cocomix.model.loading import load_causal_lm
from cocomix.pipeline.stage import Stage
from cocomix.pipeline.student_stages import StudentStage
from cocomix.utils.distributed import device
from cocomix.utils.files import write_json, write_text


def snapshots_of(student: StudentStage) -> list[str]:
    """Names of a finished student's snapshots, `step-00000100`, by step; none where it is not finished."""
    if not student.done():
        return []
    folders = [path.parent for path in (student.folder / "snapshots").glob("step-*/config.json")]
    return sorted((path.name for path in folders if step_of(path.name) >= 0), key=step_of)


def snapshot_weights(student: StudentStage, snapshot: str) -> list[Path]:
    """The weight files of a snapshot."""
    return sorted((student.folder / "snapshots" / snapshot).glob("*.safetensors"))


def step_of(name: str) -> int:
    """The training step in a snapshot's name; -1 where there is none."""
    found = re.fullmatch(r"step-(\d+)", name)
    return int(found[1]) if found else -1


class SnapshotStage(Stage):
    """Perplexity of one snapshot on one held-out split, with the evaluation's own windows."""

    def __init__(self, student: StudentStage, snapshot: str, split: str) -> None:
        self.student, self.snapshot, self.split = student, snapshot, split
        name = f"{student.name.replace('students/', 'snapshots/', 1)}/{snapshot}/{split}"
        super().__init__(student.run_dir, name, "cocomix evaluate --snapshots", [student])

    def settings(self) -> dict[str, Any]:
        config = self.student.run_config
        return {"seq_len": config.seq_len, "windows": config.evaluation.windows, "split": self.split}

    def describe(self, figures: dict[str, Any]) -> str:
        return f"perplexity {figures['perplexity']:.2f} ({self.split})"

    def work(self, folder: Path, progress: Any) -> dict[str, Any]:
        config = self.student.run_config
        where = self.student.folder / "snapshots" / self.snapshot
        model = load_causal_lm(where, f"the snapshot {self.snapshot} of {self.student.student}", self.student.again)
        measured = perplexity(
            model.to(device()),  # pyright: ignore[reportArgumentType]
            self.student.tokens.shards(self.split),
            seq_len=config.seq_len,
            batch_size=config.evaluation.batch_size,
            max_windows=config.evaluation.windows,
        )
        progress(1, 1, {})
        return measured


COLUMNS: tuple[str, ...] = ("student", "seed", "step", "metric", "value", "stderr")


def write_rows(rows: Sequence[dict[str, Any]], run_dir: Path) -> tuple[Path, Path]:
    """Write rows of `COLUMNS` as `snapshots.json` and `snapshots.csv` into the run; returns both paths."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(COLUMNS))
    writer.writeheader()
    writer.writerows(rows)
    note = "val is what choices may be made by; a figure on test is for the end, after every choice is made"
    write_json(run_dir / "snapshots.json", {"note": note, "rows": list(rows)})
    write_text(run_dir / "snapshots.csv", text.getvalue())
    return run_dir / "snapshots.json", run_dir / "snapshots.csv"


def snapshot_table(rows: Sequence[dict[str, Any]]) -> Table:
    """A line a student, seed and step, a column a metric."""
    names = list(dict.fromkeys(row["metric"] for row in rows))
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for heading in ("student", "seed", "step", *names):
        table.add_column(heading, justify="left" if heading == "student" else "right", overflow="fold")
    lines: dict[tuple[Any, ...], dict[str, str]] = {}
    for row in rows:
        cell = f"{row['value']:.4g}" + ("" if row["stderr"] is None else f" ± {row['stderr']:.2g}")
        lines.setdefault((row["student"], row["seed"], row["step"]), {})[row["metric"]] = cell
    for (student, seed, step), cells in lines.items():
        table.add_row(student, str(seed), f"{step:,}", *(cells.get(name, "") for name in names))
    return table
