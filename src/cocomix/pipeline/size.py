"""One dial for a student: `size` 1 to 8 sets width, depth, heads, batch, learning rate and weight decay.

The rule, for a size with width w:

- width: 64, 96, 128, 192, 256, 384, 512, 768, from the smallest that learns here to GPT-2's
- blocks: w / 64, at least 6
- heads: of width 32, from 512 on of 64
- batch: 1024 tokens up to width 256, then (w / 256)^2 times as many, in whole windows
- learning rate: 4e-3 * (64 / w)^RATE_EXPONENT
- weight decay: 0.1

512 is the paper's 69M student but for its concepts (8 blocks, 8 heads). results/width says how the exponent was found.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

WIDTHS = (64, 96, 128, 192, 256, 384, 512, 768)
"""d_model of size 1, 2, ..."""
RATE, RATE_EXPONENT = 4e-3, 0.5
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
    """A run's plain settings with the values of its `size` in place of it; settings that are there win.

    Raises:
        ValueError: the size is none of the dial's.
    """
    size = raw.get("size")
    if size is None:
        return raw
    if isinstance(size, bool) or not isinstance(size, int) or not 1 <= size <= len(WIDTHS):
        raise ValueError(f"size {size!r} is not on the dial; give a whole number from 1 to {len(WIDTHS)}")
    seq_len, students, train = raw.get("seq_len", default_seq_len), raw.get("students"), raw.get("students_train")
    if not (isinstance(seq_len, int) and seq_len > 0 and isinstance(students, Mapping)):
        return raw | {"size": None}  # what is wrong there is said by its own section
    values = dial(size, seq_len)
    filled = {name: _with_shape(student, values) for name, student in students.items()}
    train = values.train | (dict(train) if isinstance(train, Mapping) else {})
    return raw | {"size": None, "students": filled, "students_train": train}


def _with_shape(student: Any, values: Dial) -> Any:
    if not isinstance(student, Mapping):
        return student
    own = student.get("model")
    if own is not None and not isinstance(own, Mapping):
        return student
    return {**student, "model": values.shape | dict(own or {})}
