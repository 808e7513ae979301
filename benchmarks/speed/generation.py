"""Cached greedy generation by Transformers' `generate`, of GPT-2 and of ours."""

from collections.abc import Callable

import torch
from transformers import PreTrainedModel

from benchmarks.speed.contestant import Contestant, Lap, Setting
from benchmarks.speed.shapes import Shape
from benchmarks.speed.synthetic import plain_gpt2, student_config
from cocomix.model.modeling_cocomix import CoCoMixForCausalLM

WRITERS: dict[str, Callable[[Shape], PreTrainedModel]] = {
    "gpt2": plain_gpt2,
    "cocomix": lambda shape: CoCoMixForCausalLM(student_config(shape)),
}
"""What generates, by name."""


class Writer:
    """A model that generates, built once for all batch sizes."""

    def __init__(self, name: str, setting: Setting) -> None:
        self.name, self.setting = name, setting
        self._model: PreTrainedModel | None = None

    def model(self) -> PreTrainedModel:
        """The model in evaluation mode."""
        if self._model is None:
            torch.manual_seed(self.setting.seed)
            model = WRITERS[self.name](self.setting.shape)
            self._model = model.to(self.setting.device).eval()  # pyright: ignore[reportArgumentType]
        return self._model


class Generation(Contestant):
    """`new_tokens` after a prompt, in every one of `batch` rows; the prompt's pass counts, too."""

    unit, precision = "token", "fp32"

    def __init__(self, writer: Writer, batch: int) -> None:
        shape = writer.setting.shape
        self.name, self.writer, self.batch = f"{writer.name} x{batch}", writer, batch
        self.units = float(batch * shape.new_tokens)
        generator = torch.Generator().manual_seed(writer.setting.seed)
        self.prompt = torch.randint(shape.vocab, (batch, shape.prompt), generator=generator)

    def prepare(self) -> None:
        self.writer.model()

    def run(self, lap: Lap) -> None:
        setting = self.writer.setting
        new, prompt = setting.shape.new_tokens, self.prompt.to(setting.device)
        written = self.writer.model().generate(  # pyright: ignore[reportCallIssue]
            prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=new,
            min_new_tokens=new,
            do_sample=False,
            use_cache=True,
            pad_token_id=0,
        )
        assert written.shape[1] == prompt.shape[1] + new, "it stopped early, so it did less than it is credited for"
