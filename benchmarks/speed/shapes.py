"""The shapes (sizes of models and data) that are measured, by name."""

from typing import Any

from pydantic import Field

from cocomix.model.build import ModelShape
from cocomix.utils.settings import Section


class Growth(Section):
    """A small base shape, and the values that each axis takes while the others stay, to measure how time grows.

    Axes are field names of `Shape`; `layers` is both models' depth.
    """

    base: dict[str, Any] = Field(description="fields of a `Shape` that differ from the measured one")
    axes: dict[str, tuple[int, ...]]


class Shape(Section):
    """Sizes of one measurement. The defaults are the 69M shape."""

    name: str
    width: int = Field(default=512, description="student's d_model")
    layers: int = Field(default=8, description="student's blocks")
    heads: int = 8
    concept_layer: int = 3
    vocab: int = 50257
    seq_len: int = Field(default=1024, description="T, tokens a window")
    batch: int = Field(default=2, description="windows a step")
    concepts: int = Field(default=32768, description="C")
    top_k: int = Field(default=32, description="K")
    labels: int = Field(default=4, description="labels a position K_attr")
    teacher: ModelShape = ModelShape(width=768, layers=12, heads=12)
    sae_layer: int = Field(default=5, description="teacher's block (0-based) the autoencoder reads")
    label_windows: int = Field(default=2, description="windows labelled in one run")
    label_batches: tuple[int, ...] = Field(default=(1, 2), description="windows a pass that are tried; best is used")
    prompt: int = Field(default=64, description="tokens generation starts from")
    new_tokens: int = 64
    generate_batches: tuple[int, ...] = (1, 8)
    sae_tokens: int = Field(default=2048, description="hidden states of one autoencoder step")
    matmuls: tuple[int, ...] = Field(default=(2048, 4096), description="sides of square products")
    growth: Growth

    @property
    def tokens(self) -> int:
        """Tokens per training step."""
        return self.batch * self.seq_len

    @property
    def student(self) -> ModelShape:
        """Shape of the student and of the GPT-2 it is compared with."""
        return ModelShape(width=self.width, layers=self.layers, heads=self.heads)

    def at(self, axis: str, value: int) -> "Shape":
        """Return the growth base with one axis changed."""
        base = self.model_copy(update=self.growth.base)
        if axis != "layers":
            return base.model_copy(update={axis: value})
        teacher = base.teacher.model_copy(update={"layers": value})
        halves = {"concept_layer": value // 2, "sae_layer": value // 2 - 1}
        return base.model_copy(update={"layers": value, "teacher": teacher, **halves})


_GROWTH = Growth(
    base={
        "width": 128,
        "layers": 4,
        "heads": 4,
        "concept_layer": 2,
        "vocab": 2048,
        "seq_len": 256,
        "batch": 2,
        "concepts": 4096,
        "top_k": 16,
        "teacher": ModelShape(width=128, layers=4, heads=4),
        "sae_layer": 1,
    },
    axes={
        "seq_len": (128, 256, 512, 1024),
        "concepts": (2048, 4096, 8192),
        "top_k": (8, 16, 32),
        "batch": (1, 2, 4, 8),
        "layers": (2, 4, 8),
    },
)
_TINY_GROWTH = Growth(
    base={"width": 16, "heads": 2, "teacher": ModelShape(width=16, layers=2, heads=2)},
    axes={"seq_len": (8, 16), "concepts": (32, 64), "top_k": (4, 8), "batch": (1, 2), "layers": (2, 4)},
)

SHAPES: dict[str, Shape] = {
    shape.name: shape
    for shape in (
        Shape(name="69m", growth=_GROWTH),
        Shape(name="386m", width=1024, layers=24, heads=16, concept_layer=5, growth=_GROWTH),
        Shape(name="1.38b", width=2048, layers=24, heads=16, concept_layer=5, growth=_GROWTH),
        Shape(
            name="tiny",
            width=16,
            layers=2,
            heads=2,
            concept_layer=1,
            vocab=64,
            seq_len=16,
            concepts=64,
            top_k=8,
            teacher=ModelShape(width=16, layers=2, heads=2),
            sae_layer=0,
            prompt=4,
            new_tokens=4,
            generate_batches=(1, 2),
            sae_tokens=32,
            matmuls=(64,),
            growth=_TINY_GROWTH,
        ),
    )
}
"""The bars apply to `69m`; `tiny` is for quick tests, its figures mean nothing."""
