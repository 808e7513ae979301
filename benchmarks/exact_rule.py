"""Is the exact rule exact on a run's own concept model? Both passes and labels, against separate patched passes.

    python -m benchmarks.exact_rule --run runs/smollm2 -o results/smollm2/exact.json

Windows of the validation split are taken at equal distances and cut to their first tokens. In float64 the definition is
computed as it stands, one forward and one backward pass for each position (`tests/helpers/patched_passes.py`), and
compared with the two streams that compute all positions at once. Then the two streams are run in float32 and, with
--bf16, under bf16 autocast as a recipe may label, and the labels that come out are compared with those of the
definition: `same` is the share of labelled positions that have the same k labels, in any order, and `shared` the share
of labels that are in both. `relative_difference` is the largest of all positions', each relative to its own largest
score.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.provenance import provenance
from cocomix.labels import attribute
from cocomix.labels.attribution import SIGNS, select_labels
from cocomix.pipeline.config import load_config
from cocomix.pipeline.run import Run
from cocomix.utils.env import autocast
from cocomix.utils.files import write_json
from tests.helpers.patched_passes import patched_loop


def windows(run: Run, count: int, tokens: int) -> torch.Tensor:
    """The first `tokens` of `count` windows of the concept model, int64 `[count, tokens]`."""
    shards, seq_len = run.teacher_tokens.shards("val"), run.config.teacher.seq_len or run.config.seq_len
    chosen = np.linspace(0, shards.n_windows(seq_len) - 1, count).round().astype(int)
    return torch.from_numpy(shards.windows(chosen, seq_len)[:, :tokens].astype(np.int64))


def same_labels(scores: torch.Tensor, expected: torch.Tensor, k: int, first: int) -> dict[str, float]:
    """Share of the positions that both label, from `first` on, with the same labels; and of those that one labels."""
    ours, true = select_labels(scores, k), select_labels(expected, k)
    both = (ours.valid & true.valid)[:, first:]
    shared = (ours.ids.unsqueeze(-1) == true.ids.unsqueeze(-2)).any(-1).double().mean(-1)[:, first:][both]
    return {
        "positions": int(both.sum()),
        "same": float((shared == 1).double().mean()),
        "shared": float(shared.mean()),
        "labelled_by_one": int((ours.valid ^ true.valid)[:, first:].sum()),
    }


def main() -> None:
    """Compute and write the comparison."""
    parser = argparse.ArgumentParser(description="Compare the exact rule with separate patched passes.")
    parser.add_argument("--run", type=Path, required=True, help="folder of a run with a finished autoencoder")
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--windows", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--k", type=int, default=4, help="labels a position")
    parser.add_argument("--bf16", action="store_true", help="also the labels under bf16 autocast")
    options = parser.parse_args()
    origin = provenance()
    run = Run(options.run, load_config(options.run / "config.yaml"))
    layer, left_out = run.sae.config.layer, run.sae.left_out
    teacher, sae, ids = run.teacher.model(), run.sae.model(), windows(run, options.windows, options.tokens)
    first = max(left_out.first, run.teacher_tokens.special.first_position)

    found: dict[str, Any] = {"layer": layer, "windows": len(ids), "tokens": ids.shape[1], "k": options.k}
    found |= {"first_position": first, "seconds": {}, "labels": {}}
    faster: dict[str, torch.Tensor] = {}
    for precision in ("fp32", *(["bf16"] if options.bf16 else [])):
        with autocast(teacher.device, precision):
            faster[precision] = attribute(teacher, sae, ids, layer=layer, rule="exact", sign="signed").double()
    teacher, sae = teacher.double(), sae.double()
    started = time.process_time()
    two_streams = attribute(teacher, sae, ids, layer=layer, rule="exact", sign="signed")
    found["seconds"]["two_streams"] = round(time.process_time() - started, 2)
    started = time.process_time()
    expected = patched_loop(teacher, sae, ids, layer)
    found["seconds"]["separate_passes"] = round(time.process_time() - started, 2)
    differences, largest = (x[:, first:-1].abs().amax(-1) for x in (two_streams - expected, expected))
    found["relative_difference"] = float((differences / largest).max())
    for name, scores in {"fp64": two_streams, **faster}.items():
        found["labels"][name] = {
            sign: same_labels(function(scores), function(expected), options.k, first)
            for sign, function in SIGNS.items()
        }
    write_json(options.out, origin | found)
    print(f"relative difference {found['relative_difference']:.1e}; labels {found['labels']}")


if __name__ == "__main__":
    main()
