"""One training loop on torch.distributed, checkpoints that resume to the same bits, metrics."""

from cocomix.train.config import TrainConfig

__all__ = [
    "TrainConfig",
]
