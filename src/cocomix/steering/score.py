"""How well steering works: is a concept found in generated text because its logit was amplified?

The judge is the teacher's SAE, which the student never sees while it generates. Each chosen concept is amplified
alone, from the same prompts and with the same sampling seed as the text without steering; its control is the text in
which another concept is amplified, so that a mere disturbance does not count. The concepts are chosen before anything
is generated, from validation text alone: neither so rare that nothing can be measured nor so frequent that they say
little. End-of-text is a token like any other here, so all texts have one length.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from transformers import PreTrainedModel

from cocomix.data.shards import TokenShards
from cocomix.evaluation.perplexity import window_subset
from cocomix.model.interventions import Clamp, Setting, concept_head, steered
from cocomix.model.teacher import hidden_at
from cocomix.sae.sae import SparseLatents, TopKSAE
from cocomix.utils.errors import CocomixError

RAREST, MOST_FREQUENT = 0.002, 0.1
"""Shares of validation positions between which a chosen concept is active."""
WINDOWS, BATCH = 128, 8
"""Validation windows in which concepts are looked for, evenly spread, and how many at a time."""


class Trial(NamedTuple):
    """One concept amplified; texts are int64 `[prompts, prompt_tokens + new_tokens]`."""

    number: int
    """its place among the chosen concepts, from 0"""
    total: int
    """how many there are"""
    concept: int
    unsteered: torch.Tensor
    amplified: torch.Tensor


class Activity(NamedTuple):
    """How active concepts are in validation text, float64 `[C]`."""

    share: torch.Tensor
    """of positions at which each is active"""
    strength: torch.Tensor
    """mean of the latent over those positions; 0 where there are none"""


class Place(NamedTuple):
    """Where in validation text a concept is active."""

    window: list[int]
    """token ids, `[seq]`"""
    position: int
    """of the token, from 0"""
    activation: float
    """the SAE's latent"""


@torch.no_grad()
def steering_score(
    student: Any,
    teacher: PreTrainedModel,
    sae: TopKSAE,
    shards: TokenShards,
    *,
    layer: int,
    concepts: int,
    prompts: int,
    prompt_tokens: int,
    new_tokens: int,
    strength: float,
    seed: int,
    seq_len: int,
    watch: Callable[[Trial], None] | None = None,
) -> dict[str, Any]:
    """Presence of concepts in text generated with and without amplifying them.

    Args:
        student: a CoCoMix student in evaluation mode, trained on this SAE's concepts.
        shards: validation text; prompts are the starts of evenly spread windows of `seq_len` tokens.
        layer: the teacher's block (0-based) after which the SAE reads.
        concepts: how many are amplified, one at a time; fewer where fewer qualify.
        prompts: texts generated for each, all at once.
        strength: the concept's logit as a multiple of the position's largest magnitude; see `Clamp`.
        seed: of the sampling (temperature 1); concepts and prompts do not depend on it.
        watch: called after each concept.

    Returns:
        `amplified`, `unsteered` and `control`: the share of generated positions at which the SAE has the concept
        active, with it amplified, without steering, and with the next of the chosen concepts amplified, as means over
        the concepts; `perplexity_amplified` and `perplexity_unsteered` of the generated tokens under the teacher;
        `concepts`: the three shares of each, and its id as `concept`.

    Raises:
        CocomixError: the student does not predict this SAE's concepts, the shards hold no whole window, or fewer than
            two concepts are asked for or qualify.
    """
    n_concepts = concept_head(student).proj.out_features
    if n_concepts != sae.n_latents:
        raise CocomixError(
            f"the student predicts {n_concepts} concepts and the SAE has {sae.n_latents} latents; use the SAE its"
            " labels were made with"
        )
    chosen = choose_concepts(teacher, sae, shards, layer=layer, wanted=concepts, seq_len=seq_len)
    prompt = spread_windows(shards, prompts, seq_len)[:, :prompt_tokens].to(student.device)

    def measured(setting: Setting) -> tuple[torch.Tensor, list[float], float]:
        text = _continued(student, prompt, new_tokens, seed, setting)
        return text, _presence(teacher, sae, text, chosen, layer, prompt_tokens), _loss(teacher, text, prompt_tokens)

    unsteered, base, base_loss = measured({})
    found: list[list[float]] = []
    losses: list[float] = []
    for number, concept in enumerate(chosen):
        text, presence, loss = measured({concept: Clamp(strength)})
        found.append(presence)
        losses.append(loss)
        if watch is not None:
            watch(Trial(number, len(chosen), concept, unsteered, text))
    rows: list[dict[str, Any]] = [
        {
            "concept": concept,
            "amplified": found[i][i],
            "unsteered": base[i],
            "control": found[(i + 1) % len(chosen)][i],
        }
        for i, concept in enumerate(chosen)
    ]
    means = {name: sum(row[name] for row in rows) / len(rows) for name in ("amplified", "unsteered", "control")}
    perplexities = {
        "perplexity_amplified": _exp(sum(losses) / len(losses)),
        "perplexity_unsteered": _exp(base_loss),
    }
    return means | perplexities | {"concepts": rows}


