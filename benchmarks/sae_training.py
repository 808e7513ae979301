"""Train autoencoders on the same stored hidden states, ours and SAELens', and compare them on held-out ones.

    OMP_NUM_THREADS=1 python -m benchmarks.sae_training --run runs/mine --layer 2 --latents 1024 --k 16 --json out.json

The run's teacher reads windows of the training and the validation split once. Every variant is then trained on the same
batches in the same order, with the same learning rate, warm-up and decay, and measured by the same code
(`cocomix.sae.sae_quality`): SAELens' autoencoders are saved by it and read as any user's. Seconds are those of the
training alone. SAELens is trained by its own `SAETrainer`, with its defaults apart from what is named here.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.provenance import provenance
from cocomix.evaluation.perplexity import window_subset
from cocomix.model.teacher import hidden_at
from cocomix.pipeline.config import load_config
from cocomix.pipeline.run import Run
from cocomix.sae import SAE_KINDS, TopKSAE, load_sae, sae_quality
from cocomix.train.batches import BatchSource
from cocomix.train.config import TrainConfig
from cocomix.train.optimizer import adamw
from cocomix.utils.env import autocast

OURS: dict[str, dict[str, Any]] = {
    "topk": {},
    "topk, rows from data": {"rows": "data"},
    "topk, AuxK 1/4": {"aux_coefficient": 0.25},
    "topk, AuxK 1": {"aux_coefficient": 1.0},
    "topk, dead after 20k": {"dead_after_tokens": 20_000},
    "topk, AuxK 1/4, dead after 20k": {"aux_coefficient": 0.25, "dead_after_tokens": 20_000},
    "topk, rows from data, dead after 20k": {"rows": "data", "dead_after_tokens": 20_000},
    "topk, rows from data, AuxK 1/4, dead after 20k": {
        "rows": "data",
        "aux_coefficient": 0.25,
        "dead_after_tokens": 20_000,
    },
    "batch_topk": {"kind": "batch_topk", "rows": "data", "dead_after_tokens": 20_000},
    "matryoshka": {"kind": "matryoshka", "rows": "data", "dead_after_tokens": 20_000},
    "jumprelu": {"kind": "jumprelu", "rows": "data", "dead_after_tokens": 20_000},
    "jumprelu, bandwidth 0.01": {"kind": "jumprelu", "rows": "data", "dead_after_tokens": 20_000, "bandwidth": 0.01},
}
"""Our variants: a kind, where its rows come from, and options of its training."""
THEIRS = {"saelens topk": "topk", "saelens batchtopk": "batchtopk"}
"""SAELens' architectures."""


