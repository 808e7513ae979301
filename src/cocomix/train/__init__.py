"""Training: one loop on torch.distributed, checkpoints that resume to the same bits, and metrics."""

from cocomix.train.config import TrainConfig

__all__ = [
    "TrainConfig",
]
