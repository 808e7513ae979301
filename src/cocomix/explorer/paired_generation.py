"""Two continuations of one prompt, without and with steering, that share their random numbers.

Both are rows of one batch. At each step the next token of a row is argmax(logits / temperature + g), with the same
Gumbel noise g for both rows. That is a sample from the softmax, and it is the same sample for as long as steering makes
no difference. So the texts differ only where steering changed something.

A judge scores each token as it is generated: the teacher, or the unsteered student if the run has no teacher.
End-of-text is a token like any other here.
"""

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch

from cocomix.explorer.schemas import (
    EndEvent,
    GeneratedToken,
    PromptToken,
    StartEvent,
    StreamEvent,
    TextSummary,
    TokenEvent,
)
from cocomix.model.adapters import merge_lora
from cocomix.model.interventions import Setting, Steering, steered
from cocomix.model.teacher import check_layer
from cocomix.sae.sae import TopKSAE
from cocomix.steering.study.judge import distinct
from cocomix.utils.env import fast_precision

ROWS = 2
"""Base and steered."""
LARGE = 50_000_000
"""Weights from which a step's time is that of reading them from memory."""
Lock = AbstractContextManager[Any]
"""A reentrant lock."""


def for_streaming(model: Any) -> Any:
    """The model, or where that makes it faster, a copy of it in bfloat16 with LoRA merged, which only writes text."""
    if fast_precision() != "bf16" or sum(parameter.numel() for parameter in model.parameters()) < LARGE:
        return model
    writer = copy.deepcopy(model)
    merge_lora(writer)
    return writer.to(torch.bfloat16)


class CachedModel:
    """A causal LM with a key-value cache that reads a few tokens at a time, for rows of equal length.

    Args:
        model: in evaluation mode.
        lock: held while it runs.
        steering: of its concepts; None leaves the model alone.
    """

    def __init__(self, model: Any, lock: Lock, steering: Steering | None = None) -> None:
        self.model, self.lock, self._steering = model, lock, steering
        self._past: dict[str, Any] = {}

    @torch.no_grad()
    def next_logits(self, ids: torch.Tensor) -> torch.Tensor:
        """Append `ids` int64 `[rows, new]`; returns the logits of the token after them, float64 `[rows, vocab]`."""
        with self.lock:
            ids = ids.to(self.model.device)
            if self._steering is None:
                output = self._forward(ids)
            else:
                with steered(self.model, self._steering):
                    output = self._forward(ids)
        name = "cache" if "cache" in output else "past_key_values"  # the newer name and the older
        self._past = {name: output[name]}
        return output.logits[:, -1].cpu().double()

    def _forward(self, ids: torch.Tensor) -> Any:
        return self.model(input_ids=ids, use_cache=True, **self._past)


class StreamingJudge:
    """Scores each new token: its loss and, with an SAE, how active the steered concepts are there.

    `cocomix.steering.study.judge.Judge` measures finished texts in groups, each in one pass without a cache. To score
    token t with it, the whole text would be read again: t tokens a step instead of one, for base and steered text. It
    also needs an SAE, a second language model and each concept's words, returns means over texts instead of figures of
    a token, and does not hold the lock under which the explorer shares models between threads. So the stream has a
    judge of its own; only distinct-n is shared.

    Args:
        name: shown to the user.
        model: with a cache that nothing else uses.
        concepts: whose activations are returned; ignored without an SAE.
        sae: autoencoder of the model's residual stream after block `layer` (0-based).
    """

    def __init__(
        self, name: str, model: CachedModel, concepts: Sequence[int], sae: TopKSAE | None = None, layer: int = 0
    ) -> None:
        self.name, self._model, self._sae, self._layer = name, model, sae, layer
        self.concepts = [] if sae is None else list(concepts)
        self._logits: torch.Tensor | None = None

    def score(self, ids: torch.Tensor) -> tuple[list[float | None], list[dict[int, float]]]:
        """Append `ids` int64 `[rows, new]`; returns loss and activations of the last token of each row.

        The loss is None for the first token of a text, and where more than one token is appended.
        """
        if ids.shape[1] > 1 or self._logits is None:
            losses: list[float | None] = [None] * len(ids)
        else:
            losses = (-self._logits.log_softmax(-1).gather(-1, ids)[:, 0]).tolist()
        if self._sae is None:
            self._logits = self._model.next_logits(ids)
            return losses, [{} for _ in ids]
        with self._model.lock:
            hidden: list[torch.Tensor] = []

            def keep(_block: Any, _inputs: Any, output: Any) -> None:
                hidden.append(output[0] if isinstance(output, tuple) else output)

            hook = check_layer(self._model.model, self._layer).register_forward_hook(keep)
            try:
                self._logits = self._model.next_logits(ids)
            finally:
                hook.remove()
        return losses, self._activations(self._sae, hidden[0][:, -1])

    @torch.no_grad()
    def _activations(self, sae: TopKSAE, hidden: torch.Tensor) -> list[dict[int, float]]:
        latents = sae.encode(hidden)
        concepts = torch.tensor(self.concepts, dtype=torch.long, device=hidden.device)
        activations = (latents.values.unsqueeze(-1) * (latents.ids.unsqueeze(-1) == concepts)).sum(1)
        return [dict(zip(self.concepts, row, strict=True)) for row in activations.tolist()]


