"""Cached greedy generation with Transformers' `generate`: GPT-2 and CoCoMix."""

from collections.abc import Callable

import torch
from transformers import PreTrainedModel

from benchmarks.speed.shapes import Shape
from benchmarks.speed.synthetic import plain_gpt2, student_config
from benchmarks.speed.workload import Lap, Setting, Workload
from cocomix.model.modeling_cocomix import CoCoMixForCausalLM

GENERATORS: dict[str, Callable[[Shape], PreTrainedModel]] = {
    "gpt2": plain_gpt2,
    "cocomix": lambda shape: CoCoMixForCausalLM(student_config(shape)),
}
"""Builders of the models that generate, by name."""


class GeneratingModel:
    """A model that generates, built at first use and shared by all batch sizes."""

    def __init__(self, name: str, setting: Setting) -> None:
        self.name, self.setting = name, setting
        self._model: PreTrainedModel | None = None

    def load(self) -> PreTrainedModel:
        """Return the model in evaluation mode."""
        if self._model is None:
            torch.manual_seed(self.setting.seed)
            model = GENERATORS[self.name](self.setting.shape)
            self._model = model.to(self.setting.device).eval()  # pyright: ignore[reportArgumentType]
        return self._model


class Generation(Workload):
    """Generate `new_tokens` after a prompt in each of `batch` rows; the prompt's forward pass is included."""

    unit, precision = "token", "fp32"

    def __init__(self, model: GeneratingModel, batch: int) -> None:
        shape = model.setting.shape
        self.name, self.model, self.batch = f"{model.name} x{batch}", model, batch
        self.units = float(batch * shape.new_tokens)
        generator = torch.Generator().manual_seed(model.setting.seed)
        self.prompt = torch.randint(shape.vocab, (batch, shape.prompt), generator=generator)

    def prepare(self) -> None:
        self.model.load()

    def run(self, lap: Lap) -> None:
        setting = self.model.setting
        new, prompt = setting.shape.new_tokens, self.prompt.to(setting.device)
        output = self.model.load().generate(  # pyright: ignore[reportCallIssue]
            prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=new,
            min_new_tokens=new,
            do_sample=False,
            use_cache=True,
            pad_token_id=0,
        )
        assert output.shape[1] == prompt.shape[1] + new, "generation stopped early: throughput would be overstated"
