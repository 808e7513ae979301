"""What all methods work with: the models, the concepts, the prompts, and unsteered text of each model.

Sampling uses random numbers that are fixed beforehand: those of a row depend on nothing but the seed, the row's number
and the step. So a row gets the same text alone and in any batch, and steered and unsteered text share their random
numbers. Token i is the one with the least E_i / p_i, where the E are independent standard exponentials: it is drawn
with probability p_i, and a small change of p changes it seldom.
"""

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from cocomix.data.shards import TokenShards
from cocomix.model.teacher import hidden_at
from cocomix.model.text_config import text_shape
from cocomix.sae.sae import TopKSAE
from cocomix.steering.residual import concept_activations
from cocomix.steering.study.concepts import Concept, spread_windows
from cocomix.steering.study.judge import Judge, TextMetrics
from cocomix.steering.study.judging_sae import JudgingSae
from cocomix.utils.errors import CocomixError

PROMPT_TOKENS = 16
CONTRAST_WINDOWS, BATCH = 256, 8
"""Training windows that a contrast of hidden states is taken from, and how many at a time."""


class Noise:
    """The random numbers of `rows` texts over `vocab_size` tokens.

    Args:
        key: what they depend on, e.g. a seed and the number of a sample; no number below 0.
    """

    def __init__(self, key: Sequence[int], rows: int, vocab_size: int) -> None:
        self.key, self.rows, self.vocab_size = tuple(key), rows, vocab_size

    def at(self, step: int) -> torch.Tensor:
        """The E of all rows at a step, float32 `[rows, vocab_size]`."""
        generator = np.random.default_rng((*self.key, step))
        return torch.from_numpy(generator.standard_exponential((self.rows, self.vocab_size), dtype=np.float32))


@torch.no_grad()
def sample_texts(model: Any, prompts: torch.Tensor, new_tokens: int, noise: Noise) -> torch.Tensor:
    """Prompts int64 `[rows, seq]` with `new_tokens` sampled ones at temperature 1, int64 `[rows, seq + new_tokens]`.

    End-of-text is a token like any other, so that all texts have one length.

    Args:
        model: any causal LM in evaluation mode; only the first `noise.vocab_size` tokens are drawn.

    Raises:
        CocomixError: the texts would be longer than the model can take.
    """
    length = prompts.shape[1] + new_tokens
    positions = text_shape(model.config).positions
    if positions is not None and length > positions:
        raise CocomixError(
            f"prompt and continuation make {length} tokens and the model has {positions} positions; lower --tokens by"
            f" {length - positions}"
        )
    parameters = inspect.signature(model.forward).parameters
    cache_name = "cache" if "cache" in parameters else "past_key_values"  # the newer name and the older
    last_only = {"logits_to_keep": 1} if "logits_to_keep" in parameters else {}
    text, cache = prompts.to(model.device), None
    with _contiguous_head(model):
        for step in range(new_tokens):
            ids = text if cache is None else text[:, -1:]
            output = model(input_ids=ids, use_cache=True, **{cache_name: cache}, **last_only)
            cache = getattr(output, cache_name)
            logits = output.logits[:, -1, : noise.vocab_size].float()
            draws = noise.at(step).to(logits.device).clamp_min(torch.finfo(torch.float32).tiny)
            text = torch.cat([text, (logits - draws.log()).argmax(-1, keepdim=True)], 1)
    return text


@contextmanager
def _contiguous_head(model: Any) -> Iterator[None]:
    """Within: the LM head reads a copy of its input.

    Of the last positions of a batch, which are slices, torch would multiply each by a copy of the weight of its own.
    """
    head = model.get_output_embeddings()
    handle = head.register_forward_pre_hook(lambda _module, inputs: (inputs[0].contiguous(), *inputs[1:]))
    try:
        yield
    finally:
        handle.remove()


class Subject:
    """A model that is steered.

    Args:
        model: in evaluation mode.
    """

    def __init__(self, model: PreTrainedModel, context: "StudyContext") -> None:
        self.model, self._context = model, context

    def texts(self, prompts: torch.Tensor, sample: int = 0) -> torch.Tensor:
        """Continuations of `prompts` `[rows, seq]`; those with the same `sample` share their random numbers."""
        return sample_texts(self.model, prompts, self._context.new_tokens, self._context.noise(sample))

    @cached_property
    def unsteered(self) -> torch.Tensor:
        """Its texts without steering, as many rows as with it."""
        return self.texts(self._context.prompt_rows)

    @cached_property
    def unsteered_metrics(self) -> TextMetrics:
        """What the judge finds in these."""
        return self._context.judge.read(self.unsteered)


@dataclass
class StudyContext:
    """What the methods of one student and seed share.

    Args:
        models: gives the model a name stands for: `student`, `teacher` (with the SAE), `baseline` (without concepts),
            `plain` (without concepts, with the teacher's hidden states where the SAE reads), `base` (what a retrofitted
            student was made from, trained alike without a channel).
        sae, layer: the SAE that made the student's labels, and the block (0-based) after which it reads.
        reader: the model that judges fluency.
        prompts: int64 `[prompts, prompt_tokens]`.
        key: what random numbers depend on.
        train: training text, for the directions of `residual_ntp`.
        decode: text of token ids.
        judging_sae: the SAE that judges; None: `sae` itself.
    """

    models: Callable[[str], PreTrainedModel]
    sae: TopKSAE
    layer: int
    reader: PreTrainedModel
    concepts: list[Concept]
    prompts: torch.Tensor
    new_tokens: int
    key: tuple[int, ...]
    train: TokenShards
    seq_len: int
    decode: Callable[[Sequence[int]], str]
    judging_sae: JudgingSae | None = None
    _subjects: dict[str, Subject] = field(default_factory=dict, init=False)

    def subject(self, name: str) -> Subject:
        """The model called `name`, with its unsteered text."""
        if name not in self._subjects:
            model = self.models(name)
            same = (each for each in self._subjects.values() if each.model is model)
            self._subjects[name] = next(same, None) or Subject(model, self)
        return self._subjects[name]

    @cached_property
    def judge(self) -> Judge:
        """Reads all texts."""
        sae, layer, latents = self.judging_sae or (self.sae, self.layer, None)
        prompt_tokens = self.prompts.shape[1]
        return Judge(self.models("teacher"), sae, layer, self.reader, self.concepts, prompt_tokens, latents)

    @property
    def prompt_rows(self) -> torch.Tensor:
        """All prompts for the first concept, then all for the second …, int64 `[concepts * prompts, prompt_tokens]`."""
        return self.prompts.repeat(len(self.concepts), 1)

    @property
    def concept_ids(self) -> torch.Tensor:
        """Numbers of the concepts, int64 `[concepts]`."""
        return torch.tensor([concept.concept for concept in self.concepts])

    def noise(self, sample: int) -> Noise:
        """The random numbers of one sample of all rows."""
        return Noise((*self.key, sample), len(self.concepts) * len(self.prompts), self.train.vocab_size)

    @torch.no_grad()
    def contrast_text(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Training tokens `[batch, seq]`, and where the SAE has each concept active, bool `[batch, seq, concepts]`."""
        teacher: Any = self.models("teacher")
        for ids in spread_windows(self.train, CONTRAST_WINDOWS, self.seq_len).split(BATCH):
            latents = self.sae.encode(hidden_at(teacher, ids.to(teacher.device), self.layer))
            active = concept_activations(latents.values, latents.ids, self.concept_ids.tolist()) > 0
            active[:, : self.train.special.first_position] = False
            yield ids, active
