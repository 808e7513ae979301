"""Two continuations of one prompt, without steering and with it, from the same random numbers.

Both are rows of one batch. At each step the next token of a row is argmax(logits / temperature + g), with the same
Gumbel noise g for both: a draw from the softmax, and the same draw for as long as steering makes no difference. So
what differs between the texts is what steering did. A judge reads along: the teacher, or the student itself where
there is none. End-of-text is a token like any other here.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any, Literal

import torch
from pydantic import BaseModel, Field

from cocomix.model.interventions import Setting, Steering, steered
from cocomix.model.teacher import check_layer
from cocomix.sae.sae import TopKSAE

ROWS = 2
"""Base and steered."""
Lock = AbstractContextManager[Any]
"""One that a thread may take again while it has it."""


class PromptToken(BaseModel):
    """A token of the prompt."""

    id: int
    token: str


class Written(BaseModel):
    """A generated token of one of the two."""

    id: int
    token: str
    loss: float | None = Field(description="under the judge, nats")
    concepts: dict[int, float] = Field(description="activation there of each steered concept, by the judge's SAE")


class Start(BaseModel):
    """What comes first."""

    event: Literal["start"] = "start"
    prompt: list[PromptToken]
    judge: str
    concepts: list[int] = Field(description="those that are steered")


class Step(BaseModel):
    """One token further."""

    event: Literal["token"] = "token"
    at: int
    base: Written
    steered: Written
    same: bool = Field(description="whether it is the same token")


class Total(BaseModel):
    """One of the two texts, the prompt aside."""

    perplexity: float | None = Field(description="exp of the mean loss under the judge")
    presence: dict[int, float] = Field(description="share of tokens at which the judge's SAE has each steered concept")
    distinct: float | None = Field(description="distinct-2: different pairs of neighbours over pairs")


class End(BaseModel):
    """What comes last."""

    event: Literal["end"] = "end"
    base: Total
    steered: Total
    milliseconds: float
    tokens: int


class CachedReader:
    """A causal LM that reads rows of one length with a cache, some tokens at a time.

    Args:
        model: in evaluation mode.
        lock: held while it runs.
        steering: of its concepts; None: it is left alone.
    """

    def __init__(self, model: Any, lock: Lock, steering: Steering | None = None) -> None:
        self.model, self.lock, self._steering = model, lock, steering
        self._past: dict[str, Any] = {}

    @torch.no_grad()
    def read(self, ids: torch.Tensor) -> torch.Tensor:
        """Next-token logits `[rows, vocab]` after `ids` int64 `[rows, new]`, in float64."""
        with self.lock:
            ids = ids.to(self.model.device)
            if self._steering is None:
                output = self._pass(ids)
            else:
                with steered(self.model, self._steering):
                    output = self._pass(ids)
        name = "cache" if "cache" in output else "past_key_values"  # the newer name and the older
        self._past = {name: output[name]}
        return output.logits[:, -1].double().cpu()

    def _pass(self, ids: torch.Tensor) -> Any:
        return self.model(input_ids=ids, use_cache=True, **self._past)


class Judge:
    """Says of each token how likely it was and, with an autoencoder, which concepts it carries.

    Args:
        name: as people read it.
        reader: one of its own.
        sae: autoencoder of its residual stream after block `layer` (0-based).
        concepts: whose activations are wanted; none without an autoencoder.
    """

    def __init__(
        self, name: str, reader: CachedReader, concepts: Sequence[int], sae: TopKSAE | None = None, layer: int = 0
    ) -> None:
        self.name, self._reader, self._sae, self._layer = name, reader, sae, layer
        self.concepts = [] if sae is None else list(concepts)
        self._logits: torch.Tensor | None = None

    def read(self, ids: torch.Tensor) -> tuple[list[float | None], list[dict[int, float]]]:
        """Loss and activations of the last of `ids` int64 `[rows, new]`, for each row; no loss of a first token."""
        if ids.shape[1] > 1 or self._logits is None:
            losses: list[float | None] = [None] * len(ids)
        else:
            losses = (-self._logits.log_softmax(-1).gather(-1, ids)[:, 0]).tolist()
        if self._sae is None:
            self._logits = self._reader.read(ids)
            return losses, [{} for _ in ids]
        with self._reader.lock:
            hidden: list[torch.Tensor] = []

            def keep(_block: Any, _inputs: Any, output: Any) -> None:
                hidden.append(output[0] if isinstance(output, tuple) else output)

            catch = check_layer(self._reader.model, self._layer).register_forward_hook(keep)
            try:
                self._logits = self._reader.read(ids)
            finally:
                catch.remove()
        return losses, self._activations(self._sae, hidden[0][:, -1])

    @torch.no_grad()
    def _activations(self, sae: TopKSAE, hidden: torch.Tensor) -> list[dict[int, float]]:
        latents = sae.encode(hidden)
        wanted = torch.tensor(self.concepts, dtype=torch.long, device=hidden.device)
        found = (latents.values.unsqueeze(-1) * (latents.ids.unsqueeze(-1) == wanted)).sum(1)
        return [dict(zip(self.concepts, row, strict=True)) for row in found.tolist()]


def duet(
    student: Any,
    lock: Lock,
    judge: Judge,
    prompt: Sequence[int],
    setting: Setting,
    decode: Callable[[Sequence[int]], str],
    *,
    tokens: int,
    temperature: float,
    seed: int,
    clock: Callable[[], float],
) -> Iterator[Start | Step | End]:
    """Both continuations, token by token; closing the iterator stops them.

    Args:
        student: a model that predicts concepts and mixes them in, in evaluation mode.
        lock: held while it runs; free between tokens.
        prompt: at least one token; with `tokens` more it must fit the student.
        tokens: how many are added.
        temperature: of the sampling; 0 is greedy.
        seed: of the noise.
        clock: seconds.
    """
    began = clock()
    reader = CachedReader(student, lock, [{}, setting])
    noise = torch.Generator().manual_seed(seed)
    ids = torch.tensor([list(prompt)] * ROWS)
    concepts = list(setting)
    yield Start(prompt=[PromptToken(id=i, token=decode([i])) for i in prompt], judge=judge.name, concepts=concepts)
    judge.read(ids)
    scores: tuple[_Score, ...] = tuple(_Score(judge.concepts) for _ in range(ROWS))
    for at in range(tokens):
        ids = draw(reader.read(ids), temperature, noise)
        losses, active = judge.read(ids)
        written = [
            score.add(Written(id=one, token=decode([one]), loss=loss, concepts=found))
            for score, one, loss, found in zip(scores, ids[:, 0].tolist(), losses, active, strict=True)
        ]
        yield Step(at=at, base=written[0], steered=written[1], same=written[0].id == written[1].id)
    base, turned = (score.total() for score in scores)
    yield End(base=base, steered=turned, milliseconds=1000 * (clock() - began), tokens=tokens)


def draw(logits: torch.Tensor, temperature: float, noise: torch.Generator) -> torch.Tensor:
    """A next token for each row of `logits` `[rows, vocab]`, by the same noise, int64 `[rows, 1]`."""
    uniform = torch.rand(logits.shape[-1], dtype=torch.float64, generator=noise)
    if temperature > 0:
        tiny = torch.finfo(torch.float64).tiny
        gumbel = -(-uniform.clamp_min(tiny).log()).log()
        logits = (logits - logits.amax(-1, keepdim=True)) / temperature + gumbel
    return logits.argmax(-1, keepdim=True)


class _Score:
    """Sums over one of the texts."""

    def __init__(self, concepts: Sequence[int]) -> None:
        self._ids: list[int] = []
        self._losses: list[float] = []
        self._present = dict.fromkeys(concepts, 0)

    def add(self, written: Written) -> Written:
        """Take in a token; returns it."""
        self._ids.append(written.id)
        self._losses += [] if written.loss is None else [written.loss]
        for concept, activation in written.concepts.items():
            self._present[concept] += activation > 0
        return written

    def total(self) -> Total:
        """Of what was taken in."""
        loss = sum(self._losses) / len(self._losses) if self._losses else math.inf
        pairs = list(zip(self._ids, self._ids[1:], strict=False))
        return Total(
            perplexity=math.exp(loss) if loss < 700 else None,
            presence={concept: count / len(self._ids) for concept, count in self._present.items()},
            distinct=len(set(pairs)) / len(pairs) if pairs else None,
        )
