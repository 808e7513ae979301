"""The machine's own limit: the fastest square matrix product it was seen to do in this run."""

import torch

from benchmarks.speed.contestant import Contestant, Lap, Setting

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


class Matmul(Contestant):
    """`side` x `side` times `side` x `side`, into memory that is there."""

    unit = "product"
    units = 1.0

    def __init__(self, setting: Setting, side: int, precision: str) -> None:
        self.name, self.setting, self.side, self.precision = f"{side} {precision}", setting, side, precision
        self.flops = 2.0 * side**3

    def prepare(self) -> None:
        generator = torch.Generator().manual_seed(self.setting.seed)
        made = [torch.randn(self.side, self.side, generator=generator) for _ in range(3)]
        self.a, self.b, self.out = (one.to(self.setting.device, DTYPES[self.precision]) for one in made)

    def run(self, lap: Lap) -> None:
        torch.mm(self.a, self.b, out=self.out)