@torch.no_grad()
def choose_concepts(
    teacher: PreTrainedModel, sae: TopKSAE, shards: TokenShards, *, layer: int, wanted: int, seq_len: int
) -> list[int]:
    """Up to `wanted` concepts active in 0.2 % to 10 % of positions, evenly spread over their ranking by frequency.

    Raises:
        CocomixError: fewer than two; one alone would have no control.
    """
    if wanted < 2:
        raise CocomixError("steering needs at least 2 concepts, each is the other's control; raise steering.concepts")
    ranking = ranked_concepts(activity(teacher, sae, shards, layer=layer, seq_len=seq_len))
    if len(ranking) < 2:
        raise CocomixError(
            f"{len(ranking)} of the SAE's {sae.n_latents} concepts are active in {RAREST:.1%} to {MOST_FREQUENT:.0%} of"
            " the validation positions, too few to compare; use an SAE with more latents or fewer dead ones"
        )
    return [ranking[place] for place in window_subset(len(ranking), wanted)]


@torch.no_grad()
def activity(teacher: PreTrainedModel, sae: TopKSAE, shards: TokenShards, *, layer: int, seq_len: int) -> Activity:
    """How often and how strongly each concept is active, on WINDOWS windows spread evenly over the shards.

    Raises:
        CocomixError: the shards hold no whole window.
    """
    counts, positions = torch.zeros(sae.n_latents, dtype=torch.long), 0
    sums = torch.zeros(sae.n_latents, dtype=torch.double)
    for ids, latents in _latents(teacher, sae, shards, layer, seq_len):
        on = latents.values > 0
        active, values = latents.ids[on].cpu(), latents.values[on].double().cpu()
        counts += torch.bincount(active, minlength=sae.n_latents)
        sums += torch.bincount(active, values, minlength=sae.n_latents)
        positions += ids.numel()
    return Activity(counts.double() / positions, sums / counts.clamp_min(1))


def ranked_concepts(found: Activity) -> list[int]:
    """Concepts that are neither rarer than RAREST nor more frequent than MOST_FREQUENT, the most frequent first."""
    share = found.share
    order = share.argsort(descending=True, stable=True).tolist()
    return [concept for concept in order if RAREST <= share[concept] <= MOST_FREQUENT]


@torch.no_grad()
def strongest_places(
    teacher: PreTrainedModel,
    sae: TopKSAE,
    shards: TokenShards,
    concepts: list[int],
    *,
    layer: int,
    seq_len: int,
    wanted: int,
) -> dict[int, list[Place]]:
    """The places of validation text where each concept is most active, strongest first, at most one a window."""
    places: dict[int, list[Place]] = {concept: [] for concept in concepts}
    for ids, latents in _latents(teacher, sae, shards, layer, seq_len):
        for concept, best in places.items():
            activation = (latents.values * (latents.ids == concept)).amax(-1)
            values, positions = activation.max(-1)
            best += [
                Place(window, position, value)
                for window, position, value in zip(ids.tolist(), positions.tolist(), values.tolist(), strict=True)
                if value > 0
            ]
            best.sort(key=lambda place: -place.activation)
            del best[wanted:]
    return places


def _latents(
    teacher: PreTrainedModel, sae: TopKSAE, shards: TokenShards, layer: int, seq_len: int
) -> Iterator[tuple[torch.Tensor, SparseLatents]]:
    """Token ids `[windows, seq]` and their latents, batch by batch, on windows spread evenly over the shards."""
    for ids in spread_windows(shards, WINDOWS, seq_len).split(BATCH):
        yield ids, sae.encode(hidden_at(teacher, ids.to(teacher.device), layer))


def spread_windows(shards: TokenShards, wanted: int, seq_len: int) -> torch.Tensor:
    """Up to `wanted` windows spread evenly over the shards, int64 `[windows, seq_len]`.

    Raises:
        CocomixError: there is no whole window.
    """
    indices = window_subset(shards.n_windows(seq_len), wanted)
    if not len(indices):
        raise CocomixError(
            f"{shards.folder} has fewer tokens than one window of {seq_len}; add text to that split or lower seq_len"
        )
    return torch.from_numpy(shards.windows(indices, seq_len))


def _continued(student: Any, prompt: torch.Tensor, new_tokens: int, seed: int, setting: Setting) -> torch.Tensor:
    """Prompts `[batch, seq]` with `new_tokens` sampled ones; torch's own generators are left as they were."""
    devices = [prompt.device] if prompt.is_cuda else []
    with steered(student, setting), torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        return student.generate(
            input_ids=prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=new_tokens,
            do_sample=True,
            temperature=1.0,
            top_k=0,
            eos_token_id=None,
            pad_token_id=student.config.pad_token_id or 0,
        )


def _presence(
    teacher: PreTrainedModel, sae: TopKSAE, text: torch.Tensor, concepts: list[int], layer: int, prompt_tokens: int
) -> list[float]:
    """Share of the positions after the prompt at which each concept is active."""
    latents = sae.encode(hidden_at(teacher, text.to(teacher.device), layer)[:, prompt_tokens:])
    active = latents.ids[latents.values > 0]
    positions = latents.ids.shape[:-1].numel()
    return [int((active == concept).sum()) / positions for concept in concepts]


def _loss(teacher: PreTrainedModel, text: torch.Tensor, prompt_tokens: int) -> float:
    """The teacher's mean next-token loss of the tokens after the prompt, nats."""
    ids = text.to(teacher.device)
    logits = teacher(input_ids=ids, use_cache=False).logits[:, prompt_tokens - 1 : -1]
    losses = F.cross_entropy(logits.flatten(0, 1).float(), ids[:, prompt_tokens:].flatten(), reduction="none")
    return float(losses.double().mean())


def _exp(loss: float) -> float:
    return math.exp(loss) if loss < 700 else math.inf