class Data:
    """Stored hidden states: `train` `[tokens, d]`, read in batches in one fixed order, and `held_out` `[tokens, d]`.

    They are those that the run's own autoencoder is trained on: windows of the teacher's tokens, without padding and
    what `sae.skip_first` and `sae.skip_norm` leave out, read in the precision of `sae.train`.
    """

    def __init__(self, run: Run, layer: int, tokens: int, held_out: int, batch: int, seed: int) -> None:
        train = run.config.sae.train
        self.precision = train.precision if train is not None else "fp32"
        teacher, self.batch = run.teacher.model(self.precision), batch
        self.train, self.held_out = (
            self._stored(run, teacher, split, layer, count) for split, count in (("train", tokens), ("val", held_out))
        )
        order = torch.randperm(len(self.train), generator=torch.Generator().manual_seed(seed))
        self.train = self.train[order]

    @torch.no_grad()
    def _stored(self, run: Run, teacher: Any, split: str, layer: int, tokens: int) -> torch.Tensor:
        seq_len, left_out = run.sae.seq_len, run.sae.to_leave_out()
        data = BatchSource(run.sae.teacher_tokens.windows(split, seq_len), seq_len)
        windows = window_subset(data.n_windows, max(1, tokens // seq_len))
        parts = []
        for chosen in np.array_split(windows, max(1, len(windows) // 16)):
            batch = data(chosen, torch.device("cpu"))
            with autocast(torch.device("cpu"), self.precision):
                hidden = hidden_at(teacher, batch["input_ids"], layer)
            parts.append(left_out.select(hidden.float(), batch.get("padding")))
        return torch.cat(parts)

    def batches(self) -> Iterator[torch.Tensor]:
        """Whole batches, once."""
        for start in range(0, len(self.train) - self.batch + 1, self.batch):
            yield self.train[start : start + self.batch]


def train_ours(data: Data, config: TrainConfig, latents: int, k: int, options: dict[str, Any]) -> tuple[TopKSAE, float]:
    """One of `OURS`, trained as the stage does, and the seconds."""
    options = dict(options)
    kind, rows = options.pop("kind", "topk"), options.pop("rows", "random")
    torch.manual_seed(config.seed)
    training = SAE_KINDS[kind].make(data.train.shape[1], latents, k, **options).train()
    training.initialise(data.train[: max(4096, 2 * latents)], rows)
    optimizer, total = adamw(training, config), len(data.train) // data.batch
    started = time.perf_counter()
    for step, x in enumerate(data.batches()):
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate_at(step, total)
        training(x).backward()
        training.before_step()
        torch.nn.utils.clip_grad_norm_(training.parameters(), config.grad_clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        training.after_step()
    return training.eval().sae, time.perf_counter() - started


def train_theirs(data: Data, config: TrainConfig, latents: int, k: int, architecture: str) -> tuple[TopKSAE, float]:
    """One of `THEIRS`, trained by SAELens and read back from its files, and the seconds.

    Its auxiliary loss refuses `normalize_activations`, so the hidden states are scaled before, to a mean norm of
    sqrt(d), and the autoencoder that is returned is scaled back.
    """
    from sae_lens.config import LoggingConfig, SAETrainerConfig
    from sae_lens.registry import get_sae_training_class
    from sae_lens.training.sae_trainer import SAETrainer

    torch.manual_seed(config.seed)
    made, config_class = get_sae_training_class(architecture)
    width = data.train.shape[1]
    scale = float(data.train.norm(dim=1).mean()) / width**0.5
    sae: Any = made(config_class(d_in=width, d_sae=latents, k=k))
    steps = len(data.train) // data.batch
    settings = SAETrainerConfig(
        total_training_samples=steps * data.batch,
        train_batch_size_samples=data.batch,
        lr=config.learning_rate,
        lr_end=config.learning_rate * config.final_lr_fraction,
        lr_scheduler_name="cosineannealing",
        lr_warm_up_steps=round(config.warmup_fraction * steps),
        dead_feature_window=max(1, 20_000 // data.batch),
        logger=LoggingConfig(log_to_wandb=False),
    )
    trainer: Any = SAETrainer(settings, sae, (x / scale for x in data.batches()))
    started = time.perf_counter()
    trainer.fit()
    seconds = time.perf_counter() - started
    with tempfile.TemporaryDirectory() as folder:
        sae.save_inference_model(folder)
        found = load_sae(folder, layer=0, d_model=width, k=min(latents, 2 * k)).sae
    with torch.no_grad():
        found.encoder_weight /= scale
        found.decoder_weight *= scale
        found.pre_bias *= scale
    return found, seconds


def main() -> None:
    """Parse the command line, store hidden states, train every variant, print and write figures."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.sae_training",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--run", type=Path, required=True, help="run with a finished teacher")
    parser.add_argument("--layer", type=int, default=2, help="block (0-based) whose output is read")
    parser.add_argument("--latents", type=int, default=1024, help="number of latents C")
    parser.add_argument("--k", type=int, default=16, help="active latents K")
    parser.add_argument("--tokens", type=int, default=400_000, help="hidden states that are trained on, once each")
    parser.add_argument("--held-out", type=int, default=60_000, help="hidden states that are measured on")
    parser.add_argument("--batch", type=int, default=2048, help="hidden states in a step")
    parser.add_argument("--lr", type=float, default=1e-3, help="learning rate")
    parser.add_argument("--only", nargs="*", default=[], help="names of variants; empty: all")
    parser.add_argument("--json", type=Path, default=None, help="file to write")
    arguments = parser.parse_args()
    run = Run(arguments.run, load_config(arguments.run / "config.yaml"))
    data = Data(run, arguments.layer, arguments.tokens, arguments.held_out, arguments.batch, seed=0)
    config = TrainConfig(epochs=1, learning_rate=arguments.lr, warmup_fraction=0.05, weight_decay=0.0)
    size = (config, arguments.latents, arguments.k)
    variants: dict[str, Callable[[], tuple[TopKSAE, float]]] = {
        **{name: lambda options=options: train_ours(data, *size, options) for name, options in OURS.items()},
        **{name: lambda kind=kind: train_theirs(data, *size, kind) for name, kind in THEIRS.items()},
    }
    unknown = set(arguments.only) - set(variants)
    if unknown:
        parser.error(f"no variant {sorted(unknown)[0]!r}; there are: {', '.join(variants)}")
    results: dict[str, Any] = {}
    for name, train in variants.items():
        if arguments.only and name not in arguments.only:
            continue
        sae, seconds = train()
        found = sae_quality(sae, data.held_out.split(4096))
        results[name] = {"seconds": seconds} | {key: value for key, value in found.items() if key != "density"}
        print(
            f"{name:48} {seconds:7.1f} s  explained variance {found['explained_variance']:.4f}"
            f"  dead {found['dead_share']:6.1%}  L0 {found['l0']:5.1f}  full {found['full_share']:.1%}",
            flush=True,
        )
        if arguments.json is not None:
            settings = {key: str(value) for key, value in vars(arguments).items()}
            threads = torch.get_num_threads()
            content = {"settings": settings, "threads": threads, "variants": results} | {"provenance": provenance()}
            arguments.json.parent.mkdir(parents=True, exist_ok=True)
            arguments.json.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
