"""Settings that a run's students share by a name or a number: `preset` says how modern, `size` how large.

Both fill in what is not given: a student's `model` and `students_train`. What is given wins. A run keeps the values and
neither the name nor the number, so that a later change of a preset or of the rule changes no run.

`preset: strong` is a baseline of 2026 (`STRONG`), for every student alike; `plain` is the defaults, the paper's.

`size` 1 to 8 is one dial. The rule, for a size with width w:

- width: 64, 96, 128, 192, 256, 384, 512, 768, from the smallest that learns here to GPT-2's
- blocks: w / 64, at least 6
- heads: of width 32, from 512 on of 64
- batch: 1024 tokens up to width 256, then (w / 256)^2 times as many, in whole windows
- learning rate: RATE * (64 / w)^RATE_EXPONENT
- weight decay: 0.1

512 is the paper's 69M student but for its concepts (8 blocks, 8 heads). results/width says what was measured: the rate
at width 64. Whether it carries to 256 by the rule is what `python -m benchmarks.width` asks.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

STRONG: dict[str, dict[str, Any]] = {
    "model": {"backbone": "qwen3", "init": "width"},
    "train": {"optimizer": "muon", "schedule": "linear", "z_loss": 1e-4},
}
"""Rotary positions, gated MLP and QK-norm; initialisation by width; Muon, a rate that falls to zero, z-loss."""
PRESETS: dict[str, dict[str, dict[str, Any]]] = {"plain": {"model": {}, "train": {}}, "strong": STRONG}

WIDTHS = (64, 96, 128, 192, 256, 384, 512, 768)
"""d_model of size 1, 2, ..."""
RATE, RATE_EXPONENT = 8e-3, 1.0
"""The rate was measured at width 64. The exponent is muP's for matrices, and gives published rates (6e-4 at 768)."""
TOKENS, TOKENS_UNTIL = 1024, 256


class Dial(NamedTuple):
    """What a size sets."""

    width: int
    layers: int
    heads: int
    batch_size: int
    learning_rate: float
    weight_decay: float

    @property
    def shape(self) -> dict[str, int]:
        """The settings of a student's `model`."""
        return {"width": self.width, "layers": self.layers, "heads": self.heads}

    @property
    def train(self) -> dict[str, float]:
        """The settings of `students_train`."""
        names = "batch_size", "learning_rate", "weight_decay"
        return {name: getattr(self, name) for name in names}


def dial(size: int, seq_len: int) -> Dial:
    """The settings of a size at a window of `seq_len` tokens."""
    width = WIDTHS[size - 1]
    return Dial(
        width,
        layers=max(6, width // 64),
        heads=width // (32 if width < 512 else 64),
        batch_size=max(1, round(TOKENS * max(1.0, (width / TOKENS_UNTIL) ** 2) / seq_len)),
        learning_rate=float(f"{RATE * (WIDTHS[0] / width) ** RATE_EXPONENT:.3g}"),
        weight_decay=0.1,
    )


def expanded(raw: dict[str, Any], default_seq_len: int) -> dict[str, Any]:
    """A run's plain settings with the values of its `preset` and `size` in place of these; settings that are there win.

    Raises:
        ValueError: there is no such preset or size.
    """
    preset, size = raw.get("preset"), raw.get("size")
    if preset is None and size is None:
        return raw
    if preset is not None and (not isinstance(preset, str) or preset not in PRESETS):
        raise ValueError(f"there is no preset {preset!r}; choose one of {', '.join(PRESETS)}")
    if size is not None and (isinstance(size, bool) or not isinstance(size, int) or not 1 <= size <= len(WIDTHS)):
        raise ValueError(f"size {size!r} is not on the dial; give a whole number from 1 to {len(WIDTHS)}")
    shape, train = (dict(part) for part in PRESETS[preset or "plain"].values())
    seq_len, students = raw.get("seq_len", default_seq_len), raw.get("students")
    if size is not None and isinstance(seq_len, int) and seq_len > 0:  # another is refused as what it is
        values = dial(size, seq_len)
        shape, train = shape | values.shape, train | values.train
    filled = raw | {"preset": None, "size": None}
    if isinstance(students, Mapping):
        filled["students"] = {name: _with_shape(student, shape) for name, student in students.items()}
    if isinstance(raw.get("students_train"), Mapping):
        filled["students_train"] = train | dict(raw["students_train"])
    return filled


def _with_shape(student: Any, shape: dict[str, Any]) -> Any:
    own = student.get("model") if isinstance(student, Mapping) else None
    if not isinstance(student, Mapping) or not (own is None or isinstance(own, Mapping)):
        return student
    return {**student, "model": shape | dict(own or {})}
