"""Measure memory and time of `cocomix corpus` and `cocomix tokenize` on 1, 2 and 4 quarters of a corpus.

    apt-get install linux-doc-6.1 anarchism
    python -m benchmarks.tokenize_memory                 # a few minutes on 2 cores

The real commands run in their own processes. The resident memory of each command and all its children is read ten times
a second. Two sums are kept: RSS counts a page shared by several processes once per process, PSS counts it once. The
tokenizer is trained on the first quarter and loaded afterwards, because training one takes memory that grows with the
number of different words.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from benchmarks.provenance import provenance
from cocomix.data import SOURCES, Skipped
from cocomix.utils.console import use_any_encoding
from cocomix.utils.files import write_json

TEXTS = ["/usr/share/doc/linux-doc-6.1", "/usr/share/doc/anarchism"]
PATTERN = "*.rst|*.txt|*.md"  # their HTML repeats the same text
FILE_BYTES = 1_000_000
VOCABULARY = 8192
MIB = 1 << 20


def main() -> None:
    """Parse the command line, measure, write `report.json` and draw `rss.png`."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.tokenize_memory",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--texts", nargs="+", default=TEXTS, help="folders of text files")
    parser.add_argument("--output", type=Path, default=Path("results/tokenise"), help="folder for the report")
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    origin = provenance()
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        sizes = write_quarters(arguments.texts, home)
        rows = []
        for quarters in (1, 2, 4):
            rows.append(measure(home, quarters, "corpus", 1))
            if quarters == 1:
                train_tokenizer(home)
            for workers in (1, 2) if quarters == 1 else (2,):
                rows.append(measure(home, quarters, "tokenize", workers))
                print(json.dumps({key: value for key, value in rows[-1].items() if key != "trace"}), flush=True)
    report = {
        "texts": arguments.texts,
        "pattern": PATTERN,
        "characters_of_each_quarter": sizes,
        "seed": None,
        **origin,
        "settings": {"corpus.file_bytes": FILE_BYTES, "vocabulary": VOCABULARY},
        "runs": rows,
    }
    write_json(arguments.output / "report.json", report)
    draw(rows, arguments.output / "rss.png")


def write_quarters(folders: list[str], home: Path) -> list[int]:
    """Write four JSON-lines files of about equal size; return their numbers of characters."""
    records = (record for folder in folders for record in SOURCES["folder"](path=folder, pattern=PATTERN).records())
    documents = [record for record in records if not isinstance(record, Skipped)]
    quarter_size = sum(len(document.text) for document in documents) / 4
    sizes, number, done = [0] * 4, 0, 0
    files = [(home / f"quarter-{quarter}.jsonl").open("w", encoding="utf-8") for quarter in range(4)]
    for document in documents:
        number = min(3, int(done / quarter_size))
        done += len(document.text)
        sizes[number] += len(document.text)
        files[number].write(json.dumps({"text": document.text}) + "\n")
    for file in files:
        file.close()
    return sizes


def overrides(home: Path, quarters: int, workers: int) -> list[str]:
    """Return config overrides for a run whose source is the first `quarters` files."""
    return [
        "corpus.source=jsonl",
        f"corpus.options.path={home}/quarter-[0-{quarters - 1}].jsonl",
        f"corpus.file_bytes={FILE_BYTES}",
        f"tokens.tokenizer={home}/tokenizer",
        "tokens.shard_tokens=10000000",
        f"tokens.workers={workers}",
    ]


def train_tokenizer(home: Path) -> None:
    """Train the tokenizer on the first quarter's training split."""
    from cocomix.data import Corpus
    from cocomix.data import train_tokenizer as train

    texts = (document.text for document in Corpus(home / "run-1" / "corpus" / "text").documents("train"))
    train(texts, VOCABULARY, home / "tokenizer")


