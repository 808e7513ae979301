"""How well steering works: is a concept found in generated text because its logit was amplified?

The judge is the teacher's SAE, which the student never sees while it generates. Each chosen concept is amplified
alone, from the same prompts and with the same sampling seed as text without steering; its control is text in which
another concept is amplified, so that a mere disturbance does not count. The concepts are chosen before anything is
generated, from validation text alone: neither so rare that nothing can be measured nor so frequent that they say
little. End-of-text is a token like any other here, so all texts have one length.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedModel

from cocomix.concepts import TopKSAE
from cocomix.errors import CocomixError
from cocomix.steer.intervene import Amplify, concept_head, steered
from cocomix.tokens import TokenShards

RAREST, MOST_FREQUENT = 0.002, 0.1
"""Shares of validation positions at which a chosen concept is active."""
WINDOWS, BATCH = 128, 8
"""Validation windows looked at to choose concepts, evenly spread, and how many at a time."""


class Place(NamedTuple):
    """A position of validation text where a concept is active."""

    window: list[int]
    """the window's token ids, `[seq]`"""
    position: int
    """where in it"""
    activation: float
    """the SAE's"""


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
    watch: Callable[[int, int, torch.Tensor, torch.Tensor], None] | None = None,
) -> dict[str, Any]:
    """Presence of concepts in text generated with and without amplifying them.

    Args:
        student: a CoCoMix student in evaluation mode, trained on this SAE's concepts.
        shards: validation text; prompts are the starts of evenly spread windows of `seq_len` tokens.
        layer: the teacher's block (0-based) after which the SAE reads.
        concepts: how many are amplified, one at a time; fewer if validation text has fewer that qualify.
        prompts: texts generated for each, all at once.
        strength: see `Amplify`.
        seed: of the sampling (temperature 1); it does not change which concepts and prompts are used.
        watch: called for each concept with its number, its id, and the unsteered and the amplified texts, int64
            `[prompts, prompt_tokens + new_tokens]`.

    Returns:
        `amplified`, `unsteered` and `control`: mean over the concepts of the share of generated positions at which
        the SAE has the concept active, in text with it amplified, without steering, and with the next of the chosen
        concepts amplified; `perplexity_amplified` and `perplexity_unsteered` of the generated tokens under the
        teacher; `concepts`: these shares for each, with its id as `concept`.

    Raises:
        CocomixError: the student has no such concepts, the shards hold no whole window, or fewer than two concepts
            can be compared.
    """
    n_concepts = concept_head(student).proj.out_features
    if n_concepts != sae.n_latents:
        raise CocomixError(
            f"the student predicts {n_concepts} concepts and the SAE has {sae.n_latents}; score it with the SAE its"
            " labels were made with"
        )
    chosen = choose_concepts(teacher, sae, shards, layer=layer, wanted=concepts, seq_len=seq_len)
    prompt = _windows(shards, prompts, seq_len)[:, :prompt_tokens].to(student.device)
    unsteered = _continued(student, prompt, new_tokens, seed)
    base = _presence(teacher, sae, unsteered[:, prompt_tokens - prompt.shape[1] :], chosen, layer, prompt_tokens)
    base_loss = _mean_loss(teacher, unsteered, prompt_tokens)
    found, losses = [], []
    for number, concept in enumerate(chosen):
        with steered(student, Amplify([concept], strength)):
            amplified = _continued(student, prompt, new_tokens, seed)
        found.append(_presence(teacher, sae, amplified, chosen, layer, prompt_tokens))
        losses.append(_mean_loss(teacher, amplified, prompt_tokens))
        if watch is not None:
            watch(number, concept, unsteered, amplified)
    rows = [
        {
            "concept": concept,
            "amplified": found[i][i],
            "unsteered": base[i],
            "control": found[(i + 1) % len(chosen)][i],
        }
        for i, concept in enumerate(chosen)
    ]
    means = {name: sum(row[name] for row in rows) / len(rows) for name in ("amplified", "unsteered", "control")}
    return means | {
        "perplexity_amplified": _exp(sum(losses) / len(losses)),
        "perplexity_unsteered": _exp(base_loss),
        "concepts": rows,
    }