def generate_pair(
    student: Any,
    lock: Lock,
    judge: StreamingJudge,
    prompt: Sequence[int],
    setting: Setting,
    decode: Callable[[Sequence[int]], str],
    token_bytes: Sequence[int] = (),
    *,
    tokens: int,
    temperature: float,
    seed: int,
    clock: Callable[[], float],
) -> Iterator[StreamEvent]:
    """Generate both continuations token by token; closing the iterator stops them.

    Args:
        student: a model that predicts concepts and mixes them in, in evaluation mode.
        lock: held while it runs; free between tokens.
        prompt: at least one token; with `tokens` more it must fit the student.
        decode: text of token ids.
        token_bytes: bytes of each token of the vocabulary; none: no bits per byte.
        tokens: number of new tokens.
        temperature: of the sampling; 0 is greedy.
        seed: of the noise.
        clock: seconds.
    """
    began = clock()
    model = CachedModel(student, lock, [{}, setting])
    noise = torch.Generator().manual_seed(seed)
    ids = torch.tensor([list(prompt)] * ROWS)
    prompt_tokens = [PromptToken(id=token, token=decode([token])) for token in prompt]
    yield StartEvent(prompt=prompt_tokens, judge=judge.name, concepts=list(setting))
    judge.score(ids)
    texts = tuple(_GeneratedText(judge.concepts, token_bytes) for _ in range(ROWS))
    for index in range(tokens):
        ids = sample(model.next_logits(ids), temperature, noise)
        losses, activations = judge.score(ids)
        base, turned = (
            text.add(GeneratedToken(id=token, token=decode([token]), loss=loss, concepts=active))
            for text, token, loss, active in zip(texts, ids[:, 0].tolist(), losses, activations, strict=True)
        )
        yield TokenEvent(index=index, base=base, steered=turned, same=base.id == turned.id)
    base_summary, steered_summary = (text.summary() for text in texts)
    yield EndEvent(base=base_summary, steered=steered_summary, milliseconds=1000 * (clock() - began), tokens=tokens)


def sample(logits: torch.Tensor, temperature: float, noise: torch.Generator) -> torch.Tensor:
    """A next token for each row of `logits` `[rows, vocab]`, from the same noise, int64 `[rows, 1]`."""
    uniform = torch.rand(logits.shape[-1], dtype=torch.float64, generator=noise)
    if temperature > 0:
        tiny = torch.finfo(torch.float64).tiny
        gumbel = -(-uniform.clamp_min(tiny).log()).log()
        logits = (logits - logits.amax(-1, keepdim=True)) / temperature + gumbel
    return logits.argmax(-1, keepdim=True)


class _GeneratedText:
    """Running sums over one of the texts."""

    def __init__(self, concepts: Sequence[int], token_bytes: Sequence[int] = ()) -> None:
        self._token_bytes, self._bytes = token_bytes, 0
        self._ids: list[int] = []
        self._losses: list[float] = []
        self._present = dict.fromkeys(concepts, 0)

    def add(self, token: GeneratedToken) -> GeneratedToken:
        """Count a token; returns it."""
        self._ids.append(token.id)
        if token.loss is not None:
            self._losses.append(token.loss)
            self._bytes += self._token_bytes[token.id] if self._token_bytes else 0
        for concept, activation in token.concepts.items():
            self._present[concept] += activation > 0
        return token

    def summary(self) -> TextSummary:
        """Figures of all tokens so far."""
        loss = sum(self._losses) / len(self._losses) if self._losses else math.inf
        return TextSummary(
            perplexity=math.exp(loss) if loss < 700 else None,
            bits_per_byte=sum(self._losses) / (math.log(2) * self._bytes) if self._bytes else None,
            presence={concept: count / len(self._ids) for concept, count in self._present.items()},
            distinct=float(distinct(torch.tensor([self._ids]), 2)) if len(self._ids) > 1 else None,
        )