def measure(home: Path, quarters: int, command: str, workers: int) -> dict[str, Any]:
    """Run one command; return its figures, peaks and memory over time."""
    run = home / f"run-{quarters}"
    tokens = run / "tokens"
    if command == "tokenize" and tokens.exists():
        subprocess.run(["rm", "-r", str(tokens)], check=True)
    arguments = [sys.executable, "-m", "cocomix", command, "-r", str(run), *overrides(home, quarters, workers)]
    started = time.monotonic()
    with subprocess.Popen(arguments, stdout=subprocess.DEVNULL) as process:
        trace = list(watch(process, started))
    if process.returncode:
        raise SystemExit(f"{' '.join(arguments)} failed")
    record = json.loads((run / ("corpus" if command == "corpus" else "tokens") / "stage.json").read_text())
    splits = json.loads((run / "corpus" / "stage.json").read_text())["figures"]["splits"].values()
    n_tokens = sum(record["figures"].get("tokens", {}).values())
    return {
        "command": command,
        "quarters": quarters,
        "workers": workers,
        "documents": sum(split["documents"] for split in splits),
        "characters": sum(split["chars"] for split in splits),
        "tokens": n_tokens or None,
        "stage_seconds": record["seconds"],
        "whole_seconds": time.monotonic() - started,
        "tokens_per_second": n_tokens / record["seconds"] if n_tokens else None,
        "cpu_seconds": trace[-1]["cpu"],
        "load_average": os.getloadavg()[0],
        "peak_rss_mib": max(point["rss"] for point in trace),
        "peak_pss_mib": max(point["pss"] for point in trace),
        "most_processes": max(point["processes"] for point in trace),
        "trace": thinned(trace),
    }


def watch(process: subprocess.Popen, started: float) -> Iterator[dict[str, float]]:
    """Yield the memory of the process and its children in MiB until it ends."""
    ended = threading.Event()
    threading.Thread(target=lambda: (process.wait(), ended.set()), daemon=True).start()
    root, used = psutil.Process(process.pid), {}
    while not ended.wait(0.1):
        rss = pss = count = 0.0
        try:
            for child in [root, *root.children(recursive=True)]:
                memory = child.memory_full_info()
                rss, pss, count = rss + memory.rss, pss + memory.pss, count + 1
                used[child.pid] = sum(child.cpu_times()[:2])
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue  # a child has just ended; the next reading counts the others
        yield {"seconds": time.monotonic() - started, "rss": rss / MIB, "pss": pss / MIB, "processes": count} | {
            "cpu": sum(used.values())
        }


def thinned(trace: list[dict[str, float]]) -> list[dict[str, float]]:
    """Reduce the trace to at most 200 points, each the maximum of its interval."""
    step = -(-len(trace) // 200)
    intervals = [trace[start : start + step] for start in range(0, len(trace), step)]
    return [{key: round(max(point[key] for point in interval), 1) for key in interval[0]} for interval in intervals]


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Plot memory over time, one panel per command."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, 2, figsize=(11, 4), sharey=True)
    colours = {1: "#1f77b4", 2: "#ff7f0e", 4: "#2ca02c"}
    for row in rows:
        trace, panel = row["trace"], panels[int(row["command"] == "tokenize")]
        seconds = [point["seconds"] for point in trace]
        size = f"{row['characters'] / 1e6:.0f} M characters"
        label = size if row["command"] == "corpus" else f"{size}, {row['workers']} worker{'s' * (row['workers'] > 1)}"
        style = ":" if row["command"] == "tokenize" and row["workers"] == 1 else "-"
        panel.plot(seconds, [point["rss"] for point in trace], style, color=colours[row["quarters"]], label=label)
        if row["command"] == "tokenize" and row["workers"] > 1:
            pss = [point["pss"] for point in trace]
            panel.plot(
                seconds, pss, "--", color=colours[row["quarters"]], alpha=0.6, label=f"{size}, shared pages once"
            )
    for panel, command in zip(panels, ("cocomix corpus", "cocomix tokenize"), strict=True):
        panel.set(title=command, xlabel="seconds, start-up included", ylim=(0, None))
        panel.grid(alpha=0.3)
        panel.legend(fontsize=7)
    panels[0].set_ylabel("resident memory of all processes, MiB")
    figure.tight_layout()
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    use_any_encoding()
    main()
