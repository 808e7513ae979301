"""Measure what forcing results to the disk costs, as a share of each stage's time.

    python -m benchmarks.fsync_cost -o results/faults/fsync.json

Does the tiny run, or another recipe's, in this process. `os.fsync` is timed; a stage's share is the time spent in it
over the time of the whole stage, publishing included. A folder on the disk in question is needed: /tmp is often memory.
"""

import argparse
import json
import os
import shutil
import tempfile
import time
from pathlib import Path

from benchmarks.provenance import provenance
from cocomix.cli.options import quiet_libraries, recipe_file
from cocomix.pipeline.config import load_config
from cocomix.pipeline.run import Run


def main() -> None:
    """Parse the command line, do the run, print and write the shares."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.fsync_cost",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("-c", "--config", default="tiny", help="recipe of the run, tiny or demo, or a YAML file")
    parser.add_argument("-o", "--output", type=Path, default=Path("results/faults/fsync.json"), help="file to write")
    parser.add_argument("--folder", type=Path, default=Path(), help="a folder on the disk that is measured")
    arguments = parser.parse_args()
    quiet_libraries()
    spent = {"calls": 0, "seconds": 0.0}
    real = os.fsync

    def timed(file: int) -> None:
        started = time.perf_counter()
        real(file)
        spent["seconds"] += time.perf_counter() - started
        spent["calls"] += 1

    os.fsync = timed
    config = Path(arguments.config) if Path(arguments.config).exists() else recipe_file(arguments.config)
    folder = Path(tempfile.mkdtemp(prefix="fsync-cost-", dir=arguments.folder))
    run = Run(folder / "run", load_config(config))
    stages = {}
    for name in run.stages:
        spent |= {"calls": 0, "seconds": 0.0}
        started = time.perf_counter()
        run.run_stage(name)
        seconds = time.perf_counter() - started
        stages[name] = {"seconds": seconds, "fsyncs": spent["calls"], "share": spent["seconds"] / seconds}
        print(f"{name}: {seconds:.1f} s, {spent['calls']} fsyncs, {spent['seconds'] / seconds:.2%}", flush=True)
    shutil.rmtree(folder)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    content = provenance() | {"config": arguments.config, "stages": stages}
    arguments.output.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
