"""Training: one loop for concept models, autoencoders and students, alone or under torchrun."""

from cocomix.train.config import TrainConfig

__all__ = ["TrainConfig"]
